"""Bits go where they help most, within the budget."""

from __future__ import annotations

from itertools import product

import numpy as np

from rusteeze.quantize.allocate import allocate

WIDTHS = (2, 3, 4, 8)


def mean(bits: list[int], sizes: list[int]) -> float:
    return float(np.dot(bits, sizes) / sum(sizes))


def test_a_sensitive_site_gets_more() -> None:
    costs = [[8.0, 2.0, 0.5, 0.0], [0.8, 0.2, 0.05, 0.0]]
    assert allocate(costs, [10, 10], WIDTHS, 3) == [4, 2]
    assert allocate(costs, [10, 10], WIDTHS, 2) == [2, 2]
    assert allocate(costs, [10, 10], WIDTHS, 8) == [8, 8]


def test_bits_without_relief_are_not_spent() -> None:
    assert allocate([[1.0, 1.0, 1.0, 1.0]], [5], WIDTHS, 8) == [2]


def test_drawn_budgets_are_kept_and_nearly_the_best_is_found() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = rng.integers(1, 5, 5).tolist()
        costs = (rng.uniform(0.1, 5, 5)[:, None] * 4.0 ** -np.arange(4)).tolist()
        found = allocate(costs, sizes, WIDTHS, 3.2)
        assert mean(found, sizes) <= 3.2 + 1e-9

        def harm(bits: list[int], costs: list = costs) -> float:
            return sum(row[WIDTHS.index(b)] for row, b in zip(costs, bits, strict=True))

        best = min(harm(list(b)) for b in product(WIDTHS, repeat=5) if mean(list(b), sizes) <= 3.2)
        assert harm(found) <= 1.5 * best
