"""Recognise activations, gated linear units and soft caps that are spelled out in arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from rusteeze.ir.graph import Graph
from rusteeze.ir.pattern import constant_value
from rusteeze.ir.rewrite import Match, Rule, rewrite
from rusteeze.passes.pass_base import Pass, PassResult

GATES = ("silu", "gelu", "gelu_tanh", "relu", "sigmoid")
_TANH = "tanh(mul(add(x, mul(mul(mul(x, x), x), 0.044715)), 0.7978845608))"
_TANH_FACTORED = "tanh(mul(mul(x, 0.7978845608), add(mul(mul(x, 0.044715), x), 1.0)))"
_TANH_SQUARED = "tanh(mul(mul(x, 0.7978845608), add(mul(mul(x, x), 0.044715), 1.0)))"
_ERF = "erf(mul(x, 0.7071067812))"
_ERF_DIVIDED = "erf(div(x, 1.4142135624))"


def _gelu(bend: str, name: str) -> list[Rule]:
    """Where the factor 0.5 may stand."""
    return [
        Rule(f"mul(mul(x, 0.5), add({bend}, 1.0)) => {name}(x)"),
        Rule(f"mul(mul(x, add({bend}, 1.0)), 0.5) => {name}(x)"),
        Rule(f"mul(mul(add({bend}, 1.0), 0.5), x) => {name}(x)"),
    ]


def _no_constant(match: Match) -> bool:
    return constant_value(match.values["u"]) is None


def _is_inverse(match: Match) -> bool:
    inner, outer = match.attrs["a"], match.attrs["c"]
    assert isinstance(inner, float)
    assert isinstance(outer, float)
    return math.isclose(inner * outer, 1.0, rel_tol=1e-6)


RULES = [
    *_gelu(_TANH, "gelu_tanh"),
    *_gelu(_TANH_FACTORED, "gelu_tanh"),
    *_gelu(_TANH_SQUARED, "gelu_tanh"),
    *_gelu(_ERF, "gelu"),
    *_gelu(_ERF_DIVIDED, "gelu"),
    Rule("mul(x, sigmoid(x)) => silu(x)"),
    Rule("div(x, add(exp(neg(x)), 1.0)) => silu(x)"),
    Rule("mul(tanh(div(x, ?c)), ?c) => softcap(x) {cap=?c}"),
    Rule(
        "mul(tanh(mul(x, ?a)), ?c) => softcap(x) {cap=?c}",
        where={"the inner factor does not undo the outer one": _is_inverse},
    ),
    *(
        Rule(
            f"mul({act}(g), u) => glu(g, u) {{act='{act}'}}",
            where={"the other factor is a constant": _no_constant},
        )
        for act in GATES
    ),
]


@dataclass(frozen=True)
class RaiseActivations(Pass):
    """Before: canonical. After: silu, both gelus, ``act(g) * u`` and ``tanh(x / c) * c`` are single
    nodes. Every match has reproduced the original on probe data."""

    name: ClassVar[str] = "raise-activations"

    def run(self, graph: Graph) -> PassResult:
        return PassResult.of(rewrite(graph, RULES, probed=True))
