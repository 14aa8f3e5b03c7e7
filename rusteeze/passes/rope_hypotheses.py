"""Guesses what a piece of arithmetic over cos and sin tables does, by running it.

Models spell rotary embeddings in at least seven ways. Instead of knowing them, we run the piece on drawn
data and look for the parameters with which ``rope`` gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from rusteeze.ir.graph import Value
from rusteeze.ir.ops.attention import STYLES, rope
from rusteeze.ir.probe import SIZES, TOLERANCE, Probe, concrete_shape, difference, draw
from rusteeze.ir.types import TOKENS

Array = np.ndarray
LAYOUTS = ("halves", "pairs", "angles")


@dataclass(frozen=True)
class Rotation:
    """A recognised rotation. ``layout`` says how a table holds one number per rotated pair: twice side
    by side ("halves"), twice in a row ("pairs") or once ("angles"). ``swapped``: sin came first."""

    style: str
    width: int
    at_end: bool
    layout: str
    swapped: bool


def layouts_of(table: Array) -> tuple[str, ...]:
    """The layouts that the contents of a table [positions, W] permit."""
    width = table.shape[-1]
    if width % 2:
        return ("angles",)
    found = []
    if np.array_equal(table[:, : width // 2], table[:, width // 2 :]):
        found.append("halves")
    if np.array_equal(table[:, 0::2], table[:, 1::2]):
        found.append("pairs")
    return (*found, "angles")


def recognise(
    result: Value, x: Value, lookups: tuple[Value, Value], layouts: tuple[str, ...]
) -> Rotation | None:
    """The rotation that computes ``result`` f32[T,H,D] from ``x``, which has as many elements, and from
    two table rows f32[T,W]. None when there is none."""
    rng = np.random.default_rng(0)
    data = draw(result.type, rng)
    flat = data.reshape(concrete_shape(x.type))
    for layout in layouts:
        angles = [_draw_angles(v, layout, rng) for v in lookups]
        rows = {v: _spread(a, layout) for v, a in zip(lookups, angles, strict=True)}
        wanted = _run(result, {x: flat, **rows})
        if wanted is None:
            continue
        for guess in _guesses(data.shape[-1], 2 * angles[0].shape[-1], layout):
            cos, sin = reversed(angles) if guess.swapped else angles
            got = rope(data, cos, sin, guess.style, guess.width, guess.at_end)
            if difference(got, wanted) <= TOLERANCE:
                return guess
    return None


def _draw_angles(lookup: Value, layout: str, rng: np.random.Generator) -> Array:
    width = lookup.type.shape[-1]
    assert isinstance(width, int)
    columns = width if layout == "angles" else width // 2
    return rng.standard_normal((SIZES[TOKENS], columns)).astype(np.float32)


def _spread(angles: Array, layout: str) -> Array:
    match layout:
        case "halves":
            return np.concatenate([angles, angles], -1)
        case "pairs":
            return np.repeat(angles, 2, -1)
    return angles


def _run(result: Value, bound: Mapping[Value, Array]) -> Array | None:
    try:
        return Probe(bound).value(result)
    except (TypeError, ValueError, IndexError):
        return None  # the piece does not take data of this form


def _guesses(head_width: int, width: int, layout: str) -> Iterator[Rotation]:
    if width > head_width:
        return
    for at_end in (False, True)[: 1 + (width < head_width)]:
        for style in STYLES:
            for swapped in (False, True):
                yield Rotation(style, width, at_end, layout, swapped)
