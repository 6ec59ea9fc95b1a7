"""Where float64 can be had, in which all is ranked and summed, and what is fast beside it."""

from __future__ import annotations

import torch
from torch import Tensor


def with_float64(x: Tensor) -> Tensor:
    """The same tensor on a device that has float64: its own, or the CPU where that is mps."""
    return x.cpu() if x.device.type == "mps" else x


def single_dtype() -> torch.dtype:
    """float32, or float64 where torch is set to multiply float32 with less than its precision."""
    try:
        exact = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set in two of torch's ways
        exact = False
    return torch.float32 if exact else torch.float64


def cpu_has_units(dtype: torch.dtype) -> bool:
    """Whether the processor multiplies matrices of a type in units that are made for it."""
    return dtype == torch.bfloat16 and cpu_has("amx_tile")


def cpu_has(*names: str) -> bool:
    """Whether the processor has any of these sets of instructions, as torch names them."""
    return any(bool(getattr(torch.cpu, f"_is_{name}_supported", bool)()) for name in names)
