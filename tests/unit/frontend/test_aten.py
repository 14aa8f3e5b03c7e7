"""Each importer computes what torch computes, on toy modules over [1, T, 8] activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from rusteeze.frontend.errors import ExportFailed, FrontendError, UnsupportedOp, UnsupportedWrite
from rusteeze.frontend.export import export_ragged
from rusteeze.frontend.import_program import import_program
from rusteeze.ir import Graph, interpret, parse, print_graph

Body = Callable[[torch.Tensor, "Toy"], torch.Tensor]


class Toy(nn.Module):
    """``body`` between an embedding of the tokens and the choice of rows."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(32, 8, generator=generator))
        self.weight = nn.Parameter(torch.randn(8, 8, generator=generator))
        self.bias = nn.Parameter(torch.randn(8, generator=generator))
        self.body = body

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, rows: Any) -> torch.Tensor:
        return self.body(F.embedding(ids, self.table), self)[:, rows]


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, rows: Any) -> torch.Tensor:
        return self.model(ids, positions, rows)


def imported(toy: Toy) -> tuple[Graph, dict[str, np.ndarray]]:
    fake_mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    wrapper = Wrapper(toy)
    parameters = dict(toy.named_parameters())
    graph, constants = import_program(
        export_ragged(wrapper, fake_mode), wrapper, num_layers=0, max_model_len=32,
        checkpoint=parameters, tied={},
    )  # fmt: skip
    return graph, constants | {k: p.detach().numpy() for k, p in parameters.items()}


def write_parts(x: torch.Tensor, m: Toy) -> torch.Tensor:
    out = x.new_empty((1, x.shape[1], 12))
    out[..., 4:] = x
    out[..., :4] = x[..., :1]
    return out


def divide_in_place(x: torch.Tensor, m: Toy) -> torch.Tensor:
    y = x.exp()
    y /= y.sum(-1, keepdim=True)
    return y * 2


def pairs(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x.reshape(1, x.shape[1], 4, 2))


def first_two_of_top(x: torch.Tensor) -> torch.Tensor:
    values, index = torch.topk(x, 3, dim=-1)
    return values * x.gather(-1, index) + index.to(x.dtype)


BODIES: dict[str, Body] = {
    "linear": lambda x, m: F.linear(x, m.weight, m.bias),
    "matmul": lambda x, m: x @ m.weight.T,
    "addmm": lambda x, m: torch.addmm(m.bias, x.view(-1, 8), m.weight).view(x.shape),
    "alpha": lambda x, m: torch.add(x, m.bias, alpha=2) - 1 + (3 - x) / 2,
    "powers": lambda x, m: x**2 + x.abs() ** 1.5 + x.abs().sqrt() + (x.abs() + 1).log(),
    "unary": lambda x, m: x.neg().exp().tanh() * x.sin() + x.cos().sigmoid() + torch.rsqrt(x.abs()),
    "activations": lambda x, m: F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x) + F.relu(x),
    "softplus": lambda x, m: F.softplus(x),
    "layer_norm": lambda x, m: F.layer_norm(x, (8,), m.bias, m.bias),
    "rms_norm": lambda x, m: F.rms_norm(x, (8,), m.bias, 1e-6),
    "softmax": lambda x, m: x.softmax(-1),
    "reductions": lambda x, m: x.sum(-1, keepdim=True) + x.mean(-1)[..., None] * x.amax(-1, True),
    "two_axes": lambda x, m: x.reshape(1, -1, 2, 4).sum((2, 3), keepdim=True).flatten(2) + x,
    "cumsum": lambda x, m: x.cumsum(-1),
    "clamp": lambda x, m: x.clamp(-0.5, 0.5) + x.clamp(min=m.bias) + x.clamp_min(0.1),
    "where": lambda x, m: torch.where((x > 0.1) & ~(x >= 1), x, m.bias),
    "masked_fill": lambda x, m: x.masked_fill((x < 0) | (x > 1), float("-inf")).softmax(-1),
    "full_like": lambda x, m: torch.zeros_like(x) + torch.ones_like(x) + torch.full_like(x, 3),
    "topk": lambda x, m: first_two_of_top(x),
    "max": lambda x, m: x.max(-1, keepdim=True)[0] + x.max(-1)[1][..., None].float() + x,
    "scatter": lambda x, m: torch.zeros_like(x).scatter(-1, x.topk(2).indices, 1.0),
    "transpose": lambda x, m: x.view(1, -1, 2, 4).transpose(2, 3).reshape(1, -1, 8),
    "heads": lambda x, m: (x.view(1, -1, 2, 4).transpose(1, 2) * 2).transpose(1, 2).flatten(2),
    "permute": lambda x, m: x.view(1, -1, 2, 2, 2).permute(0, 1, 4, 2, 3).reshape(1, -1, 8),
    "split": lambda x, m: torch.cat([*reversed(x.split(3, -1)), *x.chunk(4, -1)], -1),
    "split_sizes": lambda x, m: torch.cat(x.split([1, 7], -1)[::-1], -1),
    "unbind": lambda x, m: torch.stack(x.view(1, -1, 2, 4).unbind(2)[::-1], -1).flatten(2),
    "slices": lambda x, m: torch.cat([x[..., 1::2], x[..., -3:], x[..., 2:2]], -1) + x[..., 5, None],
    "literal_index": lambda x, m: x[..., [-2]] * x[..., [3, 0]],
    "expand": lambda x, m: (x[..., None] * m.weight).sum(2) + x[..., :1].expand(-1, -1, 8),
    "static_operand": lambda x, m: (x.view(1, -1, 2, 4).transpose(1, 2) * m.weight[:2, None, :4])
    .transpose(1, 2).flatten(2),
    "repeat_interleave": lambda x, m: x[..., :4].repeat_interleave(2, -1),
    "complex": lambda x, m: torch.view_as_real(
        pairs(x) * torch.complex(x[..., :4], x[..., 4:])
    ).flatten(2),
    "casts": lambda x, m: (x > 0).float() + x.double().to(x.dtype) + (x * 3).long().type_as(x),
    "in_place": divide_in_place,
    "write_parts": write_parts,
    "dropout": lambda x, m: F.dropout(x, 0.5, training=False).contiguous(),
    "flat_tokens": lambda x, m: (x.view(-1, 8) + 1).unsqueeze(0),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_importers_compute_what_torch_computes(name: str) -> None:
    torch.set_num_threads(1)
    toy = Toy(BODIES[name]).eval()
    graph, weights = imported(toy)
    for tokens in (1, 5):
        ids = np.arange(3, 3 + tokens, dtype=np.int32)
        rows = np.asarray([tokens - 1, 0, 0], np.int32)
        inputs = {"input_ids": ids, "positions": ids, "rows": rows}
        (found,) = interpret(graph, inputs, weights)
        with torch.no_grad():
            ids_, rows_ = torch.from_numpy(ids).long()[None], torch.from_numpy(rows).long()
            wanted = toy(ids_, ids_, rows_)[0].numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert parse(print_graph(graph)) == graph


REFUSED: dict[str, tuple[Body, type[FrontendError], str]] = {
    "sum over tokens": (lambda x, m: x + x.sum(1, keepdim=True), UnsupportedOp, "named dimension"),
    "part of the tokens": (lambda x, m: x[:, 1:], ExportFailed, "free number"),
    "one token": (lambda x, m: x + x[:, 0], UnsupportedOp, "one token"),
    "twice the tokens": (
        lambda x, m: x.view(1, -1, 2, 4).flatten(1, 2), UnsupportedOp, "neither a number",
    ),
    "token by token": (lambda x, m: (x @ x.transpose(1, 2)) @ x, UnsupportedOp, "token axes|two"),
    "positions of its own": (
        lambda x, m: x + torch.arange(x.shape[1])[None, :, None], UnsupportedOp, r"arange\.default",
    ),
    "write through a view": (
        lambda x, m: (y := x + 1, y.view(-1, 8).mul_(2), y)[2], UnsupportedWrite, "view",
    ),
    "write behind a view": (
        lambda x, m: (y := x + 1, v := y.view(-1, 8), y.mul_(2), v[None])[3],
        UnsupportedWrite, "view",
    ),
    "write to a weight": (lambda x, m: x + m.bias.detach().mul_(2), UnsupportedWrite, "shared|view"),
    "smallest": (lambda x, m: x.topk(2, largest=False)[0], UnsupportedOp, "smallest"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_ir_cannot_say_is_refused(name: str) -> None:
    body, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        imported(Toy(body).eval())
