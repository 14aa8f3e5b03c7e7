"""Products of float32 matrices. On AMD's processors oneDNN computes them 1 to 7 times as fast as what torch takes by
itself (six shapes on Zen 5, of which one gained nothing), and quantising consists of them; so it is asked where torch has
it. No gradients there.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

Tensor = torch.Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W' + b for f32 x [..., K] and W [N, K]."""
    if torch.is_grad_enabled() or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def gram(x: Tensor) -> Tensor:
    """x' x for f32 [T, K]."""
    columns = x.T.contiguous()
    return linear(columns, columns)
