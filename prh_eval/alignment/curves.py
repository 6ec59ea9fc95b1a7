"""A score against the neighbourhood size and the number of items, from one pair of graphs.

A score means nothing without its k and n: chance is k / (n - 1), and what is above it depends on
both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prh_eval.alignment.chance import chance_level
from prh_eval.alignment.graph import GRAPH_K, NeighborGraph
from prh_eval.alignment.metrics import check_pair, overlap
from prh_eval.alignment.subsets import subset
from prh_eval.errors import PrhEvalError

# About even on a logarithmic axis.
_SIZES = (1, 2, 3, 4, 5, 7, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90)
# How probable it may be that in one subset some item has too few of its kept neighbours.
_FAILURE = 1e-5


@dataclass(frozen=True)
class AtK:
    """A point of the curve over the neighbourhood size.

    Attributes:
        k: Neighbourhood size.
        score: Mutual k-nearest-neighbour alignment, in [0, 1].
        chance: Its mean over all re-pairings of the items, k / (n - 1).
    """

    k: int
    score: float
    chance: float


@dataclass(frozen=True)
class AtN:
    """A point of the curve over the number of items.

    Attributes:
        n: Number of items.
        score: Mean of the scores of the subsets of that size, in [0, 1].
        spread: Their standard deviation; 0 for all items.
        repeats: Number of subsets; 1 for all items.
        chance: Mean of the score over all re-pairings of so many items, k / (n - 1).
    """

    n: int
    score: float
    spread: float
    repeats: int
    chance: float


def k_curve(x: NeighborGraph, y: NeighborGraph, ks: Sequence[int] | None = None) -> list[AtK]:
    """Mutual k-nearest-neighbour alignment at several neighbourhood sizes, for one layer pair.

    Args:
        x: Graph of one layer, n items.
        y: Graph of one layer, the same n items in the same order.
        ks: Neighbourhood sizes that both graphs answer for. By default up to 18, from 1 to the
            largest, at most 100.

    Returns:
        A point for each size, in their order.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or a size is too large for
            one.
        ValueError: If a graph has several layers.
    """
    if ks is None:
        largest = min(x.k, y.k, GRAPH_K)
        ks = [*(k for k in _SIZES if k < largest), largest]
    return [AtK(k, _score(x, y, k), chance_level(x.n, k)) for k in ks]


def n_curve(
    x: NeighborGraph, y: NeighborGraph, k: int, *, repeats: int = 10, seed: int
) -> list[AtN]:
    """Mutual k-nearest-neighbour alignment of subsets of the items, for one layer pair.

    Each repeat draws one order of the items, ``torch.randperm`` of a CPU generator with this seed,
    and its subsets are the first of that order, so that they are nested. Their neighbours are those
    among themselves, taken from the graphs at hand (:func:`prh_eval.alignment.subsets.subset`).

    Sizes are n / 2^(j / 3), so that every third halves the items, as far down as the neighbours
    that the graphs keep answer for k: how many of an item's K kept neighbours are among m of the n
    items is hypergeometric, and m is taken where the probability that any item of either graph has
    fewer than k is at most 1e-5. With k = 10 and 100 kept neighbours the smallest of 1,024 items is
    406; graphs that keep only k, of more than k + 1 items, give one point, of all items. Should a
    subset fall short nevertheless, its size is left out: those that do not are no fair sample.

    Subsets of one size have items in common, the more the nearer they are to all of them. So the
    spread tells what the choice among these items does, and is no standard error.

    Args:
        x: Graph of one layer, n items.
        y: Graph of one layer, the same n items in the same order.
        k: Neighbourhood size that both graphs answer for.
        repeats: Number of subsets of each size, at least 2.
        seed: Any integer that torch takes.

    Returns:
        Points by rising number of items; the last is of all.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
        ValueError: If a graph has several layers, or repeats is below 2.
    """
    if repeats < 2:
        raise ValueError(f"repeats = {repeats}, where a spread needs at least 2")
    points = [AtN(x.n, _score(x, y, k), 0.0, 1, chance_level(x.n, k))]
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(x.n, generator=generator) for _ in range(repeats)]
    for size, reach in _sizes(x.n, k, min(x.k, y.k)):
        # What is further away is not needed: rows of all items are long.
        near_x, near_y = x.trimmed(reach), y.trimmed(reach)
        scores = [_subset_score(near_x, near_y, k, order[:size]) for order in orders]
        found = torch.tensor([each for each in scores if each is not None], dtype=torch.float64)
        if len(found) == repeats:
            mean, spread = float(found.mean()), float(found.std())
            points.append(AtN(size, mean, spread, repeats, chance_level(size, k)))
    return points[::-1]


def _score(x: NeighborGraph, y: NeighborGraph, k: int) -> float:
    """The score of one layer pair."""
    if x.layers != 1 or y.layers != 1:
        raise ValueError(f"one layer a side is needed, not {x.layers} and {y.layers}")
    check_pair(x, y, k)
    return float(overlap(x.trimmed(k), y.trimmed(k), k))


def _subset_score(x: NeighborGraph, y: NeighborGraph, k: int, items: Tensor) -> float | None:
    """The score of some items among themselves; None where the graphs do not answer for it."""
    try:
        return _score(subset(x, items, k), subset(y, items, k), k)
    except PrhEvalError:
        return None


def _sizes(n: int, k: int, kept: int) -> Iterator[tuple[int, int]]:
    """Falling sizes of subsets of n items, each with how many kept neighbours answer for k."""
    step, last = 0, n
    while (size := round(n / 2 ** ((step + 1) / 3))) > k:
        step += 1
        if size == last:
            continue
        last = size
        reaches = torch.arange(k, kept + 1)
        enough = 2 * size * _fewer(n - 1, reaches, size - 1, k) <= _FAILURE
        if not enough.any():
            return
        yield size, int(reaches[enough][0])


def _fewer(total: int, marked: Tensor, drawn: int, k: int) -> Tensor:
    """Probability that fewer than k of ``drawn`` of ``total`` items are among the marked ones.

    The hypergeometric distribution, for each number of marked items; float64.
    """
    found = torch.arange(k)
    marked = marked[:, None]
    possible = (found <= marked) & (drawn - found >= 0) & (drawn - found <= total - marked)
    logs = (
        _log_choose(marked, found)
        + _log_choose(total - marked, drawn - found)
        - _log_choose(torch.tensor(total), torch.tensor(drawn))
    )
    return torch.where(possible, logs.exp(), 0.0).sum(dim=1)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """Logarithm of the number of ways to choose k of n; means nothing outside 0 <= k <= n."""
    n, k = n.double(), k.double()
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
