"""Quantise the sites of a graph one after the other, in the order in which the model computes.

A text goes through the graph once: at each site it stops, the site's matrices are quantised, and it goes
on through what they have become. Sites that an earlier run has finished are only gone through.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from rusteeze.errors import UserError
from rusteeze.ir import Graph, Node, Value
from rusteeze.quantize.activations import Activations
from rusteeze.quantize.find_folds import GraphFold, find_fold
from rusteeze.quantize.find_sites import GraphSite, num_weights, weight_of
from rusteeze.quantize.grid import GridSpec
from rusteeze.quantize.method import Fold, Inputs, Latest, Matrix, Method, Site
from rusteeze.quantize.schedule import scheduled
from rusteeze.quantize.source_model import SourceModel
from rusteeze.quantize.work import SiteRecord, Work

Tensor = torch.Tensor
Report = Callable[[str, float], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Plan:
    """The sites of a graph and the fold of each, where it has one."""

    graph: Graph
    sites: list[GraphSite]
    folds: list[GraphFold | None]


def make_plan(graph: Graph, sites: list[GraphSite], source: SourceModel) -> Plan:
    uses = graph.uses()
    return Plan(graph, sites, [find_fold(site, uses, source.is_whole) for site in sites])


def quantize_sites(
    plan: Plan, source: SourceModel, method: Method, specs: Sequence[GridSpec], windows: Sequence[Tensor],
    work: Work, report: Report,
) -> None:  # fmt: skip
    """Leave the codes of every site in ``work``. ``specs`` belong to the sites; ``windows`` of token ids are
    read if the method wants that."""
    _Run(plan, source, method, specs, windows, work, report).run()


class _Run:
    def __init__(
        self, plan: Plan, source: SourceModel, method: Method, specs: Sequence[GridSpec],
        windows: Sequence[Tensor], work: Work, report: Report,
    ) -> None:  # fmt: skip
        self.plan, self.source, self.method, self.specs = plan, source, method, specs
        self.work, self.report = work, report
        nodes, self.starts = scheduled(plan.graph, plan.sites)
        self.activations = Activations(plan.graph, nodes, windows) if method.reads_inputs else None
        self.rounded: dict[str, Tensor] = {}  # weights as they will be, until the text has passed them
        self.progress = _Progress(plan.sites, report)

    def run(self) -> None:
        for i, site in enumerate(self.plan.sites):
            with torch.inference_mode():
                self._reach(i)
                record = self.work.finished(i)
                known = record is not None
                if record is None:
                    record = self._quantize(i)
                    self.work.save(i, record)
                if self.method.follows_rounded:
                    self.rounded |= rounded_weights(site, record)
            self.progress.finish(i, known)

    def _reach(self, i: int) -> None:
        if self.activations is not None:
            self.activations.advance(self.starts[i], self._load)

    def _load(self, name: str) -> Tensor:
        return self.rounded.pop(name) if name in self.rounded else self.source.weight(name)

    def _quantize(self, i: int) -> SiteRecord:
        site, fold = self.plan.sites[i], self.plan.folds[i]
        shared, latest = dict[tuple[str, int], Inputs](), Latest()
        matrices = [m for node in site.nodes for m in self._matrices(node, shared, latest)]
        result = self.method.quantize(Site(matrices, self._fold(fold) if fold else None), self.specs[i])
        for note in result.notes:
            log.warning("%s", note)
        return SiteRecord(result.codes, result.factors)

    def _matrices(
        self, node: Node, shared: dict[tuple[str, int], Inputs], latest: Latest
    ) -> Iterator[Matrix]:  # fmt: skip
        """Those of a product, or of all its experts. ``shared`` are the inputs that the site has so far."""
        name = weight_of(node).name
        weight = self.source.weight(name)
        numbers = [-1] if node.op.name == "linear" else range(len(weight))
        for expert in numbers:
            key = ("" if expert < 0 else str(id(node.operands[1])), expert)
            if key not in shared:
                shared[key] = Inputs(name, partial(self._read, node, expert), latest)
            if expert < 0:
                yield Matrix(name, weight, shared[key])
            else:
                yield Matrix(expert_name(name, expert), weight[expert], shared[key])

    def _read(self, node: Node, expert: int) -> Iterable[Tensor]:
        """The rows that enter a product; of an expert, those of the tokens that chose it."""
        x, choice = node.operands[0], node.operands[1]
        assert self.activations is not None
        assert x is not None
        if expert < 0:
            return (rows.reshape(-1, rows.shape[-1]) for rows in self.activations.rows(x))
        return self._chosen(x, choice, expert)

    def _chosen(self, x: Value, choice: Value | None, expert: int) -> Iterator[Tensor]:
        assert self.activations is not None
        assert choice is not None
        for rows, chosen in zip(self.activations.rows(x), self.activations.rows(choice), strict=True):
            token, slot = (chosen == expert).nonzero(as_tuple=True)
            if len(token):
                yield rows[token] if rows.dim() == 2 else rows[token, slot]

    def _fold(self, fold: GraphFold) -> Fold:
        return Fold(fold.tie, lambda wanted: exact_factors(fold, wanted, self.source))


def exact_factors(fold: GraphFold, wanted: Tensor, source: SourceModel) -> Tensor:
    """Factors near the wanted ones by which a norm's weight can be divided within its stored type."""
    for name, offset in fold.norms:
        weight = source.weight(name) + offset
        stored = ((weight / wanted) - offset).to(source.stored_dtype(name)).float() + offset
        usable = (stored != 0) & (weight / stored > 0)
        wanted = torch.where(usable, weight / torch.where(usable, stored, torch.ones(())), torch.ones(()))
    return wanted


def expert_name(param: str, expert: int) -> str:
    """What the matrix of one expert is called among results."""
    return f"{param}#{expert}"


def rounded_weights(site: GraphSite, record: SiteRecord) -> dict[str, Tensor]:
    """The site's weights as the codes have them, f32, in the model's own channels."""
    found: dict[str, Tensor] = {}
    for node in site.nodes:
        weight = weight_of(node)
        if node.op.name == "linear":
            numbers = record.codes[weight.name].to_f32()
        else:
            count = int(weight.type.shape[0])
            numbers = torch.stack([record.codes[expert_name(weight.name, e)].to_f32() for e in range(count)])
        found[weight.name] = numbers if record.factors is None else numbers / record.factors
    return found


class _Progress:
    """Share of the work done, by the numbers of the matrices, and an estimate of the time that is left."""

    def __init__(self, sites: Sequence[GraphSite], report: Report) -> None:
        sizes = [num_weights(site) for site in sites]
        if not sizes:
            raise UserError("nothing in this model can be quantised: no product has a matrix stored in rows")
        self.names, self.sizes, self.report = [s.name for s in sites], sizes, report
        self.done = self.timed = 0
        self.start = time.monotonic()

    def finish(self, site: int, known: bool) -> None:
        self.done += self.sizes[site]
        self.timed += 0 if known else self.sizes[site]
        share = self.done / sum(self.sizes)
        text = self.names[site]
        if self.timed:
            rate = (time.monotonic() - self.start) / self.timed
            text += f", about {rate * (sum(self.sizes) - self.done):.0f} s left"
        self.report(text, share)
