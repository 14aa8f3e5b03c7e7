"""What the placeholders of an exported program stand for: inputs, checkpoint weights, known constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec

from rusteeze.frontend.aten import element_type
from rusteeze.ir import ROWS, TOKENS, DType, Graph, TensorType, Value

WRAPPER = "model."  # the attribute of the exported wrapper that holds the model
INPUTS = (("input_ids", TOKENS), ("positions", TOKENS), ("rows", ROWS))


class Sources:
    """Values by placeholder name, declared in the graph on first use (``by_placeholder[name]()``).

    ``constants`` gathers the contents of the weights that no checkpoint holds; ``literals`` are tensors
    written in the model's code; ``symbols`` maps torch's size symbols to named dimensions."""

    def __init__(
        self, program: ExportedProgram, wrapper: nn.Module, graph: Graph, tied: Mapping[str, str],
        checkpoint: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.graph, self.tied, self.checkpoint = graph, tied, checkpoint
        self.buffers = dict(wrapper.named_buffers())
        self.constants: dict[str, np.ndarray] = {}
        self.literals: dict[str, torch.Tensor] = {}
        self.symbols: dict[Any, str] = {}
        self.by_placeholder: dict[str, Callable[[], Value]] = {}
        placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
        inputs = iter(INPUTS)
        for spec, node in zip(program.graph_signature.input_specs, placeholders, strict=True):
            tensor = node.meta["val"]
            if spec.kind is InputKind.USER_INPUT:
                self._input(node.name, tensor, *next(inputs))
            elif spec.kind is InputKind.CONSTANT_TENSOR:
                self._literal(node.name, program.constants[str(spec.target)])
            else:
                self.by_placeholder[node.name] = partial(self._weight, spec, tensor)

    def _input(self, placeholder: str, tensor: torch.Tensor, name: str, dim: str) -> None:
        size: Any = tensor.shape[-1]  # symbolic
        self.symbols[size.node.expr] = dim
        value = self.graph.input(name, TensorType(DType.i32, (dim,)))
        self.by_placeholder[placeholder] = lambda: value

    def _literal(self, placeholder: str, content: torch.Tensor) -> None:
        name = f"literal.{len(self.literals)}"
        self.literals[placeholder] = content
        self.by_placeholder[placeholder] = lambda: self._constant(name, content)

    def _weight(self, spec: InputSpec, tensor: torch.Tensor) -> Value:
        target = str(spec.target)
        name = target.removeprefix(WRAPPER)
        name = self.tied.get(name, name)
        if name not in self.checkpoint:
            return self._constant(name, self.buffers[target])
        shape = tuple(int(d) for d in tensor.shape)
        return self.graph.weight(name, TensorType(element_type(tensor.dtype), shape))

    def _constant(self, name: str, content: torch.Tensor) -> Value:
        dtype = element_type(content.dtype)
        self.constants[name] = content.detach().numpy().astype(dtype.numpy, copy=False)
        return self.graph.weight(name, TensorType(dtype, tuple(content.shape)))
