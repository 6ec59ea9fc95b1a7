"""Representational similarity analysis: whether two layers rank all pairs of items alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prh_eval.alignment.feature_layers import check_layers, place
from prh_eval.alignment.rows import Rows

# Similarities within this of each other tie, as in neighbour graphs.
_TIE = 1e-12
# About what the ranks of a group of layers may take.
_MEMORY_BYTES = 1 << 30


def rsa(x: Tensor, y: Tensor) -> float:
    """Representational similarity of two layers: Spearman's correlation of their distances.

    Each layer is described by the cosine distances of all n (n - 1) / 2 pairs of items, and the two
    descriptions are compared by rank correlation (Kriegeskorte, Mur and Bandettini 2008, Frontiers
    in Systems Neuroscience 2:4). Distances within 1e-12 of each other tie and have the mean of
    their ranks.

    Under a random re-pairing of the items the expected score is exactly 0.

    Args:
        x: Float, shape (n, dim_x).
        y: Float, shape (n, dim_y), the same items in the same order.

    Returns:
        In [-1, 1]; higher is more alike; 0 where all distances of a layer are equal. Symmetric.

    Raises:
        PrhEvalError: If the layers are not finite float matrices of the same number of items, or
            there are fewer than 3.
    """
    return float(rsa_grid([x], [y], 1))


def rsa_grid(
    x: Sequence[Tensor], y: Sequence[Tensor], k: int, *, memory_bytes: int = _MEMORY_BYTES
) -> Tensor:
    """:func:`rsa` of every layer pair.

    Distances are ranked once per layer. Where the ranks of all layers of x would take more than
    ``memory_bytes``, they are made in groups, and those of y anew for every group.

    Args:
        x: Layers of one model, each float (n, dim); dimensions may differ.
        y: Layers of the other, of the same n items.
        k: Not used.
        memory_bytes: About how much the ranks of a group may take, 4 n (n - 1) bytes a layer; those
            of one are always held, beside about ten times that while a layer is ranked.

    Returns:
        float64, shape (layers_x, layers_y), on the device of x.

    Raises:
        PrhEvalError: As :func:`rsa`.
    """
    check_layers(x, y, least=3, metric="rsa")
    device, n = place(x), len(x[0])
    grid = torch.empty(len(x), len(y), dtype=torch.float64, device=device)
    size = max(1, memory_bytes // (4 * n * (n - 1)))
    for start in range(0, len(x), size):
        group = torch.stack([_ranks(layer, device) for layer in x[start : start + size]])
        for j, layer in enumerate(y):
            grid[start : start + size, j] = group @ _ranks(layer, device)
    return grid.clamp(-1.0, 1.0)


def _ranks(layer: Tensor, device: torch.device) -> Tensor:
    """Ranks of the distances of all pairs, centred and of norm 1 or 0, (n (n - 1) / 2,) float64."""
    unit = Rows(layer, unit=True, device=device)[:]
    first, second = torch.triu_indices(len(unit), len(unit), offset=1, device=device)
    ranked, order = (-(unit @ unit.T))[first, second].sort()
    group = (ranked.diff() > _TIE).cumsum(0)
    group = torch.cat([group.new_zeros(1), group])
    size = group.bincount()
    # The mean rank of a tied group, counted from the middle of all ranks: a multiple of 1/2.
    mean = size.cumsum(0) - (size - 1) / 2 - (len(order) + 1) / 2
    ranks = torch.empty_like(ranked)
    ranks[order] = mean[group].double()
    norm = torch.linalg.vector_norm(ranks)
    return ranks / norm if norm > 0 else ranks
