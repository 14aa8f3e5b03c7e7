"""What a pass is: a frozen dataclass that turns a graph into an equivalent one.

Its fields are its options, also on the command line (``fuse{anchor='linear'}``); its docstring says what
must hold before and what holds after.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from rusteeze.ir.graph import Graph
from rusteeze.ir.rewrite import Firing, Refusal, RewriteReport


@dataclass(frozen=True)
class PassResult:
    """What a pass did, place by place, and what it declined to do."""

    firings: tuple[Firing, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    @property
    def matches(self) -> int:
        return len(self.firings)

    @classmethod
    def of(cls, *reports: RewriteReport) -> PassResult:
        return cls(
            tuple(f for r in reports for f in r.firings),
            tuple(f for r in reports for f in r.refusals),
        )


@dataclass(frozen=True)
class Pass(ABC):
    """A transformation under the name that it has in logs and on the command line."""

    name: ClassVar[str]

    @abstractmethod
    def run(self, graph: Graph) -> PassResult:
        """Transform ``graph`` in place; it computes the same function afterwards."""
