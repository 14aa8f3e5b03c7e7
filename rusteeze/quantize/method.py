"""What a method of quantisation is: matrices that read one input → codes. One file implements one method.

    class Mine:
        reads_inputs = False
        def quantize(self, site, spec):
            return SiteResult({m.name: spec.pack(...) for m in site.matrices})

``methods.py`` lists them. A method knows no model, no file format and no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol

import torch

from rusteeze.errors import UserError
from rusteeze.quantize.grid import GridSpec
from rusteeze.quantize.results import Quantised

Tensor = torch.Tensor
FEWEST_TOKENS = 32


@dataclass(frozen=True, eq=False)
class Inputs:
    """All rows that enter a product while a text is read; ``read`` gives them in pieces f32 [*, K]."""

    name: str
    read: Callable[[], Iterable[Tensor]]

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor, int]:
        second: Tensor | None = None
        first: Tensor | None = None
        count = 0
        for x in self.read():
            square, size = x.T @ x, x.abs().sum(0)
            second = square if second is None else second.add_(square)
            first = size if first is None else first.add_(size)
            count += len(x)
        if second is None or first is None:
            return torch.zeros(0, 0), torch.zeros(0), 0
        if not torch.isfinite(second).all():
            raise UserError(f"what enters {self.name} on this text is not finite; the model overflows in float32")
        return second / count, first / count, count

    @property
    def hessian(self) -> Tensor:
        """Mean of x x' over the rows: f32 [K, K]. The error of the outputs is dW H dW'."""
        return self._sums[0]

    @property
    def magnitude(self) -> Tensor:
        """Mean of abs(x) over the rows: f32 [K]."""
        return self._sums[1]

    @property
    def tokens(self) -> int:
        return self._sums[2]

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
