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
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from rusteeze.runtime.choose_tokens import TokenChooser
from rusteeze.runtime.config import EngineConfig, limits_of
from rusteeze.runtime.intake import Intake
from rusteeze.runtime.interface import (
    Asked,
    Completion,
    Executor,
    ExecutorLost,
    Fault,
    FinishReason,
    Prompt,
    QueueFull,
    RequestError,
    RequestOutput,
    SamplingParams,
    Takes,
)
from rusteeze.runtime.params import Grammar
from rusteeze.runtime.request import LiveRequest
from rusteeze.runtime.sampler import NotFiniteError, SamplingError
from rusteeze.runtime.scheduler import Scheduler, Step
from rusteeze.runtime.stats import EngineStats, Tokens, snapshot
from rusteeze.runtime.stream import Mailbox
from rusteeze.runtime.tokens import Tokenizer

_log = logging.getLogger(__name__)

Emit = Callable[[RequestOutput], None]


class SyncEngine:
    """Serves many requests on one executor. Without a tokenizer prompts are ids and text is "".

    ``cache_layout`` names the kernels that write the cache; it is part of every prefix's key. At most
    ``max_live`` requests have not ended at any time; None: any number.
    """

    def __init__(
        self, executor: Executor, tokenizer: Tokenizer | None = None,
        eos_token_ids: Iterable[int] = (), config: EngineConfig | None = None,
        clock: Callable[[], float] = time.monotonic, cache_layout: str = "",
    ) -> None:  # fmt: skip
        config = config or EngineConfig()
        self._executor = executor
        self._chooser = TokenChooser(executor)
        self._clock = clock
        self._scratch = np.empty(executor.vocab_size, np.float32)
        layout = cache_layout if config.prefix_caching else None
        self.scheduler = Scheduler(limits_of(executor, config), layout)
        limits = self.scheduler.limits
        self._intake = Intake(tokenizer, executor.vocab_size, eos_token_ids, limits)
        self.max_live = None if config.max_queue is None else limits.max_num_seqs + config.max_queue
        self._door = threading.Lock()  # held to change, look up or count the requests
        self._ended = Tokens()
        self._timed: dict[str, LiveRequest] = {}  # those that have a deadline
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
        """Queue a request and return its id.

        RequestError when it can never be served, QueueFull when too many are waiting.
        """
        request_id = self._next_id() if request_id is None else request_id
        self.submit_together([(prompt, params or SamplingParams())], [request_id])
        return request_id

    def submit_together(self, asked: Sequence[Asked], ids: Sequence[str]) -> None:
        """Queue requests, all or none; the errors of ``submit``.

        Samples of one prompt (``SamplingParams.choices``) share its blocks through the prefix cache: the
        first computes it, the others wait for that and compute only what its last full block leaves over,
        so that no page is ever copied or written by two.
        """
        arrived = self._clock()
        requests = [
            self._intake.request(id, self._intake.prompt_ids(prompt), params, arrived)
            for id, (prompt, params) in zip(ids, asked, strict=True)
        ]
        with self._door:
            taken = [id for id in ids if id in self._requests]
            if taken:
                raise RequestError(f"request id {taken[0]!r} is in use")
            if self.max_live is not None and len(self._requests) + len(ids) > self.max_live:
                raise QueueFull("too many requests are waiting; try again later")
            # Together, so that nobody cancels what is not yet to be enqueued.
            self._requests.update(zip(ids, requests, strict=True))
            self._commands.extend(partial(self._enqueue, request) for request in requests)

    def compile_grammar(self, grammar: Grammar) -> None:
        """Compile a grammar ahead of the requests that use it, whose ``submit`` is then instant; for
        threads that must not wait for compilers. RequestError says what is wrong, and where."""
        self._intake.start_grammar(grammar)

    def cancel(self, request_id: str) -> None:
        """End a request in the next step, whatever its state; an unknown id is no error."""
        with self._door:  # looked up now: the id may be in use for another request by then
            request = self._requests.get(request_id)
            if request is not None:
                self._commands.append(lambda: self._abort(request))

    def step(self, takes: Takes | None = None) -> list[RequestOutput]:
        """Do one step of work and return what it produced.

        ``takes`` is shown each output as soon as it is made; those that it takes are not returned."""
        left: list[RequestOutput] = []

        def emit(output: RequestOutput) -> None:
            if self._mailboxes:
                self._post(output)
            if takes is None or not takes(output):
                left.append(output)

        for output in (*self._obey_commands(), *self._end_overdue()):
            emit(output)
        step = self.scheduler.schedule()
        if step.chunks:
            self._run(step, emit)
        return left

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

    def stats(self) -> EngineStats:
        """A snapshot; any thread may take it."""
        with self._door:
            return snapshot(self.scheduler, self._requests.values(), self._ended)

    def check_integrity(self) -> None:
        """RuntimeError when an invariant of the scheduler or the block pool is broken."""
        self.scheduler.check_integrity()

    # Requests coming in

    def _next_id(self) -> str:
        return f"request-{next(self._ids)}"

    def _enqueue(self, request: LiveRequest) -> None:
        self.scheduler.add(request.sequence)
        if request.deadline is not None:
            self._timed[request.sequence.id] = request

    def _obey_commands(self) -> list[RequestOutput]:
        outputs = []
        for _ in range(len(self._commands)):
            output = self._commands.popleft()()
            if output is not None:
                outputs.append(output)
        return outputs

    def _end_overdue(self) -> list[RequestOutput]:
        if not self._timed:
            return []
        now = self._clock()
        overdue = [r for r in self._timed.values() if r.deadline is not None and r.deadline <= now]
        return [self._fail(request, Fault.TIMEOUT) for request in overdue]

    # One step

    def _run(self, step: Step, emit: Emit) -> None:
        requests = [self._requests[chunk.sequence_id] for chunk in step.chunks]
        now = self._clock()
        for request in requests:
            if request.clock.scheduled is None:
                request.clock.scheduled = now
        try:
            sampled = requests
            if not step.is_decode:
                sampled = [r for r, chunk in zip(requests, step.chunks, strict=True) if chunk.samples]
            logits, chosen = self._chooser.run(step, [request.sampler for request in sampled])
        except ExecutorLost:
            raise
        except Exception:
            _log.exception("the executor failed; the %d requests of its step end", len(requests))
            for request in requests:
                emit(self._fail(request, Fault.EXECUTOR))
            return
        self.scheduler.commit(step)
        if len(logits) > len(chosen):
            self._read_prompt_rows(step, logits, emit)
        now = self._clock()
        for request, sample in zip(sampled, chosen, strict=True):
            if request.sequence.finish_reason is None:
                emit(self._guard(request, request.accept, sample, now))

    def _read_prompt_rows(self, step: Step, logits: np.ndarray, emit: Emit) -> None:
        for chunk, begin, end in step.rows_of_chunks():
            rows = logits[begin : end - chunk.samples]
            if len(rows):
                request, first = self._requests[chunk.sequence_id], chunk.end - chunk.num_rows
                work = request.accept_prompt_rows
                emit(self._guard(request, work, first, rows, self._scratch))

    def _guard(
        self, request: LiveRequest, work: Callable[..., RequestOutput], *arguments: Any
    ) -> RequestOutput:
        """The output of some work for one request. Whatever fails in it ends this request only."""
        try:
            output = work(*arguments)
        except NotFiniteError as error:
            return self._fail(request, Fault.NOT_FINITE, str(error))
        except SamplingError as error:
            return self._fail(request, Fault.NO_TOKEN, str(error))
        except Exception:
            _log.exception("request %s failed", request.sequence.id)
            return self._fail(request, Fault.INTERNAL)
        if output.finish_reason is not None:
            self._forget(request, output.finish_reason)
        return output

    # Requests going out

    def _abort(self, request: LiveRequest) -> RequestOutput | None:
        finished = request.sequence.finish_reason is not None
        return None if finished else self._end(request, FinishReason.ABORT)

    def _fail(self, request: LiveRequest, fault: Fault, error: str | None = None) -> RequestOutput:
        return self._end(request, FinishReason.ERROR, error or _ERRORS[fault], fault)

    def _end(
        self, request: LiveRequest, reason: FinishReason, error: str | None = None,
        fault: Fault | None = None,
    ) -> RequestOutput:  # fmt: skip
        output = request.end(reason, self._clock(), error, fault)
        self._forget(request, reason, fault)
        return output

    def _forget(self, request: LiveRequest, reason: FinishReason, fault: Fault | None = None) -> None:
        self.scheduler.finish(request.sequence.id, reason, doubtful=fault in _DOUBTFUL)
        self._timed.pop(request.sequence.id, None)
        with self._door:
            self._ended.count(self._requests.pop(request.sequence.id).sequence)

    # Readers

    def _start(self, prompt: Prompt, params: SamplingParams | None) -> Mailbox | Completion:
        request_id = self._next_id()
        try:
            return self.stream(self.submit(prompt, params, request_id))
        except RequestError as error:
            fault = Fault.REFUSED
            return Completion(request_id, FinishReason.ERROR, error=str(error), fault=fault)

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


# After these the cache may hold what is wrong; whoever ran out of time or tokens computed it well.
_DOUBTFUL = (Fault.NOT_FINITE, Fault.EXECUTOR, Fault.INTERNAL)
_ERRORS = {
    Fault.EXECUTOR: "internal error",
    Fault.INTERNAL: "internal error",
    Fault.TIMEOUT: "the request took longer than its timeout allows",
}


def _completion(started: Mailbox | Completion) -> Completion:
    return started if isinstance(started, Completion) else Completion.collect(list(started))
