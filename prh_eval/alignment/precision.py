"""Where float64 can be had: everything in this room is ranked and summed in it."""

from __future__ import annotations

from torch import Tensor


def with_float64(x: Tensor) -> Tensor:
    """The same tensor on a device that has float64: its own, or the CPU where that is mps."""
    return x.cpu() if x.device.type == "mps" else x
