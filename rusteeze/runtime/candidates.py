"""Which tokens may be drawn, and with which weights: temperature, top-k, top-p and min-p, in this order.

A row has tens of thousands of values, and few of them matter: wherever possible a pass over the row picks
those above a floor, and the rest of the work is done on them alone.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from rusteeze.runtime.params import SamplingParams

# Rows are searched and summed in blocks of so many values; small blocks cost time, large ones find less.
_BLOCK = 512
_SMALL_BLOCK = 64
_FIRST_FLOOR, _FLOOR_STEP = 1 / 64, 1 / 32
# Logits below the floor of min-p by less than this are looked at again once they are weights.
_SLACK = 1e-3

Candidates = tuple[np.ndarray | None, np.ndarray]
"""Token ids, ascending (None: all), and their unnormalised probabilities."""


def candidates(
    logits: np.ndarray, params: SamplingParams, scratch: np.ndarray
) -> Candidates:  # fmt: skip
    """What may be drawn of f32[V] at a temperature above 0; the largest weight is 1.

    ``scratch`` f32[V], which may be ``logits`` itself, is overwritten.
    """
    ids: np.ndarray | None = None
    if 0 < params.top_k < len(logits):
        ids = top_k(logits, params.top_k)
        logits = logits[ids]
    elif params.top_p >= 1 and params.min_p > 0:
        ids = _above(logits, params.min_p, params.temperature)
        logits = logits[ids]
    kept = weights(logits, params.temperature, scratch[: len(logits)])
    if params.top_p < 1:
        picked, kept = _nucleus(kept, params.top_p)
        ids = picked if ids is None else ids[picked]
    if params.min_p > 0:
        picked = np.flatnonzero(kept >= params.min_p)
        ids, kept = (picked if ids is None else ids[picked]), kept[picked]
    return ids, kept


def weights(logits: np.ndarray, temperature: float, out: np.ndarray) -> np.ndarray:
    """exp((logits - max) / temperature), in ``out``, which may be ``logits`` itself."""
    # The maximum is taken off first, so that a tiny temperature overflows to -inf and not to NaN.
    np.subtract(logits, logits.max(), out=out)
    if temperature != 1:
        with np.errstate(over="ignore"):
            np.divide(out, np.float32(temperature), out=out)
    np.exp(out, out=out)
    return out


def draw(weights: np.ndarray, uniform: float) -> int:
    """The index at which the running sum of the weights passes ``uniform`` of their total."""
    shares = np.cumsum(_sums(weights), dtype=np.float64)
    return _passing(weights, shares, uniform * shares[-1], "right")


def top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest, ascending; of equal ones the first.

    The k-th largest of the blocks' maxima is no larger than the k-th largest value, so only what
    reaches it has to be partitioned.
    """
    for size in (_BLOCK, _SMALL_BLOCK):
        if k * size <= len(logits):
            maxima = np.maximum.reduceat(logits, np.arange(0, len(logits), size))
            ids = np.flatnonzero(logits >= _kth_largest(maxima, k))
            found = logits[ids]
            kept: np.ndarray = ids[_largest(found, _kth_largest(found, k), k)]
            return kept
    return _largest(logits, _kth_largest(logits, k), k)


def _nucleus(weights: np.ndarray, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices, ascending, of the fewest largest weights whose share is at least ``top_p``, and these.

    Only weights above a floor are sorted. It is lowered until there is enough above it, which is so
    at ``lowest`` if not before: weights below (1 - top_p) / n of the total add up to less than
    1 - top_p of it.
    """
    total = float(_sums(weights).sum(dtype=np.float64))
    lowest, floor = (1 - top_p) * total / len(weights), _FIRST_FLOOR
    ids = np.flatnonzero(weights >= floor)
    found = weights[ids]
    while floor > lowest and found.sum(dtype=np.float64) < top_p * total:
        floor *= _FLOOR_STEP
        ids = np.flatnonzero(weights >= floor)
        found = weights[ids]
    ordered = np.ascontiguousarray(np.sort(found)[::-1])
    shares = np.cumsum(_sums(ordered), dtype=np.float64)
    size = 1 + _passing(ordered, shares, min(top_p * total, shares[-1]), "left")
    kept = _largest(found, ordered[size - 1], size)
    return ids[kept], found[kept]


def _passing(
    weights: np.ndarray, shares: np.ndarray, target: float, side: Literal["left", "right"]
) -> int:
    """The index at which the running sum of the weights reaches ("left") or passes ("right") a target;
    ``shares`` is that sum at the end of each block."""
    block = min(int(shares.searchsorted(target, side)), len(shares) - 1)
    start = block * _BLOCK
    inside = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    below = shares[block - 1] if block else 0.0
    index = int(inside.searchsorted(target - below, side))
    if index == len(inside):  # rounding: the two sums of this block differ in the last bits
        index = int(np.flatnonzero(weights[start : start + _BLOCK])[-1])
    return start + index


def _above(logits: np.ndarray, min_p: float, temperature: float) -> np.ndarray:
    """Indices of all whose weight may be ``min_p`` or more, and of few others."""
    largest = float(logits.max())
    floor = largest + temperature * (math.log(min_p) - _SLACK)
    return np.flatnonzero(logits >= min(floor, largest))


def _sums(weights: np.ndarray) -> np.ndarray:
    """f32, of each block: exact enough, and not converted value by value. The total of the sums takes
    double precision."""
    sums: np.ndarray = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK))
    return sums


def _kth_largest(values: np.ndarray, k: int) -> float:
    return float(np.partition(values, len(values) - k)[len(values) - k])


def _largest(values: np.ndarray, bound: float, size: int) -> np.ndarray:
    """Indices of the ``size`` largest, of which ``bound`` is the smallest; the first ties stay."""
    kept = np.flatnonzero(values >= bound)
    surplus = len(kept) - size
    if surplus > 0:
        tied = np.flatnonzero(values[kept] == bound)
        kept = np.delete(kept, tied[-surplus:])
    return kept
