from __future__ import annotations

import re
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live import MODEL, TEMPLATE, Live
from tiny_tokenizers import tokenizer

from rusteeze.runtime.tokens import Tokenizer
from rusteeze.server import prompts
from rusteeze.server.openapi import below

WORDS = tokenizer()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=30))
def test_there_and_back(text: str, tiny: Live) -> None:
    there = tiny.ask("POST", "/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert there["tokens"] == WORDS.encode(text, add_special_tokens=False)
    assert there["count"] == len(there["tokens"]) == len(there["token_strs"])
    back = tiny.ask("POST", "/detokenize", {"tokens": there["tokens"], "model": MODEL}).json()
    assert back == {"prompt": WORDS.decode(there["tokens"], skip_special_tokens=False)}


def test_messages_are_counted_as_the_chat_counts_them(tiny: Live) -> None:
    messages = [{"role": "user", "content": "the cat"}]
    counted = tiny.ask("POST", "/tokenize", {"messages": messages}).json()
    assert counted["count"] == tiny.chat(messages=messages).json()["usage"]["prompt_tokens"]


def test_what_clients_build_prompts_with(tiny: Live) -> None:
    found = tiny.ask("GET", "/tokenizer_info").json()
    assert (found["chat_template"], found["vocab_size"]) == (TEMPLATE, WORDS.vocab_size)
    assert (found["eos_token"], found["bos_token"]) == ("</s>", None)


@pytest.mark.parametrize("body", [{}, {"prompt": 1}, {"messages": []}, {"prompt": "a", "model": "other"}])
def test_refusals(body: dict[str, object], tiny: Live) -> None:
    assert tiny.ask("POST", "/tokenize", body).status == (404 if "model" in body else 400)


def test_ids_that_are_none(tiny: Live) -> None:
    assert tiny.ask("POST", "/detokenize", {"tokens": [WORDS.vocab_size]}).status == 400
    assert tiny.ask("POST", "/detokenize", {"tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize("bound", [1, 2, 9, 10, 11, 100, 305, 1010])
def test_numbers_below_a_bound_as_a_pattern(bound: int) -> None:
    pattern = re.compile(below(bound))
    assert [n for n in range(2 * bound + 20) if pattern.search(str(n))] == list(range(bound))
    assert not any(map(pattern.search, ["", "00", "01", "-1", "1 ", "a"]))


# Texts that are too long to be looked at


LONG = "\u0101b" * 50_000


def test_a_text_that_must_be_too_long_is_not_tokenized(tiny: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = Tokenizer.encode

    def watched(self: Tokenizer, text: str, **options: Any) -> list[int]:
        seen.append(len(text))
        return encode(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", watched)
    answers = [
        tiny.complete(prompt=LONG), tiny.chat(messages=[{"role": "user", "content": LONG}]),
        tiny.ask("POST", "/tokenize", {"prompt": LONG, "add_special_tokens": False}),
    ]  # fmt: skip
    assert [a.json()["error"]["code"] for a in answers] == ["context_length_exceeded"] * 3
    assert not seen
    assert tiny.ask("POST", "/tokenize", {"prompt": "b" * 2000}).json()["count"] == 2000


def test_tokens_are_put_into_words_in_another_thread(tiny: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    token = Tokenizer.token

    def watched(self: Tokenizer, token_id: int) -> str | None:
        threads.add(threading.current_thread().name)
        return token(self, token_id)

    monkeypatch.setattr(prompts, "INLINE_CHARACTERS", 50)
    monkeypatch.setattr(Tokenizer, "token", watched)
    tiny.ask("POST", "/tokenize", {"prompt": "b" * 100, "return_token_strs": True})
    assert threads
    assert all(name.startswith("asyncio_") for name in threads)
