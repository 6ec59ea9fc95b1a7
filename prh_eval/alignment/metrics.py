"""Mutual k-nearest-neighbour alignment: how many of their neighbours items share in two models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.overlaps import (
    shared_counts,
    shared_counts_bytes,
    shared_counts_in_halves,
)
from prh_eval.errors import PrhEvalError


def overlap(
    x: NeighborGraph,
    y: NeighborGraph,
    k: int,
    *,
    items: Tensor | None = None,
    memory_bytes: int | None = None,
) -> Tensor:
    """Mutual k-nearest-neighbour alignment of every layer pair.

    The mean over items of the share of an item's k nearest neighbours that two layers have in
    common (Huh et al. 2024, arXiv 2405.07987, section 2 and appendix A). With the weights a_ij
    and b_ij of :meth:`NeighborGraph.weights`, which are 0 or 1 but for ties at the k-th place, it
    is sum_ij a_ij b_ij / (n k).

    Neighbours are counted (:func:`prh_eval.alignment.overlaps.shared_counts`) and fractions added
    up in fixed point, so that the result is the same to the last bit on every device, for every
    memory and in every order of the items.

    Args:
        x: Graph of one model, n items.
        y: Graph of the other, the same n items in the same order; moved to the device of x.
        k: Neighbourhood size that both graphs answer for.
        items: int64, shape (m,): the items whose mean is taken, each at most once; their neighbours
            are sought among all items. None: all of them.
        memory_bytes: About how much the tables of a chunk of items may take; those of one item
            are always held. By default 16 MiB, which caches hold, or 1 GiB on a GPU.

    Returns:
        float64, shape (layers_x, layers_y), on the device of x, each in [0, 1].

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
        ValueError: If ``items`` names no item, one twice, or one that there is not.
    """
    check_pair(x, y, k)
    device = x.indices.device
    items = _items(items, x.n).to(device)
    grid = torch.zeros(x.layers, y.layers, dtype=torch.float64, device=device)
    for layers_x, layers_y, part_x, part_y in _parts(x, y, k):
        total = _total(part_x, part_y, k, items, memory_bytes)
        grid[layers_x[:, None], layers_y] = total
    return grid / (len(items) * k)


def overlap_in_halves(
    x: NeighborGraph,
    y: NeighborGraph,
    k: int,
    first: Tensor,
    *,
    memory_bytes: int | None = None,
) -> Tensor:
    """What :func:`overlap` sums, of items and neighbours in the same half, for several splits.

    Neighbours are the k nearest among all items; those in the other half count nothing.

    Args:
        x: As for :func:`overlap`.
        y: As for :func:`overlap`.
        k: As for :func:`overlap`.
        first: bool, shape (splits, n): which items are in the first half.
        memory_bytes: As for :func:`overlap`.

    Returns:
        float64, shape (splits, 2, layers_x, layers_y), on the device of x: sum_ij a_ij b_ij over i
        and j in the first half, and in the second.

    Raises:
        PrhEvalError: As for :func:`overlap`.
    """
    check_pair(x, y, k)
    device = x.indices.device
    first = first.to(device)
    grid = torch.zeros(len(first), 2, x.layers, y.layers, dtype=torch.float64, device=device)
    for layers_x, layers_y, part_x, part_y in _parts(x, y, k):
        total = _total_in_halves(part_x, part_y, k, first, memory_bytes)
        grid[:, :, layers_x[:, None], layers_y] = total
    return grid


def item_overlap(x: NeighborGraph, y: NeighborGraph, k: int) -> Tensor:
    """Mutual k-nearest-neighbour alignment of each item, for graphs of a single layer.

    Args:
        x: Graph of one layer, n items.
        y: Graph of one layer, the same n items in the same order; moved to the device of x.
        k: Neighbourhood size that both graphs answer for.

    Returns:
        float64, shape (n,), on the device of x, each in [0, 1]. The mean is the score that
        :func:`overlap` gives.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
        ValueError: If a graph has several layers.
    """
    return shared_weights(x, y, k).sum(dim=1) / k


def item_overlaps(
    x: NeighborGraph, y: NeighborGraph, k: int, pairs: Iterable[tuple[int, int]]
) -> Tensor:
    """Mutual k-nearest-neighbour alignment of each item, for chosen layer pairs.

    Args:
        x: Graph of one model, n items.
        y: Graph of the other, the same n items in the same order; moved to the device of x.
        k: Neighbourhood size that both graphs answer for.
        pairs: At least one pair of a layer of x and a layer of y, negative ones from the end.

    Returns:
        float64, shape (pairs, n), on the device of x, each in [0, 1]; the mean of a row is that
        pair's score in :func:`overlap`.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
    """
    check_pair(x, y, k)
    x, y = x.trimmed(k), y.trimmed(k)
    return torch.stack([item_overlap(x.layer(a), y.layer(b), k) for a, b in pairs])


def shared_weights(x: NeighborGraph, y: NeighborGraph, k: int) -> Tensor:
    """How much each of x's neighbours is a neighbour on both sides, for graphs of a single layer.

    Args:
        x: Graph of one layer, n items.
        y: Graph of one layer, the same n items in the same order; moved to the device of x.
        k: Neighbourhood size that both graphs answer for.

    Returns:
        float64, shape (n, width of x), on the device of x: the product of the neighbour's two
        weights, in [0, 1]; it belongs to the item ``x.indices[0]`` names at the same place.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
        ValueError: If a graph has several layers.
    """
    check_pair(x, y, k)
    if x.layers != 1 or y.layers != 1:
        raise ValueError(f"one layer a side is needed, not {x.layers} and {y.layers}")
    device = x.indices.device
    theirs, order = y.indices[0].to(device).contiguous().sort(dim=1)
    their_weights = y.weights(k)[0].to(device).gather(1, order)
    mine = x.indices[0].contiguous()
    place = torch.searchsorted(theirs, mine).clamp(max=y.width - 1)
    found = theirs.gather(1, place) == mine
    return torch.where(found, x.weights(k)[0] * their_weights.gather(1, place), 0.0)


def check_pair(x: NeighborGraph, y: NeighborGraph, k: int) -> None:
    """Refuse two graphs that cannot be compared at this neighbourhood size.

    Raises:
        PrhEvalError: If they are of different numbers of items, or one does not answer for k.
    """
    if x.n != y.n:
        raise PrhEvalError(
            f"the two neighbour graphs are of {x.n} and {y.n} items, where both must be of the same"
        )
    if not 1 <= k <= min(x.k, y.k):
        raise PrhEvalError(
            f"k = {k} is not among the neighbourhood sizes 1 to {min(x.k, y.k)} that both "
            "neighbour graphs answer for"
        )


def _items(items: Tensor | None, n: int) -> Tensor:
    """The items whose mean is taken."""
    if items is None:
        return torch.arange(n)
    distinct = torch.unique(items)
    once = items.ndim == 1 and len(distinct) == len(items) > 0
    if not once or distinct[0] < 0 or distinct[-1] >= n:
        raise ValueError(f"items should name some of the items 0 to {n - 1}, each once")
    return items


def _parts(
    x: NeighborGraph, y: NeighborGraph, k: int
) -> Iterator[tuple[Tensor, Tensor, NeighborGraph, NeighborGraph]]:
    """Layers of x, layers of y, and the two graphs of these alone, until all pairs were given."""
    groups_y = _of_similar_width(y, k)
    for layers_x in _of_similar_width(x, k):
        for layers_y in groups_y:
            chosen = torch.tensor(layers_x), torch.tensor(layers_y)
            yield *chosen, _pick(x, layers_x), _pick(y, layers_y)


def _of_similar_width(graph: NeighborGraph, k: int) -> list[list[int]]:
    """Group the layers, so that the longest rows of a layer with many ties are not all layers'."""
    if not graph.tied[..., k : k + 1].any():
        return [list(range(graph.layers))]
    groups: dict[int, list[int]] = {}
    for layer in range(graph.layers):
        width = graph.layer(layer).trimmed(k).width
        groups.setdefault((width // k).bit_length() // 2, []).append(layer)
    return list(groups.values())


def _pick(graph: NeighborGraph, layers: list[int]) -> NeighborGraph:
    """A graph of some layers only."""
    if len(layers) == graph.layers:
        return graph
    return NeighborGraph(graph.indices[layers], graph.tied[layers], graph.k)


def _total(
    x: NeighborGraph, y: NeighborGraph, k: int, items: Tensor, memory_bytes: int | None
) -> Tensor:
    """The sum of products of weights over some items, float64 (layers_x, layers_y).

    The items and the result are on the device of x.
    """
    memory_bytes, size = _memory(x, y, k, memory_bytes)
    plain, tied = _by_ties(x, y, k, items)
    counts = torch.zeros(x.layers, y.layers, dtype=torch.int64, device=items.device)
    for chunk in _chunks(plain, memory_bytes // size):
        counts += shared_counts(_nearest(x, k, chunk), _nearest(y, k, chunk), x.n)
    total = counts.double()
    if len(tied):
        total += _tied_total(x, y, k, tied, memory_bytes)
    return total


def _total_in_halves(
    x: NeighborGraph, y: NeighborGraph, k: int, first: Tensor, memory_bytes: int | None
) -> Tensor:
    """The same of items and neighbours in the first half, and in the second, for several splits.

    The splits, bool (splits, n), and the result, float64 (splits, 2, layers_x, layers_y), are on
    the device of x.
    """
    memory_bytes, size = _memory(x, y, k, memory_bytes)
    plain, tied = _by_ties(x, y, k, torch.arange(x.n, device=first.device))
    counts = torch.zeros(len(first), 2, x.layers, y.layers, dtype=torch.int64, device=first.device)
    for chunk in _chunks(plain, memory_bytes // size):
        near_x, near_y = _nearest(x, k, chunk), _nearest(y, k, chunk)
        counts += shared_counts_in_halves(near_x, near_y, x.n, chunk, first)
    total = counts.double()
    if len(tied):
        for split, mine in zip(total, first, strict=True):
            for half, there in zip(split, (mine, ~mine), strict=True):
                half += _tied_total(x, y, k, tied[there[tied]], memory_bytes, there)
    return total


def _memory(
    x: NeighborGraph, y: NeighborGraph, k: int, memory_bytes: int | None
) -> tuple[int, int]:
    """What tables may take, and what those of an item without ties do."""
    if memory_bytes is None:
        memory_bytes = 1 << 24 if x.indices.device.type == "cpu" else 1 << 30
    return memory_bytes, shared_counts_bytes(x.layers * k, y.layers * k, x.n)


def _by_ties(x: NeighborGraph, y: NeighborGraph, k: int, items: Tensor) -> tuple[Tensor, Tensor]:
    """Items whose weights are 0 or 1, and those with others, on the device of the items.

    Weights are fractions where neighbours tie for the last of the k places in some layer.
    """
    tied = torch.zeros(x.n, dtype=torch.bool, device=items.device)
    for graph in (x, y):
        tied |= graph.tied[..., k : k + 1].any(dim=2).any(dim=0).to(items.device)
    return items[~tied[items]], items[tied[items]]


def _chunks(items: Tensor, size: int) -> Iterator[Tensor]:
    """So many items at a time, one at least."""
    size = max(1, size)
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _nearest(graph: NeighborGraph, k: int, items: Tensor) -> Tensor:
    """The first k neighbours of some items (items, layers, k), on the device of ``items``."""
    rows = items.to(graph.indices.device)
    return graph.indices[..., :k].transpose(0, 1)[rows].to(items.device)


def _tied_total(
    x: NeighborGraph,
    y: NeighborGraph,
    k: int,
    items: Tensor,
    memory_bytes: int,
    there: Tensor | None = None,
) -> Tensor:
    """The sum of products of weights over some items' neighbours, (layers_x, layers_y).

    Of all neighbours, or of those that are ``there``: bool, shape (n,).

    In a row all fractional weights are the same. So an item's sum is four counts, of neighbours
    of weight 1 and of less in each side, times these fractions.
    """
    x, y = x.trimmed(k), y.trimmed(k)
    shape = (x.layers, y.layers)
    whole = torch.zeros(shape, dtype=torch.int64, device=items.device)
    # Units of 2^-30 and 2^-60: whole numbers have the same sum in any order.
    coarse, fine = torch.zeros_like(whole), torch.zeros_like(whole)
    size = shared_counts_bytes(2 * x.layers * x.width, 2 * y.layers * y.width, x.n)
    size += 8 * (128 * 2 * max(shape) + 8 * x.layers * y.layers)
    for chunk in _chunks(items, memory_bytes // size):
        (sets_x, shares_x), (sets_y, shares_y) = (_weighted(side, chunk, there) for side in (x, y))
        counts = shared_counts(sets_x, sets_y, x.n, each_item=True)
        counts = counts.reshape(-1, 2, x.layers, 2, y.layers)
        whole += counts[:, 0, :, 0].sum(dim=0)
        shares_x, shares_y = shares_x[:, :, None], shares_y[:, None, :]
        rest = shares_x * counts[:, 1, :, 0] + shares_y * counts[:, 0, :, 1]
        rest = (rest + shares_x * shares_y * counts[:, 1, :, 1]) * 2.0**30
        coarse += rest.floor().long().sum(dim=0)
        fine += ((rest - rest.floor()) * 2.0**30).long().sum(dim=0)
    return whole.double() + (coarse.double() + fine.double() * 2.0**-30) * 2.0**-30


def _weighted(graph: NeighborGraph, items: Tensor, there: Tensor | None) -> tuple[Tensor, Tensor]:
    """Some items' neighbours of weight 1, then those of less, and what these weigh.

    Of those that are ``there``, if that is given.

    Returns neighbours (items, 2 * layers, width), padded with -1, and the fractions
    (items, layers), on the device of ``items``; 0 where there are none.
    """
    rows = items.to(graph.indices.device)
    part = NeighborGraph(graph.indices[:, rows], graph.tied[:, rows], graph.k).trimmed(graph.k)
    weights = part.weights(part.k)
    neighbors = part.indices.to(weights.device)
    if there is not None:
        neighbors = torch.where(there.to(weights.device)[neighbors.long()], neighbors, -1)
    parts = [
        torch.where(chosen, neighbors, -1)
        for chosen in (weights == 1, (weights > 0) & (weights < 1))
    ]
    shares = torch.where(weights < 1, weights, 0.0).amax(dim=2)
    return torch.cat(parts).transpose(0, 1).to(items.device), shares.T.to(items.device)
