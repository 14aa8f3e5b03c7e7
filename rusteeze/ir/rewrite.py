"""Rewriting by equations.

A rule is its equation: ``Rule("mul(silu(g), u) => glu(g, u) {act='silu'}")``. The left side is a pattern
(rusteeze.ir.pattern), the right side is built from what it captured. The equation is the rule's name in
every message. The driver goes from the outputs to the inputs, takes the first rule that fits at each node
and repeats until nothing fits any more; what it declined, it can explain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rusteeze.ir.graph import Graph, Node, Value, make_node
from rusteeze.ir.op import AttrValue
from rusteeze.ir.pattern import (
    Bindings,
    Call,
    Capture,
    Hole,
    Missing,
    Number,
    Pattern,
    PatternError,
    captured_names,
    matches,
    parse_pattern,
)
from rusteeze.ir.probe import disagreement, signature
from rusteeze.ir.text import print_node_line

MAX_SWEEPS = 64


@dataclass(frozen=True)
class Match:
    """A place where a rule's left side fits: its root node and what was captured there."""

    root: Node
    values: Mapping[str, Value]
    attrs: Mapping[str, AttrValue]


Guard = Callable[[Match], bool]
Let = Callable[[Match], AttrValue]


@dataclass(frozen=True)
class Rule:
    """``LEFT => RIGHT``. ``where``: reason for declining → what must hold; ``let``: values for holes that
    occur on the right side only. PatternError when the equation cannot be read."""

    equation: str
    where: Mapping[str, Guard] = field(default_factory=dict)
    let: Mapping[str, Let] = field(default_factory=dict)
    left: Call = field(init=False)
    right: Pattern = field(init=False)

    def __post_init__(self) -> None:
        left, arrow, right = self.equation.partition("=>")
        parsed = parse_pattern(left)
        if not arrow or not isinstance(parsed, Call):
            raise PatternError(f"no equation OP(...) => ...: {self.equation!r}")
        object.__setattr__(self, "left", parsed)
        object.__setattr__(self, "right", parse_pattern(right))
        self._check_names()

    def _check_names(self) -> None:
        known_values, known_holes = captured_names(self.left)
        values, holes = captured_names(self.right)
        unbound = (values - known_values) | (holes - known_holes - set(self.let))
        if unbound:
            raise PatternError(f"{', '.join(sorted(unbound))} not bound in {self.equation!r}")


@dataclass(frozen=True)
class Firing:
    """A match that was taken."""

    rule: str
    origin: str

    def __str__(self) -> str:
        return f"{self.rule}  # {self.origin}"


@dataclass(frozen=True)
class Refusal:
    """A place that looked right and was left alone."""

    rule: str
    node: Node
    reason: str

    def __str__(self) -> str:
        place = f"{print_node_line(self.node)}  # {self.node.origin}"
        return f"declined: {self.rule}\n  at: {place}\n  because: {self.reason}"


@dataclass
class RewriteReport:
    """What happened; the refusals are those that stand at the end."""

    firings: list[Firing] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


class RewriteError(RuntimeError):
    """Rules that never come to rest."""


class Rewriter:
    """Applies rules to graphs. If ``probed``, a rewrite must also survive a numerical check; the verdict
    is remembered for expressions of the same form."""

    def __init__(self, rules: Sequence[Rule], *, probed: bool = False) -> None:
        self.by_root: dict[str, list[Rule]] = {}
        for rule in rules:
            self.by_root.setdefault(rule.left.op, []).append(rule)
        self.probed = probed
        self.verdicts: dict[object, str | None] = {}
        self.report = RewriteReport()

    def run(self, graph: Graph) -> RewriteReport:
        """Rewrite in place until nothing matches. RewriteError after MAX_SWEEPS sweeps."""
        settled = 0
        for sweep in range(MAX_SWEEPS):
            if sweep == MAX_SWEEPS // 2:
                settled = len(self.report.firings)
            self.report.refusals.clear()
            if not self._sweep(graph):
                graph.eliminate_dead_code()
                return self.report
        restless = {f.rule for f in self.report.firings[settled:]}
        raise RewriteError(f"rules do not come to rest: {'; '.join(sorted(restless))}")

    def _sweep(self, graph: Graph) -> bool:
        """One walk from the outputs up. What only a replaced expression needed is dropped on the way."""
        static = graph.static_values()
        live: set[Value] = set(graph.outputs)
        kept: list[Node] = []
        replaced: dict[Value, Value] = {}
        for node in reversed(graph.nodes):
            if "stateful" not in node.op.traits and live.isdisjoint(node.results):
                continue
            found = self._rewrite_at(node, static)
            nodes = [node] if found is None else found[1]
            if found is not None:
                replaced[node.result] = found[0]
                live.add(found[0])
            for n in reversed(nodes):
                kept.append(n)
                live.update(n.inputs())
        graph.nodes = kept[::-1]
        graph.substitute(replaced)
        return bool(replaced)

    def _rewrite_at(self, node: Node, static: set[Value]) -> tuple[Value, list[Node]] | None:
        for rule in self.by_root.get(node.op.name, ()):
            for bound in matches(rule.left, node.results[0], static, Bindings()):
                built = self._apply(rule, Match(node, bound.values, bound.attrs))
                if not isinstance(built, str):
                    self.report.firings.append(Firing(rule.equation, node.origin))
                    return built
                if built:
                    self.report.refusals.append(Refusal(rule.equation, node, built))
        return None

    def _apply(self, rule: Rule, match: Match) -> tuple[Value, list[Node]] | str:
        """The replacement and its new nodes, or the reason why not ("" when that goes without saying)."""
        for reason, holds in rule.where.items():
            if not holds(match):
                return reason
        try:
            value, nodes = build(rule, match)
        except TypeError as e:
            return str(e)
        if value.type != match.root.result.type:
            if isinstance(rule.right, Capture):
                return ""  # OP(x) => x speaks of the cases in which OP changes nothing
            return f"the type would change from {match.root.result.type} to {value.type}"
        if self.probed:
            reason_or_none = self._verdict(rule, match, value)
            if reason_or_none is not None:
                return reason_or_none
        return value, nodes

    def _verdict(self, rule: Rule, match: Match, value: Value) -> str | None:
        captured = list(match.values.values())
        key = (rule.equation, signature(match.root.result, captured), signature(value, captured))
        if key not in self.verdicts:
            self.verdicts[key] = disagreement(match.root.result, value, captured)
        return self.verdicts[key]


def build(rule: Rule, captured: Match) -> tuple[Value, list[Node]]:
    """The right side of ``rule`` with its captures filled in. TypeError if that is ill-typed."""
    holes = {**captured.attrs, **{name: compute(captured) for name, compute in rule.let.items()}}
    nodes: list[Node] = []

    def emit(op: str, operands: list[Value | None], attrs: dict[str, AttrValue]) -> Value:
        nodes.append(make_node(op, operands, attrs, captured.root.origin))
        return nodes[-1].result

    def make(pattern: Pattern) -> Value | None:
        match pattern:
            case Missing():
                return None
            case Capture(name, _):
                return captured.values[name]
            case Number(number):
                return emit("const", [], {"value": number})
            case Hole(name):
                return emit("const", [], {"value": holes[name]})
            case Call(op, args, attrs):
                given = {k: holes[v.name] if isinstance(v, Hole) else v for k, v in attrs}
                return emit(op, [make(a) for a in args], given)

    value = make(rule.right)
    if value is None:
        raise TypeError("the right side is no value")
    return value, nodes


def rewrite(graph: Graph, rules: Iterable[Rule], *, probed: bool = False) -> RewriteReport:
    """Apply rules to a graph, in place, to a fixpoint. See Rewriter."""
    return Rewriter(list(rules), probed=probed).run(graph)
