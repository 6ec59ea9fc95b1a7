"""Centred kernel alignment (CKA) and its relatives: how alike two matrices of similarities are.

All take features, not neighbour graphs. Each is a function of one pair of layers, and has a
``_grid`` of all layer pairs that computes what belongs to a layer once. Sums are in float64, and
memory beyond the features does not grow with the number of items squared
(:mod:`prh_eval.alignment.gram`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prh_eval.alignment.edges import Edges, edges, find
from prh_eval.alignment.gram import (
    ROUNDING,
    Layer,
    Linear,
    centred,
    covariance_grid,
    gram_grid,
    rbf,
)
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.rows import Rows

# About how many edges' inner products are made together.
_EDGES = 2560


def linear_cka(x: Layer, y: Layer) -> float:
    """Linear centred kernel alignment, <Kc, Lc> / (|Kc| |Lc|) of K = X X^T and L = Y Y^T.

    Kornblith et al. (2019, arXiv 1905.00414, section 3, equations 3 and 4; Cortes et al. 2012 for
    any kernel), with both matrices double-centred. It does not change with rotation, shift and
    isotropic scaling of either side. By chance it is not 0: the mean under re-pairing of the items
    is tr(Kc) tr(Lc) / ((n - 1) |Kc| |Lc|), which is near 1 where there are more effective
    dimensions than items; see :func:`debiased_cka`. One far outlier that both sides share makes it
    near 1, and moving a cluster makes it small (Davari et al. 2023, arXiv 2210.16156).

    Args:
        x: Shape (n, dim_x), any floating type, n >= 2.
        y: Shape (n, dim_y), the same items in the same order.

    Returns:
        A value in [0, 1]: 1 where one side is the other rotated, shifted and scaled. 0 where all
        rows of a side are equal.

    Raises:
        PrhEvalError: If the numbers of items differ or are below 2, or a value is not finite.
    """
    return float(linear_cka_grid([x], [y]))


def linear_cka_grid(x: Sequence[Layer], y: Sequence[Layer], k: int | None = None) -> Tensor:
    """:func:`linear_cka` of every layer pair.

    From items x items matrices or, where that is less work, of many items, from dimensions x
    dimensions matrices: |Xc^T Yc|^2 / (|Xc^T Xc| |Yc^T Yc|).

    Args:
        x: One layer each, shape (n, dim_l), n >= 2.
        y: One layer each, shape (n, dim_l), the same items in the same order.
        k: Not used; grids of all metrics are called alike.

    Returns:
        float64, shape (layers_x, layers_y), on the device of x, each in [0, 1].

    Raises:
        PrhEvalError: As for :func:`linear_cka`.
    """
    return _linear_grid(x, y, unbiased=False)


def debiased_cka(x: Layer, y: Layer) -> float:
    """Linear CKA with the unbiased estimator of HSIC, so that unrelated features score 0.

    Nguyen et al. (2021, arXiv 2010.15327) with the estimator HSIC_1 of Song et al.
    (2012, JMLR 13, equation 5), not in batches but of all items: the inner product over pairs of
    different items of the two kernel matrices, each U-centred (Székely and Rizzo 2014, Annals of
    Statistics 42, definition 2), over their lengths. Its mean under re-pairing of the items is
    exactly 0, whatever the numbers of dimensions. A lone outlier that both sides share is not in
    it, but two next to each other make it near 1.

    Args:
        x: Shape (n, dim_x), any floating type, n >= 4.
        y: Shape (n, dim_y), the same items in the same order.

    Returns:
        A value in [-1, 1]: 1 where one side is the other rotated, shifted and scaled. 0 where a
        side has nothing left when U-centred: all rows equal, all but one, or all equally far
        apart.

    Raises:
        PrhEvalError: If the numbers of items differ or are below 4, or a value is not finite.
    """
    return float(debiased_cka_grid([x], [y]))


def debiased_cka_grid(x: Sequence[Layer], y: Sequence[Layer], k: int | None = None) -> Tensor:
    """:func:`debiased_cka` of every layer pair.

    Args:
        x: One layer each, shape (n, dim_l), n >= 4.
        y: One layer each, shape (n, dim_l), the same items in the same order.
        k: Not used; grids of all metrics are called alike.

    Returns:
        float64, shape (layers_x, layers_y), on the device of x, each in [-1, 1].

    Raises:
        PrhEvalError: As for :func:`debiased_cka`.
    """
    return _linear_grid(x, y, unbiased=True)


def rbf_cka(x: Layer, y: Layer, *, fraction: float = 1.0, sigma: float | None = None) -> float:
    """Centred kernel alignment of the kernels exp(-d^2 / (2 sigma^2)) of Euclidean distances d.

    Kornblith et al. (2019, arXiv 1905.00414, section 3): sigma is a fraction of the median distance
    between different items, for each side of its own (of an even number of distances, the lower
    middle one). The default is the median itself, as in their released notebook; the paper tries
    0.2, 0.4 and 0.8. The smaller the fraction, the more local; as it grows, the score becomes that
    of :func:`linear_cka` (Alvarez 2021, arXiv 2112.09305).

    Args:
        x: Shape (n, dim_x), any floating type, n >= 2.
        y: Shape (n, dim_y), the same items in the same order.
        fraction: Of the median distance; positive.
        sigma: The bandwidth itself, of both sides, in place of a fraction; positive. Huh et al.
            (2024) have 1, for rows of unit length.

    Returns:
        A value in [0, 1]: 1 where one side is the other rotated, shifted and, unless sigma is
        given, scaled. 0 where all rows of a side are equal. By chance it is not 0, as for
        :func:`linear_cka`.

    Raises:
        PrhEvalError: If the numbers of items differ or are below 2, a value is not finite, or half
            of the distances of a side are 0, so that sigma would be.
        ValueError: If fraction or sigma is not positive.
    """
    return float(rbf_cka_grid([x], [y], fraction=fraction, sigma=sigma))


def rbf_cka_grid(
    x: Sequence[Layer],
    y: Sequence[Layer],
    k: int | None = None,
    *,
    fraction: float = 1.0,
    sigma: float | None = None,
) -> Tensor:
    """:func:`rbf_cka` of every layer pair.

    Args:
        x: One layer each, shape (n, dim_l), n >= 2.
        y: One layer each, shape (n, dim_l), the same items in the same order.
        k: Not used; grids of all metrics are called alike.
        fraction: As for :func:`rbf_cka`.
        sigma: As for :func:`rbf_cka`.

    Returns:
        float64, shape (layers_x, layers_y), on the device of x, each in [0, 1].

    Raises:
        PrhEvalError: As for :func:`rbf_cka`.
        ValueError: As for :func:`rbf_cka`.
    """
    if not (fraction if sigma is None else sigma) > 0:
        raise ValueError(f"fraction = {fraction} and sigma = {sigma}, where both must be positive")
    kernels = [[rbf(layer, fraction, sigma) for layer in side] for side in centred(x, y, least=2)]
    return gram_grid(kernels[0], kernels[1], unbiased=False)


def cknna(x: Layer, y: Layer, k: int) -> float:
    """Centred kernel nearest-neighbour alignment: CKA of the neighbours that both sides share.

    Huh et al. (2024, arXiv 2405.07987, appendix on other metrics), as their released code has it:
    with K = X X^T, L = Y Y^T and alpha_ij = 1 where j is among the k nearest neighbours of i in
    both, it is HSIC(alpha K, alpha L) over the root of HSIC(alpha_x K, alpha_x K) and
    HSIC(alpha_y L, alpha_y L), whose masks are of one side alone. HSIC is the unbiased estimator of
    Song et al. (2012, JMLR 13, equation 5), tr(AB) + sum(A) sum(B) / ((n-1)(n-2)) -
    2 sum(AB) / (n-2). Masked matrices are not symmetric, so that tr(AB) is over neighbours that
    have each other, and swapping x and y moves the score a little. The code also adds 1e-6 to the
    denominator, which this does not: there features of other lengths would have another score.

    Where neighbours tie for the last places, alpha is the product of the weights of
    :meth:`prh_eval.alignment.graph.NeighborGraph.weights`.

    Args:
        x: Shape (n, dim_x), rows of length 1 (or 0), any floating type, n >= 4.
        y: Shape (n, dim_y), likewise, the same items in the same order.
        k: Neighbourhood size, 1 <= k <= n - 1.

    Returns:
        1 where the similarities are the same; for unrelated sides of the order of k / (n - 1), as
        mutual kNN. It has no bounds, since numerator and denominators have other masks, but is
        rarely outside [0, 1]. 0 where a side's own HSIC is not positive, as where all rows are
        equal.

    Raises:
        PrhEvalError: If the numbers of items differ or are below 4, a value is not finite, or k is
            out of range.
        ValueError: If rows are not of unit length.
    """
    return float(cknna_grid([x], [y], k))


def cknna_grid(x: Sequence[Layer], y: Sequence[Layer], k: int) -> Tensor:
    """:func:`cknna` of every layer pair; neighbours and their similarities are found once a layer.

    Args:
        x: One layer each, shape (n, dim_l), rows of length 1 (or 0), n >= 4.
        y: One layer each, shape (n, dim_l), likewise, the same items in the same order.
        k: Neighbourhood size, 1 <= k <= n - 1.

    Returns:
        float64, shape (layers_x, layers_y), on the device of x.

    Raises:
        PrhEvalError: As for :func:`cknna`.
        ValueError: If rows are not of unit length.
    """
    sides = [[layer.rows for layer in side] for side in centred(x, y, least=4)]
    of_x, of_y = ([_similar(rows, k) for rows in side] for side in sides)
    scores = [[_near_alignment(a, b) for b in of_y] for a in of_x]
    return torch.tensor(scores, dtype=torch.float64, device=sides[0][0].place)


def _linear_grid(x: Sequence[Layer], y: Sequence[Layer], *, unbiased: bool) -> Tensor:
    of_x, of_y = centred(x, y, least=4 if unbiased else 2)
    n = len(of_x[0])
    dims = [[layer.rows.dim for layer in side] for side in (of_x, of_y)]
    by_items = n * n * (sum(dims[0]) + sum(dims[1]) + len(of_x) * len(of_y))
    squares = sum(d * d for side in dims for d in side)
    by_dimensions = 2 * n * (sum(dims[0]) * sum(dims[1]) + squares)
    if by_dimensions < by_items:
        return covariance_grid(of_x, of_y, unbiased=unbiased)
    kernels = [[Linear(layer) for layer in side] for side in (of_x, of_y)]
    return gram_grid(kernels[0], kernels[1], unbiased=unbiased)


@dataclass(frozen=True, eq=False)
class _Similar:
    """The neighbours of one layer with their similarities."""

    edges: Edges
    # Rising numbers of the edges, and the edges' inner products.
    keys: Tensor
    inner: Tensor
    # Where each edge's reverse is, and whether it is there.
    back: Tensor
    mutual: Tensor
    own: float


def _similar(rows: Rows, k: int) -> _Similar:
    chosen = edges(neighbor_graph([rows], k), 0, k, rows.place)
    inner = _inner(rows, chosen, max(1, _EDGES // k))
    keys = chosen.keys
    back, mutual = find(keys, chosen.reversed_keys)
    alone = _Similar(chosen, keys, inner, back, mutual, 0.0)
    masked = chosen.weight.square() * inner
    return replace(alone, own=_masked_hsic(alone, masked, masked))


def _inner(rows: Rows, chosen: Edges, size: int) -> Tensor:
    """The edges' inner products; those of ``size`` items with all of their neighbours at a time."""
    parts = []
    for items in rows.blocks(size):
        wanted = (chosen.item >= items.start) & (chosen.item < items.stop)
        others, column = torch.unique(chosen.neighbor[wanted], return_inverse=True)
        products = rows[items] @ rows[others].T
        parts.append(products[chosen.item[wanted] - items.start, column])
    return torch.cat(parts)


def _near_alignment(x: _Similar, y: _Similar) -> float:
    """CKNNA of two layers."""
    if not (x.own > 0 and y.own > 0):
        return 0.0
    place, found = find(y.keys, x.keys)
    shared = torch.where(found, x.edges.weight * y.edges.weight[place], 0.0)
    alignment = _masked_hsic(x, shared * x.inner, shared * y.inner[place])
    return alignment / math.sqrt(x.own * y.own)


def _masked_hsic(x: _Similar, a: Tensor, b: Tensor) -> float:
    """HSIC_1 times n (n - 3) of two matrices that are 0 but on the edges of x; 0 if by rounding."""
    n = x.edges.n
    columns, rows = (a.new_zeros(n) for _ in range(2))
    columns.index_add_(0, x.edges.neighbor, a)
    rows.index_add_(0, x.edges.item, b)
    terms = (
        float(torch.where(x.mutual, a * b[x.back], 0.0).sum()),
        float(columns.sum() * rows.sum()) / ((n - 1) * (n - 2)),
        -2 * float(columns @ rows) / (n - 2),
    )
    value = sum(terms)
    return value if abs(value) > ROUNDING * max(map(abs, terms)) else 0.0
