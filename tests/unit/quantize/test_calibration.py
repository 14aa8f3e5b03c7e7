"""The text that is calibrated on: which windows of it, and how much of it is tokenised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rusteeze.errors import UserError
from rusteeze.quantize import calibration
from rusteeze.quantize.calibration import windows

WINDOW = 16


class ByBytes:
    """As much of a checkpoint as is asked for: a tokenizer with a token for every byte."""

    def save_tokenizer(self, dest: Path) -> None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(dest / "tokenizer.json"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were tokenised."""
    texts: list[str] = []
    encode = calibration._ids
    monkeypatch.setattr(calibration, "_ids", lambda t, text: texts.append(text) or encode(t, text))
    return texts


def read_windows(text: str, tokens: int) -> list[torch.Tensor]:
    checkpoint: Any = ByBytes()
    return windows(checkpoint, text, tokens, WINDOW)


def test_of_a_long_text_only_the_windows_are_tokenised(read: list[str]) -> None:
    text = " ".join(str(i) for i in range(100_000))
    found = read_windows(text, 4 * WINDOW)
    assert [tuple(ids.shape) for ids in found] == [(WINDOW,)] * 4
    assert sum(map(len, read)) <= 4 * WINDOW * calibration.MOST_CHARACTERS
    starts = [text.index(piece) for piece in read]
    assert all(abs(start - i * len(text) // 4) < 10 for i, start in enumerate(starts))


def test_more_is_read_where_tokens_are_long(read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MOST_CHARACTERS", 1)
    found = read_windows("x" * 10_000, 2 * WINDOW)
    assert [len(ids) for ids in found] == [WINDOW, WINDOW]
    assert [len(piece) for piece in read] == [WINDOW, 2 * WINDOW] * 2


def test_a_short_text_is_cut_into_what_it_has(read: list[str]) -> None:
    found = read_windows("abcdefgh" * 7, 100 * WINDOW)
    assert torch.cat(found).tolist() == [found[0][i % 8] for i in range(3 * WINDOW)]


def test_a_text_of_less_than_a_window_is_refused() -> None:
    with pytest.raises(UserError, match="the text has 5 tokens, but at least 16"):
        read_windows("abcde", WINDOW)
