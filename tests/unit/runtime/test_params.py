from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rusteeze.runtime.params import SamplingParams

NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", NAN), ("temperature", "1"), ("temperature", True),
        ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1), ("top_k", 1.5), ("min_p", 1.01),
        ("presence_penalty", 2.1), ("frequency_penalty", -2.1), ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")), ("seed", 2**64), ("seed", 1.0), ("seed", True),
        ("max_tokens", 0), ("min_tokens", -1), ("logprobs", -1), ("logprobs", 129),
        ("prompt_logprobs", 1000), ("stop", ("",)), ("stop", (1,)), ("stop", 5),
        ("stop", ("x",) * 65), ("stop", ("x" * 1025,)), ("stop_token_ids", (-1,)),
        ("stop_token_ids", "12"), ("logit_bias", {1: 101.0}), ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"1": 1.0}), ("logit_bias", [1]),
    ],
)  # fmt: skip
def test_a_bad_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})


def test_min_tokens_may_not_exceed_max_tokens() -> None:
    with pytest.raises(ValueError, match="min_tokens is 5, more than max_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_values_are_normalised_and_frozen() -> None:
    bias = {3: 1.0}
    params = SamplingParams(stop="END", stop_token_ids=[1, 2], logit_bias=bias)  # type: ignore[arg-type]
    bias[4] = 2.0
    assert params.stop == ("END",)
    assert params.stop_token_ids == (1, 2)
    assert dict(params.logit_bias) == {3: 1.0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.top_k = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", ["logit_bias", "stop_token_ids"])
def test_ids_outside_the_vocabulary_are_refused(name: str) -> None:
    params = SamplingParams(**{name: {10: 0.0} if name == "logit_bias" else (10,)})  # type: ignore[arg-type]
    params.check_vocabulary(11)
    with pytest.raises(ValueError, match=f"{name}: token id 10"):
        params.check_vocabulary(10)
