"""Bodies of fused regions, as every back end reads them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from rusteeze.ir import Graph, Node, Value, make_node


def as_body(node: Node) -> Graph:
    """A region of one node: its body, or a graph with just that node. Constants move inside."""
    if node.body is not None:
        return node.body
    body = Graph(node.op.name)
    operands: list[Value | None] = []
    for i, v in enumerate(node.operands):
        if v is None:
            operands.append(None)
        elif v.op == "const":
            assert v.node is not None
            operands.append(body.add("const", **v.node.attrs))
        else:
            operands.append(body.input(f"x{i}", v.type))
    inner = make_node(node.op.name, operands, dict(node.attrs))
    body.nodes.append(inner)
    body.outputs = list(inner.results)
    return body


def outer_operands(node: Node) -> list[Value]:
    """The operands that are bound to the inputs of ``as_body(node)``, in order."""
    if node.body is not None:
        return list(node.inputs())
    return [v for v in node.operands if v is not None and v.op != "const"]


def body_key(body: Graph) -> str:
    """What two equal bodies have in common, wherever in the model they come from."""
    number: dict[Value, int] = {v: i for i, v in enumerate(body.inputs)}
    rows = []
    for node in body.nodes:
        operands = [None if v is None else number[v] for v in node.operands]
        rows.append((node.op.name, operands, sorted(node.attrs.items()), [str(r.type) for r in node.results]))
        for r in node.results:
            number[r] = len(number)
    types = [str(v.type) for v in body.inputs]
    return f"{types}{rows}{[number[v] for v in body.outputs]}"


def attention_of(node: Node) -> Node | None:
    """The attention that a node is, or that its region holds."""
    nodes = [node] if node.body is None else node.body.nodes
    return next((n for n in nodes if n.op.name == "attention"), None)


def halves_of(body: Graph, linear: Node) -> tuple[Node, Node] | None:
    """The two slices of a gate-and-up matmul, if that is all that is read of it."""
    users = [n for n in body.nodes if linear.result in n.inputs()]
    if len(users) != 2 or any(n.op.name != "slice" for n in users):
        return None
    first, second = sorted(users, key=lambda n: int(n.attrs["start"]))  # type: ignore[call-overload]
    return first, second


def matrix(w: Value) -> tuple[int, int]:
    """(N, K) of a weight."""
    n, k = (int(d) for d in w.type.shape)
    return n, k


def rotated_by_reader(uses: Mapping[Value, Sequence[Node]], node: Node) -> bool:
    """A rope whose only reader is an attention is applied there: to keys on their way into the cache, to
    queries where they are scaled."""
    users = uses.get(node.result, []) if node.op.name == "rope" else []
    if len(users) != 1 or attention_of(users[0]) is None:
        return False
    return sum(v is node.result for v in users[0].inputs()) == 1


def position_table(value: Value | None, static: Container[Value]) -> Value | None:
    """The table among ``static`` values of which ``value`` is the rows at the tokens' positions."""
    node = value.node if value is not None else None
    if node is None or node.op.name != "embedding":
        return None
    ids, table = node.operands
    assert ids is not None
    by_position = ids.node is None and ids.name == "positions"
    return table if by_position and table in static else None
