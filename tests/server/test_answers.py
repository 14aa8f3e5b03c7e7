"""What the endpoints answer, against the mock model computed without any runtime."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from live import MODEL, Live, live
from mock_executor import greedy_tokens, logits_of
from tiny_tokenizers import tokenizer

from rusteeze.runtime.interface import (
    FinishReason,
    Logprobs,
    RequestOutput,
    SamplingParams,
    Usage,
)
from rusteeze.runtime.request import LiveRequest
from rusteeze.server.completion_schema import CompletionRequest
from rusteeze.server.completions import CompletionRenderer, TextPrompt
from rusteeze.server.prompts import choices
from rusteeze.server.service import ServedModel

WORDS = tokenizer()
PROMPT = "the cat"
IDS = WORDS.encode(PROMPT, add_special_tokens=False)


def expected(ids: list[int], count: int) -> list[int]:
    return greedy_tokens(ids, count, WORDS.vocab_size)


def text_after(ids: list[int], count: int) -> str:
    joined = WORDS.decode([*ids, *expected(ids, count)])
    return joined.removeprefix(WORDS.decode(ids))


def counts(answer: Any) -> dict[str, int]:
    """The usage, without what earlier requests left in the cache."""
    return {name: value for name, value in answer["usage"].items() if name.endswith("tokens")}


def test_a_completion(tiny: Live) -> None:
    found = tiny.complete().json()
    assert found["object"] == "text_completion"
    assert found["model"] == MODEL
    assert found["choices"] == [
        {"index": 0, "text": text_after(IDS, 8), "logprobs": None, "finish_reason": "length"}
    ]
    assert counts(found) == {
        "prompt_tokens": len(IDS), "completion_tokens": 8, "total_tokens": len(IDS) + 8
    }  # fmt: skip


def test_a_chat_is_its_rendered_template(tiny: Live) -> None:
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    chat = tiny.chat(messages=messages).json()
    prompt = "system: a\nuser: b\nassistant:"
    plain = tiny.complete(prompt=prompt).json()
    assert chat["choices"][0]["message"]["content"] == plain["choices"][0]["text"]
    assert counts(chat) == counts(plain)


def test_developers_are_systems_and_parts_are_joined(tiny: Live) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    one = tiny.chat(messages=[{"role": "developer", "content": parts}]).json()
    other = tiny.chat(messages=[{"role": "system", "content": "a\nb"}]).json()
    assert one["choices"] == other["choices"]


@pytest.mark.parametrize(
    "prompt", [IDS, [PROMPT], [IDS], [PROMPT, "a b"], [IDS, [5, 6]]], ids=str
)
def test_prompts_in_every_form(prompt: Any, tiny: Live) -> None:
    found = tiny.complete(prompt=prompt).json()
    wanted = [text_after(IDS, 8)]
    if len(prompt) == 2 and prompt != IDS:
        second = WORDS.encode("a b", add_special_tokens=False) if isinstance(prompt[1], str) else [5, 6]
        wanted.append(text_after(second, 8))
    assert [c["text"] for c in found["choices"]] == wanted


def test_echo_with_probabilities_of_the_prompt(tiny: Live) -> None:
    found = tiny.complete(echo=True, logprobs=3, max_tokens=0).json()
    (choice,) = found["choices"]
    assert choice["text"] == PROMPT
    assert found["usage"]["completion_tokens"] == 0
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == PROMPT
    assert logprobs["token_logprobs"][0] is None
    for position in range(1, len(IDS)):
        row = logits_of(np.array(IDS[:position]), WORDS.vocab_size).astype(np.float64)
        total = row.max() + math.log(np.exp(row - row.max()).sum())
        assert logprobs["token_logprobs"][position] == pytest.approx(row[IDS[position]] - total, abs=1e-4)
        assert len(logprobs["top_logprobs"][position]) == 3
    for offset, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True):
        assert PROMPT[offset : offset + len(token)] == token
    assert logprobs["text_offset"] == sorted(set(logprobs["text_offset"]))


def test_prompt_rows_are_computed_once_for_all_choices(tiny: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    accept = LiveRequest.accept_prompt_rows

    def watched(self: LiveRequest, first: int, logits: Any, scratch: Any) -> Any:
        rows.append(len(logits))
        return accept(self, first, logits, scratch)

    monkeypatch.setattr(LiveRequest, "accept_prompt_rows", watched)
    fields = {"prompt": [IDS, [5, 6]], "echo": True, "logprobs": 2, "n": 3, "max_tokens": 2}
    whole = tiny.complete(**fields).json()["choices"]
    assert sum(rows) == len(IDS) - 1 + 1
    assert whole[0]["logprobs"]["token_logprobs"][1:] == whole[2]["logprobs"]["token_logprobs"][1:]
    alone = tiny.complete(**{**fields, "prompt": [5, 6], "n": 1}).json()["choices"]
    assert whole[5]["logprobs"] == alone[0]["logprobs"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_echo_waits_for_its_probabilities(order: tuple[int, int]) -> None:
    """Whichever choice is first, and even when the other has ended before."""
    asked = CompletionRequest(model=MODEL, prompt="x", echo=True, logprobs=0, n=2, max_tokens=1)
    found = Logprobs(-1.0, ())
    renderer = CompletionRenderer(
        ServedModel(MODEL, 0, WORDS, None, {}, 256, WORDS.vocab_size), asked, [TextPrompt(IDS, PROMPT)]
    )
    rows = RequestOutput("0", prompt_logprobs=(found,) * (len(IDS) - 1))
    assert list(renderer.chunks(0, rows)) == []
    chunks = []
    for index in order:
        usage = Usage(len(IDS), 1)
        last = RequestOutput(str(index), "a", (5,), (found,), finish_reason=FinishReason.LENGTH, usage=usage)
        chunks += renderer.chunks(index, last)
    assert sorted(c.choices[0].index for c in chunks) == [0, 1]
    for chunk in chunks:
        (choice,) = chunk.choices
        assert choice.text == PROMPT + "a"
        assert choice.finish_reason == "length"
        assert choice.logprobs.token_logprobs == [None] + [-1.0] * len(IDS)  # type: ignore[union-attr]


def test_biases_are_bounded_and_shared(tiny: Live) -> None:
    biases = {str(i): 1.0 for i in range(1025)}
    answer = tiny.chat(logit_bias=biases)
    assert (answer.status, answer.json()["error"]["param"]) == (400, "logit_bias")
    params = SamplingParams(logit_bias={1: 1.0}, n=3, seed=7)
    asked = choices([[1], [2]], params)
    assert all(own.logit_bias is params.logit_bias for _, own in asked)
    assert [own.n for _, own in asked] == [1] * 6
    assert len({own.seed for _, own in asked}) == 3


def test_choices_differ_and_repeat_with_their_seed(tiny: Live) -> None:
    fields = {"n": 3, "temperature": 1.0, "seed": 5}
    texts = [c["text"] for c in tiny.complete(**fields).json()["choices"]]
    assert len(set(texts)) == 3
    assert [c["text"] for c in tiny.complete(**fields).json()["choices"]] == texts
    assert tiny.complete(temperature=1.0, seed=5).json()["choices"][0]["text"] == texts[0]


def test_usage_counts_a_prompt_once(tiny: Live) -> None:
    usage = counts(tiny.complete(n=3, prompt=[IDS, [5, 6]]).json())
    assert usage == {
        "prompt_tokens": len(IDS) + 2, "completion_tokens": 48, "total_tokens": len(IDS) + 50
    }  # fmt: skip


@pytest.mark.parametrize("field", ["stop", "stop_token_ids"])
def test_stop_token_ids(field: str, tiny: Live) -> None:
    ids = expected(IDS, 8)
    found = tiny.complete(**{field: [ids[3]]}).json()
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] == ids.index(ids[3]) + 1


def test_logit_bias_and_ignore_eos(tiny: Live) -> None:
    eos = WORDS.token_id("</s>")
    assert tiny.complete(logit_bias={str(eos): 100}).json()["usage"]["completion_tokens"] == 1
    found = tiny.complete(logit_bias={str(eos): 100}, ignore_eos=True).json()
    assert found["usage"]["completion_tokens"] == 8


def test_models(tiny: Live) -> None:
    card = tiny.ask("GET", f"/v1/models/{MODEL}").json()
    assert tiny.ask("GET", "/v1/models").json() == {"data": [card], "object": "list"}
    assert card["id"] == MODEL
    assert tiny.ask("GET", "/v1/models/other").status == 404


@pytest.fixture(scope="module")
def strict() -> Iterator[Live]:
    with live(strict=True) as server:
        yield server


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"a": 1}, "a"), ({"stream_options": {"include_usage": True, "b": 1}}, "stream_options.b"),
        ({"messages": [{"role": "user", "content": "x", "c": 1}]}, "messages[0].c"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "d": 1}]}]}, "messages[0].content[0].d"),
        ({"response_format": {"type": "text", "e": 1}}, "response_format.e"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "f": 1}}},
         "response_format.json_schema.f"),
    ],
    ids=str,
)  # fmt: skip
def test_strict_servers_know_all_fields(fields: dict[str, Any], param: str, strict: Live) -> None:
    answer = strict.chat(**fields)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)
    assert answer.json()["error"]["code"] == "unknown_field"


def test_strict_servers_take_all_that_they_know(strict: Live, tiny: Live) -> None:
    fields = {
        "logit_bias": {"5": 1}, "max_tokens": 8.0, "stop": ["zz", 3], "user": "u",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "the cat"}], "name": "n"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "x-a": 1}}},
    }  # fmt: skip
    assert strict.chat(**fields).json()["choices"] == tiny.chat(**fields).json()["choices"]
    assert strict.complete(prompt=[[5, 6], [7]]).status == 200


def test_fields_without_effect_are_named(tiny: Live) -> None:
    answer = tiny.chat(best_guess=1, **{"a\r\nb": 2})
    assert answer.status == 200
    assert answer.headers["warning"] == '299 - "ignored: best_guess, (unprintable)"'


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ({"response_format": {"type": "regex"}}, 400, "response_format.regex"),
        ({"messages": [{"role": "cat", "content": "x"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
         400, "messages[0].content[0].type"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 17}, 400, "n"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"top_logprobs": 21}, 400, "top_logprobs"),
        ({"stop": [""]}, 400, "stop[0]"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, 400, None),
        ({"stop_token_ids": [999999]}, 400, None),
        ({"messages": [{"role": "user", "content": "a" * 2000}]}, 400, None),
    ],
    ids=str,
)  # fmt: skip
def test_refusals(fields: dict[str, Any], status: int, param: str | None, tiny: Live) -> None:
    answer = tiny.chat(**fields)
    error = answer.json()["error"]
    assert answer.status == status
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"] or "").startswith(param or "")
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


def test_other_paths_and_methods(tiny: Live) -> None:
    assert tiny.ask("GET", "/nothing").json()["error"]["code"] == "not_found"
    answer = tiny.ask("GET", "/v1/chat/completions")
    assert answer.status == 405
    assert "POST" in answer.headers["allow"]


def test_every_answer_has_a_request_id(tiny: Live) -> None:
    answers = [tiny.ask("GET", path) for path in ("/version", "/nothing", "/v1/completions", "/health/live")]
    answers += [tiny.chat(), tiny.chat(stream=True), tiny.chat(n=99), tiny.chat(model="other")]
    answers.append(tiny.ask("POST", "/v1/completions", b"{}", {"content-type": "text/plain"}))
    assert [a.status for a in answers] == [200, 404, 405, 200, 200, 200, 400, 404, 415]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


def test_an_unhandled_fault_has_one_too_and_the_log_names_it(
    tiny: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tiny.service, "check_open", None)
    answer = tiny.chat()
    assert (answer.status, answer.json()["error"]["code"]) == (500, "internal_error")
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert record.getMessage() == f"request {answer.headers['x-request-id']} failed"
    assert record.exc_info is not None


def test_a_fault_of_a_sequence_is_logged_under_the_request(
    tiny: Live, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError

    tiny.executor.before_step = fail
    answer = tiny.chat()
    tiny.executor.before_step = lambda: None
    assert answer.status == 500
    assert f"request {answer.headers['x-request-id']} failed: internal error" in caplog.text
