"""Which stored matrices make up a parameter, so that what is done to its rows can be written back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rusteeze.frontend.conversion import Conversion
from rusteeze.frontend.join_weights import moves_rows


@dataclass(frozen=True)
class StoredPart:
    """``name`` holds these rows of the parameter, or of that expert of a stack."""

    name: str
    rows: slice
    expert: int | None = None


def stored_parts(
    conversion: Conversion, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[StoredPart, ...] | None:
    """The parts of a parameter in the order of their rows; None if they are no rows of it. ``shapes`` are
    those of stored weights."""
    if conversion.converter is None:
        (name,) = conversion.tensors
        return (StoredPart(name, slice(0, shapes[name][0])),) if shapes[name] else None
    if not moves_rows(conversion.converter):
        return None
    parts: list[StoredPart] = []
    start = 0
    for pattern in conversion.converter.source_patterns:
        names = [name for name, found in conversion.sources if found == pattern]
        if not names:
            continue
        stop = start + shapes[names[0]][0]
        parts += [StoredPart(name, slice(start, stop), expert) for expert, name in enumerate(names)]
        start = stop
    return tuple(parts)
