"""From logits to the next token of each request.

What a request gets depends on its own row, its parameters, its seed and the number of tokens it has
produced, never on the other rows or on preemption. Greedy rows without edits are one argmax each
(ties go to the lowest id). Other rows: bias and penalties, then temperature, top-k, top-p, min-p,
then one uniform number drawn from a counter-based generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np

from rusteeze.runtime.candidates import candidates, draw, top_k, weights
from rusteeze.runtime.params import SamplingParams
from rusteeze.runtime.token_counts import TokenCounts
from rusteeze.runtime.uniforms import Uniforms


class SamplingError(ValueError):
    """A row of logits from which no token can be chosen. The message is fit for the client."""


class NotFiniteError(SamplingError):
    """There is NaN or infinity among the logits."""

    def __init__(self) -> None:
        super().__init__("the model's logits for this token are not finite")


@dataclass(frozen=True)
class Logprobs:
    """Log-probability of the chosen token, and the likeliest tokens with theirs, best first."""

    chosen: float
    top: tuple[tuple[int, float], ...]


class Sample(msgspec.Struct, frozen=True):
    """One chosen token."""

    token_id: int
    logprobs: Logprobs | None = None


class Constraint(Protocol):
    """What the next token may be, given those accepted so far."""

    @property
    def is_complete(self) -> bool: ...
    def restrict(self, logits: np.ndarray) -> None: ...
    def accept(self, token_id: int) -> None: ...


class RequestSampler:
    """The sampling state of one request. ``seed`` is used when the parameters do not give one."""

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], eos_token_ids: Iterable[int],
        seed: int, constraint: Constraint | None = None,
    ) -> None:  # fmt: skip
        self.params = params
        self._constraint = constraint
        self.num_sampled = 0
        self._uniforms = Uniforms((seed if params.seed is None else params.seed) % 2**64)
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        ends = () if params.ignore_eos else eos_token_ids
        self._end_ids = np.array(sorted({*ends, *params.stop_token_ids}), np.int64)
        self._counts = TokenCounts(prompt_ids) if _has_penalties(params) else None
        self._edits = bool(self._counts or len(self._bias_ids) or constraint)
        self._num_without_ends = params.min_tokens if len(self._end_ids) else 0
        self._plain = params.temperature == 0 and params.logprobs is None and not self._edits

    @property
    def is_argmax(self) -> bool:
        """The next token is the argmax of the row as it is, and nothing else is asked for."""
        return self._plain and self.num_sampled >= self._num_without_ends

    @property
    def is_complete(self) -> bool:
        """The output satisfies its constraint and nothing may follow."""
        return self._constraint is not None and self._constraint.is_complete

    def sample(self, row: np.ndarray, scratch: np.ndarray) -> Sample:
        """A token for logits f32[V], none of them NaN, which are not changed.

        ``scratch`` f32[V] is overwritten: fresh memory for every row would cost more than the sums.
        SamplingError when the parameters leave nothing to choose from.
        """
        token = self._choose(self._edit(row, scratch), scratch)
        if self.params.logprobs is None:
            return Sample(token)
        return Sample(token, token_logprobs(row, token, self.params.logprobs, scratch))

    def accept(self, token_id: int) -> None:
        """The token is part of the output now."""
        self.num_sampled += 1
        if self._counts is not None:
            self._counts.add(token_id)
        if self._constraint is not None:
            self._constraint.accept(token_id)

    @property
    def _masks_ends(self) -> bool:
        return self.num_sampled < self._num_without_ends

    def _edit(self, row: np.ndarray, scratch: np.ndarray) -> np.ndarray:
        if not self._edits and not self._masks_ends:
            return row
        edited = scratch
        edited[:] = row
        if self._counts is not None:
            self._counts.penalise(edited, self.params)
        edited[self._bias_ids] += self._bias
        if self._masks_ends:
            edited[self._end_ids] = -np.inf
        if self._constraint is not None:
            self._constraint.restrict(edited)
        if not math.isfinite(edited.max()):
            raise SamplingError("the parameters leave no token to choose from")
        return edited

    def _choose(self, logits: np.ndarray, scratch: np.ndarray) -> int:
        if self.params.temperature == 0:
            return int(logits.argmax())
        ids, kept = candidates(logits, self.params, scratch)
        index = draw(kept, self._uniforms.at(self.num_sampled))
        return index if ids is None else int(ids[index])


def sample_rows(
    logits: np.ndarray, best: np.ndarray, samplers: Sequence[RequestSampler], scratch: np.ndarray
) -> list[Sample | Exception]:
    """One token per row of logits f32[R, V]; where a row fails, the exception in its place.

    ``best``: the rows' argmax. ``scratch`` f32[V] is overwritten.
    """
    tokens = best.tolist()
    # The argmax of a row with a NaN is the NaN, so these values tell of the whole rows.
    finite = np.isfinite(logits[np.arange(len(logits)), best]).tolist()
    if all(finite) and all(sampler.is_argmax for sampler in samplers):
        return [Sample(token) for token, _ in zip(tokens, samplers, strict=True)]
    # Row by row: all that is done with a row finds it in the processor's cache.
    each = zip(logits, tokens, finite, samplers, strict=True)
    return [_sample_row(*row, scratch) for row in each]


def token_logprobs(
    row: np.ndarray, token_id: int, num_top: int, scratch: np.ndarray
) -> Logprobs:
    """Log-probabilities of a token and of the ``num_top`` likeliest ones under logits f32[V].

    ``scratch`` f32[V] is overwritten. SamplingError when they are not finite.
    """
    largest = float(row.max())
    if not math.isfinite(largest):
        raise NotFiniteError
    log_total = largest + math.log(weights(row, 1.0, scratch).sum(dtype=np.float64))
    top = top_k(row, min(num_top, len(row))) if num_top else np.empty(0, np.int64)
    best_first = top[np.argsort(-row[top], kind="stable")].tolist()
    return Logprobs(
        float(row[token_id]) - log_total,
        tuple((token, float(row[token]) - log_total) for token in best_first),
    )


def _sample_row(
    row: np.ndarray, best: int, finite: bool, sampler: RequestSampler, scratch: np.ndarray
) -> Sample | Exception:  # fmt: skip
    if not finite:
        return NotFiniteError()
    if sampler.is_argmax:
        return Sample(best)
    try:
        return sampler.sample(row, scratch)
    except Exception as error:
        return error


def _has_penalties(params: SamplingParams) -> bool:
    additive = params.presence_penalty or params.frequency_penalty
    return bool(additive) or params.repetition_penalty != 1
