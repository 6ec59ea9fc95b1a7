"""SVCCA: the correlations between two layers' leading directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prh_eval.alignment.feature_layers import centered, check_layers, place, principal


def svcca(x: Tensor, y: Tensor, components: int = 10) -> float:
    """Singular vector canonical correlation analysis of two layers.

    Each layer is reduced to its leading singular directions, and the canonical correlations
    between the two sets of directions are averaged (Raghu et al. 2017, arXiv 1706.05806,
    section 2.1). As in the released code of Huh et al. (2024), each dimension is first centred and
    divided by its standard deviation, a fixed number of directions is kept, and the mean is over
    all of them. That code finds the directions by a randomised decomposition too coarse for them,
    so that its scores vary from run to run; here they are exact.

    With orthonormal bases U and V of the two sets of directions, the canonical correlations are
    the singular values of U^T V. Under a random re-pairing of the items the mean of their squares
    is components / (n - 1), so that chance is below the square root of that.

    Args:
        x: Float, shape (n, dim_x).
        y: Float, shape (n, dim_y), the same items in the same order.
        components: How many directions of each layer; all it has, where these are fewer. The mean
            is over as many correlations as the layer of fewer has.

    Returns:
        In [0, 1]; higher is more alike; 0 where a layer is the same for all items. Symmetric. It
        depends neither on the order of the items nor on the scale or origin of a dimension, but
        on a rotation of a layer, by the division by standard deviations.

    Raises:
        PrhEvalError: If the layers are not finite float matrices of the same number of items, or
            there are fewer than components + 2.
    """
    return float(svcca_grid([x], [y], components))


def svcca_grid(x: Sequence[Tensor], y: Sequence[Tensor], k: int) -> Tensor:
    """:func:`svcca` of every layer pair, of k directions each.

    A layer is decomposed once, which takes nearly all the time; all pairs are one product.

    Args:
        x: Layers of one model, each float (n, dim); dimensions may differ.
        y: Layers of the other, of the same n items.
        k: The number of directions.

    Returns:
        float64, shape (layers_x, layers_y), on the device of x.

    Raises:
        PrhEvalError: As :func:`svcca`.
    """
    check_layers(x, y, least=k + 2, metric="svcca")
    device = place(x)
    bases_x, ranks_x = _leading(x, k, device)
    bases_y, ranks_y = _leading(y, k, device)
    products = torch.einsum("ani,bnj->abij", bases_x, bases_y)
    total = torch.linalg.svdvals(products).clamp(max=1.0).sum(dim=2)
    grid: Tensor = total / torch.minimum(ranks_x[:, None], ranks_y).clamp(min=1)
    return grid


def _leading(layers: Sequence[Tensor], k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Orthonormal bases (layers, n, k) of leading directions, padded by 0, and their numbers."""
    bases = torch.zeros(len(layers), len(layers[0]), k, dtype=torch.float64, device=device)
    ranks = []
    for base, layer in zip(bases, layers, strict=True):
        z = centered(layer, device)
        deviation = z.square().mean(dim=0).sqrt()
        directions, _ = principal(z / torch.where(deviation > 0, deviation, 1.0))
        ranks.append(min(k, directions.shape[1]))
        base[:, : ranks[-1]] = directions[:, : ranks[-1]]
    return bases, torch.tensor(ranks, device=device)
