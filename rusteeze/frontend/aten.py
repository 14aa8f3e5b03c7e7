"""The table of importers from ATen ops to the IR, and what they share.

An importer is a small function ``f(importer, node, *args, **kwargs)`` on the arguments of an exported
call; it appends to the graph and returns the value (or a tuple of values) of ``node``. Its shape must be
that of ``importer.type_of(node)``, which is checked. Everything is f32, i32 or bool: casts between
floats vanish.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from rusteeze.frontend.errors import UnsupportedOp
from rusteeze.frontend.layout import (
    Layout,
    aligned_shape,
    check_reshape,
    without_leading_ones,
)
from rusteeze.ir import Dim, DType, Graph, TensorType, Value

Imported = Value | tuple[Value, ...]
ImportFunction = Callable[..., Imported]
IMPORTERS: dict[str, ImportFunction] = {}


def imports(*targets: str) -> Callable[[ImportFunction], ImportFunction]:
    """Enter a function into the table under the names of ATen overloads, as in "mul.Tensor"."""

    def enter(function: ImportFunction) -> ImportFunction:
        for target in targets:
            IMPORTERS[target] = function
        return function

    return enter


def target_name(node: fx.Node) -> str:
    """ "mul.Tensor" for ``torch.ops.aten.mul.Tensor``, "rusteeze.attention.default" for our own."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).removeprefix("aten.")
    return getattr(node.target, "__name__", str(node.target))


def element_type(dtype: torch.dtype) -> DType:
    if dtype.is_floating_point or dtype.is_complex:
        return DType.f32
    return DType.bool if dtype is torch.bool else DType.i32


@dataclass
class Importer:
    """State of one import. ``symbols`` maps torch's size symbols to named dimensions; ``sources`` gives
    the values of the program's inputs, parameters and constants by placeholder name; ``literals`` the
    contents of tensors that were written into the model's code."""

    graph: Graph
    symbols: dict[Any, str]
    sources: dict[str, Callable[[], Value]]
    literals: dict[str, torch.Tensor]
    max_model_len: int
    values: dict[fx.Node, Any] = field(default_factory=dict)
    aliases: dict[fx.Node, fx.Node] = field(
        default_factory=dict
    )  # result of a write → what it wrote
    origin: str = ""

    # -- types ---------------------------------------------------------------------------------

    def layout(self, node: fx.Node) -> Layout:
        """Complex tensors have a further axis of size 2."""
        tensor = node.meta["val"]
        shape = tuple(self._dim(d) for d in tensor.shape)
        return Layout((*shape, 2) if tensor.dtype.is_complex else shape)

    def _dim(self, size: int | torch.SymInt) -> Dim:
        if isinstance(size, int):
            return size
        if size.node.expr not in self.symbols:
            raise UnsupportedOp(f"a size of {size} is neither a number nor the number of tokens")
        return self.symbols[size.node.expr]

    def type_of(self, node: fx.Node) -> TensorType:
        return TensorType(element_type(node.meta["val"].dtype), self.layout(node).ir_shape)

    # -- values --------------------------------------------------------------------------------

    def value(self, x: Any) -> Value:
        """What an exported node (a tensor) or a number became."""
        if isinstance(x, fx.Node):
            x = self.aliases.get(x, x)
            if x not in self.values and x.name in self.sources:
                self.values[x] = self.sources[x.name]()
            found = self.values.get(x)
            if not isinstance(found, Value):
                raise UnsupportedOp(
                    f"{x.name} has no value: it is empty, or read before it is written"
                )
            return found
        return self.constant(x, DType.i32 if isinstance(x, int) else DType.f32)

    def constant(self, number: float, dtype: DType) -> Value:
        return self.emit("const", value=float(number), dtype=dtype.value)

    def literal(self, node: fx.Node) -> torch.Tensor | None:
        """The content of a tensor that was a literal in the model's code; None for any other."""
        while target_name(node) in ("lift_fresh_copy.default", "alias.default", "detach_.default"):
            node = node.args[0]  # type: ignore[assignment]
        return self.literals.get(node.name)

    # -- building ------------------------------------------------------------------------------

    def emit(self, op: str, *operands: Value | None, **attrs: Any) -> Value:
        return self.graph.add(op, *operands, origin=self.origin, **attrs)

    def cast(self, x: Value, dtype: DType) -> Value:
        if x.type.dtype is dtype:
            return x
        if x.node is not None and x.op == "const":
            return self.constant(x.node.attrs["value"], dtype)  # type: ignore[arg-type]
        return self.emit("cast", x, dtype=dtype.value)

    def reshape(self, x: Value, shape: tuple[Dim, ...]) -> Value:
        if x.node is not None and x.op == "reshape":
            x = x.node.operands[0]  # type: ignore[assignment]
        return x if x.type.shape == shape else self.emit("reshape", x, shape=shape)

    def permute(self, x: Value, perm: tuple[int, ...]) -> Value:
        if x.node is not None and x.op == "permute":
            inner = x.node.attrs["perm"]
            perm = tuple(inner[p] for p in perm)  # type: ignore[index,misc]
            x = x.node.operands[0]  # type: ignore[assignment]
        return x if perm == tuple(range(len(perm))) else self.emit("permute", x, perm=perm)

    def slice(self, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        if (start, stop, step) == (0, x.type.shape[axis], 1):
            return x
        return self.emit("slice", x, axis=axis, start=start, stop=stop, step=step)

    def conform(self, x: Value, node: fx.Node) -> Value:
        """``x`` in the shape of ``node``'s value; only axes of size 1 may differ."""
        return self.reshape(x, self.layout(node).ir_shape)

    def aligned(self, node: fx.Node, x: Any) -> Value:
        """Operand ``x`` so that it broadcasts to the value of ``node``."""
        value = self.value(x)
        if not isinstance(x, fx.Node):
            return value
        shape = aligned_shape(self.layout(x), self.layout(node))
        given = value.type.shape
        fits = without_leading_ones(given) == shape and len(given) <= len(self.layout(node).order)
        return value if fits else self.reshape(value, shape)

    def expanded(self, node: fx.Node, x: Any) -> Value:
        """``x`` repeated to the full shape of ``node``'s value."""
        shape = self.layout(node).ir_shape
        value = self.aligned(node, x)
        value = self.reshape(value, (1,) * (len(shape) - value.type.rank) + value.type.shape)
        return value if value.type.shape == shape else self.emit("broadcast_to", value, shape=shape)

    # -- the walk ------------------------------------------------------------------------------

    def run(self, node: fx.Node) -> None:
        """Import one call. UnsupportedOp (with op and module path) when that is impossible."""
        self.origin = module_path(node)
        name = target_name(node)
        if node.target is operator.getitem:
            self.values[node] = self.values[node.args[0]][node.args[1]]  # type: ignore[index]
            return
        if isinstance(tensor := node.meta.get("val"), torch.Tensor) and 0 in tensor.shape:
            return  # nothing to compute; a concatenation leaves it out
        if name not in IMPORTERS:
            raise UnsupportedOp(
                f"{name} in {self.origin or 'the model'} has no importer; add one to rusteeze.frontend.aten"
            )
        try:
            result = IMPORTERS[name](self, node, *node.args, **node.kwargs)
            self._check(node, result)
        except (UnsupportedOp, TypeError) as e:
            kind = type(e) if isinstance(e, UnsupportedOp) else UnsupportedOp
            raise kind(f"{name} in {self.origin or 'the model'}: {e}") from e
        self.values[node] = result

    def _check(self, node: fx.Node, result: Imported) -> None:
        if isinstance(result, Value) and result.type != self.type_of(node):
            raise UnsupportedOp(f"imported as {result.type} instead of {self.type_of(node)}")


def module_path(node: fx.Node) -> str:
    """The model's module that made a call, as in "model.layers.0.mlp"."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.partition(".")[2]  # without the wrapper that was exported


def reshaped(importer: Importer, node: fx.Node, x: fx.Node) -> Value:
    """``x`` in the shape of ``node``; UnsupportedLayout when tokens would mix with other axes."""
    check_reshape(importer.layout(x), importer.layout(node))
    return importer.conform(importer.value(x), node)
