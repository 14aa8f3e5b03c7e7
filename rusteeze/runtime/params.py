"""How a request is served: how its tokens are chosen, when it ends, and before whom. A frozen, checked value.

Example: ``SamplingParams(temperature=0.7, top_p=0.9, stop=("\\n\\n",), max_tokens=64)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import Literal, get_args

MAX_LOGPROBS = 128
MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 1024
MAX_SALT_CHARACTERS = 256
MAX_CHOICES = 128
MAX_GRAMMAR_CHARACTERS = 64 * 1024
MAX_PRIORITY = 100


GrammarKind = Literal["json_object", "json_schema", "regex", "lark"]


@dataclass(frozen=True)
class Grammar:
    """What an output must look like: any JSON object, JSON of a schema, a regex, a Lark grammar.

    ``source`` is the text of the schema, regex or grammar. ValueError when it is too large.
    """

    kind: GrammarKind
    source: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            raise ValueError(f"grammar kind is {self.kind!r}; {', '.join(get_args(GrammarKind))}")
        if not isinstance(self.source, str) or len(self.source) > MAX_GRAMMAR_CHARACTERS:
            raise ValueError(f"{self.kind} must be text of at most {MAX_GRAMMAR_CHARACTERS} characters")


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters with the meaning they have in the OpenAI API and its common extensions.

    - ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off; they apply in
      this order, each to what the one before left over, as in transformers.
    - ``presence_penalty`` and ``frequency_penalty`` look at the output, ``repetition_penalty`` at
      prompt and output.
    - ``seed`` makes a request repeatable; None draws a fresh one.
    - ``max_tokens`` None means: as many as the model's length allows. Until ``min_tokens`` tokens
      are out, no stop token can be chosen and no stop string is looked for.
    - ``stop`` strings end the output just before them; ``stop_token_ids`` and, unless
      ``ignore_eos``, the model's end tokens end it too, and their text is left out.
    - ``logprobs`` n reports each token's log-probability and the n likeliest alternatives, under
      the model's own distribution (before penalties and temperature); None reports nothing.
      ``prompt_logprobs`` does the same for the tokens of the prompt but the first.
    - ``cache_salt``: only requests with the same salt share cached prefixes, so that nobody else can
      learn from the time to the first token what has been asked before.
    - ``grammar``: the output keeps to it, and ends when nothing may follow. It may still be cut off
      by ``max_tokens`` or a stop string.
    - ``n`` samples of one prompt are n requests; ``choices`` gives the parameters of each.
    - ``priority``: lower values go first (scheduler.py says how far). ``timeout_s`` after its arrival
      a request that has not ended fails.

    ValueError says which value is wrong and what is allowed.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    cache_salt: str = ""
    n: int = 1
    priority: int = 0
    timeout_s: float | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        self._normalise()
        self._check_ranges()
        self._check_length()
        self._check_stops()
        _salt(self.cache_salt)
        _whole("n", self.n, 1, MAX_CHOICES)
        _whole("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise ValueError("grammar must be a Grammar")
        if self.timeout_s is not None:
            _number("timeout_s", self.timeout_s, 0.0, 1e9, above_low=True)
        for token, bias in self.logit_bias.items():
            _whole("logit_bias key", token, 0)
            _number(f"logit_bias[{token}]", bias, -100.0, 100.0)

    def check_vocabulary(self, vocab_size: int) -> None:
        """ValueError if a token id is not below ``vocab_size``."""
        for name, ids in (("logit_bias", self.logit_bias), ("stop_token_ids", self.stop_token_ids)):
            largest = max(ids, default=0)
            if largest >= vocab_size:
                raise ValueError(f"{name}: token id {largest} is not below {vocab_size}")

    def choices(self) -> tuple[SamplingParams, ...]:
        """The parameters of ``n`` requests for one sample each. The first is what n = 1 would give; the
        seeds of the others are a function of this one's seed and their index."""
        return tuple(self._choice(index) for index in range(self.n))

    def _choice(self, index: int) -> SamplingParams:
        """One of them. All else is shared, and has been checked."""
        made = copy(self)
        object.__setattr__(made, "n", 1)
        object.__setattr__(made, "seed", _derived(self.seed, index))
        return made

    def _normalise(self) -> None:
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _tuple("stop", stops))
        object.__setattr__(self, "stop_token_ids", _tuple("stop_token_ids", self.stop_token_ids))
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError("logit_bias must map token ids to numbers")
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))

    def _check_ranges(self) -> None:
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, above_low=True)
        _whole("top_k", self.top_k, 0)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above_low=True)
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**64 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 0, MAX_LOGPROBS)

    def _check_length(self) -> None:
        _whole("min_tokens", self.min_tokens, 0)
        if self.max_tokens is None:
            return
        _whole("max_tokens", self.max_tokens, 1)
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens is {self.min_tokens}, more than max_tokens, which is {self.max_tokens}"
            )

    def _check_stops(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise ValueError(f"stop has {len(self.stop)} strings, more than {MAX_STOP_STRINGS}")
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
                raise ValueError(f"stop strings must have 1 to {MAX_STOP_CHARACTERS} characters")
        for token in self.stop_token_ids:
            _whole("stop_token_ids", token, 0)


def _tuple(name: str, values: object) -> tuple[object, ...]:
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise ValueError(f"{name} must be a sequence")
    return tuple(values)


def _number(name: str, value: object, low: float, high: float, above_low: bool = False) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high or (above_low and value == low):  # type: ignore[operator]
        least = "more than" if above_low else "at least"
        raise ValueError(
            f"{name} is {value!r}; it must be a number, {least} {low:g} and at most {high:g}"
        )


def _derived(seed: int | None, index: int) -> int | None:
    if seed is None or index == 0:
        return seed
    return int.from_bytes(sha256(f"{seed} {index}".encode()).digest()[:8])


def _salt(value: object) -> None:
    # printable ASCII: what is compared must look the same to everyone, and be encodable
    good = isinstance(value, str) and value.isascii() and (value.isprintable() or not value)
    if not good or len(value) > MAX_SALT_CHARACTERS:  # type: ignore[arg-type]
        raise ValueError(f"cache_salt must be at most {MAX_SALT_CHARACTERS} printable ASCII characters")


def _whole(name: str, value: object, low: int, high: int | None = None) -> None:
    good = isinstance(value, int) and not isinstance(value, bool)
    if not good or value < low or (high is not None and value > high):  # type: ignore[operator]
        most = "" if high is None else f" and at most {high}"
        raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {low}{most}")
