"""How an image becomes an encoder's input."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prh_eval.schema import Preprocessing


def prepare(image: Image.Image, spec: Preprocessing) -> Tensor:
    """Resize, crop and normalise one image.

    The image is converted to RGB as Pillow does (what timm's data sets do too; transparency is
    dropped), its shorter side or both sides resized, the centre square cropped, values divided by
    255, mean and deviation applied in float32. Sizes round as in torchvision, so for RGB images the
    result is that of torchvision's Resize, CenterCrop, ToTensor and Normalize on a Pillow image,
    for every release of Pillow that resamples rows first (11 does; 13 chooses by the image's shape,
    which moves single values by a few steps of 1/255).

    Args:
        image: Of any mode and shape.
        spec: What to do, as a reference's file says it.

    Returns:
        float32, shape (3, height, width).
    """
    image = image.convert("RGB")
    height, width = _resized(image, spec.resize)
    # Rows before columns: Pillow rounds in between, and from release to release it does not
    # choose the same order itself.
    resampling = Image.Resampling[spec.interpolation.upper()]
    image = image.resize((width, image.height), resampling).resize((width, height), resampling)
    if spec.crop is not None:
        # Python's round, half to even, as in torchvision's center_crop.
        left, top = (round((side - spec.crop) / 2.0) for side in (width, height))
        image = image.crop((left, top, left + spec.crop, top + spec.crop))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32) / 255
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (spec.mean, spec.std))
    return (pixels - mean) / std


def _resized(image: Image.Image, resize: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width after resizing."""
    if not isinstance(resize, int):
        return resize
    width, height = image.size
    longer = int(resize * max(width, height) / min(width, height))
    return (longer, resize) if width <= height else (resize, longer)
