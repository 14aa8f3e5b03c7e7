"""Which texts must have too many tokens: they need not be tokenized to be refused.

Tokenizing four megabytes takes seconds. Every token stands for some bytes at most, so many bytes are many tokens,
as long as the tokenizer leaves nothing out; of one that may, nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from rusteeze.runtime.tokens import BYTE_OF, Tokenizer

_COMPOSITION = 4
"""NFC makes UTF-8 shorter by a factor below this: three for a Hangul syllable and the Kelvin sign."""
_NORMALIZERS = {"NFC", "Prepend", "Replace", "Sequence"}
_PRE_TOKENIZERS = {"ByteLevel", "Digits", "Metaspace", "Sequence", "Split"}


@dataclass(frozen=True)
class TextBound:
    """``token_bytes`` of UTF-8 are the most that one token stands for, ``dropped`` the bytes that may have no
    token at all. 0: nothing is known."""

    token_bytes: int
    dropped: bytes = b""

    @staticmethod
    def of(tokenizer: Tokenizer) -> TextBound:
        found = msgspec.json.decode(tokenizer.to_json())
        model, added = found["model"], found["added_tokens"]
        steps = [*_steps(found["normalizer"]), *_steps(found["pre_tokenizer"])]
        strips = any(token["lstrip"] or token["rstrip"] for token in added)
        if model["type"] != "BPE" or strips or not all(map(_keeps, steps)):
            return TextBound(0)
        composes = any(step["type"] == "NFC" for step in steps)
        if model.get("byte_fallback"):
            has_all = all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
            dropped, lengths = b"", [len(token.encode()) for token in model["vocab"]]
        else:
            dropped = bytes(b for character, b in BYTE_OF.items() if character not in model["vocab"])
            is_byte_level = any(step["type"] == "ByteLevel" for step in steps)
            has_all, lengths = is_byte_level and not (composes and dropped), list(map(len, model["vocab"]))
        if not has_all:
            return TextBound(0)
        longest = max(*lengths, *(len(token["content"].encode()) for token in added))
        return TextBound(longest * (_COMPOSITION if composes else 1), dropped)

    def exceeds(self, text: str, num_tokens: int) -> bool:
        """Whether a text is known to have more than ``num_tokens`` tokens."""
        if not self.token_bytes:
            return False
        data = text.encode(errors="replace").translate(None, self.dropped)
        return len(data) > self.token_bytes * num_tokens


def _steps(node: dict[str, Any] | None) -> list[dict[str, Any]]:
    if node is None:
        return []
    inner = [*node.get("normalizers", ()), *node.get("pretokenizers", ())]
    return [node, *(step for part in inner for step in _steps(part))]


def _keeps(step: dict[str, Any]) -> bool:
    """Whether a step leaves every character in the text, composed at most."""
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String")
        return pattern is not None and len(step["content"].encode()) >= len(pattern.encode())
    known = step["type"] in _NORMALIZERS | _PRE_TOKENIZERS
    return known and step.get("behavior") != "Removed"
