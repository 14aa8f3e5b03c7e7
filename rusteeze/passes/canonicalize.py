"""Bring a graph into the one form that all later passes expect."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from rusteeze.ir.graph import Graph
from rusteeze.ir.op import AttrValue
from rusteeze.ir.rewrite import Match, RewriteReport, Rule, rewrite
from rusteeze.passes.fold_constants import fold_constants
from rusteeze.passes.pass_base import Pass, PassResult
from rusteeze.passes.share_equal_nodes import share_equal_nodes
from rusteeze.passes.slice_through_concat import slice_through_concat
from rusteeze.passes.write_last_axis_as_minus_one import write_last_axis_as_minus_one

MAX_ROUNDS = 16


def _ints(match: Match, hole: str) -> tuple[int, ...]:
    value = match.attrs[hole]
    assert isinstance(value, tuple)
    return tuple(d for d in value if isinstance(d, int))


def _int(match: Match, hole: str) -> int:
    value = match.attrs[hole]
    assert isinstance(value, int)
    return value


def _number(match: Match, hole: str) -> float:
    value = match.attrs[hole]
    assert isinstance(value, float)
    return value


def _is_identity(match: Match) -> bool:
    perm = _ints(match, "p")
    return perm == tuple(range(len(perm)))


def _composed(match: Match) -> AttrValue:
    inner = _ints(match, "p")
    return tuple(inner[i] for i in _ints(match, "q"))


def _keeps_order(match: Match) -> bool:
    shape = match.values["x"].type.shape
    moved = [p for p in _ints(match, "p") if shape[p] != 1]
    return moved == sorted(moved)


def _result_shape(match: Match) -> AttrValue:
    return match.root.result.type.shape


def _nested_start(match: Match) -> int:
    return _int(match, "a") + _int(match, "c") * _int(match, "s")


def _nested_stop(match: Match) -> AttrValue:
    last = range(_int(match, "c"), _int(match, "d"), _int(match, "t"))[-1]
    return _int(match, "a") + last * _int(match, "s") + 1


def _is_power_of_two(match: Match) -> bool:
    return abs(math.frexp(_number(match, "c"))[0]) == 0.5


IDENTITIES = [
    Rule("reshape(x) => x"),
    Rule("cast(x) => x"),
    Rule("broadcast_to(x) => x"),
    Rule("slice(x) => x"),
    Rule("concat(x) => x"),
    Rule("permute(x) {perm=?p} => x", where={"the axes change places": _is_identity}),
    Rule("mul(x, 1.0) => x"),
    Rule("div(x, 1.0) => x"),
    Rule("pow(x, 1.0) => x"),
    Rule("add(x, 0.0) => x"),
    Rule("sub(x, 0.0) => x"),
    Rule("neg(neg(x)) => x"),
]
LAYOUT = [
    Rule("reshape(reshape(x)) {shape=?s} => reshape(x) {shape=?s}"),
    Rule("broadcast_to(broadcast_to(x)) {shape=?s} => broadcast_to(x) {shape=?s}"),
    Rule("permute(permute(x) {perm=?p}) {perm=?q} => permute(x) {perm=?r}", let={"r": _composed}),
    Rule(
        "permute(x) {perm=?p} => reshape(x) {shape=?s}",
        where={"an axis of more than one element moves": _keeps_order},
        let={"s": _result_shape},
    ),
    Rule(
        "slice(slice(x) {axis=?i, start=?a, stop=?b, step=?s}) {axis=?i, start=?c, stop=?d, step=?t}"
        " => slice(x) {axis=?i, start=?start, stop=?stop, step=?step}",
        let={
            "start": _nested_start,
            "stop": _nested_stop,
            "step": lambda m: _int(m, "s") * _int(m, "t"),
        },
    ),
    *(
        Rule(
            f"linear(reshape(x), w, {bias}) => reshape(linear(x, w, {bias})) {{shape=?s}}",
            where={"the input is no matrix": lambda m: m.values["x"].type.rank == 2},
            let={"s": _result_shape},
        )
        for bias in ("_", "b")
    ),
    Rule("reshape(mean(x) {axis=?a, keepdim=False}) => mean(x) {axis=?a, keepdim=True}"),
    Rule("add(broadcast_to(x), y) => add(x, y)"),
    Rule("mul(broadcast_to(x), y) => mul(x, y)"),
    Rule("sub(broadcast_to(x), y) => sub(x, y)"),
    Rule("sub(x, broadcast_to(y)) => sub(x, y)"),
    Rule("div(broadcast_to(x), y) => div(x, y)"),
    Rule("div(x, broadcast_to(y)) => div(x, y)"),
]
ARITHMETIC = [
    Rule("pow(x, 2.0) => mul(x, x)"),
    Rule("pow(x, 3.0) => mul(mul(x, x), x)"),
    Rule("pow(x, 0.5) => sqrt(x)"),
    Rule("pow(x, -0.5) => rsqrt(x)"),
    Rule("pow(x, -1.0) => reciprocal(x)"),
    Rule("reciprocal(sqrt(x)) => rsqrt(x)"),
    Rule("div(1.0, x) => reciprocal(x)"),
    Rule("div(x, sqrt(y)) => mul(x, rsqrt(y))"),
    Rule("mul(x, -1.0) => neg(x)"),
    Rule("sub(x, ?c) => add(x, ?n)", let={"n": lambda m: -_number(m, "c")}),
    Rule(
        "div(x, ?c) => mul(x, ?r)",
        where={"the reciprocal is not exact": _is_power_of_two},
        let={"r": lambda m: 1 / _number(m, "c")},
    ),
]
RULES = IDENTITIES + LAYOUT + ARITHMETIC


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Before: any well-formed graph. After: no op that changes nothing, no reshape of a reshape (and so
    on), the last axis written as -1, equal expressions computed once, no dead nodes, scalar constants
    folded, one spelling for squares, roots, and multiples."""

    name: ClassVar[str] = "canonicalize"

    def run(self, graph: Graph) -> PassResult:
        reports: list[RewriteReport] = []
        for _ in range(MAX_ROUNDS):
            graph.eliminate_dead_code()
            report = RewriteReport()
            for step in (
                write_last_axis_as_minus_one, fold_constants, slice_through_concat,
                share_equal_nodes,
            ):  # fmt: skip
                report.firings += step(graph)
            rules = rewrite(graph, RULES)
            report.firings += rules.firings
            report.refusals = rules.refusals
            reports = [RewriteReport(r.firings) for r in reports] + [report]
            if not report.firings:
                break
        return PassResult.of(*reports)
