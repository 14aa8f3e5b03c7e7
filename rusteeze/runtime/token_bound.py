"""How many bytes of text one token can stand for, so that a hopeless text need not be tokenized.

There is such a bound only where every byte of a text ends up in some token: BPE over bytes, or with
bytes to fall back to, behind steps that drop nothing. Whatever is not known to be such has no bound.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rusteeze.runtime.byte_alphabet import BYTE_OF

# Of U+212B one byte in three is left, of its decomposition in turn one in three.
_COMPOSING_SHRINKS = 9
_KEEPING_SPLITS = ("ByteLevel", "Metaspace", "Digits", "Punctuation", "Split")


@dataclass(frozen=True)
class TokenBound:
    """One token stands for at most ``most_bytes`` of UTF-8; the ``dropped`` bytes may have no token at all.

    Vocabularies lack bytes that no text of their training had, and leave them out of a text in silence."""

    most_bytes: int
    dropped: bytes = b""

    def fewest_tokens(self, text: str) -> int:
        data = text.encode(errors="replace").translate(None, self.dropped)
        return -(-len(data) // self.most_bytes)


def token_bound(tokenizer_json: str) -> TokenBound | None:
    """From the contents of a ``tokenizer.json``; None when there is no bound."""
    parts = json.loads(tokenizer_json)
    model, added = parts["model"], parts["added_tokens"]
    shrinking = _shrinking(parts["normalizer"])
    splits = list(_steps(parts["pre_tokenizer"], "pretokenizers"))
    if shrinking is None or model["type"] != "BPE" or not all(map(_keeps, splits)):
        return None
    # Such a token takes all the blanks around it.
    if any(token["lstrip"] or token["rstrip"] for token in added):
        return None
    over_bytes = any(split["type"] == "ByteLevel" for split in splits)
    dropped = _dropped(model, over_bytes)
    # Composing may turn bytes that have tokens into such that have none.
    if dropped is None or (dropped and shrinking > 1):
        return None
    # A byte is written as one character in such a vocabulary.
    longest = max(map(len, model["vocab"])) * (1 if over_bytes else 4)
    most = max([longest, *(len(token["content"].encode()) for token in added)])
    return TokenBound(shrinking * most, dropped)


def _dropped(model: Mapping[str, Any], over_bytes: bool) -> bytes | None:
    """Bytes without a token; None when the model is not one over bytes."""
    vocab = model["vocab"]
    if model["byte_fallback"]:
        return b"" if all(f"<0x{byte:02X}>" in vocab for byte in range(256)) else None
    if not over_bytes:
        return None
    return bytes(byte for character, byte in BYTE_OF.items() if character not in vocab)


def _steps(step: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    if step is not None and step["type"] == "Sequence":
        for each in step[inner]:
            yield from _steps(each, inner)
    elif step is not None:
        yield step


def _shrinking(normalizer: Mapping[str, Any] | None) -> int | None:
    """How many times shorter normalizing makes a text at most."""
    times = 1
    for step in _steps(normalizer, "normalizers"):
        if step["type"] == "NFC":
            times *= _COMPOSING_SHRINKS
        elif step["type"] == "Replace":
            replaced = step["pattern"].get("String")
            if replaced is None or len(step["content"].encode()) < len(replaced.encode()):
                return None
        elif step["type"] != "Prepend":
            return None
    return times


def _keeps(split: Mapping[str, Any]) -> bool:
    """Whether a step before the model drops nothing."""
    return split["type"] in _KEEPING_SPLITS and split.get("behavior") != "Removed"
