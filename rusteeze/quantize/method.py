"""What a method of quantisation is: matrices that read one input → codes. One file implements one method.

    class Mine:
        reads_inputs = False
        def quantize(self, site, spec):
            return SiteResult({m.name: spec.pack(...) for m in site.matrices})

``methods.py`` lists them. A method knows no model, no file format and no graph.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol

import torch

from rusteeze.errors import UserError
from rusteeze.quantize.grid import GridSpec
from rusteeze.quantize.products import gram
from rusteeze.quantize.results import Quantised

Tensor = torch.Tensor
FEWEST_TOKENS = 32


class Latest:
    """Keeps the second moments that were asked for last: those of a layer's many experts are never held together."""

    def __init__(self) -> None:
        self.owner: weakref.ref[Inputs] | None = None  # weak, so that moments go with their site, at once
        self.hessian = torch.zeros(0, 0)

    def of(self, inputs: Inputs) -> Tensor:
        if self.owner is None or self.owner() is not inputs:
            self.owner, self.hessian = None, torch.zeros(0, 0)  # freed before others take their place
            self.hessian = inputs.second_moments()
            self.owner = weakref.ref(inputs)
        return self.hessian


@dataclass(frozen=True, eq=False)
class Inputs:
    """All rows that enter a product while a text is read; ``read`` gives them in pieces f32 [*, K]. The inputs
    of one site share ``latest``."""

    name: str
    read: Callable[[], Iterable[Tensor]]
    latest: Latest = field(default_factory=Latest)

    @property
    def hessian(self) -> Tensor:
        """Mean of x x' over the rows: f32 [K, K]. The error of the outputs is dW H dW'. Computed anew when other
        inputs of the site were asked meanwhile: take them one after the other."""
        return self.latest.of(self)

    def second_moments(self) -> Tensor:
        total: Tensor | None = None
        for x in self.read():
            total = gram(x) if total is None else total.add_(gram(x))
        if total is None:
            return torch.zeros(0, 0)
        if not torch.isfinite(total).all():
            raise UserError(f"what enters {self.name} on this text is not finite; the model overflows in float32")
        return total.div_(self.tokens)

    @cached_property
    def magnitude(self) -> Tensor:
        """Mean of abs(x) over the rows: f32 [K]."""
        return torch.stack([x.abs().sum(0) for x in self.read()]).sum(0) / self.tokens

    @cached_property
    def tokens(self) -> int:
        return sum(map(len, self.read()))

    @property
    def are_enough(self) -> bool:
        """Whether the rows say something: an expert may see none."""
        return self.tokens >= FEWEST_TOKENS


@dataclass(frozen=True, eq=False)
class Matrix:
    """One W f32 [N, K] and what enters it. Matrices that read the same rows share ``inputs``."""

    name: str
    weight: Tensor
    inputs: Inputs


@dataclass(frozen=True, eq=False)
class Fold:
    """The producer of a site's input can divide its channels by factors, while the matrices multiply theirs.

    ``exact`` turns wanted factors f32 [K] into those that the producer's stored numbers can hold; channels
    of one ``tie`` (int64 [K]) must share a factor."""

    tie: Tensor
    exact: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Site:
    """Matrices that read one input, quantised together."""

    matrices: list[Matrix]
    fold: Fold | None = None

    def by_inputs(self) -> Iterator[list[Matrix]]:
        """The matrices in groups that read the same rows: of an expert those of its own tokens."""
        groups: dict[int, list[Matrix]] = {}
        for matrix in self.matrices:
            groups.setdefault(id(matrix.inputs), []).append(matrix)
        yield from groups.values()


@dataclass(frozen=True, eq=False)
class SiteResult:
    """Codes by name of matrix. With ``factors`` f32 [K] they are those of W * factors, and the producer of
    the input is to divide by them. ``notes`` are for the person who waits."""

    codes: dict[str, Quantised]
    factors: Tensor | None = None
    notes: list[str] = field(default_factory=list)


class Method(Protocol):
    """``reads_inputs``: whether a text is needed; ``follows_rounded``: whether later sites are to see the
    outputs of rounded matrices instead of the model's own."""

    reads_inputs: ClassVar[bool]
    follows_rounded: ClassVar[bool]

    def quantize(self, site: Site, spec: GridSpec) -> SiteResult:
        """Codes for every matrix of the site."""


def stacked(matrices: list[Matrix]) -> Tensor:
    """The rows of all matrices, in order: what is done row by row is done at once."""
    return torch.cat([m.weight for m in matrices])


def unstacked(matrices: list[Matrix], codes: Quantised) -> dict[str, Quantised]:
    """Inverse of ``stacked``, by name."""
    found: dict[str, Quantised] = {}
    start = 0
    for matrix in matrices:
        stop = start + len(matrix.weight)
        found[matrix.name] = codes.rows(slice(start, stop))
        start = stop
    return found
