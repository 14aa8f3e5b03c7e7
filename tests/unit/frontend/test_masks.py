"""Windows recovered from mask predicates."""

from __future__ import annotations

import pytest
import torch

from rusteeze.frontend.errors import ChunkedAttention, UnsupportedMask, WindowMismatch
from rusteeze.frontend.masks import CHUNKED, OTHER, WINDOWED, classify_mask, probe_mask, window_of


@pytest.mark.parametrize("window", [1, 2, 6, 127, 4096, 262144])
def test_finds_the_window(window: int) -> None:
    assert classify_mask(lambda q, k: q - window < k <= q) == (WINDOWED, window)


def test_causal_is_no_window() -> None:
    assert classify_mask(lambda q, k: k <= q) == (WINDOWED, 0)


@pytest.mark.parametrize("chunk", [6, 8192])
def test_recognises_chunks(chunk: int) -> None:
    assert classify_mask(lambda q, k: k <= q and q // chunk == k // chunk) == (CHUNKED, 0)


@pytest.mark.parametrize(
    "visible",
    [
        lambda q, k: True,
        lambda q, k: k < q,
        lambda q, k: k <= q or k < 8,
        lambda q, k: k <= q and k != 7,
        lambda q, k: False,
    ],
    ids=["bidirectional", "strict", "prefix", "hole", "blind"],
)
def test_other_masks_are_not_taken_for_causal(visible) -> None:
    assert classify_mask(visible)[0] == OTHER


def marker(window: int) -> torch.Tensor:
    return probe_mask(1, 5, 5, mask_function=lambda b, h, q, k: (k <= q) & (k > q - window))


def test_a_marker_carries_the_window() -> None:
    assert window_of(marker(6), None) == window_of(marker(6), 6) == 6


def test_mask_and_argument_must_agree() -> None:
    with pytest.raises(WindowMismatch, match=r"window of 6.*says 7"):
        window_of(marker(6), 7)


def test_altered_masks_are_refused() -> None:
    for mask in (None, torch.zeros(1, 4, 5, 5, dtype=torch.bool), torch.zeros(1, 1, 1, 7)):
        with pytest.raises(UnsupportedMask, match="alters"):
            window_of(mask, None)


def test_masks_are_judged_when_used() -> None:
    chunked = probe_mask(1, 5, 5, mask_function=lambda b, h, q, k: (k <= q) & (q // 4 == k // 4))
    with pytest.raises(ChunkedAttention):
        window_of(chunked, None)
    everything = probe_mask(1, 5, 5, mask_function=lambda b, h, q, k: k >= 0)
    with pytest.raises(UnsupportedMask, match="neither causal"):
        window_of(everything, None)
