"""Options of a compilation as one frozen value, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from rusteeze.errors import UserError

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90")
TARGETS = "cpu, cuda:sm_80, cuda:sm_89, cuda:sm_90, or several by comma (cpu,cuda:sm_80,sm_90)"
DTYPES = ("auto", "f32", "bf16", "f16")
ACTIVATIONS = ("auto", "f32", "bf16", "int8")
KV_DTYPES = ("auto", "f32", "bf16", "int8")

# Marks a field that changes how the compiler works but not what it makes: it stays out of the key.
NOT_IN_KEY = {"in_key": False}


@dataclass(frozen=True)
class CompileOptions:
    """What a compilation should make. UserError when a field is out of range.

    ``max_model_len`` is the longest sequence in tokens (None: the model's own limit), ``jobs`` the
    number of parallel compiler processes (None: one per core). ``auto`` follows the checkpoint; for
    ``kv_dtype``, the element type of the cache, it follows the activations. ``target``: TARGETS.
    """

    target: str = "cpu"
    dtype: str = "auto"
    activations: str = "auto"
    kv_dtype: str = "auto"
    max_model_len: int | None = None
    jobs: int | None = field(default=None, metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        cuda = self.architectures
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("activations", self.activations, ACTIVATIONS)
        _one_of("kv_dtype", self.kv_dtype, KV_DTYPES)
        for name in ("activations", "kv_dtype"):
            if cuda and getattr(self, name) == "int8":
                raise UserError(f"{name} is 'int8'; GPU kernels have f32 and bf16, or auto")
        _positive("max_model_len", self.max_model_len)
        _positive("jobs", self.jobs)

    @property
    def cpu(self) -> bool:
        """Whether kernels for processors are wanted."""
        return "cpu" in _targets(self.target)

    @property
    def architectures(self) -> tuple[str, ...]:
        """NVIDIA architectures that kernels are wanted for, such as "sm_90"."""
        return tuple(t for t in _targets(self.target) if t != "cpu")

    def key_fields(self) -> dict[str, str | int | None]:
        """The fields that decide what is made, by name."""
        chosen = [f.name for f in fields(self) if f.metadata.get("in_key", True)]
        return {name: getattr(self, name) for name in chosen}


def _targets(text: str) -> list[str]:
    """"cpu" and architectures, in order. After a ``cuda:`` the next architectures may go without it."""
    found: list[str] = []
    for part in text.split(","):
        name = part.removeprefix("cuda:")
        may_be_short = any(t != "cpu" for t in found)
        known = part == "cpu" or (name in ARCHITECTURES and (part != name or may_be_short))
        if not known or name in found:
            raise UserError(f"target is {text!r}; it must be {TARGETS}")
        found.append(name)
    return found


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def _positive(name: str, value: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} is {value!r}; it must be a positive whole number")
