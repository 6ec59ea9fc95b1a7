"""Exact nearest neighbours of every item in every layer of a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from prh_eval.alignment.frames import Frame, Similarity, frame, glimpse
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.heap import keep_freed_memory
from prh_eval.alignment.products import write_symmetric_products
from prh_eval.alignment.ranking import TIE_TOLERANCE, Found, nearest, widened
from prh_eval.alignment.rows import Rows
from prh_eval.alignment.search import Strayed, searched
from prh_eval.alignment.sharing import ALONE, Sharing, gathered_rows
from prh_eval.alignment.tiles import SearchPlan, is_memory, plan_search, smaller, together
from prh_eval.errors import PrhEvalError

logger = logging.getLogger(__name__)


def neighbor_graph(
    features: Sequence[Tensor | Rows],
    k: int,
    *,
    similarity: Similarity = "cosine",
    memory_bytes: int | None = None,
    device: torch.device | None = None,
    sharing: Sharing = ALONE,
    progress: Callable[[int], None] | None = None,
) -> NeighborGraph:
    """The k nearest neighbours of each of n items in each layer.

    Neighbours are ranked by similarities in float64, whatever the dtype of the features. Two
    neighbours in a row are tied where their similarities differ by no more than 1e-12 of the
    layer's scale: 1 for cosine, the largest squared distance from the mean for Euclidean, where
    half the squared distance is compared. A group of ties is a run in which each is tied with the
    next. Equal items therefore always tie, and the result depends on neither the device, nor the
    memory, nor the number of threads or processes, nor the order of the items; only a difference
    within the rounding of float64 (about 1e-15) of the tolerance may be a tie to one and not to
    the other.

    Of many items most similarities are never known in float64: a product in low precision, whose
    error is bounded, leaves a few candidates an item, whose similarities are then computed
    exactly; an item for which that does not prove which are nearest is compared with all others
    in float64.

    Args:
        features: One a layer, each (n, dim_l); widths may differ. For cosine similarity the rows
            must have length 1 (or 0, which is equally similar to everything).
        k: Neighbourhood size, 1 <= k <= n - 1.
        similarity: ``"cosine"``: larger inner product is nearer. ``"euclidean"``: smaller
            distance is nearer.
        memory_bytes: What the search of a layer may take on the device, beyond what the features
            are stored in; :func:`prh_eval.alignment.tiles.plan_search` says what that will be.
            None for 4 GiB, or half of what is free on a CUDA device.
        device: Where to search; None for where the features are (the CPU for mps, which has no
            float64).
        sharing: Processes that share the items; each has all features (mapped from a file, say),
            calls this at the same time, and ends with the whole graph.
        progress: Called with the number of layers done after each layer.

    Returns:
        The graph, on the device of the search.

    Raises:
        PrhEvalError: If layers differ in the number of items, k is outside 1..n - 1, the memory is
            too small, or so many items tie that the graph would not fit into it.
        ValueError: If there is no layer, a value is not finite, rows are not of unit length where
            similarity is cosine, or squared distances are beyond the range of float64.
    """
    if not len(features):
        raise ValueError("neighbours need at least one layer")
    n = len(features[0])
    if not 1 <= k <= n - 1:
        raise PrhEvalError(
            f"k = {k} nearest neighbours cannot be found among {n} items; k must be between 1 and "
            f"{n - 1}"
        )
    for index, x in enumerate(features):
        if len(x) != n:
            raise PrhEvalError(
                f"layer {index} has {len(x)} items and layer 0 has {n}, where all layers must "
                "describe the same items"
            )
    keep_freed_memory()
    layers: list[Found] = []
    while len(layers) < len(features):
        rows = _rows(features[len(layers)], device)
        plan = plan_search(
            n,
            rows.dim,
            k,
            memory_bytes=memory_bytes,
            device=rows.place,
            processes=sharing.world_size,
            loading_bytes=rows.loading_bytes,
        )
        # Distances have a scale of their own in each layer.
        most = together(plan, len(features) - len(layers)).layers if similarity == "cosine" else 1
        rest = (_rows(x, device) for x in features[len(layers) + 1 :][: most - 1])
        alike = [rows, *takewhile(rows.joins, rest)]
        for found in _together(alike, similarity, plan, sharing):
            layers.append(found)
            if progress:
                progress(len(layers))
    width = max(indices.shape[1] for indices, _ in layers)
    _check_width(width, n * len(layers), plan.k, plan.memory_bytes)
    indices, tied = zip(*(widened(layer, width) for layer in layers), strict=True)
    return NeighborGraph(torch.stack(indices), torch.stack(tied), k)


def _rows(x: Tensor | Rows, device: torch.device | None) -> Rows:
    return (x if isinstance(x, Rows) else Rows(x)).on(device)


def _together(
    layers: list[Rows], similarity: Similarity, plan: SearchPlan, sharing: Sharing
) -> Sequence[Found]:
    """The neighbours in layers that can be joined, each alone where memory runs out."""
    if len(layers) > 1:
        several = together(plan, len(layers))
        try:
            joined = Rows.joined(layers)
            indices, tied = layer_neighbors(joined, similarity, several, sharing)
            return list(zip(torch.split(indices, plan.n), torch.split(tied, plan.n), strict=True))
        except (RuntimeError, MemoryError) as error:
            if not is_memory(error):
                raise
            logger.warning("out of memory: layers one at a time now")
    return [layer_neighbors(layer, similarity, plan, sharing) for layer in layers]


@torch.no_grad()
def layer_neighbors(
    rows: Rows, similarity: Similarity, plan: SearchPlan, sharing: Sharing = ALONE
) -> Found:
    """The nearest neighbours of each item in its layer, searched for in a given way.

    Where memory runs out in spite of the plan, tiles are halved, with a warning; among several
    processes only while tiles pass round.

    Args:
        rows: The layer, ``plan.n`` items; several only for cosine, by one process.
        similarity: As for :func:`neighbor_graph`.
        plan: Sizes and types; the result does not depend on them.
        sharing: As for :func:`neighbor_graph`.

    Returns:
        Indices, int32, and ties, bool, both (layers n, width), as in
        :class:`prh_eval.alignment.graph.NeighborGraph`.

    Raises:
        PrhEvalError: If so many items tie that the neighbours would not fit into memory.
        ValueError: If a value is not finite, or rows are not of unit length where similarity is
            cosine.
    """
    # What a product is rounded to is ours to say.
    with torch.autocast(rows.place.type, enabled=False):
        found = _shared(rows, similarity, plan, sharing)
    if sharing.world_size == 1:
        return found
    widest = sharing.all_gather(torch.tensor([found[0].shape[1]], device=rows.place)).max()
    indices, tied = widened(found, int(widest))
    return gathered_rows(sharing, indices, plan.n), gathered_rows(sharing, tied, plan.n)


def _shared(rows: Rows, similarity: Similarity, plan: SearchPlan, sharing: Sharing) -> Found:
    """The neighbours of this process's items."""
    own = plan.held and plan.dtype == torch.float64 and not rows.made
    if own:
        rows = rows.held(plan.block)
    elif plan.loaded:
        rows = rows.loaded()
    share = sharing.rows(len(rows))
    items = slice(share.start, share.stop)
    if plan.dtype == torch.float64:
        return _ranked(frame(rows, similarity, plan.block, sharing, own=own), plan, items)
    layer = glimpse(rows, similarity, sharing)
    while True:
        layer = layer or frame(rows, similarity, plan.block, sharing)
        try:
            found, unproven = searched(layer, plan, items, sharing)
            break
        except Strayed:
            # To be measured with care, once what the search took is free.
            layer = None
        except (RuntimeError, MemoryError) as error:
            # Processes agree on smaller tiles while these pass round; here they could not.
            if sharing.world_size > 1 or not is_memory(error):
                raise
            plan = smaller(plan, error)
    if not len(unproven):
        return found
    rest = _ranked(layer, plan, unproven)
    width = max(found[0].shape[1], rest[0].shape[1])
    (indices, tied), rest = widened(found, width), widened(rest, width)
    indices[unproven - items.start], tied[unproven - items.start] = rest
    return indices, tied


def _ranked(layer: Frame, plan: SearchPlan, items: slice | Tensor) -> Found:
    """Neighbours of some items by ranking the similarities to all others in float64."""
    # Nothing is left out of a slice: chunks of as many rows as whole layers have are whole layers.
    whole = isinstance(items, slice)
    if isinstance(items, slice):
        items = torch.arange(items.start, items.stop, device=layer.mean.device)
    # Written to in place: the rows of chunk after chunk would scatter over the heap.
    indices = items.new_full((len(items), plan.k), -1, dtype=torch.int32)
    tied = torch.zeros_like(indices, dtype=torch.bool)
    similarities = layer.mean.new_empty(min(plan.ranked, len(items)), plan.n)
    for start in range(0, len(items), plan.ranked):
        chosen = items[start : start + plan.ranked]
        rows = slice(start, start + len(chosen))
        nearness = similarities[: len(chosen)]
        if whole and layer.rows.made and len(chosen) % plan.n == 0:
            _write_layers(layer, rows, nearness)
        else:
            _write_nearness(layer, plan, chosen, nearness)
        nearness.scatter_(1, (chosen % plan.n)[:, None], -torch.inf)
        found = nearest(nearness, plan.k, TIE_TOLERANCE * layer.scale)[:2]
        if found[0].shape[1] > indices.shape[1]:
            _check_width(found[0].shape[1], len(layer.rows), plan.k, plan.tied_bytes)
            indices, tied = widened((indices, tied), found[0].shape[1])
        indices[rows], tied[rows] = widened(found, indices.shape[1])
    return indices, tied


def _write_layers(layer: Frame, rows: slice, nearness: Tensor) -> None:
    """Write the nearness of all items of layers to all others; float64, shape (rows, n).

    Of Euclidean nearness without the item's own b, which ranks nothing in its row.
    """
    x, b = _compared(layer, rows)
    write_symmetric_products(x, nearness)
    if b is not None:
        nearness += b


def _write_nearness(layer: Frame, plan: SearchPlan, items: Tensor, nearness: Tensor) -> None:
    """The same of some items, in rising order."""
    n = plan.n
    for first in range(int(items[0]) // n * n, int(items[-1]) + 1, n):
        own = slice(*torch.searchsorted(items, items.new_tensor([first, first + n])).tolist())
        x = _compared(layer, items[own])[0]
        size = n if layer.rows.made else plan.side
        for part in layer.rows.blocks(size, first, first + n):
            y, b = _compared(layer, part)
            products = x @ y.T
            columns = slice(part.start - first, part.stop - first)
            nearness[own, columns] = products if b is None else products + b


def _compared(layer: Frame, index: slice | Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows whose products rank neighbours, and what is added to the products, if anything."""
    if layer.similarity == "cosine":
        return layer.rows[index], None
    return layer.centred(index)


def _check_width(width: int, rows: int, k: int, room: int) -> None:
    """Refuse ties that would make rows too long for memory: all are as long as the longest."""
    # An index and a tie, before and after rows are joined.
    size = 2 * 5 * rows * width
    if width > 2 * k and size > room:
        raise PrhEvalError(
            f"an item has {width} neighbours that tie for its {k} nearest, and {rows} rows so long "
            f"would take {size / 1e9:.2f} GB where {max(0, room) / 1e9:.2f} GB are left for them; "
            "items that repeat should be removed, or a larger memory be set"
        )
