"""The one call of ``torch.export``, over a free number of tokens."""

from __future__ import annotations

import contextlib
import io
import logging

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram

from rusteeze.frontend.errors import ExportFailed, FrontendError

log = logging.getLogger(__name__)
_EXAMPLE_TOKENS, _EXAMPLE_ROWS = 16, 3
_MAX_TOKENS, _MAX_ROWS = 1 << 20, 1 << 16


class RaggedCausalLM(nn.Module):
    """The signature that is exported: tokens of all sequences in one row, wanted logits by row."""

    def __init__(self, model: nn.Module, rotary: nn.ModuleList) -> None:
        super().__init__()
        self.model = model
        self.rotary = rotary

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """i64 [1, T], [1, T], [R] → f32 logits [1, R, V] of the tokens at ``rows``."""
        out = self.model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, logits_to_keep=rows,
            # Without a mask transformers searches position_ids for packed sequences.
            attention_mask=torch.ones_like(input_ids),
        )  # fmt: skip
        logits: torch.Tensor = out.logits
        return logits


def export_ragged(module: nn.Module, fake_mode: FakeTensorMode) -> ExportedProgram:
    """Export a module with RaggedCausalLM's signature; ExportFailed when torch cannot."""
    # Sizes 0 and 1 are always specialised; a graph that holds for T >= 2 and never looks at T holds for 1.
    tokens, rows = Dim("T", min=2, max=_MAX_TOKENS), Dim("R", min=1, max=_MAX_ROWS)
    with fake_mode:
        ids = torch.zeros((1, _EXAMPLE_TOKENS), dtype=torch.long)
        example = (ids, ids.clone(), torch.zeros(_EXAMPLE_ROWS, dtype=torch.long))
    shapes = ({1: tokens}, {1: tokens}, {0: rows})
    printed = io.StringIO()  # where torch prints the unfinished graph when it fails
    with torch.no_grad(), contextlib.redirect_stderr(printed):
        try:
            return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
        except FrontendError:
            raise
        except Exception as e:  # whatever the model's own code raises under fake tensors
            log.debug("torch.export: %s", printed.getvalue())
            raise ExportFailed(_explain(module, e)) from e


def _explain(module: nn.Module, error: Exception) -> str:
    name = type(getattr(module, "model", module)).__name__
    reason = str(error).strip().partition("\n")[0]
    return (
        f"torch.export cannot trace {name} over a free number of tokens"
        f" ({type(error).__name__}: {reason}); choose another architecture"
    )
