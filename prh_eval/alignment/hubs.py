"""Hubs: items that are near many others, and how much of a score they carry."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.metrics import check_pair, overlap, shared_weights
from prh_eval.alignment.subsets import subset
from prh_eval.errors import PrhEvalError

# Few hubs: one in so many items.
_FEW = 100
# What is unusual, from simulations that hub_warning describes.
_SHARE, _EXCESS = 0.1, 5.0


@dataclass(frozen=True)
class Hubs:
    """How unevenly items are others' neighbours, for one layer pair.

    An item's in-degree, or k-occurrence N_k, is how many others have it among their k nearest, ties
    counting by their weights; its mean is k.

    Attributes:
        model_skewness: Of the in-degrees in the model's layer, E(N_k - k)^3 / sd(N_k)^3
            (Radovanović, Nanopoulos and Ivanović 2010, JMLR 11, section 2.1); 0 where all are k.
        reference_skewness: In the reference's layer.
        model_orphans: Share of the items that are nobody's neighbour, in [0, 1).
        reference_orphans: In the reference's layer.
        model_largest: Largest in-degree in units of its mean, at least 1.
        reference_largest: In the reference's layer.
        carried: Share of the score that the 1 % of the items (rounded down, at least one) carry
            that carry most of it: an item carries the weights of the shared neighbours that it is.
            In [0, 1]; 0 where the score is 0.
        without: The score of the other items among themselves; None where the graphs keep too few
            neighbours to tell. Somewhat low by its making: what is left out scored highest.
    """

    model_skewness: float
    reference_skewness: float
    model_orphans: float
    reference_orphans: float
    model_largest: float
    reference_largest: float
    carried: float
    without: float | None


def hubs(x: NeighborGraph, y: NeighborGraph, k: int) -> Hubs:
    """How unevenly items are others' neighbours in two layers, and how much of the score they are.

    Args:
        x: Graph of one layer of the model, n items.
        y: Graph of one layer of the reference, the same n items in the same order.
        k: Neighbourhood size that both graphs answer for.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
        ValueError: If a graph has several layers.
    """
    check_pair(x, y, k)
    near_x, near_y = x.trimmed(k), y.trimmed(k)
    shared = _received(near_x, shared_weights(near_x, near_y, k))
    rising = shared.argsort(stable=True)
    rest, top = rising[: x.n - _few(x.n)], rising[x.n - _few(x.n) :]
    total = float(shared.sum())
    in_x, in_y = (_received(graph, graph.weights(k)[0]) for graph in (near_x, near_y))
    return Hubs(
        model_skewness=_skewness(in_x - k),
        reference_skewness=_skewness(in_y - k),
        model_orphans=float((in_x == 0).double().mean()),
        reference_orphans=float((in_y == 0).double().mean()),
        model_largest=float(in_x.max()) / k,
        reference_largest=float(in_y.max()) / k,
        carried=float(shared[top].sum()) / total if total else 0.0,
        without=_score(x, y, k, rest),
    )


def hub_warning(found: Hubs, score: float, n: int, k: int) -> str | None:
    """A sentence where a few hubs carry a score, or None.

    Even where no item is a hub, the 1 % of the items that happen to carry most carry more than 1 %
    of the score, the more the fewer neighbours are shared. So their share is compared with the one
    to be expected if every shared neighbour were as likely to be any item, about

        sum_t min(m, n P(N >= t)) / E,  t = 1, 2, ...,

    with m the number of these items, E the number of shared neighbours and N Poisson's with mean
    E / n. The threshold is from simulations of 256, 1,024 and 4,096 items at k = 10, from strongly
    aligned to unrelated layers, 3 to 20 draws each. Without strong hubs (isotropic in 8 to 256
    dimensions, in 30 clusters alike or 50 of very unequal sizes, with a small or large common
    offset) the carried share was 0.6 to 4.6 times the expected one. Where items differ in their
    distance from a common offset, the same on both sides, so that the central ones are hubs in both
    layers, it was 4.6 to 18 times that and 0.1 to 0.7 of the score. A warning takes 5 times, and a
    tenth of the score; where so few neighbours are shared that 5 times is more than all, there is
    none.

    Args:
        found: From :func:`hubs`.
        score: Score of the layer pair, in [0, 1].
        n: Number of items.
        k: Neighbourhood size.
    """
    even = _even_share(score * n * k, n)
    if found.carried < max(_SHARE, _EXCESS * even):
        return None
    few = _few(n)
    sentence = (
        f"a few hubs carry the score: {few} of the {n} items are {100 * found.carried:.0f} % of "
        f"the shared neighbours, where {100 * even:.0f} % would be usual without hubs"
    )
    if found.without is not None:
        sentence += f"; the score of the other items among themselves is {found.without:.4f}"
    return sentence


def _few(n: int) -> int:
    """How many items 1 % are."""
    return max(1, n // _FEW)


def _received(graph: NeighborGraph, weights: Tensor) -> Tensor:
    """The sum of the weights (n, width) of the edges that point to each item: (n,)."""
    # Padding names no item; its weight is 0.
    heads = graph.indices[0].clamp(min=0).long().flatten()
    return weights.new_zeros(graph.n).index_add_(0, heads, weights.flatten())


def _skewness(excess: Tensor) -> float:
    """The third standardised moment of values whose mean is 0."""
    variance = float(excess.square().mean())
    # Sums of tied weights differ from a whole number by rounding.
    return float(excess.pow(3).mean()) / variance**1.5 if variance > 1e-18 else 0.0


def _score(x: NeighborGraph, y: NeighborGraph, k: int, items: Tensor) -> float | None:
    """The score of some items among themselves; None where the graphs do not answer for it."""
    try:
        x, y = subset(x, items, k), subset(y, items, k)
    except PrhEvalError:
        return None
    return float(overlap(x.trimmed(k), y.trimmed(k), k))


def _even_share(edges: float, n: int) -> float:
    """What share of so many edges the 1 % of the items with most have, if all are as likely.

    The number of an item's edges is about Poisson's. The m items with most have, summed over
    t = 1, 2, ..., all of the items that have t edges or more, up to m of them.
    """
    if not edges:
        return 1.0
    mean = edges / n
    t = torch.arange(1, math.ceil(mean + 10 * math.sqrt(mean) + 30), dtype=torch.float64)
    with_as_many = n * torch.special.gammainc(t, torch.tensor(mean, dtype=torch.float64))
    return min(float(with_as_many.clamp(max=_few(n)).sum()) / edges, 1.0)
