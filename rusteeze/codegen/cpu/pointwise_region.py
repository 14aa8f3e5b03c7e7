"""Pointwise work with nothing else to hang it on; the reference shape of a region."""

from __future__ import annotations

from rusteeze.codegen.cpu.bodies import Env
from rusteeze.codegen.cpu.emit import Emitter, Expr
from rusteeze.codegen.cpu.region import BoundRegion, Region, RegionRow


def pointwise_region(k: Emitter, region: Region, shape: tuple[int, ...]) -> None:
    """``shape``: inner axes of the results. Rows (tokens) are shared among the threads."""
    nodes = region.pointwise()

    def row(here: RegionRow) -> None:
        def compute(column: Expr, lanes: int) -> Env:
            env: Env = {}
            here.evaluate(nodes, env, column, lanes)
            for o in range(len(region.results)):
                value = region.computed(o)
                if value not in env:  # an operand that is only rounded
                    env[value] = here.load(value, column, lanes)
            return env

        here.write(compute, range(len(region.results)))

    BoundRegion(k, region, shape or (1,)).each_row(row)
