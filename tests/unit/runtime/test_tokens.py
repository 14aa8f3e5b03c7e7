from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import FAMILIES, byte_level, tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders

from rusteeze.runtime.tokens import Detokenizer, Tokenizer

BACKENDS = {family: make() for family, make in FAMILIES.items()}
TOKENIZERS = {family: Tokenizer(backend) for family, backend in BACKENDS.items()}
TEXT = st.text(alphabet="ab éü日本😀\n,.Hcat", max_size=40)


def reference(family: str, ids: list[int], skip: bool = True) -> str:
    text: str = BACKENDS[family].decode(ids, skip_special_tokens=skip)
    return text


def stream(family: str, ids: list[int], prompt: list[int] | None = None, skip: bool = True) -> list[str]:
    detokenizer = Detokenizer(TOKENIZERS[family], prompt or [], skip)
    return [*(detokenizer.push(id) for id in ids), detokenizer.finish()]


def ids_of(family: str) -> st.SearchStrategy[list[int]]:
    size = TOKENIZERS[family].vocab_size
    return st.lists(st.integers(0, size + 2), max_size=30)  # a few outside the vocabulary


FAMILY_AND_IDS = st.sampled_from(sorted(FAMILIES)).flatmap(lambda f: st.tuples(st.just(f), ids_of(f)))


@given(FAMILY_AND_IDS, st.booleans())
def test_streamed_text_adds_up_to_the_full_decode(case: tuple[str, list[int]], skip: bool) -> None:
    family, ids = case
    text = "".join(stream(family, ids, skip=skip))
    assert text == TOKENIZERS[family].decode(ids, skip)
    expected = reference(family, ids, skip)
    # Partly invalid runs of byte tokens are the one difference; see the module.
    if "byte-fallback" not in family or "\ufffd" not in expected:
        assert text == expected


@given(TEXT, st.sampled_from(["byte-level", "byte-fallback-unstripped"]))
def test_text_survives_the_round_trip(text: str, family: str) -> None:
    ids = TOKENIZERS[family].encode(text, add_special_tokens=False)
    assert TOKENIZERS[family].decode(ids) == text


@given(TEXT, st.sampled_from(["byte-level", "byte-fallback", "byte-fallback-unstripped"]))
def test_no_delta_holds_half_a_character(text: str, family: str) -> None:
    ids = TOKENIZERS[family].encode(text, add_special_tokens=False)
    assert not any("\ufffd" in delta for delta in stream(family, ids))


@given(FAMILY_AND_IDS, st.data())
def test_output_continues_the_prompt(case: tuple[str, list[int]], data: st.DataObject) -> None:
    family, prompt = case
    output = data.draw(ids_of(family))
    whole = TOKENIZERS[family].decode(prompt + output)
    detokenizer = Detokenizer(TOKENIZERS[family])
    complete = "".join(detokenizer.push(id) for id in prompt)  # without an unfinished character
    assert complete + "".join(stream(family, output, prompt)) == whole


def test_the_prompt_is_never_emitted_but_its_half_character_is_completed() -> None:
    family = "byte-level"
    ids = TOKENIZERS[family].encode("x😀!", add_special_tokens=False)
    assert [stream(family, ids[n:], ids[:n])[0] for n in (1, 2, 3)] == ["", "", ""]
    assert ["".join(stream(family, ids[n:], ids[:n])) for n in (1, 2, 3)] == ["😀!"] * 3


def test_a_leading_space_is_kept_after_a_prompt_only() -> None:
    family = "byte-fallback"
    hello = TOKENIZERS[family].token_id("▁Hello")
    bos = TOKENIZERS[family].token_id("<s>")
    a = TOKENIZERS[family].token_id("a")
    assert hello is not None
    assert bos is not None
    assert a is not None
    assert "".join(stream(family, [hello, hello])) == "Hello Hello"
    assert "".join(stream(family, [hello], [bos])) == "Hello"
    assert "".join(stream(family, [hello], [bos, a])) == " Hello"


def test_an_unfinished_character_is_flushed_at_the_end() -> None:
    family = "byte-level"
    ids = TOKENIZERS[family].encode("a😀", add_special_tokens=False)[:-1]
    *deltas, last = stream(family, ids)
    assert "".join(deltas) == "a"
    assert last == "\ufffd"


@pytest.mark.parametrize("family", ["byte-fallback", "byte-level"])
def test_characters_appear_with_their_last_byte(family: str) -> None:
    ids = TOKENIZERS[family].encode("ø", add_special_tokens=False)
    assert stream(family, ids + ids) == ["", "ø", "", "ø", ""]


def test_special_tokens_are_hidden_unless_asked_for() -> None:
    t = tokenizer()
    ids = [*t.encode("a", add_special_tokens=False), t.token_id("<|im_end|>") or 0]
    assert t.decode(ids) == "a"
    assert t.decode(ids, skip_special_tokens=False) == "a<|im_end|>"
    assert t.token_bytes(ids[1]) == b"<|im_end|>"


def test_truncation_and_padding_of_the_file_are_ignored() -> None:
    backend = byte_level()
    backend.enable_truncation(2)
    backend.enable_padding(length=10)
    loaded = Tokenizer.from_json(backend.to_str())
    assert len(loaded.encode("xyzxyz", add_special_tokens=False)) == 6


def test_loading_from_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "tokenizer.json"
    path.write_text(byte_level().to_str(), encoding="utf-8")
    assert Tokenizer.from_file(path).encode("ab") == tokenizer().encode("ab")
    with pytest.raises(ValueError, match=r"not a readable tokenizer\.json"):
        Tokenizer.from_json("{}")


@pytest.mark.parametrize("decoder", [decoders.CTC(), decoders.BPEDecoder()])
def test_decoders_that_look_ahead_are_refused(decoder: decoders.Decoder) -> None:
    backend = Backend.from_str(byte_level().to_str())
    backend.decoder = decoder
    with pytest.raises(ValueError, match="one token at a time"):
        Tokenizer(backend)


def test_without_a_decoder_tokens_are_joined_by_spaces() -> None:
    backend = byte_level()
    backend.decoder = None
    ids = [backend.token_to_id("a"), backend.token_to_id("b")]
    assert Tokenizer(backend).decode(ids) == backend.decode(ids) == "a b"
