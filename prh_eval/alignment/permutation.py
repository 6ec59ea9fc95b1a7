"""What scores are where items are re-paired at random: exact moments, and the null of the best.

An alignment means something only as far as it depends on which item is paired with which. A random
permutation of one side's items, the same for all of its layers, keeps everything else: n, k, the
hubs of every layer, how alike the layers are. For the score of one layer pair the mean and variance
over all n! permutations are known exactly; for the maximum over layer pairs they are drawn from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prh_eval.alignment.chance import chance_level
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.metrics import check_pair

# Scores that differ by less are equal but for rounding: they are sums of weights over n k.
_ROUNDING = 1e-12
# Up to this many cells (256 MiB) every pair of items has one that names its edge.
_TABLE_CELLS = 1 << 25


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

    It takes O(n k log(n k)) time a layer, and memory for one layer's edges.

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
    return torch.where(spread > 0, (scores - moments.mean) / spread, 0.0)


def permutation_null(
    x: NeighborGraph, y: NeighborGraph, k: int, *, draws: int = 1000, seed: int
) -> Tensor:
    """The best layer pair's score under random re-pairings of the items.

    Each draw applies one permutation to all layers and takes the same maximum over layer pairs
    that the reported score takes, so that the choice of the layers is paid for (Gröger et al.
    2026, arXiv 2602.14486). Draw d pairs item i of x with item p_d(i) of y, where p_d is the d-th
    ``torch.randperm`` of a CPU generator with this seed: fewer draws are the first of more.

    An edge of any layer of x that is permuted onto an edge of any layer of y is a hit. Per draw,
    the edges are looked up at O(1) each, and the two sides' weights of the hits, a row an edge and
    a column a layer, multiplied. Beyond 5,792 items, where the table to look up in
    would be too large, a search takes its place, which is up to four times slower.

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
    keys_x, weights_x = _union(x, k)
    keys_y, weights_y = (part.to(device) for part in _union(y, k))
    if n * k < 1 << 24 and all((w == w.round()).all() for w in (weights_x, weights_y)):
        # Without ties all sums are whole numbers, which single precision adds up exactly.
        weights_x, weights_y = weights_x.float(), weights_y.float()
    tails, heads = keys_x // n, keys_x % n
    table = _table(keys_y, n) if n * n <= _TABLE_CELLS else None
    generator = torch.Generator().manual_seed(seed)
    maxima = []
    for _ in range(draws):
        order = torch.randperm(n, generator=generator).to(device)
        moved = (order * n).index_select(0, tails) + order.index_select(0, heads)
        if table is None:
            place = torch.searchsorted(keys_y, moved).clamp(max=len(keys_y) - 1)
            place = torch.where(keys_y[place] == moved, place, -1)
        else:
            place = table.index_select(0, moved)
        hits = (place >= 0).nonzero().squeeze(1)
        shared_x = weights_x.index_select(0, hits)
        shared_y = weights_y.index_select(0, place.index_select(0, hits))
        maxima.append((shared_x.T @ shared_y).max())
    return torch.stack(maxima).double() / (n * k)


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
        return value / max(math.perm(n, edges), 1)

    same, reverse = torch.kron(s, t), torch.kron(r, q)
    return (
        term(same + reverse, 2)
        + term(same + torch.kron(h - s, g - t) + 2 * reverse, 3)
        + term(torch.kron(s + r - h, t + q - g), 4)
    )


def _sums(graph: NeighborGraph, k: int) -> Tensor:
    """Each layer's s, r and h of :func:`permutation_moments`: float64 (3, layers)."""
    n, c = graph.n, k / (graph.n - 1)
    result = []
    for layer in range(graph.layers):
        keys, weights = _union(graph.layer(layer), k)
        weights = weights[:, 0]
        # Over edges and what is none, not as a difference: 0 where all weights are equal.
        s = (weights - c).square().sum() + (n * (n - 1) - len(keys)) * c**2
        r = (weights * _reversed(keys, weights[:, None], n)[:, 0]).sum() - n * k * c
        h = (_incoming(keys, weights[:, None], n) - k).square().sum()
        # |r| <= s and h <= (n - 1) s by Cauchy-Schwarz, which rounding could miss.
        result.append(
            torch.stack([s, torch.minimum(r.abs(), s) * r.sign(), h.minimum((n - 1) * s)])
        )
    return torch.stack(result, dim=1)


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


def _union(graph: NeighborGraph, k: int) -> tuple[Tensor, Tensor]:
    """The edges of all layers: rising keys i * n + j (edges,), and weights (edges, layers)."""
    graph = graph.trimmed(k)
    weights = graph.weights(k)
    layer, tail, place = weights.nonzero(as_tuple=True)
    head = graph.indices[layer, tail, place].long()
    keys, edge = torch.unique(tail * graph.n + head, return_inverse=True)
    result = weights.new_zeros(len(keys), graph.layers)
    result[edge, layer] = weights[layer, tail, place]
    return keys, result


def _reversed(keys: Tensor, weights: Tensor, n: int) -> Tensor:
    """The weights (edges, layers) of the edges in the opposite direction, 0 where there is none."""
    wanted = keys % n * n + keys // n
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where((keys[place] == wanted)[:, None], weights[place], 0.0)


def _incoming(keys: Tensor, weights: Tensor, n: int) -> Tensor:
    """The sum of the weights that point to each item: (n, layers)."""
    return weights.new_zeros(n, weights.shape[1]).index_add_(0, keys % n, weights)


def _table(keys: Tensor, n: int) -> Tensor:
    """For every pair of items i * n + j which edge it is, -1 for none: int64 (n * n,)."""
    table = torch.full((n * n,), -1, dtype=torch.int64, device=keys.device)
    table[keys] = torch.arange(len(keys), device=keys.device)
    return table
