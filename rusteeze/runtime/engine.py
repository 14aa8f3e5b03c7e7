"""The step loop: schedule → build batch → execute → sample → commit → outputs.

One thread calls ``step``; ``submit`` and ``cancel`` may be called from any thread and take effect
in the next step. What goes wrong inside one request ends that request alone. Everything happens in
order in one thread, so two runs with the same requests and seeds do the same.

    engine = SyncEngine(executor, tokenizer, eos_token_ids=[2])
    for completion in engine.generate(["Once upon a time"], SamplingParams(max_tokens=32)): ...
"""

from __future__ import annotations

import itertools
import logging
import operator
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from rusteeze.runtime.batch import build_batch
from rusteeze.runtime.config import EngineConfig, SchedulerLimits
from rusteeze.runtime.interface import (
    Completion,
    Executor,
    FinishReason,
    Prompt,
    RequestError,
    RequestOutput,
    SamplingParams,
)
from rusteeze.runtime.request import LiveRequest, RequestText
from rusteeze.runtime.sampler import RequestSampler, Sample, SamplingError, sample_rows
from rusteeze.runtime.scheduler import Chunk, Scheduler, Step
from rusteeze.runtime.sequence import Sequence as TokenSequence
from rusteeze.runtime.stream import Mailbox
from rusteeze.runtime.tokens import Tokenizer

_log = logging.getLogger(__name__)


class SyncEngine:
    """Serves many requests on one executor. Without a tokenizer prompts are ids and text is "".

    ``cache_layout`` names the kernels that write the cache; it is part of every prefix's key.
    """

    def __init__(
        self, executor: Executor, tokenizer: Tokenizer | None = None,
        eos_token_ids: Iterable[int] = (), config: EngineConfig | None = None,
        clock: Callable[[], float] = time.monotonic, cache_layout: str = "",
    ) -> None:  # fmt: skip
        config = config or EngineConfig()
        self._executor = executor
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset(id for id in eos_token_ids if id < executor.vocab_size)
        self._clock = clock
        self._scratch = np.empty(executor.vocab_size, np.float32)
        layout = cache_layout if config.prefix_caching else None
        self.scheduler = Scheduler(_limits(executor, config), layout)
        self._requests: dict[str, LiveRequest] = {}
        self._commands: deque[Callable[[], RequestOutput | None]] = deque()
        self._mailboxes: dict[str, Mailbox] = {}
        self._ids = itertools.count()

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._requests) or bool(self._commands)

    def submit(
        self, prompt: Prompt, params: SamplingParams | None = None, request_id: str | None = None
    ) -> str:
        """Queue a request and return its id. RequestError when it can never be served."""
        if request_id is None:
            request_id = f"request-{next(self._ids)}"
        request = self._new_request(request_id, prompt, params or SamplingParams())
        if self._requests.setdefault(request_id, request) is not request:
            raise RequestError(f"request id {request_id!r} is in use")
        self._commands.append(lambda: self._enqueue(request))
        return request_id

    def cancel(self, request_id: str) -> None:
        """End a request in the next step, whatever its state; an unknown id is no error."""
        request = self._requests.get(request_id)
        if request is not None:  # looked up now: the id may be in use for another request by then
            self._commands.append(lambda: self._abort(request))

    def step(self) -> list[RequestOutput]:
        """Do one step of work and return what it produced, in order of arrival."""
        outputs = self._obey_commands()
        step = self.scheduler.schedule()
        if step.chunks:
            outputs += self._run(step)
        for output in outputs:
            self._post(output)
        return outputs

    def stream(self, request_id: str) -> Mailbox:
        """The outputs of a submitted request from now on; asking for the next one runs the engine.

        Several streams may be read in turn. Closing one early cancels its request. RequestError
        when there is no such request, or another stream of it.
        """
        request = self._requests.get(request_id)
        if request is None:
            raise RequestError(f"there is no request {request_id!r}")
        if request_id in self._mailboxes:
            raise RequestError(f"request {request_id!r} is being streamed already")
        mailbox = Mailbox(self.step, lambda: self._close_stream(request))
        self._mailboxes[request_id] = mailbox
        return mailbox

    def generate(
        self, prompts: Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:  # fmt: skip
        """Complete all prompts together, in order; ``params`` is one value for all or one for each.

        A prompt that cannot be served gets a completion with reason ERROR; the others go on.
        """
        if isinstance(prompts, str):
            raise TypeError("generate takes a list of prompts, not a single one")
        prompts = list(prompts)
        each = params if isinstance(params, Sequence) else [params] * len(prompts)
        started = [self._start(*pair) for pair in zip(prompts, each, strict=True)]
        try:
            return [_completion(result) for result in started]
        finally:
            for stream in started:
                if isinstance(stream, Mailbox):
                    stream.close()

    def check_integrity(self) -> None:
        """RuntimeError when an invariant of the scheduler or the block pool is broken."""
        self.scheduler.check_integrity()

    # Requests coming in

    def _new_request(
        self, request_id: str, prompt: Prompt, params: SamplingParams
    ) -> LiveRequest:  # fmt: skip
        arrived = self._clock()
        prompt_ids = self._prompt_ids(prompt)
        try:
            self.scheduler.check_prompt(len(prompt_ids))
            params.check_vocabulary(self._executor.vocab_size)
            prompt_rows = params.prompt_logprobs is not None
            sequence = TokenSequence(request_id, prompt_ids, prompt_rows, params.cache_salt)
        except ValueError as error:
            raise RequestError(str(error)) from error
        if params.stop and self._tokenizer is None:
            raise RequestError("stop strings need a tokenizer")
        ends = frozenset() if params.ignore_eos else self._eos_token_ids
        ends |= frozenset(params.stop_token_ids)
        sampler = RequestSampler(params, prompt_ids, ends, secrets.randbits(64))
        text = RequestText(self._tokenizer, prompt_ids, params)
        longest = self.scheduler.limits.max_sequence_len
        return LiveRequest(sequence, params, sampler, text, ends, longest, arrived)

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise RequestError("a text prompt needs a tokenizer")
            return self._tokenizer.encode(prompt)
        limit = self._executor.vocab_size
        try:
            prompt_ids = [operator.index(token) for token in prompt]
        except TypeError as error:
            raise RequestError("a prompt must be text or a list of token ids") from error
        if not all(0 <= token < limit for token in prompt_ids):
            raise RequestError(f"token ids of the prompt must be from 0 to {limit - 1}")
        return prompt_ids

    def _enqueue(self, request: LiveRequest) -> None:
        self.scheduler.add(request.sequence)

    def _obey_commands(self) -> list[RequestOutput]:
        outputs = []
        for _ in range(len(self._commands)):
            output = self._commands.popleft()()
            if output is not None:
                outputs.append(output)
        return outputs

    # One step

    def _run(self, step: Step) -> list[RequestOutput]:
        requests = [self._requests[chunk.sequence_id] for chunk in step.chunks]
        for request in requests:
            request.clock.start(self._clock())
        try:
            logits = self._executor.execute(build_batch(step, self._executor.block_size))
            samples = self._sample(step, logits)
        except Exception:
            _log.exception("the executor failed; the %d requests of its step end", len(requests))
            return [self._end(request, FinishReason.ERROR, _INTERNAL) for request in requests]
        self.scheduler.commit(step)
        outputs = self._read_prompt_rows(step, logits)
        for request, sample in samples:
            if request.sequence.finish_reason is None:
                outputs.append(self._guard(request, request.accept, sample, self._clock()))
        return outputs

    def _sample(
        self, step: Step, logits: np.ndarray
    ) -> list[tuple[LiveRequest, Sample | Exception]]:  # fmt: skip
        """What comes after every sequence whose known tokens are all computed now."""
        rows = [end - 1 for chunk, _, end in _rows_of_chunks(step) if chunk.samples]
        if not rows:
            return []
        requests = [self._requests[chunk.sequence_id] for chunk in step.chunks if chunk.samples]
        wanted = logits if len(rows) == len(logits) else logits[rows]
        samples = sample_rows(wanted, [request.sampler for request in requests], self._scratch)
        return list(zip(requests, samples, strict=True))

    def _read_prompt_rows(self, step: Step, logits: np.ndarray) -> list[RequestOutput]:
        outputs = []
        for chunk, begin, end in _rows_of_chunks(step):
            rows = logits[begin : end - chunk.samples]
            if len(rows):
                request, first = self._requests[chunk.sequence_id], chunk.end - chunk.num_rows
                work = request.accept_prompt_rows
                outputs.append(self._guard(request, work, first, rows, self._scratch))
        return outputs

    def _guard(
        self, request: LiveRequest, work: Callable[..., RequestOutput], *arguments: Any
    ) -> RequestOutput:
        """The output of some work for one request. Whatever fails in it ends this request only."""
        try:
            output = work(*arguments)
        except SamplingError as error:
            return self._end(request, FinishReason.ERROR, str(error))
        except Exception:
            _log.exception("request %s failed", request.sequence.id)
            return self._end(request, FinishReason.ERROR, _INTERNAL)
        if output.finish_reason is not None:
            self._forget(request, output.finish_reason)
        return output

    # Requests going out

    def _abort(self, request: LiveRequest) -> RequestOutput | None:
        finished = request.sequence.finish_reason is not None
        return None if finished else self._end(request, FinishReason.ABORT)

    def _end(
        self, request: LiveRequest, reason: FinishReason, error: str | None = None
    ) -> RequestOutput:
        output = request.end(reason, self._clock(), error)
        self._forget(request, reason)
        return output

    def _forget(self, request: LiveRequest, reason: FinishReason) -> None:
        self.scheduler.finish(request.sequence.id, reason)
        del self._requests[request.sequence.id]

    # Readers

    def _start(self, prompt: Prompt, params: SamplingParams | None) -> Mailbox | Completion:
        request_id = f"request-{next(self._ids)}"
        try:
            return self.stream(self.submit(prompt, params, request_id))
        except RequestError as error:
            return Completion(request_id, FinishReason.ERROR, error=str(error))

    def _post(self, output: RequestOutput) -> None:
        """Hand an output to its reader, if there is one, who keeps the mailbox after the last."""
        mailbox = self._mailboxes.get(output.request_id)
        if mailbox is not None:
            mailbox.put(output)
            if output.finish_reason is not None:
                del self._mailboxes[output.request_id]

    def _close_stream(self, request: LiveRequest) -> None:
        if request.sequence.finish_reason is None:
            del self._mailboxes[request.sequence.id]
            self._commands.append(lambda: self._abort(request))


_INTERNAL = "internal error"


def _completion(started: Mailbox | Completion) -> Completion:
    return started if isinstance(started, Completion) else Completion.collect(list(started))


def _rows_of_chunks(step: Step) -> Iterator[tuple[Chunk, int, int]]:
    """Each chunk with the half-open range of its rows in the logits."""
    end = 0
    for chunk in step.chunks:
        begin, end = end, end + chunk.num_rows
        yield chunk, begin, end


def _limits(executor: Executor, config: EngineConfig) -> SchedulerLimits:
    """The tighter of what the user chose and what the executor can do."""
    tokens, length = executor.max_batched_tokens, executor.max_model_len
    return SchedulerLimits(
        executor.num_blocks, executor.block_size,
        min(tokens, config.max_batched_tokens or tokens),
        config.max_num_seqs,
        min(length, config.max_model_len or length),
    )  # fmt: skip
