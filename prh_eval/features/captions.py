"""From features of captions to features of items that have several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mean_over_items(layers: list[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """The mean of each item's captions' features.

    Sums are in float64, so that an item of equal captions has the features of one of them.

    Args:
        layers: One tensor (captions, width_l) a layer, on the CPU: the captions of the first item,
            then those of the second, and so on.
        counts: How many captions each of the n items has, each at least 1.

    Returns:
        One float32 tensor (n, width_l) a layer; the same tensors where every item has one caption.

    Raises:
        ValueError: If an item has no caption, or the counts do not add up to the captions.
    """
    if min(counts, default=0) < 1:
        raise ValueError("every item should have at least 1 caption")
    captions = sum(counts)
    if any(len(layer) != captions for layer in layers):
        raise ValueError(f"the counts add up to {captions}, which is not the number of rows")
    if captions == len(counts):
        return layers
    count = torch.tensor(counts)
    item = torch.repeat_interleave(torch.arange(len(counts)), count)
    means = []
    for layer in layers:
        total = torch.zeros(len(counts), layer.shape[1], dtype=torch.float64)
        total.index_add_(0, item, layer.to(torch.float64))
        means.append((total / count.unsqueeze(1)).to(torch.float32))
    return means
