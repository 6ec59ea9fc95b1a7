"""What scores are where items are re-paired at random: exact moments, and the null of the best.

An alignment means something only as far as it depends on which item is paired with which. A random
permutation of one side's items, the same for all of its layers, keeps everything else: n, k, the
hubs of every layer, how alike the layers are. For the score of one layer pair the mean and variance
over all n! permutations are known exactly; for the maximum over layer pairs they are drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prh_eval.alignment.bits import BitCounter
from prh_eval.alignment.chance import chance_level
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.metrics import check_pair
from prh_eval.alignment.overlaps import layer_tables

# Scores that differ by less are equal but for rounding: they are sums of weights over n k.
_ROUNDING = 1e-12
# Up to this many cells (256 MiB) every pair of items has one in a table.
_TABLE_CELLS = 1 << 25
# And so many bytes say which edges there may be.
_FILTER_CELLS = 1 << 28
# Up to so many neighbours an item, looking for it among theirs is faster than sorting edges.
_NARROW = 32
# Neighbours of neighbours that are looked at together.
_ROW_VALUES = {"cpu": 1 << 21, "cuda": 1 << 28}

# Items whose edges are looked up together: so many whose words are added to each other at once, for
# each of so many beside each other. Bytes of the words of all draws that are looked up together: a
# core's cache holds them, and on a GPU they hide launches.
_ADDED = 16
_BESIDE = {"cpu": 1, "cuda": 64}
_LOOKED_UP_BYTES = {"cpu": 1 << 21, "cuda": 1 << 29}

# From permutations (draws, n) and their inverses to sums (draws, layers_x, layers_y).
_Term = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Moments:
    """The mean and variance of each layer pair's score over all n! re-pairings of the items.

    Attributes:
        mean: k / (n - 1), the same for any two graphs.
        variance: float64, shape (layers_x, layers_y), each at least 0; 0 where every re-pairing
            gives the same score.
    """

    mean: float
    variance: Tensor


def permutation_moments(x: NeighborGraph, y: NeighborGraph, k: int) -> Moments:
    """The exact mean and variance of every layer pair's score under a random re-pairing.

    The score of :func:`prh_eval.alignment.metrics.overlap` is T / (n k) with
    T = sum_ij A_ij B_p(i)p(j) for the two sides' weights and the pairing p. Its second moment sums
    over pairs of edges by how they meet: the same edge, reversed, sharing a tail or a head, in a
    chain, or disjoint (Mantel 1967, Cancer Research 27). Rows of weights sum to k, so that less
    c = k / (n - 1) they sum to 0, which leaves three numbers of a graph, with a = A - c off the
    diagonal:

        s = sum_ij a_ij^2,  r = sum_ij a_ij a_ji,  h = sum_j (in_j - k)^2,

    where in_j is the sum of the weights that point to item j: hubs widen the null. With (n)_m the
    falling factorial n (n - 1) ... (n - m + 1) and one number of each side in every product,

        Var T = (s s + r r) / (n)_2 + (s s + (h - s)(h - s) + 2 r r) / (n)_3
                + (s + r - h)(s + r - h) / (n)_4.

    It takes O(n k log(n k)) time a layer, or O(n k^2) where k is at most 32 and no neighbours tie
    for the last place, and memory for one layer's edges.

    Args:
        x: Graph of one model, n items.
        y: Graph of the other, with as many items; moved to the device of x.
        k: Neighbourhood size that both graphs answer for.

    Returns:
        Moments of the scores, on the device of x.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
    """
    check_pair(x, y, k)
    sums_x, sums_y = (_sums(graph, k).to(x.indices.device) for graph in (x, y))
    variance = _products(sums_x, sums_y, x.n).view(x.layers, y.layers)
    # What is left of a variance of 0, for instance of symmetric against antisymmetric weights.
    scale = torch.outer(sums_x[0], sums_y[0]) / math.perm(x.n, 2)
    variance = torch.where(variance > _ROUNDING * scale, variance, 0.0)
    return Moments(chance_level(x.n, k), variance / (x.n * k) ** 2)


def permutation_covariance(x: NeighborGraph, y: NeighborGraph, k: int) -> Tensor:
    """The exact covariance of all layer pairs' scores under the same random re-pairing.

    The formula of :func:`permutation_moments` is bilinear in either side's weights: with tables
    of s, r and h over pairs of layers in place of numbers, its products are Kronecker products.

    Args:
        x: Graph of one model, n items.
        y: Graph of the other, with as many items; moved to the device of x.
        k: Neighbourhood size that both graphs answer for.

    Returns:
        float64, shape (layers_x * layers_y, layers_x * layers_y), on the device of x: symmetric,
        the pairs in the order of a flattened grid of scores; its diagonal is the variance.

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
    """
    check_pair(x, y, k)
    tables_x, tables_y = (_tables(graph, k).to(x.indices.device) for graph in (x, y))
    return _products(tables_x, tables_y, x.n) / (x.n * k) ** 2


def z_scores(scores: Tensor, moments: Moments) -> Tensor:
    """How many standard deviations of the null the scores are above its mean.

    Args:
        scores: float64, shape (layers_x, layers_y), of the graphs and k the moments are of.
        moments: From :func:`permutation_moments`.

    Returns:
        float64, shape (layers_x, layers_y): 0 where the variance is 0, since there the score is
        its mean. The null is skewed and the best of many pairs is chosen, so that a z is not to be
        read off a normal table; :func:`permutation_null` is for that.
    """
    spread = moments.variance.sqrt()
    above = scores.to(spread.device) - moments.mean
    return torch.where(spread > 0, above / spread, 0.0)


def permutation_null(
    x: NeighborGraph, y: NeighborGraph, k: int, *, draws: int = 1000, seed: int
) -> Tensor:
    """The best layer pair's score under random re-pairings of the items.

    Each draw applies one permutation to all layers and takes the same maximum over layer pairs
    that the reported score takes, so that the choice of the layers is paid for (Gröger et al.
    2026, arXiv 2602.14486). Draw d pairs item i of x with item p_d(i) of y, where p_d is the d-th
    ``torch.randperm`` of a CPU generator with this seed: fewer draws are the first of more.

    An edge of any layer of x that is moved onto an edge of any layer of y is a hit. Where layers
    are alike, hits are few: edges are looked up in a table of which edges there are, and the two
    sides' weights of the hits are multiplied. Where not, each layer's edges of weight 1 are looked
    up in a table of the other side's that has a bit a layer, and the bits counted; only edges of
    less weight, to neighbours that tie for the last of the k places, go by hits. Beyond 5,792
    items, where that table would be too large, all edges go by hits.

    A draw costs time in proportion to n: to the different edges of all layers of x together, from
    n k where layers are alike to layers n k. Of 33 x 40 layers and k = 10 it takes, on one core
    that others were busy beside, 3 ms (20 different neighbours an item) to 50 ms (all layers
    unlike) at n = 10,000, and 7 to 19 ms (20 to 60 neighbours) at n = 20,000. Memory does not
    depend on the number of draws: at most 8 n (n + 1) bytes for every 64 layers of the side with
    more of them up to 5,792 items (268 MB there) and 0.4 GB for tables of edges; for each side's
    different edges a byte a layer, or 8 where neighbours tie for the last place; and about 60
    bytes an edge of any layer while those are made (0.4 GB beyond the graphs at n = 10,000).

    Args:
        x: Graph of one model, n items.
        y: Graph of the other, with as many items; moved to the device of x.
        k: Neighbourhood size that both graphs answer for.
        draws: How many permutations, at least 1.
        seed: Any integer that torch takes.

    Returns:
        float64, shape (draws,), on the device of x, in the order drawn, each in [0, 1].

    Raises:
        PrhEvalError: If the graphs are of different numbers of items, or k is too large for one.
        ValueError: If draws is below 1.
    """
    check_pair(x, y, k)
    if draws < 1:
        raise ValueError(f"draws = {draws}, where at least 1 is needed")
    n, device = x.n, x.indices.device
    terms, batch = _terms(x, y, k), _draws_at_once(x, y, k)
    generator = torch.Generator().manual_seed(seed)
    maxima = []
    for start in range(0, draws, batch):
        count = min(batch, draws - start)
        orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(count)])
        inverses = orders.argsort(dim=1).to(device)
        orders = orders.to(device)
        total = torch.zeros(count, x.layers, y.layers, dtype=torch.float64, device=device)
        for term in terms:
            total += term(orders, inverses)
        maxima.append(total.amax(dim=(1, 2)))
    return torch.cat(maxima) / (n * k)


@dataclass(frozen=True)
class Calibrated:
    """A score measured against the null of what is reported.

    Attributes:
        threshold: The score that chance exceeds with probability alpha at most, tau.
        score: max((s - tau) / (1 - tau), 0): 0 for what chance can do, 1 for full alignment.
            Positive exactly where p <= alpha.
        p: The share of re-pairings that score as high, the observed one counted among them: in
            [1 / (draws + 1), 1].
    """

    threshold: float
    score: float
    p: float


def calibrate(score: float, null: Tensor, alpha: float = 0.05) -> Calibrated:
    """Threshold, calibrated score and p-value of an observed score.

    With K null values, tau is the ceil((1 - alpha)(K + 1))-th smallest of the observed and null
    values together, and p = (1 + #{null >= s}) / (K + 1) (Gröger et al. 2026, arXiv 2602.14486;
    Phipson and Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9), so that
    a test at level alpha is exact for any number of draws. Null values that equal the score but for
    rounding count as equal. Where alpha < 1 / (K + 1) no score can be positive.

    Args:
        score: The observed score s, in [0, 1].
        null: float64, shape (K,), K at least 1, from :func:`permutation_null`.
        alpha: Level of the test, 0 < alpha < 1.

    Returns:
        The three numbers.

    Raises:
        ValueError: If alpha is outside (0, 1), the null is empty, or a value is not in [0, 1].
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha = {alpha} is outside (0, 1), the levels a test can have")
    if not len(null):
        raise ValueError("the null has no values, where at least 1 is needed")
    values = torch.cat([null.new_tensor([score]), null])
    if not ((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)).all():
        raise ValueError("the score and its null have to be in [0, 1]")
    values = torch.where((values - score).abs() <= _ROUNDING, score, values)
    count = len(values)
    # 0.95 * 1000 may be a little more than 950 in floating point.
    rank = math.ceil(round((1 - alpha) * count, 9))
    threshold = float(values.sort().values[rank - 1])
    excess = (score - threshold) / (1 - threshold) if score > threshold else 0.0
    return Calibrated(threshold, excess, int((values >= score).sum()) / count)


def _products(x: Tensor, y: Tensor, n: int) -> Tensor:
    """The formula of :func:`permutation_moments`, for stacked s, r, h of each side."""
    s, r, h = x
    t, q, g = y

    def term(value: Tensor, edges: int) -> Tensor:
        # Of a pattern of more items than there are, both are 0.
        # As a float: from 65,538 items on it is more than torch takes as an integer.
        return value / float(max(math.perm(n, edges), 1))

    same, reverse = torch.kron(s, t), torch.kron(r, q)
    return (
        term(same + reverse, 2)
        + term(same + torch.kron(h - s, g - t) + 2 * reverse, 3)
        + term(torch.kron(s + r - h, t + q - g), 4)
    )


def _sums(graph: NeighborGraph, k: int) -> Tensor:
    """Each layer's s, r and h of :func:`permutation_moments`: float64 (3, layers)."""
    n, c = graph.n, k / (graph.n - 1)
    # Made first: behind what is large, small numbers that are kept would scatter over the heap.
    result = torch.empty(3, graph.layers, dtype=torch.float64, device=graph.indices.device)
    for layer in range(graph.layers):
        one = graph.layer(layer).trimmed(k)
        # As long as that, no row has neighbours that tie for the last place.
        plain = one.width == k <= _NARROW
        s, mutual, incoming = (_plain_sums if plain else _weighted_sums)(one, k)
        r = mutual - n * k * c
        h = (incoming - k).square().sum()
        # |r| <= s and h <= (n - 1) s by Cauchy-Schwarz, which rounding could miss.
        parts = [s, torch.minimum(r.abs(), s) * r.sign(), h.minimum((n - 1) * s)]
        result[:, layer] = torch.stack(parts)
    return result


def _weighted_sums(one: NeighborGraph, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of one layer s, the sum of A_ij A_ji, and in_j (n,), in float64."""
    n, c = one.n, k / (one.n - 1)
    keys, weights = _union(one, k)
    # Over edges and what is none, not as a difference: 0 where all weights are equal.
    s = (weights - c).square().sum() + (n * (n - 1) - len(keys)) * c**2
    return s, (weights * _reversed(keys, weights, n)).sum(), _incoming(keys, weights, n)[:, 0]


def _plain_sums(one: NeighborGraph, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same where all weights are 1: each neighbour's row is looked at for the item."""
    n, c, near = one.n, k / (one.n - 1), one.indices[0]
    incoming = torch.zeros(n, dtype=torch.float64, device=near.device)
    mutual = incoming.new_zeros(())
    size = _size(_ROW_VALUES, near.device) // (k * k)
    for item in torch.split(torch.arange(n, dtype=near.dtype, device=near.device), size):
        heads = near[int(item[0]) : int(item[-1]) + 1].flatten()
        theirs = near.index_select(0, heads).view(len(item), -1)
        mutual += (theirs == item[:, None]).sum()
        incoming.index_add_(0, heads, incoming.new_ones(1).expand(len(heads)))
    s = mutual.new_tensor(n * k * (1 - c) ** 2 + (n * (n - 1) - n * k) * c**2)
    return s, mutual, incoming


def _tables(graph: NeighborGraph, k: int) -> Tensor:
    """The tables of s, r and h of :func:`permutation_covariance`: float64 (3, layers, layers)."""
    n = graph.n
    keys, weights = _union(graph, k)
    uniform = n * k * k / (n - 1)
    incoming = _incoming(keys, weights, n) - k
    return torch.stack(
        [
            weights.T @ weights - uniform,
            weights.T @ _reversed(keys, weights, n) - uniform,
            incoming.T @ incoming,
        ]
    )


def _terms(x: NeighborGraph, y: NeighborGraph, k: int) -> list[_Term]:
    """What adds up to the sums of products of weights under permutations."""
    n, device = x.n, x.indices.device
    x, y = x.trimmed(k), y.trimmed(k)
    (near_x, weights_x), (near_y, weights_y) = (
        (graph.indices.to(device), graph.weights(k).to(device)) for graph in (x, y)
    )
    if n * n > _TABLE_CELLS or _few_hits(
        _distinct(near_x, weights_x), _distinct(near_y, weights_y), x, y
    ):
        return [_hits(_compact_edges(near_x, weights_x), _compact_edges(near_y, weights_y), n)]
    whole_x, whole_y = (
        torch.where(weights == 1, near, -1)[..., :k].transpose(0, 1)
        for near, weights in ((near_x, weights_x), (near_y, weights_y))
    )
    if x.layers <= y.layers:
        terms = [_look_ups(whole_x, whole_y)]
    else:
        terms = [_turned(_look_ups(whole_y, whole_x))]
    ties_x, ties_y = (torch.where(weights < 1, weights, 0.0) for weights in (weights_x, weights_y))
    if ties_x.any():
        terms.append(_hits(_edges(near_x, ties_x), _compact_edges(near_y, weights_y), n))
    if ties_y.any():
        rest = _compact_edges(near_x, weights_x - ties_x)
        terms.append(_turned(_hits(_edges(near_y, ties_y), rest, n)))
    return terms


def _few_hits(edges_x: int, edges_y: int, x: NeighborGraph, y: NeighborGraph) -> bool:
    """Whether layers share so many edges that going over hits is less work than look-ups.

    Compares both in nanoseconds as measured on a CPU: per draw, per edge and per number of an
    expected hit's weights, and per look-up.
    """
    hits = edges_x * edges_y / x.n**2
    going_over = 60_000 + 4 * edges_x + 2 * (x.layers + y.layers) * hits
    return going_over < 5 * min(x.layers, y.layers) * x.n * x.k


def _distinct(near: Tensor, weights: Tensor) -> int:
    """How many different edges the layers (layers, n, width) have together."""
    _, n, _ = near.shape
    found = torch.zeros(n, n, dtype=torch.bool, device=near.device)
    layer, tail, place = weights.nonzero(as_tuple=True)
    found[tail, near[layer, tail, place]] = True
    return int(found.sum())


def _turned(term: _Term) -> _Term:
    """The same with x and y exchanged."""
    return lambda orders, inverses: term(inverses, orders).transpose(1, 2)


def _draws_at_once(x: NeighborGraph, y: NeighborGraph, k: int) -> int:
    """How many permutations are looked up in some rows of the table together."""
    device = x.indices.device
    words = min(_rows(device), x.n) * min(x.layers, y.layers) * k
    found = max(1, _size(_LOOKED_UP_BYTES, device) // (8 * words))
    # The orders themselves, and their inverses, stay within 16 MiB each.
    return min(found, max(1, (1 << 21) // x.n))


def _rows(device: torch.device) -> int:
    """How many items' rows of the table of look-ups there are at a time."""
    return _ADDED * _size(_BESIDE, device)


def _size(sizes: dict[str, int], device: torch.device) -> int:
    """The size for a type of device; a CPU's where there is none of its own."""
    return sizes.get(device.type, sizes["cpu"])


def _look_ups(x: Tensor, y: Tensor) -> _Term:
    """How many edges of each layer of x are moved onto edges of each layer of y.

    Both int32 (n, layers, k), padded with -1.
    """
    n, layers, k = x.shape
    # Item 0 of n + 1 is for padding, and has no edges.
    heads = (x + 1).transpose(1, 2).flatten(1)
    tables = list(layer_tables(y + 1, n + 1))
    rows = _rows(x.device)
    height = rows // _ADDED * k
    starts = torch.arange(rows, dtype=torch.int32, device=x.device)[:, None] * (n + 1)

    def counts(orders: Tensor, inverses: Tensor) -> Tensor:
        # Every draw's names of the items of x, one draw's behind the other's.
        names = torch.nn.functional.pad(orders.int() + 1, (1, 0))
        shift = torch.arange(len(names), dtype=torch.int32, device=x.device) * (n + 1)
        counters = [BitCounter(height) for _ in tables]
        for start in range(0, n, rows):
            items = inverses[:, start : start + rows]
            # By item of y: the names in y of the neighbours of the item of x that is moved there.
            near = heads.index_select(0, items.flatten()).view(*items.shape, -1)
            near += shift[:, None, None]
            moved = names.flatten().index_select(0, near.flatten()).view(near.shape)
            # Where the item of y begins among these rows.
            moved += starts[: items.shape[1]]
            for table, counter in zip(tables, counters, strict=True):
                found = table[start : start + rows].flatten().index_select(0, moved.flatten())
                counter.add(found.view(len(names), -1, layers))
        return torch.cat([counter.counts() for counter in counters])[: y.shape[1]].permute(1, 2, 0)

    return counts


def _hits(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], n: int) -> _Term:
    """Products of the weights of edges of x with those of the edges of y they are moved onto."""
    (keys_x, weights_x), (keys_y, weights_y) = x, y
    tails, heads = (keys_x // n).int(), (keys_x % n).int()
    # Whether item i of y may have an edge to j. Beyond 16,384 items j goes by its remainder, and
    # what is found is looked at again.
    columns = max(1, min(n, _FILTER_CELLS // n))
    likely = torch.zeros(n * columns, dtype=torch.bool, device=keys_y.device)
    likely[keys_y // n * columns + keys_y % n % columns] = True
    table = _table(keys_y, n) if n * n <= _TABLE_CELLS else None
    # Without ties all sums are whole numbers, which single precision adds up exactly.
    fractions = weights_x.is_floating_point() or weights_y.is_floating_point()
    number = torch.float64 if fractions or len(keys_x) >= 1 << 24 else torch.float32

    def product(order: Tensor) -> Tensor:
        rows, places = (order * columns).int(), (order % columns).int()
        cells = rows.index_select(0, tails).add_(places.index_select(0, heads))
        hits = likely.index_select(0, cells).nonzero().squeeze(1)
        moved = order[tails[hits]] * n + order[heads[hits]]
        if table is None:
            edges = torch.searchsorted(keys_y, moved).clamp_(max=len(keys_y) - 1)
        else:
            edges = table.index_select(0, moved)
        if columns < n:
            found = keys_y[edges] == moved
            hits, edges = hits[found], edges[found]
        shared_x = weights_x.index_select(0, hits).to(number)
        shared_y = weights_y.index_select(0, edges).to(number)
        return shared_x.T @ shared_y

    return lambda orders, _: torch.stack([product(order) for order in orders])


def _union(graph: NeighborGraph, k: int) -> tuple[Tensor, Tensor]:
    """The edges of all layers: rising keys i * n + j (edges,), and weights (edges, layers)."""
    graph = graph.trimmed(k)
    return _edges(graph.indices, graph.weights(k))


def _edges(indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`_union` of neighbours and weights (layers, n, width), without those of weight 0."""
    layer, tail, place = weights.nonzero(as_tuple=True)
    layers, n, _ = weights.shape
    keys, edge = torch.unique(tail * n + indices[layer, tail, place], return_inverse=True)
    result = weights.new_zeros(len(keys), layers)
    result[edge, layer] = weights[layer, tail, place]
    return keys, result


def _compact_edges(indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`_edges` in an eighth of the memory where no weight is a fraction."""
    whole = bool(((weights == 0) | (weights == 1)).all())
    return _edges(indices, weights.to(torch.uint8) if whole else weights)


def _reversed(keys: Tensor, weights: Tensor, n: int) -> Tensor:
    """The weights (edges, layers) of the edges in the opposite direction, 0 where there is none."""
    wanted = keys % n * n + keys // n
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where((keys[place] == wanted)[:, None], weights[place], 0.0)


def _incoming(keys: Tensor, weights: Tensor, n: int) -> Tensor:
    """The sum of the weights that point to each item: (n, layers)."""
    return weights.new_zeros(n, weights.shape[1]).index_add_(0, keys % n, weights)


def _table(keys: Tensor, n: int) -> Tensor:
    """For every pair of items i * n + j which edge it is, -1 for none: int32 (n * n,)."""
    table = torch.full((n * n,), -1, dtype=torch.int32, device=keys.device)
    table[keys] = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
    return table
