"""The parameters that both generating endpoints share, and what the engine is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from rusteeze.runtime.params import (
    MAX_PRIORITY,
    MAX_SALT_CHARACTERS,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    Grammar,
    SamplingParams,
)
from rusteeze.server.errors import bad_request
from rusteeze.server.formats import ResponseFormat, grammar_of
from rusteeze.server.limits import MAX_BIASES, MAX_CHOICES, MAX_TOKENS

# The formats stand for what depends on the model: rusteeze.server.openapi puts its values there.
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1, extra_json_schema={"format": "token-id"})]
TokenKey = Annotated[
    str, Meta(pattern="^(0|[1-9][0-9]{0,8})$", extra_json_schema={"format": "token-key"})
]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[list[StopText | TokenId], Meta(max_length=MAX_STOP_STRINGS)]
Text = Annotated[str, Meta(max_length=256)]
ModelName = Annotated[
    str, Meta(min_length=1, max_length=256, extra_json_schema={"format": "model-name"})
]

GREEDY_BELOW = 1e-4
"""Temperatures below this are greedy: dividing by them would only overflow."""
_MODEL_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_PASSED_ON = (
    *_MODEL_DEFAULTS, "presence_penalty", "frequency_penalty", "seed", "ignore_eos", "priority",
    "cache_salt",
)  # fmt: skip


class StreamOptions(msgspec.Struct, kw_only=True):
    """``include_usage``: one more chunk, before the end, with the token counts."""

    include_usage: bool = False


class SamplingFields(msgspec.Struct, kw_only=True):
    """As in the OpenAI API, with the common extensions. null means: the model's own default."""

    model: ModelName
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    logit_bias: Annotated[dict[TokenKey, Bias], Meta(max_length=MAX_BIASES)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | Stops | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    cache_salt: Annotated[str, Meta(max_length=MAX_SALT_CHARACTERS, pattern="^[ -~]*$")] | None = None
    response_format: ResponseFormat | None = None
    user: Text | None = None

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def sampling_params(
    asked: SamplingFields, model_defaults: Mapping[str, Any], max_tokens: int, logprobs: int | None,
    prompt_logprobs: int | None = None, grammar: Grammar | None = None,
) -> SamplingParams:  # fmt: skip
    """The engine's parameters for all choices. ApiError 400 when a value is out of range."""
    values = {k: model_defaults[k] for k in _MODEL_DEFAULTS if model_defaults.get(k) is not None}
    given = {name: getattr(asked, name) for name in _PASSED_ON}
    values |= {name: value for name, value in given.items() if value is not None}
    if values.get("temperature", 1.0) < GREEDY_BELOW:
        values["temperature"] = 0.0
    strings, ids = _stops(asked)
    try:
        return SamplingParams(
            **values, stop=strings, stop_token_ids=ids, max_tokens=max_tokens,
            min_tokens=min(asked.min_tokens or 0, max_tokens),
            logit_bias={int(token): bias for token, bias in (asked.logit_bias or {}).items()},
            logprobs=logprobs, prompt_logprobs=prompt_logprobs, n=asked.num_choices,
            grammar=grammar or grammar_of(asked.response_format),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise bad_request(str(error)) from error


def _stops(asked: SamplingFields) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Stop strings and stop token ids; the field ``stop`` may hold both."""
    mixed: Iterable[str | int] = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    strings = tuple(stop for stop in mixed if isinstance(stop, str))
    ids = [stop for stop in mixed if isinstance(stop, int)]
    return strings, (*ids, *(asked.stop_token_ids or ()))
