"""Recognise normalisations that are spelled out in arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rusteeze.ir.graph import Graph
from rusteeze.ir.rewrite import Rule, rewrite
from rusteeze.passes.pass_base import Pass, PassResult

# A layer norm is the root-mean-square norm of the centred input, so it is found in two steps.
RULES = [
    Rule(
        "mul(x, rsqrt(add(mean(mul(x, x)) {axis=-1, keepdim=True}, ?eps)))"
        " => rms_norm(x, _) {eps=?eps}"
    ),
    Rule("mul(rms_norm(x, _) {eps=?eps}, add(@w, 1.0)) => rms_norm(x, w) {eps=?eps, offset=1.0}"),
    Rule("mul(rms_norm(x, _) {eps=?eps}, @w) => rms_norm(x, w) {eps=?eps}"),
    Rule(
        "rms_norm(sub(x, mean(x) {axis=-1, keepdim=True}), _) {eps=?eps}"
        " => layer_norm(x, _, _) {eps=?eps}"
    ),
    Rule(
        "rms_norm(sub(x, mean(x) {axis=-1, keepdim=True}), w) {eps=?eps, offset=0.0}"
        " => layer_norm(x, w, _) {eps=?eps}"
    ),
    Rule("mul(layer_norm(x, _, _) {eps=?eps}, @w) => layer_norm(x, w, _) {eps=?eps}"),
    Rule("add(layer_norm(x, w, _) {eps=?eps}, @b) => layer_norm(x, w, b) {eps=?eps}"),
]


@dataclass(frozen=True)
class RaiseNorms(Pass):
    """Before: canonical. After: what computes ``x / rms(x) * (w + offset)`` or
    ``(x - mean) / std * w + b`` over the last axis is one ``rms_norm`` or ``layer_norm``. Every match
    has reproduced the original on probe data."""

    name: ClassVar[str] = "raise-norms"

    def run(self, graph: Graph) -> PassResult:
        return PassResult.of(rewrite(graph, RULES, probed=True))
