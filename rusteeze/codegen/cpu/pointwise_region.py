"""Pointwise work with nothing else to hang it on; the reference shape of a region."""

from __future__ import annotations

from rusteeze.codegen.cpu.bodies import Env, needs_scalars
from rusteeze.codegen.cpu.emit import Emitter, Expr
from rusteeze.codegen.cpu.region import BoundRegion, Region, RegionRow


def pointwise_region(k: Emitter, region: Region, shape: tuple[int, ...]) -> None:
    """``shape``: inner axes of the results. Rows (tokens) are shared among the threads."""
    nodes = region.pointwise()
    one_lane = needs_scalars(nodes) or not _unit_stride(region)

    def row(here: RegionRow) -> None:
        def compute(column: Expr, lanes: int) -> Env:
            env: Env = {}
            here.evaluate(nodes, env, column, lanes)
            for o in range(len(region.results)):
                value = region.computed(o)
                if value not in env:  # an operand that is only rounded
                    env[value] = here.load(value, column, lanes)
            return env

        here.write(compute, range(len(region.results)), one_lane)

    BoundRegion(k, region, shape or (1,)).each_row(row)


def _unit_stride(region: Region) -> bool:
    """16 lanes at once need neighbours in memory along the results' last axis."""
    accesses = [r.access for r in region.results if r.access is not None]
    return all(not a.strides or a.strides[-1] == 1 for a in accesses)
