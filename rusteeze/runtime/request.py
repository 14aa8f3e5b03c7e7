"""One live request: its tokens, sampler, text and clock. Knows nothing of other requests."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from rusteeze.runtime.interface import (
    Fault,
    FinishReason,
    RequestOutput,
    SamplingParams,
    Timing,
    Usage,
)
from rusteeze.runtime.sampler import RequestSampler, Sample, token_logprobs
from rusteeze.runtime.sequence import Sequence
from rusteeze.runtime.stops import StopMatcher
from rusteeze.runtime.tokens import Detokenizer, Tokenizer


@dataclass
class RequestClock:
    """Moments in seconds of the engine's clock; None until it happened, the first time. Preemption changes none."""

    arrived: float
    scheduled: float | None = None
    first_token: float | None = None

    def timing(self, now: float) -> Timing:
        return Timing(
            self._ms(self.scheduled), self._ms(self.first_token), (now - self.arrived) * 1e3
        )

    def _ms(self, moment: float | None) -> float | None:
        return None if moment is None else (moment - self.arrived) * 1e3


class RequestText:
    """The output text of one request; all of it is "" when there is no tokenizer."""

    def __init__(
        self, tokenizer: Tokenizer | None, prompt_ids: list[int], params: SamplingParams
    ) -> None:
        self._stops = StopMatcher(params.stop)
        self._has_stops = bool(params.stop)
        self._detokenizer = (
            Detokenizer(tokenizer, prompt_ids, params.skip_special_tokens) if tokenizer else None
        )

    @property
    def matched_stop(self) -> str | None:
        return self._stops.matched

    def push(self, token_id: int, match_stops: bool) -> str:
        """The text to emit after one more token."""
        text = self._detokenizer.push(token_id) if self._detokenizer else ""
        return self._stops.push(text) if self._has_stops and match_stops else text

    def finish(self) -> str:
        """The rest, once the last token is out; it may still complete a stop string."""
        text = self._detokenizer.finish() if self._detokenizer else ""
        return self._stops.push(text) + self._stops.finish()


class LiveRequest:
    """Turns samples into outputs and decides when the request has ended."""

    def __init__(
        self, sequence: Sequence, params: SamplingParams, sampler: RequestSampler,
        text: RequestText, end_ids: Collection[int], max_sequence_len: int, arrived: float,
    ) -> None:  # fmt: skip
        self.sequence = sequence
        self.sampler = sampler
        self.clock = RequestClock(arrived)
        self.deadline = None if params.timeout_s is None else arrived + params.timeout_s
        self._params = params
        self._text = text
        self._end_ids = end_ids
        limit = max_sequence_len - sequence.num_prompt_tokens
        self._max_tokens = min(limit, params.max_tokens or limit)
        self._ends_by_tokens = not params.stop and params.grammar is None  # and by nothing else

    def accept(self, sample: Sample | Exception, now: float) -> RequestOutput:
        """Take one more token; the output has a finish reason when it was the last.

        A failed sample is raised.
        """
        if isinstance(sample, Exception):
            raise sample
        if self.clock.first_token is None:
            self.clock.first_token = now
        self.sequence.append(sample.token_id)
        self.sampler.accept(sample.token_id)
        text, reason, stop = self._advance(sample.token_id)
        return self._output(now, text, reason, sample, stop)

    def accept_prompt_rows(
        self, first: int, rows: np.ndarray, scratch: np.ndarray
    ) -> RequestOutput:  # fmt: skip
        """Log-probabilities of prompt tokens from the logits ``rows`` f32[n, V], ``first`` on.

        ``scratch`` f32[V] is overwritten.
        """
        tokens = self.sequence.token_ids[first + 1 : first + 1 + len(rows)]
        num_top = self._params.prompt_logprobs or 0
        pairs = zip(rows, tokens, strict=True)
        entries = (token_logprobs(*pair, num_top, scratch) for pair in pairs)
        return RequestOutput(self.sequence.id, prompt_logprobs=tuple(entries))

    def end(
        self, reason: FinishReason, now: float, error: str | None = None, fault: Fault | None = None
    ) -> RequestOutput:
        """The last output of a request that is cancelled or has failed."""
        # After a fault the text may be what is broken, so it is left alone.
        text = "" if reason is FinishReason.ERROR else self._text.finish()
        return self._output(now, text, reason, error=error, fault=fault)

    def _advance(self, token_id: int) -> tuple[str, FinishReason | None, str | int | None]:
        """New text, and why and by what the request ends, if it does."""
        num_output = self.sequence.num_output_tokens
        past_minimum = num_output > self._params.min_tokens
        if token_id in self._end_ids and past_minimum:
            return self._text.finish(), FinishReason.STOP, token_id
        text = self._text.push(token_id, match_stops=past_minimum)
        if self._ends_by_tokens and num_output < self._max_tokens:  # nearly all tokens
            return text, None, None
        if self._text.matched_stop is not None:
            return text, FinishReason.STOP, self._text.matched_stop
        if self.sampler.is_complete:
            text += self._text.finish()
            return text, FinishReason.STOP, self._text.matched_stop
        if num_output < self._max_tokens:
            return text, None, None
        text += self._text.finish()
        stop = self._text.matched_stop
        return text, FinishReason.LENGTH if stop is None else FinishReason.STOP, stop

    def _output(
        self, now: float, text: str, reason: FinishReason | None, sample: Sample | None = None,
        stop: str | int | None = None, error: str | None = None, fault: Fault | None = None,
    ) -> RequestOutput:  # fmt: skip
        ended = reason is not None
        if sample and not ended and not sample.logprobs:  # nearly all outputs
            return RequestOutput(self.sequence.id, text, (sample.token_id,))
        return RequestOutput(
            self.sequence.id, text,
            token_ids=(sample.token_id,) if sample else (),
            logprobs=(sample.logprobs,) if sample and sample.logprobs else (),
            finish_reason=reason, stop=stop, error=error, fault=fault,
            usage=self._usage() if ended else None,
            timing=self.clock.timing(now) if ended else None,
        )  # fmt: skip

    def _usage(self) -> Usage:
        sequence = self.sequence
        return Usage(
            sequence.num_prompt_tokens, sequence.num_output_tokens, sequence.num_cached_tokens or 0
        )
