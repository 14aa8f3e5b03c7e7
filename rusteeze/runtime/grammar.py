"""Structured output: which tokens keep the output within a grammar. The only door to llguidance.

A grammar is compiled once, in a thread of its own with a deep stack, under caps on its size and complexity and with a
deadline; requests start from copies. Matching takes time linear in the text, whatever the grammar.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Overdue

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from rusteeze.runtime.grammar_size import check_lark, check_schema
from rusteeze.runtime.interface import QueueFull, RequestError
from rusteeze.runtime.params import Grammar
from rusteeze.runtime.sampler import SamplingError

MAX_CACHED = 64
MAX_MESSAGE = 400
COMPILE_TIMEOUT_S = 5.0
NUM_WORKERS, START_TIMEOUT_S = 2, 10.0
STACK_BYTES = 512 << 20
"""Of a compiling thread; backed by memory only as far as it is used."""
WHITESPACE = r"[ \n\r\t]{0,32}"
"""Between the tokens of JSON. Bounded: a model could go on with blanks for ever."""
_BUSY = "no grammar can be compiled at the moment; try again later"
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000, max_grammar_size=200_000, max_lexer_states=50_000,
    step_lexer_fuel=200_000, step_max_items=50_000, verbose_errors=False,
)  # fmt: skip


class GrammarState:
    """Where one request stands in its grammar: a function of the tokens that it has accepted."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def restrict(self, logits: np.ndarray) -> None:
        """Set the logits f32[V] of all tokens that the grammar forbids to -inf."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(bits, count=len(logits), bitorder="little")
        logits[allowed == 0] = -np.inf

    def accept(self, token_id: int) -> None:
        """Take one more token. SamplingError when the grammar cannot go on with it."""
        self._matcher.consume_token(token_id)
        self._check()

    @property
    def is_complete(self) -> bool:
        """The text is whole and nothing may follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise SamplingError("the grammar cannot be followed any further")


class Grammars:
    """Compiles grammars for one vocabulary and keeps the latest. Any thread may use it."""

    def __init__(
        self, tokenizer_json: str, vocab_size: int, eos_token_ids: Iterable[int],
        timeout_s: float = COMPILE_TIMEOUT_S,
    ) -> None:  # fmt: skip
        ends = sorted(eos_token_ids)
        self._tokenizer = LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=ends)
        self._timeout_s = timeout_s
        self._workers = _workers()
        self._stuck: set[Future[LLMatcher]] = set()  # past their deadline, and no thread can be ended
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, grammar: Grammar) -> GrammarState:
        """The state before the first token. RequestError says what is wrong with a grammar, and where; QueueFull:
        all threads are held by grammars that take too long."""
        with self._lock:
            matcher = self._compiled.get(grammar)
            if matcher is not None:
                self._compiled.move_to_end(grammar)
                return GrammarState(matcher.deep_copy())
        matcher = self._compile_in_time(grammar)
        with self._lock:
            self._compiled[grammar] = matcher
            while len(self._compiled) > MAX_CACHED:
                self._compiled.popitem(last=False)
            return GrammarState(matcher.deep_copy())

    def _compile_in_time(self, grammar: Grammar) -> LLMatcher:
        if len(self._stuck) >= NUM_WORKERS:
            raise QueueFull(_BUSY)
        future = self._workers.submit(self._compile, grammar)
        try:
            matcher = future.result(self._timeout_s)
        except Overdue:
            if future.cancel():  # it was never begun
                raise QueueFull(_BUSY) from None
            self._stuck.add(future)
            future.add_done_callback(self._stuck.discard)
            raise RequestError(f"{grammar.kind}: compiling takes too long") from None
        except ValueError as error:
            raise RequestError(_message(grammar, str(error))) from None
        if matcher.is_error():
            raise RequestError(_message(grammar, matcher.get_error()))
        return matcher

    def _compile(self, grammar: Grammar) -> LLMatcher:
        return LLMatcher(self._tokenizer, _source(grammar), log_level=0, limits=LIMITS)


def _workers() -> ThreadPoolExecutor:
    """Threads whose stack suffices for the deepest chain of rules that a grammar's size allows."""
    workers = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="grammar")
    usual = threading.stack_size(STACK_BYTES)
    try:  # each waits for the others, so that all are started now
        started = threading.Barrier(NUM_WORKERS, timeout=START_TIMEOUT_S)
        for future in [workers.submit(started.wait) for _ in range(NUM_WORKERS)]:
            future.result()
    finally:
        threading.stack_size(usual)
    return workers


def _source(grammar: Grammar) -> str:
    """What llguidance reads. ValueError when a schema is no JSON, or the grammar too large."""
    if grammar.kind == "regex":
        return str(LLMatcher.grammar_from_regex(grammar.source))
    if grammar.kind == "lark":
        check_lark(grammar.source)
        return str(LLMatcher.grammar_from_lark(grammar.source))
    schema = grammar.source if grammar.kind == "json_schema" else '{"type": "object"}'
    try:
        parsed = json.loads(schema)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("a schema must be an object")
    check_schema(parsed)
    return str(
        LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": WHITESPACE})
    )


def _message(grammar: Grammar, error: str) -> str:
    """One line; llguidance draws its errors on several."""
    line = " ".join(error.split())
    return f"{grammar.kind}: {line[:MAX_MESSAGE]}"
