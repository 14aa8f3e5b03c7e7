"""Text form of graphs: print and parse, with parse(print(g)) == g. Grammar: docs/ir.md."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

from rusteeze.ir.graph import Graph, Node, Value, make_node
from rusteeze.ir.op import REQUIRED
from rusteeze.ir.types import TensorType, parse_type

_NAME = r"[A-Za-z0-9_./\-]+"


def print_graph(graph: Graph) -> str:
    return "\n".join(_graph_lines(graph, f"graph @{graph.name}", "", {})) + "\n"


def print_node_line(node: Node) -> str:
    """One node for messages; operands that have no name yet are shown by their op."""
    return _head(node, lambda v: f"%<{v.op or v.name}>", ["%?"] * len(node.results))


def _graph_lines(graph: Graph, head: str, indent: str, outer: dict[Value, str]) -> list[str]:
    names: dict[Value, str] = {v: "%" + v.name for v in graph.inputs}
    names |= {v: "@" + v.name for v in graph.weights.values()}
    signature = ", ".join(f"{names[v]}: {v.type}" for v in graph.inputs)
    lines = [f"{indent}{head}({signature}) {{"]
    inner = indent + "  "
    for v in graph.weights.values():
        lines.append(f'{inner}@{v.name} : {v.type} = "{v.format}"')
    counter = 0
    for node in graph.nodes:
        results = []
        for r in node.results:
            names[r] = f"%{counter}"
            results.append(names[r])
            counter += 1
        line = inner + _head(node, names.__getitem__, results)
        if node.body is not None:
            body = _graph_lines(node.body, f"@{node.body.name}", inner, names)
            body[0] = body[0].strip()
            line += " " + "\n".join(body)
        if node.origin:
            line += f"  # {node.origin}"
        lines.append(line)
    lines.append(f"{inner}return {', '.join(names[v] for v in graph.outputs)}")
    lines.append(indent + "}")
    return lines


def _head(node: Node, name_of: Any, results: list[str]) -> str:
    operands = ", ".join("_" if v is None else name_of(v) for v in node.operands)
    shown = {
        k: v
        for k, v in node.attrs.items()
        if node.op.attrs[k].default is REQUIRED or v != node.op.attrs[k].default
    }
    attrs = ", ".join(f"{k}={_print_attr(v)}" for k, v in shown.items())
    types = ", ".join(str(r.type) for r in node.results)
    return (
        f"{', '.join(results)} = {node.op.name}({operands})"
        + (f" {{{attrs}}}" if attrs else "")
        + f" : {types}"
    )


def _print_attr(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(repr(v) if isinstance(v, str) else str(v) for v in value) + "]"
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"  # a literal that overflows; "inf" would be a name
    return repr(value)


class ParseError(ValueError):
    """Text that is no graph; the message starts with the line number."""


_GRAPH = re.compile(rf"(?:graph )?@({_NAME})\((.*)\) \{{$")
_WEIGHT = re.compile(rf'@({_NAME}) : (\S+) = "([^"]*)"$')
_NODE = re.compile(
    r"(?P<results>%[\w, %]+) = (?P<op>\w+)\((?P<operands>[^)]*)\)"
    r"(?: \{(?P<attrs>.*?)\})? : (?P<types>[^{#]+?)(?: (?P<body>@[^#]*\{))?(?:  # (?P<origin>.*))?$"
)


class _Parser:
    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.at = 0

    def fail(self, why: str) -> ParseError:
        return ParseError(f"line {self.at}: {why}")

    def next(self) -> str:
        while self.at < len(self.lines):
            line = self.lines[self.at].strip()
            self.at += 1
            if line and not line.startswith("#"):
                return line
        raise self.fail("unexpected end of text")

    def graph(self, head: str) -> tuple[Graph, str]:
        """The graph whose first line is ``head``, and the origin that follows its closing brace."""
        m = _GRAPH.match(head)
        if not m:
            raise self.fail(f"expected a graph, found {head!r}")
        graph = Graph(m[1])
        env: dict[str, Value] = {}
        for name, text in re.findall(rf"%({_NAME}): (\w+\[[^\]]*\])", m[2]):
            env["%" + name] = graph.input(name, self.type(text))
        while True:
            line = self.next()
            if w := _WEIGHT.match(line):
                env["@" + w[1]] = graph.weight(w[1], self.type(w[2]), w[3])
            elif line.startswith("return"):
                names = line.removeprefix("return").split(",")
                graph.outputs = [self.lookup(env, n.strip()) for n in names if n.strip()]
            elif line.startswith("}"):
                return graph, line[1:].strip().removeprefix("# ")
            else:
                self.node(graph, env, line)

    def type(self, text: str) -> TensorType:
        try:
            return parse_type(text)
        except ValueError as e:
            raise self.fail(str(e)) from None

    def lookup(self, env: dict[str, Value], name: str) -> Value:
        if name not in env:
            raise self.fail(f"{name} is not defined")
        return env[name]

    def node(self, graph: Graph, env: dict[str, Value], line: str) -> None:
        m = _NODE.match(line)
        if not m:
            raise self.fail(f"cannot read {line!r}")
        names = [n.strip() for n in m["operands"].split(",") if n.strip()]
        operands = [None if n == "_" else self.lookup(env, n) for n in names]
        origin = m["origin"] or ""
        body = None
        if m["body"]:
            body, origin = self.graph(m["body"])
        try:
            attrs = _parse_attrs(m["attrs"] or "")
            node = make_node(m["op"], operands, attrs, origin, body)
        except (TypeError, ValueError, SyntaxError) as e:
            raise self.fail(str(e)) from None
        types = [t.strip() for t in re.findall(r"\w+\[[^\]]*\]", m["types"])]
        if types != [str(r.type) for r in node.results]:
            raise self.fail(f"{m['op']} gives {[str(r.type) for r in node.results]}, not {types}")
        results = [r.strip() for r in m["results"].split(",")]
        if len(results) != len(node.results):
            raise self.fail(f"{m['op']} has {len(node.results)} results, not {len(results)}")
        graph.nodes.append(node)
        env.update(zip(results, node.results, strict=True))


def _parse_attrs(text: str) -> dict[str, Any]:
    """``a=1, b=[2,'T']`` as a dict; only literals are read."""
    if not text:
        return {}
    call = ast.parse(f"f({text})", mode="eval").body
    assert isinstance(call, ast.Call)
    out: dict[str, Any] = {}
    for k in call.keywords:
        value = ast.literal_eval(k.value)
        out[str(k.arg)] = tuple(value) if isinstance(value, list) else value
    return out


def parse(text: str) -> Graph:
    """Inverse of print_graph. ParseError (with the line) on anything else."""
    p = _Parser(text)
    graph, _ = p.graph(p.next())
    return graph
