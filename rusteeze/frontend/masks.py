"""Which keys a token sees, recovered from the mask functions that models build.

Some models hand their sliding window to the attention function, some only draw it into the mask
(Phi-3.5-MoE). The mask is the truth: transformers asks us to build it from a predicate
``visible(batch, head, query, key)``, which is probed here at a few positions and answered with a
*marker*, a bool tensor ``[1, 1, kind, window + 1]`` without storage (window 0: plain causal). What a mask
looks like matters only when a layer uses it: some models build masks that no layer needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from rusteeze.frontend.errors import ChunkedAttention, UnsupportedMask, WindowMismatch

IMPLEMENTATION = "rusteeze"
WINDOWED, CHUNKED, OTHER = 1, 2, 3  # the kinds of masks; a window of 0 is plain causal
_FAR = 1 << 22  # beyond any context length, and so beyond any window
_CHECKED = (0, 1, 7, 100, 4095, 100_003)
Visible = Callable[[int, int], bool]


def probe_mask(
    batch_size: Any, q_length: Any, kv_length: Any, *args: Any,
    mask_function: Callable[..., Any], **kwargs: Any,
) -> torch.Tensor:  # fmt: skip
    """transformers' mask interface: the marker of the mask that ``mask_function`` describes."""
    with unset_fake_temporarily(), disable_proxy_modes_tracing():

        def visible(query: int, key: int) -> bool:
            at = (torch.tensor(i) for i in (0, 0, query, key))
            return bool(mask_function(*at))

        kind, window = classify_mask(visible)
        return torch.zeros((), dtype=torch.bool).expand(1, 1, kind, window + 1)


def classify_mask(visible: Visible) -> tuple[int, int]:
    """The kind of a mask, and how many keys a token sees, itself included (0 = all before it)."""
    first = _first_visible(visible, _FAR)
    if first and _first_visible(visible, _FAR + 1) == first:
        return CHUNKED, 0
    window = _FAR - first + 1 if first else 0
    for query in _CHECKED:
        oldest = max(0, query - window + 1) if window else 0
        expected = {query + 1: False, query: True, oldest: True, oldest - 1: False}
        if any(key >= 0 and visible(query, key) != seen for key, seen in expected.items()):
            return OTHER, 0
    return WINDOWED, window


def _first_visible(visible: Visible, query: int) -> int:
    """The smallest key that ``query`` sees, by bisection."""
    low, high = 0, query
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if visible(query, middle) else (middle + 1, high)
    return low


def window_of(mask: torch.Tensor | None, argument: int | None) -> int:
    """The window of a layer from its marker, checked against its ``sliding_window`` argument.

    ChunkedAttention, UnsupportedMask or WindowMismatch when attention could not be told this mask."""
    if mask is None or mask.dtype != torch.bool or tuple(mask.shape[:2]) != (1, 1):
        raise UnsupportedMask(
            "the model alters its attention mask (padding, alibi or a bias); choose a causal model"
        )
    kind, size = mask.shape[2:]
    if kind == CHUNKED:
        raise ChunkedAttention("chunked attention is not supported; choose a model without it")
    if kind != WINDOWED or not isinstance(size, int):
        raise UnsupportedMask(
            "the attention mask is neither causal nor a sliding window; choose a causal model"
        )
    window = size - 1
    if argument is not None and argument != window:
        raise WindowMismatch(
            f"the mask shows a window of {window}, the attention argument says {argument}; fix the config"
        )
    return window


@contextmanager
def probed_sdpa_masks() -> Iterator[None]:
    """Let models that attend with torch's own function receive markers as their masks."""
    ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = probe_mask
    try:
        yield
    finally:
        ALL_MASK_ATTENTION_FUNCTIONS.pop("sdpa")


ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, probe_mask)
