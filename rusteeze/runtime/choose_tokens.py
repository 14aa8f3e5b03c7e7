"""One step on an executor: the tokens that its sequences go on with, and the logits, if somebody reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rusteeze.runtime.batch import build_batch
from rusteeze.runtime.interface import Executor, KeepsLogits, KnowsBest
from rusteeze.runtime.sampler import NotFiniteError, RequestSampler, Sample, sample_rows
from rusteeze.runtime.scheduler import Step

NO_LOGITS = np.empty((0, 0), np.float32)


class TokenChooser:
    """Runs steps. Where every sequence takes its likeliest token and nothing else is asked, and the executor
    can, the logits stay where they were computed."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._knows_best = executor if isinstance(executor, KnowsBest) else None
        self._keeps_logits = executor if isinstance(executor, KeepsLogits) else None
        self._scratch = np.empty(executor.vocab_size, np.float32)

    def run(
        self, step: Step, samplers: Sequence[RequestSampler]
    ) -> tuple[np.ndarray, list[Sample | Exception]]:
        """Logits f32 [R, V], valid until the next call, or none; what each sampler, in the order of the chunks
        that sample, chooses, or why it cannot. Errors of the executor pass through."""
        batch = build_batch(step, self._executor.block_size)
        if self._keeps_logits and _wants_tokens_alone(step) and all(s.is_argmax for s in samplers):
            tokens = self._keeps_logits.execute_for_best(batch).tolist()
            return NO_LOGITS, [Sample(t) if t >= 0 else NotFiniteError() for t in tokens]
        logits = self._executor.execute(batch)
        return logits, self._sampled(step, logits, samplers) if samplers else []

    def _sampled(
        self, step: Step, logits: np.ndarray, samplers: Sequence[RequestSampler]
    ) -> list[Sample | Exception]:
        best = self._knows_best.best_tokens() if self._knows_best else None
        if not step.is_decode:
            rows = [end - 1 for chunk, _, end in step.rows_of_chunks() if chunk.samples]
            logits, best = logits[rows], None if best is None else best[rows]
        return sample_rows(logits, logits.argmax(axis=1) if best is None else best, samplers, self._scratch)


def _wants_tokens_alone(step: Step) -> bool:
    """No logits of a prompt are asked for: there is a row for each token that is chosen."""
    return all(chunk.num_rows == chunk.samples for chunk in step.chunks)
