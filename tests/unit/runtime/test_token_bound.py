"""Texts that can never fit are refused before they are tokenized, and no others."""

from __future__ import annotations

import json
import sys
import threading
import time
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mock_executor import MockExecutor
from tiny_tokenizers import FAMILIES, SPECIAL, WORDS, byte_level, tokenizer
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.interface import RequestError
from rusteeze.runtime.tokens import Tokenizer

TOKENIZERS = {family: Tokenizer(make()) for family, make in FAMILIES.items()}
COMPOSING = byte_level()
COMPOSING.normalizer = normalizers.NFC()
TOKENIZERS["composing"] = Tokenizer(COMPOSING)
WITHOUT_X = json.loads(byte_level().to_str())
del WITHOUT_X["model"]["vocab"]["x"]
TOKENIZERS["missing"] = Tokenizer(Backend.from_str(json.dumps(WITHOUT_X)))
DROPPING = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
TEXTS = st.lists(st.sampled_from([*WORDS, *SPECIAL, " ", "   ", "xxx", "\u212b", "\u0390"]) | st.text(max_size=4))


@pytest.mark.parametrize("family", TOKENIZERS)
@given(parts=TEXTS)
def test_no_text_has_fewer_tokens(family: str, parts: list[str]) -> None:
    words, text = TOKENIZERS[family], "".join(parts)
    assert words.fewest_tokens(text) <= len(words.encode(text, add_special_tokens=False))


def test_families_whose_tokens_are_bounded() -> None:
    bounded = {family for family, words in TOKENIZERS.items() if words.fewest_tokens("y" * 10_000)}
    assert bounded == {"byte-level", "byte-fallback", "byte-fallback-unstripped", "composing", "missing"}


def changed(**steps: Any) -> Backend:
    backend = byte_level()
    for name, step in steps.items():
        setattr(backend, name, step)
    return backend


def with_greedy_token() -> Backend:
    backend = byte_level()
    backend.add_tokens([AddedToken("<mask>", lstrip=True)])
    return backend


def without_all_bytes() -> Backend:
    return Backend.from_str(json.dumps(WITHOUT_X))


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        (changed(normalizer=normalizers.Strip()), " "),
        (changed(normalizer=normalizers.Replace("xx", "")), "x"),
        (changed(pre_tokenizer=DROPPING), " "),
        (with_greedy_token(), " " * 9000 + "<mask>"),
        (without_all_bytes(), "x"),
        (Backend(models.WordLevel({"x": 0, "[UNK]": 1}, unk_token="[UNK]")), "y"),
    ],
    ids=["stripping", "deleting", "splitting", "greedy", "missing", "unknown"],
)
def test_what_swallows_text_has_no_bound(backend: Backend, text: str) -> None:
    words = Tokenizer(backend)
    text = text * 9000 if len(text) == 1 else text
    assert len(words.encode(text, add_special_tokens=False)) < 100
    assert words.fewest_tokens(text) == 0


def test_composing_shrinks_no_character_more_than_assumed() -> None:
    for code in range(sys.maxunicode + 1):
        if not 0xD800 <= code < 0xE000:
            whole = chr(code)
            decomposed, composed = (unicodedata.normalize(form, whole) for form in ("NFD", "NFC"))
            assert len(whole.encode()) <= 3 * len(decomposed.encode()) <= 9 * len(composed.encode())


def test_a_hopeless_prompt_is_refused_without_tokenizing(monkeypatch: pytest.MonkeyPatch) -> None:
    words = tokenizer()
    engine = SyncEngine(MockExecutor(vocab_size=words.vocab_size), words, [0])
    with pytest.raises(RequestError, match="the prompt has 600 tokens; prompt and output together may have 256"):
        engine.submit("x" * 600)
    monkeypatch.setattr(Tokenizer, "encode", None)
    with pytest.raises(RequestError, match=r"the prompt has at least \d{5} tokens; prompt and output together may have 256"):
        engine.submit("x" * 1_000_000)


def test_other_threads_go_on_while_a_long_text_is_tokenized() -> None:
    words, text = tokenizer(), "the cat, " * 200_000
    longest, last, stop = 0.0, time.perf_counter(), threading.Event()

    def tick() -> None:
        nonlocal longest, last
        while not stop.wait(0.001):
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticking = threading.Thread(target=tick)
    ticking.start()
    start = time.perf_counter()
    words.encode(text)
    taken = time.perf_counter() - start
    stop.set()
    ticking.join()
    assert longest < taken / 2
