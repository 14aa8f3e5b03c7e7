"""From logits to the next token of each request.

What a request gets depends on its own row, its parameters, its seed and the number of tokens it has
produced, never on the other rows or on preemption. Greedy rows without edits are one argmax each (ties
go to the lowest id). Other rows: bias and penalties, then temperature, top-k, top-p, min-p, then one
uniform number drawn from a counter-based generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rusteeze.runtime.params import SamplingParams
from rusteeze.runtime.token_counts import TokenCounts

_NOT_FINITE = "the model's logits for this token are not finite"
_BLOCK = 512  # rows are searched in blocks of this many values; only speed depends on it


class SamplingError(ValueError):
    """A row of logits from which no token can be chosen. The message is fit for the client."""


@dataclass(frozen=True)
class Logprobs:
    """Log-probability of the chosen token, and the likeliest tokens with theirs, best first."""

    chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Sample:
    """One chosen token."""

    token_id: int
    logprobs: Logprobs | None = None


class RequestSampler:
    """The sampling state of one request. ``seed`` is used when the parameters do not give one."""

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], eos_token_ids: Iterable[int], seed: int
    ) -> None:  # fmt: skip
        self.params = params
        self.num_sampled = 0
        self._seed = (seed if params.seed is None else params.seed) % 2**64
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        ends = () if params.ignore_eos else eos_token_ids
        self._end_ids = np.array(sorted({*ends, *params.stop_token_ids}), np.int64)
        self._counts = TokenCounts(prompt_ids) if _has_penalties(params) else None

    @property
    def is_argmax(self) -> bool:
        """The next token is the argmax of the row as it is, and nothing else is asked for."""
        return (
            self.params.temperature == 0
            and self.params.logprobs is None
            and self._counts is None
            and not len(self._bias_ids)
            and not self._masks_ends
        )

    def sample(self, row: np.ndarray) -> Sample:
        """A token for logits f32[V], none of them NaN, which are not changed.

        SamplingError when the parameters leave nothing to choose from.
        """
        token = self._choose(self._edit(row))
        num_top = self.params.logprobs
        return Sample(token, None if num_top is None else token_logprobs(row, token, num_top))

    def accept(self, token_id: int) -> None:
        """The token is part of the output now."""
        self.num_sampled += 1
        if self._counts is not None:
            self._counts.add(token_id)

    @property
    def _masks_ends(self) -> bool:
        return self.num_sampled < self.params.min_tokens and len(self._end_ids) > 0

    def _edit(self, row: np.ndarray) -> np.ndarray:
        if self._counts is None and not len(self._bias_ids) and not self._masks_ends:
            return row
        edited = row.copy()
        if self._counts is not None:
            self._counts.penalise(edited, self.params)
        edited[self._bias_ids] += self._bias
        if self._masks_ends:
            edited[self._end_ids] = -np.inf
        if not math.isfinite(edited.max()):
            raise SamplingError("the parameters leave no token to choose from")
        return edited

    def _choose(self, logits: np.ndarray) -> int:
        if self.params.temperature == 0:
            return int(logits.argmax())
        ids, weights = _candidates(logits, self.params)
        index = _draw(weights, _uniform(self._seed, self.num_sampled))
        return index if ids is None else int(ids[index])


def sample_rows(logits: np.ndarray, samplers: Sequence[RequestSampler]) -> list[Sample | Exception]:
    """One token per row of logits f32[R, V]; where a row fails, the exception in its place."""
    best = logits.argmax(axis=1)
    # The argmax of a row with a NaN is the NaN, so these values tell of the whole rows.
    peaks = logits[np.arange(len(logits)), best].tolist()
    rows = zip(logits, best.tolist(), peaks, samplers, strict=True)
    return [_sample_row(row, token, peak, sampler) for row, token, peak, sampler in rows]


def token_logprobs(row: np.ndarray, token_id: int, num_top: int) -> Logprobs:
    """Log-probabilities of a token and of the ``num_top`` likeliest ones under logits f32[V].

    SamplingError when they are not finite.
    """
    largest = float(row.max())
    if not math.isfinite(largest):
        raise SamplingError(_NOT_FINITE)
    log_total = largest + math.log(float(np.exp(row - largest).sum(dtype=np.float64)))
    top = _top_ids(row, num_top) if num_top else ()
    return Logprobs(
        float(row[token_id]) - log_total,
        tuple((int(token), float(row[token]) - log_total) for token in top),
    )


def _sample_row(
    row: np.ndarray, best: int, peak: float, sampler: RequestSampler
) -> Sample | Exception:  # fmt: skip
    if not math.isfinite(peak):
        return SamplingError(_NOT_FINITE)
    if sampler.is_argmax:
        return Sample(best)
    try:
        return sampler.sample(row)
    except Exception as error:
        return error


def _has_penalties(params: SamplingParams) -> bool:
    additive = params.presence_penalty or params.frequency_penalty
    return bool(additive) or params.repetition_penalty != 1


def _candidates(
    logits: np.ndarray, params: SamplingParams
) -> tuple[np.ndarray | None, np.ndarray]:
    """Token ids (None: all, in order) and their unnormalised probabilities; the largest is 1."""
    ids: np.ndarray | None = None
    if 0 < params.top_k < len(logits):
        ids = _top_ids(logits, params.top_k)
        weights = _weights(logits[ids], params.temperature)
    else:
        weights = _weights(logits, params.temperature)
    if params.top_p < 1:
        ids, weights = _nucleus(ids, weights, params.top_p)
    if params.min_p > 0:
        kept = np.flatnonzero(weights >= params.min_p)
        ids, weights = (kept if ids is None else ids[kept]), weights[kept]
    return ids, weights


def _weights(logits: np.ndarray, temperature: float) -> np.ndarray:
    # The maximum is taken off first, so that a tiny temperature overflows to -inf and not to NaN.
    with np.errstate(over="ignore"):
        weights: np.ndarray = np.exp((logits - logits.max()) / np.float32(temperature))
    return weights


def _top_ids(logits: np.ndarray, k: int) -> np.ndarray:
    """The k largest, best first; among equals the lowest id first.

    The k-th largest of the blocks' maxima is no larger than the k-th largest value, so it bounds the
    search without a partition of the whole row.
    """
    maxima = np.maximum.reduceat(logits, np.arange(0, len(logits), _BLOCK))
    if k <= len(maxima):
        bound = np.partition(maxima, len(maxima) - k)[len(maxima) - k]
    else:
        bound = np.partition(logits, len(logits) - k)[len(logits) - k]
    ids = np.flatnonzero(logits >= bound)
    return ids[np.argsort(-logits[ids], kind="stable")[:k]]


def _nucleus(
    ids: np.ndarray | None, weights: np.ndarray, top_p: float
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The fewest likeliest candidates whose share is at least ``top_p``, best first.

    Those with less than (1 - top_p) / n of the total hold less than 1 - top_p together, so the rest
    contains the nucleus, and only the rest is sorted.
    """
    total = float(weights.sum(dtype=np.float64))
    kept = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    kept = kept[np.argsort(-weights[kept], kind="stable")]
    shares = np.cumsum(weights[kept], dtype=np.float64)
    kept = kept[: int(np.searchsorted(shares, top_p * total)) + 1]
    return (kept if ids is None else ids[kept]), weights[kept]


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a function of seed and position alone."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def _draw(weights: np.ndarray, uniform: float) -> int:
    """The index at which the cumulated weights pass ``uniform`` of their total, found block-wise."""
    sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64)
    shares = np.cumsum(sums)
    target = uniform * shares[-1]
    block = int(np.searchsorted(shares, target, side="right"))
    start = block * _BLOCK
    inside = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    below = shares[block - 1] if block else 0.0
    index = int(np.searchsorted(inside, target - below, side="right"))
    if index == len(inside):  # rounding: the two sums of this block differ in the last bit
        index = int(np.flatnonzero(weights[start : start + _BLOCK])[-1])
    return start + index
