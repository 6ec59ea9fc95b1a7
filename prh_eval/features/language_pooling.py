"""From the hidden states of a caption's tokens to one vector."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["mean", "last"]
POOLINGS = ("mean", "last")


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling, *, padded: bool = True) -> Tensor:
    """One vector a caption from the hidden states of its real tokens.

    Args:
        hidden: Shape (b, tokens, dim), any floating type.
        mask: Shape (b, tokens), same device: 1 at real tokens, 0 at the padding on the right.
        pooling: "mean" (summed in float64, so that bags of equal tokens have equal means; in
            float32 on devices without it) or "last".
        padded: False where all tokens are known to be real, which saves looking; the result is the
            same, bit for bit.

    Returns:
        float32, shape (b, dim).
    """
    count = mask.sum(dim=1)
    if pooling == "last":
        item = torch.arange(len(hidden), device=hidden.device)
        return hidden[item, count - 1].to(torch.float32)
    # Not a product with the mask: padding may hold NaN.
    real = torch.where(mask.bool().unsqueeze(-1), hidden, 0) if padded else hidden
    total = real.sum(dim=1, dtype=widest(hidden.device))
    return (total / count.unsqueeze(-1)).to(torch.float32)


@functools.cache
def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has none (Apple's and some of Intel's)."""
    try:
        torch.ones(1, dtype=torch.float64, device=device).sum()
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64
