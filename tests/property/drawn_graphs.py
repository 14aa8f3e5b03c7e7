"""Hypothesis strategies for small well-formed graphs over [T, 8k] values."""

from __future__ import annotations

from hypothesis import strategies as st

from rusteeze.ir import Graph, TensorType, Value, parse_type

UNARY = ("neg", "abs", "tanh", "sigmoid", "silu", "relu", "gelu_tanh")
BINARY = ("add", "sub", "mul", "minimum", "maximum")
CONSTANTS = (0.0, 1.0, -1.0, 0.5, 2.0, 3.0)
WIDTHS = (4, 8, 32)


class Drawer:
    """Adds one drawn node at a time to a graph."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.graph = draw, Graph()
        self.matrices = [self.graph.input(n, parse_type("f32[T,8]")) for n in ("x", "y")]
        self.rows = self.graph.input("rows", parse_type("i32[R]"))

    def pick(self, choices: list | tuple) -> object:
        return self.draw(st.sampled_from(choices))

    def value(self) -> Value:
        return self.pick(self.matrices)  # type: ignore[return-value]

    def like(self, v: Value) -> Value:
        return self.pick([w for w in self.matrices if w.type == v.type])  # type: ignore[return-value]

    def width(self, v: Value) -> int:
        return v.type.shape[-1]  # type: ignore[return-value]

    def weight(self, *shape: int) -> Value:
        name = f"w{self.pick((0, 1))}_{'x'.join(map(str, shape))}"
        format = self.pick(("f32", "affine4g32m-f16")) if shape[-1] % 32 == 0 else "f32"
        return self.graph.weight(name, TensorType(parse_type("f32[]").dtype, shape), str(format))

    def unary(self, v: Value) -> Value:
        return self.graph.add(str(self.pick(UNARY)), v)

    def binary(self, v: Value) -> Value:
        return self.graph.add(str(self.pick(BINARY)), v, self.like(v))

    def with_constant(self, v: Value) -> Value:
        op, c = str(self.pick(("add", "mul", "sub", "div"))), float(self.pick(CONSTANTS))  # type: ignore[arg-type]
        return self.graph.add(
            op, v, self.graph.add("const", value=c or (1.0 if op == "div" else c))
        )

    def scaled(self, v: Value) -> Value:
        return self.graph.add("mul", self.weight(self.width(v)), v)

    def glu(self, v: Value) -> Value:
        gate = self.graph.add(str(self.pick(("silu", "gelu", "relu"))), v)
        return self.graph.add("mul", gate, self.like(v))

    def linear(self, v: Value) -> Value:
        n = int(self.pick(WIDTHS))  # type: ignore[call-overload]
        bias = self.weight(n) if self.draw(st.booleans()) else None
        return self.graph.add("linear", v, self.weight(n, self.width(v)), bias, origin=f"l{n}")

    def spelled_norm(self, v: Value) -> Value:
        g = self.graph
        mean = g.add("mean", g.add("pow", v, g.add("const", value=2.0)), axis=1, keepdim=True)
        root = g.add("rsqrt", g.add("add", mean, g.add("const", value=1e-5)))
        return g.add("mul", v, root)

    def norm(self, v: Value) -> Value:
        return self.graph.add("rms_norm", v, self.weight(self.width(v)), eps=1e-5)

    def halves(self, v: Value) -> Value:
        n = self.width(v)
        parts = [self.graph.add("slice", v, axis=1, start=s, stop=s + n // 2) for s in (0, n // 2)]
        return self.graph.add(str(self.pick(("add", "glu"))), *parts)

    def joined(self, v: Value) -> Value:
        return self.graph.add("concat", v, self.like(v), axis=1)

    def cut(self, v: Value) -> Value:
        n = self.width(v)
        start = self.draw(st.integers(0, n // 2))
        return self.graph.add("slice", v, axis=-1, start=start, stop=start + n // 2)

    def folded(self, v: Value) -> Value:
        n = self.width(v)
        heads = self.graph.add("reshape", v, shape=("T", 2, n // 2))
        turned = self.graph.add("permute", heads, perm=(0, 2, 1))
        return self.graph.add("reshape", turned, shape=("T", n))

    def step(self) -> None:
        v = self.value()
        ways = [self.unary, self.binary, self.with_constant, self.scaled, self.glu, self.linear,
                self.spelled_norm, self.norm, self.joined]  # fmt: skip
        if self.width(v) >= 8:
            ways += [self.halves, self.cut, self.folded]
        result = self.pick(ways)(v)  # type: ignore[operator]
        if self.width(result) in (*WIDTHS, 16, 64):
            self.matrices.append(result)


@st.composite
def graphs(draw: st.DrawFn, max_nodes: int = 12) -> Graph:
    """A graph of inputs x, y f32[T,8] and rows i32[R] with one or two outputs, some of them rows only."""
    drawer = Drawer(draw)
    for _ in range(draw(st.integers(1, max_nodes))):
        drawer.step()
    outputs = [drawer.matrices[-1], *draw(st.lists(st.sampled_from(drawer.matrices), max_size=1))]
    for v in outputs:
        selected = draw(st.booleans())
        drawer.graph.outputs.append(
            drawer.graph.add("gather_rows", v, drawer.rows) if selected else v
        )
    return drawer.graph
