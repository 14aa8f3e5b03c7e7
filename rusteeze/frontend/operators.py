"""Attention and mixtures of experts as opaque operators in the trace.

transformers lets a caller register its own attention and experts functions; ours put one
``rusteeze::attention`` or two ``rusteeze::expert_linear`` calls into the exported graph. The operators have
shape functions only: nothing is ever computed with them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rusteeze.frontend.errors import (
    MissingLayerIndex,
    UnknownAttentionArgument,
    UnsupportedAttention,
    UnsupportedMask,
)
from rusteeze.frontend.masks import IMPLEMENTATION, window_of

Tensor = torch.Tensor
_LIBRARY: Any = torch.library.Library("rusteeze", "DEF")
_LIBRARY.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? sinks, int layer, float scale, int window,"
    " float softcap) -> Tensor"
)
_LIBRARY.define(
    "expert_linear(Tensor x, Tensor idx, Tensor w, Tensor? b, bool transposed) -> Tensor"
)

# Arguments that models pass along but that do not change what attention computes.
_HARMLESS = {
    "position_ids", "use_cache", "output_router_logits", "output_attentions",
    "output_hidden_states", "return_dict", "cache_position",
}  # fmt: skip


@torch.library.impl(_LIBRARY, "attention", "Meta")
def _attention_shape(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    """q [1, H, T, D], v [1, Hk, T, Dv] → [1, T, H, Dv], the order in which models want it."""
    batch, heads, tokens, _ = q.shape
    return q.new_empty((batch, tokens, heads, v.shape[-1]))


@torch.library.impl(_LIBRARY, "expert_linear", "Meta")
def _expert_linear_shape(
    x: Tensor, idx: Tensor, w: Tensor, b: Tensor | None, transposed: bool
) -> Tensor:
    """x [T, K] or [T, k, K], idx [T, k], w [E, N, K] → [T, k, N]."""
    return x.new_empty((*idx.shape, w.shape[2] if transposed else w.shape[1]))


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor,
    attention_mask: Tensor | None, scaling: float | None = None, dropout: float = 0.0,
    sliding_window: int | None = None, softcap: float | None = None, s_aux: Tensor | None = None,
    is_causal: bool | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface."""
    where = type(module).__name__
    for name, given in kwargs.items():
        if given is not None and name not in _HARMLESS:
            raise UnknownAttentionArgument(
                f"{where} passes {name} to its attention; extend rusteeze.frontend.operators for it"
            )
    if is_causal is False:
        raise UnsupportedMask(f"{where} is not causal; choose a decoder model")
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise MissingLayerIndex(f"{where} has no layer_idx; choose another model class")
    window = window_of(attention_mask, sliding_window)
    return _call(query, key, value, s_aux, layer, scaling, window, softcap), None


def _call(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, layer: int, scale: float | None,
    window: int, softcap: float | None,
) -> Tensor:  # fmt: skip
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    out: Tensor = torch.ops.rusteeze.attention(
        q, k, v, sinks, layer, scale, window, float(softcap or 0)
    )
    return out


def _run_experts(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """transformers' experts interface. The gate stays ordinary code of the model (GPT-OSS clamps there)."""
    up = "gate_up_proj" if self.has_gate else "up_proj"
    up_bias = getattr(self, up + "_bias") if self.has_bias else None
    down_bias = self.down_proj_bias if self.has_bias else None
    linear = torch.ops.rusteeze.expert_linear
    h = linear(hidden_states, top_k_index, getattr(self, up), up_bias, self.is_transposed)
    h = self._apply_gate(h) if self.has_gate else self.act_fn(h)
    y = linear(h, top_k_index, self.down_proj, down_bias, self.is_transposed)
    if self.has_post_expert_norm:
        y = self.post_expert_norm(y)
    mixed: Tensor = (y * top_k_weights.unsqueeze(-1)).sum(1)
    return mixed


class InterceptSdpa(TorchFunctionMode):
    """Captures torch's own attention, for models without the interface (Falcon).

    Layers are numbered in call order. Masks must be the markers of ``probed_sdpa_masks``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is not torch.nn.functional.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        if query.dim() != 4:
            raise UnsupportedAttention(
                "attention on tensors of another rank than 4 is not supported"
            )
        window = 0 if is_causal and attn_mask is None else window_of(attn_mask, None)
        out = _call(query, key, value, None, self.layer, scale, window, None)
        self.layer += 1
        return out.transpose(1, 2)


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _attend)
ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _run_experts)
