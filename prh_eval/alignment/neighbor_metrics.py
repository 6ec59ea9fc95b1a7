"""Other agreements of neighbour graphs than mutual kNN: cycle, common-subsequence, edit distance.

They are those of Huh et al. (2024, arXiv 2405.07987, appendix on other metrics) and agree with the
figures of its released code. Every score is in [0, 1] and higher where models agree more. Of one
layer pair always edit distance <= common subsequence <= mutual kNN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prh_eval.alignment.edges import edges, find
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.metrics import check_pair

# Neighbours of one layer of x that are looked up together among those of all layers of y.
_CHUNK = 1 << 20


def cycle_knn(x: NeighborGraph, y: NeighborGraph, k: int) -> Tensor:
    """Cycle kNN of every layer pair: the share of items that the way there and back returns to.

    An item cycles if it is among the k nearest neighbours in x of one of its k nearest neighbours
    in y (Huh et al. 2024, appendix, and their released code with x as A and y as B). It is not
    symmetric in x and y.

    With the weights a and b of :meth:`NeighborGraph.weights` in x and y, item i scores
    1 - prod_j (1 - b_ij a_ji): 1 or 0 but for ties at the k-th place, where each way counts as
    much as it is likely to be open when the places are drawn among the tied.

    Under re-pairing of the items its mean, without ties, is that of 1 - C(n-1-d_i, k) / C(n-1, k)
    over the items, where d_i is how many items have i as a neighbour in x: about
    1 - exp(-k^2 / (n-1)), which is 0.09 at n = 1,024 and k = 10.

    Args:
        x: Graph of one model, n items.
        y: Graph of the other, the same n items in the same order; moved to the device of x.
        k: Neighbourhood size that both graphs answer for.

    Returns:
        float64, shape (layers_x, layers_y), on the device of x, each in [0, 1].

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
    """
    return _cycles(x, y, k).mean(dim=2)


def cycle_knn_items(x: NeighborGraph, y: NeighborGraph, k: int) -> Tensor:
    """Cycle kNN of each item, for graphs of a single layer.

    Args:
        x: Graph of one layer, n items.
        y: Graph of one layer, the same n items in the same order; moved to the device of x.
        k: Neighbourhood size that both graphs answer for.

    Returns:
        float64, shape (n,), on the device of x, each in [0, 1]; the mean is :func:`cycle_knn`.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
        ValueError: If a graph has several layers.
    """
    _check_single(x, y)
    return _cycles(x, y, k)[0, 0]


def lcs_knn(x: NeighborGraph, y: NeighborGraph, k: int) -> Tensor:
    """Longest-common-subsequence kNN of every layer pair, as a share of k.

    How many of an item's k nearest neighbours, from near to far, are in the same order in both
    layers: the length of the longest common subsequence of the two lists, divided by k, as a mean
    over the items (Huh et al. 2024, appendix). Their released code reports the length itself, k
    times as much.

    Tied neighbours are in no order: the longest chain of common neighbours counts of which each is
    nearer than the next in both layers, so that at most one of each group of ties is in it, and a
    neighbour that shares the last places has the product of its two weights
    (:meth:`NeighborGraph.weights`). The result depends on no order of items, and duplicates make
    no agreement.

    By chance it is below k / (n - 1), that of mutual kNN, and near it where k^2 is far below n.

    Args:
        x: Graph of one model, n items.
        y: Graph of the other, the same n items in the same order; moved to the device of x.
        k: Neighbourhood size that both graphs answer for.

    Returns:
        float64, shape (layers_x, layers_y), on the device of x, each in [0, 1].

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
    """
    return _of_lists(x, y, k, _longest_chain).mean(dim=2)


def lcs_knn_items(x: NeighborGraph, y: NeighborGraph, k: int) -> Tensor:
    """Longest-common-subsequence kNN of each item, for graphs of a single layer.

    Args:
        x: Graph of one layer, n items.
        y: Graph of one layer, the same n items in the same order; moved to the device of x.
        k: Neighbourhood size that both graphs answer for.

    Returns:
        float64, shape (n,), on the device of x, each in [0, 1]; the mean is :func:`lcs_knn`.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
        ValueError: If a graph has several layers.
    """
    _check_single(x, y)
    return _of_lists(x, y, k, _longest_chain)[0, 0]


def edit_distance_knn(x: NeighborGraph, y: NeighborGraph, k: int) -> Tensor:
    """Edit-distance kNN of every layer pair: 1 - (edit distance) / k, so that higher is better.

    The edit distance (Levenshtein 1966, insertions, deletions and substitutions each 1) of an
    item's two lists of k nearest neighbours, from near to far, divided by k and taken from 1, as a
    mean over the items (Huh et al. 2024, appendix, as their released code reports it). Only
    neighbours at nearly the same place in both lists bring it up, so that scores are small.

    Tied neighbours are in no order: each is at the mean of the places that its group has within
    k, only one of a group can be matched, and where it shares the last places the match saves the
    product of its two weights (:meth:`NeighborGraph.weights`). The result depends on no order of
    items, and duplicates make no agreement.

    By chance it is far below k / (n - 1), that of mutual kNN.

    Args:
        x: Graph of one model, n items.
        y: Graph of the other, the same n items in the same order; moved to the device of x.
        k: Neighbourhood size that both graphs answer for.

    Returns:
        float64, shape (layers_x, layers_y), on the device of x, each in [0, 1].

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
    """
    return _of_lists(x, y, k, _edits_saved).mean(dim=2)


def edit_distance_knn_items(x: NeighborGraph, y: NeighborGraph, k: int) -> Tensor:
    """Edit-distance kNN of each item, for graphs of a single layer.

    Args:
        x: Graph of one layer, n items.
        y: Graph of one layer, the same n items in the same order; moved to the device of x.
        k: Neighbourhood size that both graphs answer for.

    Returns:
        float64, shape (n,), on the device of x, each in [0, 1]; the mean is
        :func:`edit_distance_knn`.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
        ValueError: If a graph has several layers.
    """
    _check_single(x, y)
    return _of_lists(x, y, k, _edits_saved)[0, 0]


def _check_single(x: NeighborGraph, y: NeighborGraph) -> None:
    if x.layers != 1 or y.layers != 1:
        raise ValueError(f"one layer a side is needed, not {x.layers} and {y.layers}")


def _cycles(x: NeighborGraph, y: NeighborGraph, k: int) -> Tensor:
    """Cycle kNN of each item in every layer pair, (layers_x, layers_y, n)."""
    check_pair(x, y, k)
    device = x.indices.device
    scores = torch.empty(x.layers, y.layers, x.n, dtype=torch.float64, device=device)
    there = [edges(y, b, k, device) for b in range(y.layers)]
    for a in range(x.layers):
        back = edges(x, a, k, device)
        keys = back.keys
        for b, way in enumerate(there):
            place, found = find(keys, way.reversed_keys)
            opened = torch.where(found, way.weight * back.weight[place], 0.0)
            closed = torch.zeros(x.n, dtype=torch.float64, device=device)
            closed.index_add_(0, way.item, torch.log1p(-opened))
            scores[a, b] = -torch.expm1(closed)
    return scores


@dataclass(frozen=True)
class _Common:
    """Neighbours that two lists have in common, by their place in the first; (places, columns).

    A column is one item in one layer pair; all have as many.
    """

    weight: Tensor
    x: Tensor
    y: Tensor


# Of columns of common neighbours and k: the score times k, (columns,).
_Measure = Callable[[_Common, int], Tensor]


def _longest_chain(common: _Common, k: int) -> Tensor:
    """The heaviest chain of neighbours that rise in both lists."""
    chain = common.weight.clone()
    for p, before in _befores(common, k):
        chain[p] += torch.where(before, chain[: len(before)], 0.0).amax(dim=0)
    return chain.amax(dim=0)


def _edits_saved(common: _Common, k: int) -> Tensor:
    """K less the edit distance, which is the least cost of any chain of matches.

    Between matches that follow one another there are as many edits as the longer of the two
    stretches has places; behind the last match, k less the smaller of its places, less 1.
    """
    cost = torch.maximum(common.x, common.y) + 1 - common.weight
    for p, before in _befores(common, k):
        q = slice(len(before))
        stretch = torch.maximum(common.x[p] - common.x[q], common.y[p] - common.y[q]) - 1
        through = cost[q] + stretch + 1 - common.weight[p]
        cost[p] = torch.minimum(cost[p], torch.where(before, through, torch.inf).amin(dim=0))
    # Without any match all k are edited.
    return (torch.minimum(common.x, common.y) + 1 - cost).amax(dim=0).clamp(min=0)


def _befores(common: _Common, k: int) -> Iterator[tuple[int, Tensor]]:
    """For each place but the first, which of those before it are nearer in both lists."""
    for p in range(1, len(common.x)):
        # From the k-th on all tie with one another in the first list.
        q = slice(min(p, k))
        yield p, (common.x[q] < common.x[p]) & (common.y[q] < common.y[p])


def _of_lists(x: NeighborGraph, y: NeighborGraph, k: int, measure: _Measure) -> Tensor:
    """A measure of an item's two lists in every layer pair, (layers_x, layers_y, n), over k."""
    check_pair(x, y, k)
    device = x.indices.device
    y = y.trimmed(k)
    scores = torch.zeros(x.layers, y.layers, x.n, dtype=torch.float64, device=device)
    for a in range(x.layers):
        one = x.layer(a).trimmed(k)
        size = max(1, _CHUNK // (y.layers * max(one.width, y.width)))
        for start in range(0, x.n, size):
            items = slice(start, start + size)
            indices, weights, places = (t[0] for t in _list(one, items, k, device))
            theirs, their_weights, their_places = _list(y, items, k, device)
            theirs, order = theirs.sort(dim=2)
            mine = indices.expand(y.layers, -1, -1).contiguous()
            place = torch.searchsorted(theirs, mine).clamp(max=y.width - 1)
            found = theirs.gather(2, place) == mine
            place = order.gather(2, place)
            weight = torch.where(found, weights * their_weights.gather(2, place), 0.0)
            position = their_places.gather(2, place)
            columns = (weight, places.expand_as(weight), position)
            scores[a, :, items] = _measured(columns, k, measure)
    return scores / k


def _list(
    graph: NeighborGraph, items: slice, k: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbours of some items, their weights and their mean places, (layers, items, width)."""
    some = NeighborGraph(graph.indices[:, items], graph.tied[:, items], graph.k)
    place = torch.arange(graph.width, device=some.tied.device)
    if not some.tied.any():
        places = place.to(torch.float64).expand(some.indices.shape)
    else:
        group = (~some.tied).cumsum(dim=2) - 1
        within = (place < k).to(torch.float64).expand(group.shape)
        count, total = (
            torch.zeros_like(within).scatter_add_(2, group, values).gather(2, group)
            for values in (within, within * place)
        )
        places = total / count.clamp(min=1)
    return some.indices.to(device), some.weights(k).to(device), places.to(device)


def _measured(columns: tuple[Tensor, Tensor, Tensor], k: int, measure: _Measure) -> Tensor:
    """The measure of weights, places in x and places in y, each (..., width)."""
    weight, x, y = columns
    width = weight.shape[-1]
    scores = torch.zeros(weight.shape[:-1], dtype=torch.float64, device=weight.device)
    flat = scores.view(-1)
    # What is common comes first, in its order, and columns with as much of it go together.
    order = (weight <= 0).reshape(-1, width).to(torch.uint8).sort(dim=1, stable=True).indices
    counts = (weight > 0).reshape(-1, width).sum(dim=1)
    for count in torch.unique(counts).tolist():
        if count:
            chosen = (counts == count).nonzero().squeeze(1)
            first = order[chosen, :count]
            picked = (
                t.reshape(-1, width)[chosen].gather(1, first).T.contiguous() for t in (weight, x, y)
            )
            flat[chosen] = measure(_Common(*picked), k)
    return scores
