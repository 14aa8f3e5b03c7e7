"""Widths for sites so that a budget of bits goes where it helps most."""

from __future__ import annotations

from collections.abc import Sequence


def allocate(
    costs: Sequence[Sequence[float]], sizes: Sequence[int], widths: Sequence[int], mean_bits: float
) -> list[int]:  # fmt: skip
    """A width for each site, of at most ``mean_bits`` a weight on average over ``sizes`` weights.

    ``costs[site][i]`` is the harm of ``widths[i]``, which ascend. All begin at the least; then, again and again,
    the widening with the most relief for its bits is made, of those that the budget still allows."""
    level = [0] * len(sizes)
    left = mean_bits * sum(sizes) - widths[0] * sum(sizes)
    while True:
        best: tuple[float, int, int] | None = None
        for site, now in enumerate(level):
            for then in range(now + 1, len(widths)):
                price = (widths[then] - widths[now]) * sizes[site]
                relief = costs[site][now] - costs[site][then]
                if price <= left and relief > 0 and (best is None or relief / price > best[0]):
                    best = (relief / price, site, then)
        if best is None:
            return [widths[i] for i in level]
        _, site, then = best
        left -= (widths[then] - widths[level[site]]) * sizes[site]
        level[site] = then
