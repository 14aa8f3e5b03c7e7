"""Finished sites and the model's other tensors → the tensors of the new checkpoint, one after the other."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from rusteeze.ir import Value
from rusteeze.quantize.find_folds import GraphFold
from rusteeze.quantize.find_sites import GraphSite, weight_of
from rusteeze.quantize.layerwise import Plan, expert_name
from rusteeze.quantize.results import Quantised
from rusteeze.quantize.source_model import SourceModel
from rusteeze.quantize.work import SiteRecord, Work

Tensor = torch.Tensor
SUFFIX = ".weight"
OPEN_SITES = 2


@dataclass
class _Changes:
    """What folds do to parameters: factors by which the rows of matrices, the entries of norms and biases
    are divided, and the columns of plain matrices multiplied."""

    rows: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, tuple[Tensor, float]] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)

    def add(self, fold: GraphFold, factors: Tensor) -> None:
        own = fold.of_producer(factors)
        self.rows |= dict.fromkeys(fold.rows, own)
        self.norms |= {name: (own, offset) for name, offset in fold.norms}
        self.biases |= dict.fromkeys(fold.biases, own)
        self.columns |= dict.fromkeys(fold.columns, factors)

    def plain(self, param: str, tensor: Tensor) -> Tensor:
        """A stored tensor after the changes, in its own type."""
        values = tensor.float()
        if param in self.norms:
            factors, offset = self.norms[param]
            values = (values + offset) / factors - offset
        if param in self.biases:
            values = values / self.biases[param]
        if param in self.rows:
            values = values / self.rows[param][:, None]
        if param in self.columns:
            values = values * self.columns[param]
        return values.to(tensor.dtype)

    @property
    def params(self) -> set[str]:
        return {*self.rows, *self.norms, *self.biases, *self.columns}


@dataclass(frozen=True)
class Stored:
    """A tensor of the new checkpoint before its format: codes of a matrix, or plain numbers."""

    name: str
    content: Quantised | Tensor


class Assembly:
    """``work`` holds every site of ``plan``."""

    def __init__(self, plan: Plan, source: SourceModel, work: Work) -> None:
        self.source, self.work = source, work
        self.changes = _changes(plan, work)
        self.home = {name: (i, part) for i, site in enumerate(plan.sites) for name, part in _homes(site, source)}
        self.param_of = {source.parts(p)[0].name: p for p in self.changes.params if source.is_whole(p)}  # type: ignore[index]
        self.opened: OrderedDict[int, SiteRecord] = OrderedDict()

    @property
    def quantised(self) -> set[str]:
        """Names of stored tensors that hold codes now."""
        return set(self.home)

    def __iter__(self) -> Iterator[Stored]:
        """All tensors in the order of the original."""
        for name in self.source.names:
            yield Stored(name, self.codes(name) if name in self.home else self._plain(name))

    def codes(self, name: str) -> Quantised:
        """What is stored under a name that is among ``quantised``."""
        site, (matrix, rows) = self.home[name]
        codes = self._record(site).codes[matrix].rows(rows)
        param = self.param_of.get(name)
        if param in self.changes.rows:
            codes = codes.scaled_rows(1 / self.changes.rows[param])
        return codes

    def _plain(self, name: str) -> Tensor:
        tensor = self.source.tensor(name)
        param = self.param_of.get(name)
        return tensor if param is None else self.changes.plain(param, tensor)

    def _record(self, site: int) -> SiteRecord:
        """A site's codes. Names of an expert's matrices take turns between two sites: both stay open."""
        if site not in self.opened:
            record = self.work.finished(site)
            assert record is not None, site
            self.opened[site] = record
            if len(self.opened) > OPEN_SITES:
                self.opened.popitem(last=False)
        self.opened.move_to_end(site)
        return self.opened[site]


def _changes(plan: Plan, work: Work) -> _Changes:
    changes = _Changes()
    for i, fold in enumerate(plan.folds):
        if fold is None:
            continue
        record = work.finished(i)
        assert record is not None, i
        if record.factors is not None:
            changes.add(fold, record.factors)
    return changes


def _homes(site: GraphSite, source: SourceModel) -> Iterator[tuple[str, tuple[str, slice]]]:
    """Each stored matrix of a site, with the name of its codes and its rows among them."""
    for node in site.nodes:
        weight: Value = weight_of(node)
        for part in source.parts(weight.name) or ():
            matrix = weight.name if part.expert is None else expert_name(weight.name, part.expert)
            yield part.name, (matrix, part.rows)
