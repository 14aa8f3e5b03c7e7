"""Options of a compilation as one frozen value, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from rusteeze.errors import UserError

TARGETS = ("cpu",)
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
    ``kv_dtype``, the element type of the cache, it follows the activations.
    """

    target: str = "cpu"
    dtype: str = "auto"
    activations: str = "auto"
    kv_dtype: str = "auto"
    max_model_len: int | None = None
    jobs: int | None = field(default=None, metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        _one_of("target", self.target, TARGETS)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("activations", self.activations, ACTIVATIONS)
        _one_of("kv_dtype", self.kv_dtype, KV_DTYPES)
        _positive("max_model_len", self.max_model_len)
        _positive("jobs", self.jobs)

    def key_fields(self) -> dict[str, str | int | None]:
        """The fields that decide what is made, by name."""
        chosen = [f.name for f in fields(self) if f.metadata.get("in_key", True)]
        return {name: getattr(self, name) for name in chosen}


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def _positive(name: str, value: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} is {value!r}; it must be a positive whole number")
