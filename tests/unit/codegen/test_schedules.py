"""Schedules: which one is chosen, what makes a bad one, and that none changes a bit of a result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from drawn_weights import draw_weight
from fused_nodes import fused
from graph_runner import GraphRunner, dense, tokens
from msgspec.structs import replace

from rusteeze.codegen.cpu.candidates import changes
from rusteeze.codegen.cpu.isa import V3, V4, Isa
from rusteeze.codegen.cpu.lower import LoweringOptions, lower
from rusteeze.codegen.cpu.schedule import MatmulKey, Schedule, choose, fallback
from rusteeze.ir import Graph, Value, parse
from rusteeze.ir.types import ROWS, DType, TensorType
from rusteeze.weights import Weight

KEY = MatmulKey("affine4g32m-f16", "q8", 64, 96, "store")
ROW_COUNTS = (1, 7, 13, 40)
MOST_ROWS = max(ROW_COUNTS)
FORMATS = (
    ("affine4g32m-f16", "int8"), ("affine8g16s-f16", "int8"), ("bf16", "bf16"), ("affine4g32m-f16", ""),
    ("bf16", ""),
)  # fmt: skip
# what a row costs in a pass is at least this: a pass of one byte more holds few rows
SMALL_PASS = 4 << 10


@dataclass(frozen=True)
class Fixed:
    """A table with one schedule for every kernel."""

    schedule: Schedule

    def find(self, key: MatmulKey, isa: str) -> Schedule | None:
        return self.schedule


class Empty:
    def find(self, key: MatmulKey, isa: str) -> Schedule | None:
        return None


def drawn_schedules(isa: Isa, count: int, seed: int) -> list[Schedule]:
    rng = np.random.default_rng(seed)

    def one_of(values: tuple[int, ...]) -> int:
        return int(rng.choice(values))

    found = []
    for _ in range(count):
        tiles = sorted({1, *(int(n) for n in rng.integers(1, isa.row_tiles[0] + 3, 3))}, reverse=True)
        found.append(
            Schedule(
                tuple(tiles), pass_bytes=one_of((SMALL_PASS, 1 << 20)), prefetch_bytes=one_of((0, 640)),
                prefetch_bytes_one_row=one_of((0, 640)), fewest_shared_blocks=one_of((1, 4, 1024)),
                block_tiles=one_of((1, 2, 3, 4)), accumulators=one_of((1, 2, 4, 24)),
            )
        )
    return found


def drawn_products(seed: int) -> tuple[Graph, dict[str, Weight]]:
    """Products of drawn shapes: plain ones in each format, and gate and up, joined and rounded for a third."""
    rng = np.random.default_rng(seed)
    graph, weights, width = Graph(), {}, 32 * int(rng.integers(2, 6))
    rows = graph.input("rows", TensorType(DType.i32, (ROWS,)))
    table = graph.weight("table", TensorType(DType.f32, (MOST_ROWS, width)), "f32")
    weights["table"] = dense(rng.standard_normal((MOST_ROWS, width)))
    x = graph.add("embedding", rows, table)
    for number, (format, rounding) in enumerate(FORMATS):
        n = int(rng.integers(1, 13)) * (16 if number % 2 else 9)
        w = graph.weight(f"w{number}", TensorType(DType.f32, (n, width)), format)
        weights[w.name] = draw_weight(format, (n, width), rng)
        left = graph.add("quantize", x, to=rounding) if rounding else x
        graph.outputs.append(graph.add("linear", left, w, None))
    for name, format in (("int8", "affine4g32m-f16"), ("bf16", "bf16")):
        wide = 64 * int(rng.integers(1, 4))
        shapes = ((2 * wide, width), (32, wide))
        for number, shape in enumerate(shapes):
            weights[f"{name}{number}"] = draw_weight(format, shape, rng)
        up, down = (
            graph.weight(f"{name}{i}", TensorType(DType.f32, shape), format) for i, shape in enumerate(shapes)
        )
        left = graph.add("quantize", x, to=name)

        def joined(left: Value = left, up: Value = up, wide: int = wide, name: str = name) -> Value:
            both = graph.add("linear", left, up, None)
            gate, other = (
                graph.add("slice", both, axis=-1, start=a, stop=a + wide) for a in (0, wide)
            )
            return graph.add("quantize", graph.add("glu", gate, other, act="silu"), to=name)

        (rounded,) = fused(graph, "linear", joined)
        graph.outputs.append(graph.add("linear", rounded, down, None))
    return graph, weights


@pytest.fixture(scope="module", params=[0, 1])
def usual(request, isa: Isa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, GraphRunner]]:
    """Drawn products with the fallback, and their seed."""
    graph, weights = drawn_products(request.param)
    runner = GraphRunner(graph, weights, isa, tmp_path_factory.mktemp("usual"), max_tokens=MOST_ROWS)
    yield request.param, runner
    runner.executor.close()


@pytest.mark.slow
def test_no_schedule_changes_a_bit(usual, isa: Isa, tmp_path: Path) -> None:
    seed, runner = usual
    wanted = runner.run(tokens(range(MOST_ROWS)))
    for number, schedule in enumerate(drawn_schedules(isa, 4, seed)):
        other = GraphRunner(
            runner.graph, runner.weights, isa, tmp_path / str(number), threads=1 + number % 3,
            max_tokens=MOST_ROWS, tables=(Fixed(schedule),),
        )  # fmt: skip
        for count in ROW_COUNTS:
            for found, every in zip(other.run(tokens(range(count))), wanted, strict=True):
                np.testing.assert_array_equal(found, every[:count], err_msg=str(schedule))
        other.executor.close()


GATE_AND_UP = """
graph @gate_and_up(%rows: i32[R]) {
  @table : f32[40,64] = "f32"
  @w : f32[192,64] = "affine4g32m-f16"
  %x = embedding(%rows, @table) : f32[R,64]
  %q = quantize(%x) {to='int8'} : f32[R,64]
  %y = linear(%q, @w, _) : f32[R,192]
  return %y
}
"""


def names(isas: tuple[Isa, ...], *tables: object) -> list[str]:
    graph = parse(GATE_AND_UP)
    lowered = lower(graph, LoweringOptions(isas=isas, tables=tables))  # type: ignore[arg-type]
    return [name for name, kernel in lowered.kernels.items() if kernel.tunable]


def test_a_schedule_is_part_of_the_kernels_name() -> None:
    usual, changed = fallback(V4, "q8"), replace(fallback(V4, "q8"), pass_bytes=1 << 20)
    assert names((V4,)) == names((V4,), Empty(), Fixed(usual)) != names((V4,), Fixed(changed))
    # of every instruction set, since a plan calls the same names in all libraries
    assert len({names((V4, V3))[0], names((V4,))[0], names((V3,))[0]}) == 3


def test_the_first_table_that_knows_a_kernel_decides() -> None:
    first, second = (replace(fallback(V4, "q8"), pass_bytes=n << 20) for n in (1, 2))
    assert choose(KEY, V4, [Empty(), Fixed(first), Fixed(second)]) == first
    assert choose(KEY, V4, [Empty()]) == fallback(V4, "q8")


@pytest.mark.parametrize(
    "bad",
    [
        {"row_tiles": []}, {"row_tiles": [4, 2]}, {"row_tiles": [1, 4]}, {"row_tiles": [4, 4, 1]},
        {"row_tiles": [400, 1]}, {"row_tiles": [4, 1], "pass_bytes": -1}, {"row_tiles": [4, 1], "tiles": 1},
        {"row_tiles": [4, 1], "accumulators": 100}, {"row_tiles": [4, 1], "prefetch_bytes": 1.5},
    ],
)  # fmt: skip
def test_what_is_no_schedule_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(bad), type=Schedule)


@pytest.mark.parametrize("isa", [V4, V3], ids=lambda isa: isa.name)
@pytest.mark.parametrize("activation", ["f32", "bf16", "q8"])
def test_every_candidate_is_a_schedule(isa: Isa, activation: str) -> None:
    key = MatmulKey("bf16", activation, 64, 96, "store")
    best = fallback(isa, activation)
    found = {change.apply(best) for change in changes(key, isa)} - {best}
    assert len(found) >= 4
    for schedule in found:  # replacing fields checks nothing
        assert msgspec.json.decode(msgspec.json.encode(schedule), type=Schedule) == schedule


def test_tiles_are_taken_together_as_registers_allow() -> None:
    schedule = Schedule((12, 4, 1), accumulators=8)
    assert [schedule.together(rows, 4) for rows in (12, 4, 2, 1)] == [1, 2, 4, 4]
    assert schedule.together(1, 3) == 3
    assert Schedule((4, 1)).together(1, 4) == 1
    assert (Schedule((12, 8, 4, 1)).row_multiple, Schedule((4, 1)).row_multiple) == (24, 24)
