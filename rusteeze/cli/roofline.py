"""The roofline picture of a profile (Williams, Waterman & Patterson 2009)."""

from __future__ import annotations

from pathlib import Path

import matplotlib.figure
import numpy as np

from rusteeze.cli.kernel_groups import Group
from rusteeze.runtime.ceilings import Ceilings

LABELLED_SHARE = 0.03
SMALLEST_DOT, DOT_PER_SHARE = 12, 600


def draw(path: Path, groups: list[Group], ceilings: Ceilings) -> None:
    """Operations a byte against operations a second; a dot's area is its share of the step."""
    shown = [g for g in groups if g.flops and g.bytes and g.ns]
    figure = matplotlib.figure.Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots()
    intensity = [g.flops / g.bytes for g in shown] or [1.0]
    x = np.geomspace(min(intensity) / 3, max(*intensity, 300.0) * 2, 200)
    for kind, peak in ceilings.arithmetic.items():
        label = f"{kind} {peak / 1e9:.0f} GFLOP/s, {ceilings.read / 1e9:.0f} GB/s"
        axes.plot(x, np.minimum(x * ceilings.read, peak) / 1e9, label=label)
    if not ceilings.arithmetic:
        axes.plot(x, x * ceilings.read / 1e9, label=f"{ceilings.read / 1e9:.0f} GB/s")
    for g in shown:
        at = (g.flops / g.bytes, g.flops_per_s / 1e9)
        axes.scatter(*at, s=SMALLEST_DOT + DOT_PER_SHARE * g.share, alpha=0.7)
        if g.share >= LABELLED_SHARE:
            axes.annotate(f"{g.kernel[:40]} {100 * g.share:.0f} %", at, fontsize=7)
    axes.set(
        xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s",
        title="Kernels against the measured limits",
    )  # fmt: skip
    axes.legend()
    figure.savefig(path, format="png", dpi=120)
