"""Lets torchvision be imported where its extension was built for another torch, as timm needs it.

Only its Python code is used in these tests; without the names of two operators it does not import,
and then neither does what transformers makes of it. So this comes before either is imported.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

_kept: list[Any] = []  # a library of operators undoes itself when it is collected


def declare() -> None:
    """Name the operators, if torchvision is installed and cannot do so itself."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, AttributeError):
        import torch

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
