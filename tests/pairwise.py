r"""Rows of choices in which every two choices meet, in place of all rows that there are.

A fault that needs two choices together is met; of one that needs three a good part. With `n` and `m` choices
on the two longest axes there are about `n m` rows, however many axes there are.
"""

from collections.abc import Sequence
from itertools import combinations, product
from random import Random
from typing import Any

__all__ = ["pairs", "pairwise"]

Pair = tuple[tuple[int, int], tuple[int, int]]  # two axes, each with the number of a choice


def pairs(places: Sequence[int]) -> set[Pair]:
    """Every two choices of a row, which is given by the numbers of its choices."""
    return set(combinations(enumerate(places), 2))


def pairwise(*axes: Sequence[Any], tries: int = 20) -> list[tuple[Any, ...]]:
    """The same rows every time: each the best of a few draws that have a pair that hasn't met."""
    draw = Random(0)
    sizes = [range(len(axis)) for axis in axes]
    missing = {
        ((a, i), (b, j)) for a, b in combinations(range(len(axes)), 2) for i, j in product(sizes[a], sizes[b])
    }
    rows = []
    while missing:
        (a, i), (b, j) = min(missing)
        drawn = [[draw.choice(size) for size in sizes] for _ in range(tries)]
        for places in drawn:
            places[a], places[b] = i, j
        best = max(drawn, key=lambda places: len(pairs(places) & missing))
        missing -= pairs(best)
        rows.append(tuple(axis[place] for axis, place in zip(axes, best, strict=True)))
    return rows
