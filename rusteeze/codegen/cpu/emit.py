"""A small builder for TIR kernels.

Every kernel has one C signature, so that a plan can call any of them from a table::

    void kernel(void **args, int64_t *step, int32_t tid, int32_t nth)

``args`` holds the kernel's pointers in the order in which ``pointer()`` asked for them; ``step`` holds
the numbers of the current step (see STEP_*); tid and nth say which share of the work is meant.

Buffers are flat, indices are element counts. Python loops unroll; ``loop`` emits a loop. Vectors have
16 lanes on every target: LLVM splits them where registers are narrower. Loops start at 0 and have a
simple extent, because TIR has lost iterations of nested loops with data-dependent bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.ir import PointerType, PrimType

LANES = 16
Expr = Any  # tirx.PrimExpr; its operators are typed as Any by tvm

# Slots of the step array.
STEP_TOKENS, STEP_ROWS, STEP_TILES, STEP_TABLE_WIDTH = range(4)


def i32(value: int) -> Expr:
    return tirx.const(int(value), "int32")


def f32(value: float) -> Expr:
    return tirx.const(float(value), "float32")


def dtype_of(x: Expr) -> str:
    return str(x.ty.dtype)


def lanes_of(x: Expr) -> int:
    name = dtype_of(x)
    return int(name.rsplit("x", 1)[1]) if "x" in name else 1


def splat(x: Expr | float, lanes: int) -> Expr:
    """A number or a scalar expression in every lane."""
    x = f32(x) if isinstance(x, float) else x
    return x if lanes == 1 else tirx.Broadcast(x, lanes)


def ramp(start: Expr | int, lanes: int = LANES, stride: int = 1) -> Expr:
    start = i32(start) if isinstance(start, int) else start
    return start if lanes == 1 else tirx.Ramp(start, i32(stride), lanes)


def vector_type(base: str, lanes: int) -> str:
    return base if lanes == 1 else f"{base}x{lanes}"


def _suffix(base: str, lanes: int) -> str:
    short = {"float32": "f32", "int32": "i32"}[base]
    return short if lanes == 1 else f"v{lanes}{short}"


def convert(x: Expr, base: str) -> Expr:
    """Numeric conversion that keeps the number of lanes."""
    return tirx.Cast(vector_type(base, lanes_of(x)), x)


def bits_as(x: Expr, base: str) -> Expr:
    """The same bits as another element type of equal width."""
    return tirx.reinterpret(vector_type(base, lanes_of(x)), x)


def intrinsic(name: str, x: Expr, *rest: Expr) -> Expr:
    """An LLVM intrinsic on float32 vectors, overloaded by the lanes of x."""
    lanes = lanes_of(x)
    full = f"llvm.{name}.{_suffix('float32', lanes)}"
    return tirx.call_llvm_pure_intrin(vector_type("float32", lanes), full, x, *rest)


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a * b + c with one rounding: written out wherever bitwise equality between kernels matters."""
    return intrinsic("fma", a, b, c)


def reduce_max(x: Expr) -> Expr:
    """The largest lane; where there is a NaN, some lane."""
    if lanes_of(x) == 1:
        return x
    return tirx.call_pure_extern("float32", "rz_max16", x)


def reduce_add(x: Expr) -> Expr:
    """Sum of the lanes, pairwise in an order that does not depend on the target."""
    if lanes_of(x) == 1:
        return x
    return tirx.call_pure_extern("float32", "rz_sum16", x)


def reduce_add_int(x: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin("int32", "llvm.vector.reduce.add.v16i32", x)


def select(condition: Expr, a: Expr, b: Expr) -> Expr:
    return tirx.Select(condition, a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    return tirx.Min(a, b)


def maximum(a: Expr, b: Expr) -> Expr:
    return tirx.Max(a, b)


def floordiv(a: Expr, b: Expr | int) -> Expr:
    """Integer quotient of non-negative operands."""
    return tirx.Div(a, i32(b) if isinstance(b, int) else b)


class Buffer:
    """A flat array in memory or in registers."""

    def __init__(self, buffer: Any, dtype: str, pointer: Any = None) -> None:
        self.buffer, self.dtype, self.pointer = buffer, dtype, pointer

    def load(self, index: Expr | int, lanes: int = 1, stride: int = 1) -> Expr:
        return tirx.BufferLoad(self.buffer, [ramp(index, lanes, stride)])

    def __getitem__(self, index: Expr | int) -> Expr:
        return self.load(index)


class Emitter:
    """Collects the statements of one kernel. ``with kernel.loop(n) as i: ...`` nests."""

    def __init__(self, name: str) -> None:
        self.name = name
        pointer = PointerType(PrimType("int64"))
        self._args = tirx.Var("args", pointer)
        self._step = tirx.Var("step", pointer)
        self.tid = tirx.Var("tid", "int32")
        self.nth = tirx.Var("nth", "int32")
        self.num_pointers = 0
        self._counter = 0
        self._blocks: list[list[Any]] = [[]]

    # ---- names and memory -----------------------------------------------------------------------
    def _fresh(self, prefix: str) -> str:
        self._counter += 1
        return f"{prefix}{self._counter}"

    def pointer(self, dtype: str) -> Buffer:
        """The kernel's next argument."""
        index, self.num_pointers = self.num_pointers, self.num_pointers + 1
        kind = PointerType(PrimType(dtype))
        return self._bind_pointer(
            tirx.call_extern(kind, "rz_argument", self._args, i32(index)), dtype
        )

    def offset(self, base: Buffer, index: Expr, stride_bytes: int, dtype: str) -> Buffer:
        """View of memory ``index * stride_bytes`` bytes (64-bit arithmetic) after base."""
        kind = PointerType(PrimType(dtype))
        call = tirx.call_extern(
            kind, "rz_offset", base.pointer, index, tirx.const(stride_bytes, "int64")
        )
        return self._bind_pointer(call, dtype)

    def _bind_pointer(self, value: Any, dtype: str) -> Buffer:
        variable = tirx.Var(self._fresh("p"), PointerType(PrimType(dtype)))
        self._append(tirx.Bind(variable, value))
        buffer = tirx.decl_buffer((1 << 30,), dtype, self._fresh("b"), data=variable)
        self._append(tirx.DeclBuffer(buffer, data=variable))
        return Buffer(buffer, dtype, variable)

    def step(self, slot: int) -> Expr:
        """A number of the current step as int32."""
        return self.let(tirx.call_extern("int32", "rz_step", self._step, i32(slot)))

    def local(self, count: int, dtype: str = "float32", lanes: int = LANES) -> Buffer:
        """Registers (or stack): an array of ``count`` vectors that LLVM keeps in registers if it can."""
        full = vector_type(dtype, lanes)
        buffer = tirx.decl_buffer((count,), full, self._fresh("r"), scope="local")
        note = {"disable_lower_builtin": tirx.const(1, "bool")}
        self._append(tirx.AllocBuffer(buffer, note))
        return Buffer(buffer, full)

    # ---- statements -----------------------------------------------------------------------------
    def _append(self, statement: Any) -> None:
        self._blocks[-1].append(statement)

    def let(self, value: Expr) -> Expr:
        """Compute once, use often."""
        variable = tirx.Var(self._fresh("v"), dtype_of(value))
        self._append(tirx.Bind(variable, value))
        return variable

    def store(self, buffer: Buffer, index: Expr | int, value: Expr, stride: int = 1) -> None:
        lanes = lanes_of(value) // max(1, _lanes_in(buffer.dtype))
        self._append(tirx.BufferStore(buffer.buffer, value, [ramp(index, lanes, stride)]))

    def store_lanes(self, buffer: Buffer, indices: list[Expr], value: Expr) -> None:
        """Lane j of a vector goes to ``indices[j]``."""
        value = self.let(value)
        for j, index in enumerate(indices):
            self._append(tirx.BufferStore(buffer.buffer, tirx.Shuffle([value], [i32(j)]), [index]))

    def call(self, name: str, *args: Expr) -> None:
        """Call a support function for its effect."""
        self._append(tirx.Evaluate(tirx.call_extern("int32", name, *args)))

    def address(self, buffer: Buffer, index: Expr) -> Expr:
        """Where an element lies, for a support function."""
        return tirx.address_of(tirx.BufferLoad(buffer.buffer, [self.let(index)]))

    def prefetch(self, buffer: Buffer, index: Expr, ahead_bytes: int) -> None:
        """Ask for the cache line ``ahead_bytes`` behind an element."""
        self.call("rz_prefetch", self.address(buffer, index), i32(ahead_bytes))

    @contextmanager
    def _block(self) -> Iterator[list[Any]]:
        self._blocks.append([])
        yield self._blocks[-1]
        self._blocks.pop()

    @contextmanager
    def loop(self, extent: Expr | int) -> Iterator[Expr]:
        """for i in range(extent)"""
        if isinstance(extent, int) and extent == 1:
            yield i32(0)
            return
        extent = i32(extent) if isinstance(extent, int) else self.let(extent)
        variable = tirx.Var(self._fresh("i"), "int32")
        with self._block() as body:
            yield variable
        if body:
            kind = tirx.ForKind.SERIAL
            self._append(tirx.For(variable, i32(0), extent, kind, _sequence(body)))

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """if condition:"""
        with self._block() as body:
            yield
        if body:
            self._append(tirx.IfThenElse(condition, _sequence(body), None))

    def share(self, count: Expr) -> tuple[Expr, Expr]:
        """This thread's contiguous part of ``count`` items: first item, number of items."""
        first = self.let(floordiv(count * self.tid, self.nth))
        stop = floordiv(count * (self.tid + i32(1)), self.nth)
        return first, self.let(stop - first)

    def finish(self) -> Any:
        """The kernel as a PrimFunc with plain C linkage."""
        params = [self._args, self._step, self.tid, self.nth]
        (body,) = self._blocks
        return tirx.PrimFunc(params, _sequence(body)).with_attr("global_symbol", self.name)


def _lanes_in(dtype: str) -> int:
    return int(dtype.rsplit("x", 1)[1]) if "x" in dtype else 1


def _sequence(statements: list[Any]) -> Any:
    if not statements:
        return tirx.Evaluate(i32(0))
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)
