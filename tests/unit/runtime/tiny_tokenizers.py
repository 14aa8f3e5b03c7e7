"""Small tokenizers of the families that language models use, built in memory."""

from __future__ import annotations

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from rusteeze.runtime.tokens import Tokenizer

WORDS = ["Hello", "world", "the", "cat", "é", "ü", "日本", "😀", "a", "b", "c", ",", ".", "\n", "END"]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level() -> Backend:
    """As GPT-2, Llama 3, Qwen: every byte is a token; here with some whole words besides."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    encoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [encoder.pre_tokenize_str(text)[0][0] for w in WORDS for text in (w, " " + w)]
    # Half characters: what merges of a real vocabulary can end in.
    parts = [encoder.pre_tokenize_str(w)[0][0][:2] for w in ("日", "😀")]
    vocab = {token: id for id, token in enumerate(dict.fromkeys([*alphabet, *words, *parts]))}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = encoder
    backend.decoder = decoders.ByteLevel()
    return _with_added(backend)


def byte_fallback(strip: bool = True) -> Backend:
    """As Llama 2 and Mistral (with ``strip``) and Gemma (without): words and bytes such as <0xE3>."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    tokens += [text.replace(" ", "▁") for word in WORDS for text in (word, " " + word)]
    vocab = {token: id for id, token in enumerate(dict.fromkeys(tokens))}
    backend = Backend(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    return _with_added(backend)


def metaspace() -> Backend:
    """As T5: whole pieces, no bytes."""
    pieces = [("<unk>", 0.0), *((text, -1.0) for w in WORDS for text in (w, "▁" + w)), ("▁", -2.0)]
    backend = Backend(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _with_added(backend)


def word_piece() -> Backend:
    tokens = ["[UNK]", *WORDS, *("##" + word for word in WORDS)]
    backend = Backend(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    return _with_added(backend)


def _with_added(backend: Backend) -> Backend:
    backend.add_special_tokens(SPECIAL)
    backend.add_tokens([AddedToken("<tool call>", special=False), AddedToken("ñandú", special=False)])
    return backend


FAMILIES = {
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "byte-fallback-unstripped": lambda: byte_fallback(strip=False),
    "metaspace": metaspace,
    "word-piece": word_piece,
}


def tokenizer(family: str = "byte-level") -> Tokenizer:
    return Tokenizer(FAMILIES[family]())
