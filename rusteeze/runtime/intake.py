"""From what a client sent to a live request: everything that can be wrong with it is found here."""

from __future__ import annotations

import operator
import secrets
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rusteeze.runtime.config import SchedulerLimits
from rusteeze.runtime.interface import Prompt, RequestError, SamplingParams
from rusteeze.runtime.params import Grammar
from rusteeze.runtime.request import LiveRequest, RequestText
from rusteeze.runtime.sampler import RequestSampler
from rusteeze.runtime.sequence import Sequence
from rusteeze.runtime.tokens import Tokenizer

if TYPE_CHECKING:
    from rusteeze.runtime.grammar import Grammars, GrammarState


class Intake:
    """Makes requests for one model. Any thread may use it."""

    def __init__(
        self, tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: Iterable[int],
        limits: SchedulerLimits,
    ) -> None:  # fmt: skip
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(id for id in eos_token_ids if id < vocab_size)
        self._limits = limits
        self._grammars: Grammars | None = None
        self._lock = threading.Lock()

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt. RequestError when it is none, or leaves no room for any output."""
        prompt_ids = self._encode(prompt) if isinstance(prompt, str) else self._checked(prompt)
        longest = self._limits.max_sequence_len
        if not prompt_ids:
            raise RequestError("the prompt has no tokens")
        if len(prompt_ids) >= longest:
            raise RequestError(
                f"the prompt has {len(prompt_ids)} tokens; prompt and output together may have "
                f"{longest}"
            )
        return prompt_ids

    def request(
        self, id: str, prompt_ids: list[int], params: SamplingParams, arrived: float
    ) -> LiveRequest:
        """A request for one sample. RequestError when it can never be served.

        A grammar that is new is compiled now, which may take up to its deadline.
        """
        if params.n != 1:
            raise RequestError(f"n is {params.n}; one request is one sample")
        if params.stop and self._tokenizer is None:
            raise RequestError("stop strings need a tokenizer")
        try:
            params.check_vocabulary(self._vocab_size)
        except ValueError as error:
            raise RequestError(str(error)) from error
        sequence = Sequence(
            id, prompt_ids, params.prompt_logprobs is not None, params.cache_salt, params.priority
        )
        ends = frozenset() if params.ignore_eos else self._eos_token_ids
        ends |= frozenset(params.stop_token_ids)
        state = None if params.grammar is None else self.start_grammar(params.grammar)
        sampler = RequestSampler(params, prompt_ids, ends, secrets.randbits(64), state)
        text = RequestText(self._tokenizer, prompt_ids, params)
        longest = self._limits.max_sequence_len
        return LiveRequest(sequence, params, sampler, text, ends, longest, arrived)

    def start_grammar(self, grammar: Grammar) -> GrammarState:
        """A grammar's first state. RequestError when it is wrong, or the model has no end token."""
        if self._tokenizer is None or not self._eos_token_ids:
            raise RequestError("structured output needs a tokenizer and an end token")
        with self._lock:
            if self._grammars is None:
                # Imported when it is first needed: most processes never do, and start faster.
                from rusteeze.runtime.grammar import Grammars

                text = self._tokenizer.to_json()
                self._grammars = Grammars(text, self._vocab_size, self._eos_token_ids)
        return self._grammars.start(grammar)

    def _encode(self, prompt: str) -> list[int]:
        if self._tokenizer is None:
            raise RequestError("a text prompt needs a tokenizer")
        longest = self._limits.max_sequence_len
        if len(prompt) > longest and (fewest := self._tokenizer.fewest_tokens(prompt)) >= longest:
            raise RequestError(
                f"the prompt has at least {fewest} tokens; prompt and output together may have {longest}"
            )
        return self._tokenizer.encode(prompt)

    def _checked(self, prompt: Prompt) -> list[int]:
        try:
            prompt_ids = [operator.index(token) for token in prompt]  # type: ignore[arg-type]
        except TypeError as error:
            raise RequestError("a prompt must be text or a list of token ids") from error
        if not all(0 <= token < self._vocab_size for token in prompt_ids):
            raise RequestError(f"token ids of the prompt must be from 0 to {self._vocab_size - 1}")
        return prompt_ids
