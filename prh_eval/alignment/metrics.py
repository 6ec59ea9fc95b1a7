"""How much two models agree about which items are neighbours, and the registry of such metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.errors import PrhEvalError, suggestion


@dataclass(frozen=True)
class Metric:
    """A named measure of agreement between two neighbour graphs.

    Attributes:
        name: What a person writes.
        grid: Scores of every layer pair at once: (x, y, k) to float64 (layers_x, layers_y).
        items: Scores of each item for graphs of a single layer: (x, y, k) to float64 (n,); their
            mean is the score.
        source: Where it is defined.
    """

    name: str
    grid: Callable[[NeighborGraph, NeighborGraph, int], Tensor]
    items: Callable[[NeighborGraph, NeighborGraph, int], Tensor]
    source: str


def overlap(x: NeighborGraph, y: NeighborGraph, k: int, *, memory_bytes: int = 1 << 24) -> Tensor:
    """Mutual k-nearest-neighbour alignment of every layer pair.

    The mean over items of the share of an item's k nearest neighbours that two layers have in
    common (Huh et al. 2024, arXiv 2405.07987, section 2 and appendix A). With the weights a_ij
    and b_ij of :meth:`NeighborGraph.weights`, which are 0 or 1 but for ties at the k-th place, it
    is sum_ij a_ij b_ij / (n k).

    Each item's neighbours in any layer of x are numbered, and the weights of both sides put into
    a table with a column for each; the product of the two tables counts what is shared.

    Args:
        x: Graph of one model, n items.
        y: Graph of the other, the same n items in the same order; moved to the device of x.
        k: Neighbourhood size that both graphs answer for.
        memory_bytes: About how much the tables of a chunk of items may take; those of one item
            are always held.

    Returns:
        float64, shape (layers_x, layers_y), on the device of x, each in [0, 1].

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
    """
    check_pair(x, y, k)
    columns = min(x.layers * x.width, x.n)
    cells = x.layers * (columns + x.width) + y.layers * (columns + y.width)
    items = max(1, memory_bytes // (8 * cells))
    total = torch.zeros(x.layers, y.layers, dtype=torch.float64, device=x.indices.device)
    for start in range(0, x.n, items):
        rows = slice(start, start + items)
        chunk_x, weights_x = _within(x, rows, k, total.device)
        chunk_y, weights_y = _within(y, rows, k, total.device)
        slots_x, slots_y, width = _slots(chunk_x, chunk_y, x.n)
        table_x = _table(slots_x, weights_x, width)
        table_y = _table(slots_y, weights_y, width)
        total += table_x.flatten(1) @ table_y.flatten(1).T
    return total / (x.n * k)


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


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "mutual_knn",
            overlap,
            item_overlap,
            "Huh et al. (2024), The Platonic Representation Hypothesis, appendix A",
        ),
    )
}


def metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        PrhEvalError: If there is none.
    """
    if name not in METRICS:
        raise PrhEvalError(f"there is no metric {name!r}; {suggestion(name, METRICS)}")
    return METRICS[name]


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


def _within(
    graph: NeighborGraph, rows: slice, k: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Some items' neighbours and weights (layers, items, width), but for columns of weight 0."""
    indices, tied = graph.indices[:, rows].to(device), graph.tied[:, rows].to(device)
    weights = NeighborGraph(indices, tied, graph.k).weights(k)
    width = int((weights > 0).sum(dim=-1).max())
    return indices[..., :width].long(), weights[..., :width]


def _slots(x: Tensor, y: Tensor, n: int) -> tuple[Tensor, Tensor, int]:
    """Number the neighbours that each item has in any layer of x.

    Returns the numbers of x's and y's neighbours (layers, items, width), and how many numbers
    there are. The last is for neighbours that no layer of x has; padding, whose weight is 0, may
    share any number but a neighbour's.
    """
    layers, items, width = x.shape
    if layers * width >= n:
        # Nothing to gain over the items' own numbers.
        return torch.where(x < 0, n, x), torch.where(y < 0, n, y), n + 1
    ranked, order = _by_item(x).sort(dim=1)
    new = torch.ones_like(ranked)
    new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    number = new.cumsum(dim=1) - 1
    rest = int(number.max()) + 1
    slots_x = torch.empty_like(number).scatter_(1, order, number)
    wanted = _by_item(y)
    place = torch.searchsorted(ranked, wanted).clamp(max=ranked.shape[1] - 1)
    slots_y = torch.where(ranked.gather(1, place) == wanted, number.gather(1, place), rest)
    return (
        slots_x.view(items, layers, width).permute(1, 0, 2),
        slots_y.view(items, *y.shape[::2]).permute(1, 0, 2),
        rest + 1,
    )


def _by_item(x: Tensor) -> Tensor:
    """(layers, items, width) as (items, layers * width)."""
    return x.permute(1, 0, 2).flatten(1).contiguous()


def _table(slots: Tensor, weights: Tensor, width: int) -> Tensor:
    """Weights (layers, items, neighbours) laid out by slot: (layers, items, width - 1)."""
    layers, items, _ = slots.shape
    table = torch.zeros(layers, items, width, dtype=torch.float64, device=slots.device)
    return table.scatter_(2, slots, weights)[..., :-1]
