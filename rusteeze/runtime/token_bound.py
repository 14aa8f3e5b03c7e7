"""How many bytes of text one token can stand for, so that a hopeless text need not be tokenized.

There is such a bound only where every byte of a text ends up in some token: BPE over bytes, or with
bytes to fall back to, behind steps that drop nothing. Whatever is not known to be such has no bound.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rusteeze.runtime.byte_alphabet import BYTE_CHARACTERS

# Of U+212B one byte in three is left, of its decomposition in turn one in three.
_COMPOSING_SHRINKS = 9
_KEEPING_SPLITS = ("ByteLevel", "Metaspace", "Digits", "Punctuation", "Split")


def most_bytes_per_token(tokenizer_json: str) -> int | None:
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
    alphabet = {f"<0x{byte:02X}>" for byte in range(256)} if model["byte_fallback"] else BYTE_CHARACTERS
    over_bytes = any(split["type"] == "ByteLevel" for split in splits)
    if not (over_bytes or model["byte_fallback"]) or not alphabet <= model["vocab"].keys():
        return None
    # A byte is written as one character in such a vocabulary.
    longest = max(map(len, model["vocab"])) * (1 if over_bytes else 4)
    return shrinking * max([longest, *(len(token["content"].encode()) for token in added)])


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
