"""Rotary positions as tables.

Every rotary module of a model is run once, before the trace, at positions 0 … max_model_len - 1; in the
trace its forward is a row lookup. So llama3, yarn, linear, longrope, per-layer-type and complex variants
all look alike: two float tables ``rotary.N.cos`` and ``rotary.N.sin`` of shape [max_model_len, W].
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rusteeze.frontend.errors import UnsupportedRope

log = logging.getLogger(__name__)


class RotaryTable(nn.Module):
    """Cosines and sines (times any attention factor) by position, f32 [max_model_len, W]."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor, is_complex: bool) -> None:
        super().__init__()
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        self.is_complex = is_complex

    def look_up(self, position_ids: torch.Tensor) -> Any:
        """What the model's module gives for these positions. (No forward: the origin stays that module.)"""
        cos, sin = (nn.functional.embedding(position_ids, t) for t in (self.cos, self.sin))
        return torch.complex(cos, sin) if self.is_complex else (cos, sin)

    def same_as(self, other: RotaryTable) -> bool:
        return (
            self.is_complex == other.is_complex
            and torch.equal(self.cos, other.cos)
            and torch.equal(self.sin, other.sin)
        )


@dataclass(frozen=True)
class _Lookup:
    """Stands in for the forward of a rotary module."""

    tables: dict[str | None, RotaryTable]

    def __call__(
        self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
    ) -> Any:
        return self.tables[layer_type].look_up(position_ids)


def tabulate_rotary(model: nn.Module, max_model_len: int) -> nn.ModuleList:
    """Replace every ``*RotaryEmbedding`` of ``model`` (in place) and return the tables, without repeats.

    UnsupportedRope when a module depends on more than the position or has another signature."""
    tables = nn.ModuleList()
    for module in list(model.modules()):
        if "RotaryEmbedding" not in type(module).__name__:
            continue
        _check_scaling(module, max_model_len)
        by_type = {
            kind: _shared(tables, _tabulate(module, kind, max_model_len))
            for kind in _layer_types(module)
        }
        module.forward = _Lookup(by_type)
        module._buffers.clear()
    return tables


def _layer_types(module: nn.Module) -> list[str | None]:
    """The values of ``layer_type`` for which a module keeps frequencies; [None] if it has no such thing."""
    if "layer_type" not in inspect.signature(type(module).forward).parameters:
        return [None]
    kinds = getattr(module, "rope_type", None)
    if not isinstance(kinds, dict):
        raise UnsupportedRope(
            f"{type(module).__name__} does not list its layer types; choose another model"
        )
    return list(kinds)


def _tabulate(module: nn.Module, layer_type: str | None, length: int) -> RotaryTable:
    kwargs = {} if layer_type is None else {"layer_type": layer_type}
    positions = torch.arange(length)[None]
    try:
        with torch.no_grad():
            out = module(torch.zeros(1, 1, 1), positions, **kwargs)
    except (TypeError, RuntimeError, AttributeError) as e:
        raise UnsupportedRope(
            f"{type(module).__name__} cannot be tabulated by position ({e}); choose another model"
        ) from e
    is_complex = isinstance(out, torch.Tensor)
    cos, sin = (out.real, out.imag) if is_complex else out
    table = RotaryTable(_rows(cos, length), _rows(sin, length), is_complex)
    if not (table.cos.isfinite().all() and table.sin.isfinite().all()):
        raise UnsupportedRope(
            f"{type(module).__name__} gives values that are not finite; check the rope config"
        )
    return table


def _rows(table: torch.Tensor, length: int) -> torch.Tensor:
    return table.reshape(length, -1).to(torch.float32).clone()


def _shared(tables: nn.ModuleList, new: RotaryTable) -> RotaryTable:
    for table in tables:
        if isinstance(table, RotaryTable) and table.same_as(new):
            return table
    tables.append(new)
    return new


def _check_scaling(module: nn.Module, max_model_len: int) -> None:
    """Some scalings depend on the length of the batch, which a table cannot follow."""
    kinds = getattr(module, "rope_type", None)
    if not kinds:
        return
    config: Any = module.config
    kinds_used = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
    if "dynamic" in kinds_used and max_model_len > config.max_position_embeddings:
        raise UnsupportedRope(
            "dynamic-NTK rope rescales with the sequence length;"
            f" set max_model_len to at most {config.max_position_embeddings}"
        )
    if "longrope" in kinds_used:
        original = _original_length(config)
        log.warning(
            "longrope: the %s factors are used for every sequence, since max_model_len is %d"
            " and the original context %d",
            "long" if max_model_len > original else "short", max_model_len, original,
        )  # fmt: skip


def _original_length(config: Any) -> int:
    parameters = config.rope_parameters
    return int(parameters.get("original_max_position_embeddings", config.max_position_embeddings))
