"""What a quantisation should make, as one frozen value, checked when it is made."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rusteeze.errors import UserError

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class QuantizeOptions:
    """UserError when a field is out of range, or fields contradict each other.

    ``symmetric`` weights have the middle code as their zero point. ``target_bits`` replaces ``bits`` by a
    mean over all weights. ``tokens`` of the text are read, in windows of ``window``. ``act_order`` None: gptq
    takes the columns first that matter most."""

    method: str = "rtn"
    format: str = "compressed-tensors"
    bits: int = 4
    group: int = 128
    symmetric: bool = False
    act_order: bool | None = None
    target_bits: float | None = None
    tokens: int = 32768
    window: int = 512

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UserError(f"{self.bits} bits: choose one of {', '.join(map(str, BITS))}")
        if self.group < 16 or self.group % 16:
            raise UserError(f"group {self.group}: choose a multiple of 16, such as 128, 64 or 32")
        if self.tokens < self.window or self.window < 2:
            raise UserError(f"{self.tokens} tokens make no window of {self.window}")
        self._check_target()
        self._check_format()

    def _check_target(self) -> None:
        if self.target_bits is None:
            return
        if not BITS[0] <= self.target_bits <= BITS[-1]:
            raise UserError(f"target bits {self.target_bits:g}: choose a mean between {BITS[0]} and {BITS[-1]}")
        if self.method == "fp8" or self.format not in ("gptq", "compressed-tensors"):
            raise UserError("--target-bits mixes integers of several widths: gptq and compressed-tensors hold them")

    def _check_format(self) -> None:
        if (self.method == "fp8") and self.format != "compressed-tensors":
            raise UserError(f"{self.format} holds no float8; use --format compressed-tensors")
        if self.format == "awq" and (self.bits != 4 or self.symmetric):
            raise UserError("awq holds asymmetric weights of 4 bits; use --format gptq or compressed-tensors")
        if self.format == "gguf" and (self.group != 32 or self.bits not in (4, 8) or not self.symmetric):
            raise UserError("gguf holds blocks Q4_0 and Q8_0; use --sym --group 32 and --bits 4 or 8")
        if self.format == "gguf" and self.method == "awq":
            raise UserError("awq changes norms, which are copied into a GGUF file; use --method gptq or rtn")
        if self.act_order and self.method != "gptq":
            raise UserError(f"--act-order is a matter of gptq; {self.method} does not know it")

    @property
    def orders_columns(self) -> bool:
        """Whether columns are rounded in act-order."""
        return self.method == "gptq" and self.act_order is not False

    @property
    def facts(self) -> dict[str, object]:
        """All fields, for a key."""
        return asdict(self)
