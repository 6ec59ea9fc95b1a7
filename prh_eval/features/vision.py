"""Pooled hidden states of an image encoder, one tensor per block."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from tqdm import tqdm

from prh_eval.errors import PrhEvalError
from prh_eval.hub import is_folder, load_error, missing_folder

# transformers takes seconds to import, and a cached reference needs none of it.
if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Token = Literal["class", "mean"]
Norm = Literal["before", "after"]
DType = Literal["float32", "bfloat16", "float16"]

_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")


class Preprocessing(BaseModel):
    """How an image becomes the encoder's input.

    The image is converted to RGB as Pillow does (what timm's data sets do too; transparency is
    dropped), its shorter side resized, the centre square cropped, values divided by 255, mean and
    deviation applied in float32. Sizes round as in torchvision, so for RGB images the result is
    that of torchvision's Resize, CenterCrop, ToTensor and Normalize on a Pillow image, for every
    release of Pillow that resamples rows first (11 does; 13 chooses by the image's shape).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    resize: int = Field(gt=0, description="length of the shorter side, in pixels")
    crop: int = Field(gt=0, description="side of the centre square, in pixels")
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = Field(
        description="Pillow's filter; it averages over the pixels that fall into one (antialias)"
    )
    mean: tuple[float, float, float] = Field(description="subtracted from red, green, blue in 0..1")
    std: tuple[float, float, float] = Field(description="then divided by")

    @model_validator(mode="after")
    def _check(self) -> Preprocessing:
        if self.crop > self.resize:
            raise ValueError(f"crop ({self.crop}) should be at most resize ({self.resize})")
        if min(self.std) <= 0:
            raise ValueError("std should hold positive numbers")
        return self

    def __call__(self, image: Image.Image) -> Tensor:
        """Prepare one image.

        Returns:
            float32, shape (3, crop, crop).
        """
        image = image.convert("RGB")
        width, height = image.size
        short, long = min(width, height), max(width, height)
        longer = int(self.resize * long / short)
        size = (self.resize, longer) if width <= height else (longer, self.resize)
        # Rows before columns: Pillow rounds in between, and from release to release it does not
        # choose the same order itself.
        resampling = Image.Resampling[self.interpolation.upper()]
        image = image.resize((size[0], height), resampling).resize(size, resampling)
        # Python's round, half to even, as in torchvision's center_crop.
        left, top = (round((side - self.crop) / 2.0) for side in size)
        image = image.crop((left, top, left + self.crop, top + self.crop))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32) / 255
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


def load_vision_model(
    path: str, *, revision: str | None = None, dtype: DType = "float32"
) -> PreTrainedModel:
    """Load an image encoder through transformers; code in its repository is never run.

    Args:
        path: Hub id or local folder.
        revision: Branch, tag or commit; None is the hub's default branch.
        dtype: What it computes in.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        PrhEvalError: If it cannot be found, reached or read.
    """
    from transformers import AutoModel

    at = f" (revision {revision!r})" if revision else ""
    what = f"the encoder {path!r}{at}"
    if is_folder(path):
        if not Path(path).expanduser().is_dir():
            raise missing_folder(what, path)
        path = str(Path(path).expanduser())
    try:
        model = AutoModel.from_pretrained(path, revision=revision, trust_remote_code=False)
    # Any failure here comes from the person's path, revision or network, whatever its class.
    except Exception as error:
        raise load_error(what, error) from error
    loaded: PreTrainedModel = model.to(getattr(torch, dtype)).eval()
    return loaded


def vision_features(
    model: PreTrainedModel,
    images: Sequence[Image.Image],
    *,
    preprocessing: Preprocessing,
    token: Token = "class",
    norm: Norm = "before",
    batch_size: int = 8,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[Tensor]:
    """Read every block of an image encoder.

    Args:
        model: A transformers encoder that takes ``pixel_values`` and gives hidden states.
        images: n images; each is taken from the sequence once, when its batch is due.
        preprocessing: How an image becomes the model's input.
        token: ``class``: the class token; ``mean``: the mean over the patch tokens.
        norm: ``before``: the output of each block as it is; ``after``: the last one behind the
            model's final norm, the others as they are.
        batch_size: Images at once; halved, down to 1, when memory runs out.
        device: Where to compute; by default where the model is.
        progress: Whether to show a progress bar.

    Returns:
        One float32 tensor of shape (n, width) on the CPU for each block, in order; the embedding
        output is not among them.

    Raises:
        PrhEvalError: If the model gives no hidden states of tokens, has no class token though one
            is asked for, cannot take this input, or one image does not fit into memory.
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    if device is not None:
        model.to(device)  # type: ignore[arg-type]
    prefix = _prefix_tokens(model, token)
    batches: list[list[Tensor]] = []
    start = 0
    with tqdm(total=len(images), desc="images", unit="image", disable=not progress) as bar:
        while start < len(images):
            stop = min(start + batch_size, len(images))
            try:
                pixels = torch.stack([preprocessing(images[i]) for i in range(start, stop)])
                batches.append(_pool(_states(model, pixels, norm), token, prefix))
            except (RuntimeError, MemoryError) as error:
                if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                    raise
                if batch_size == 1:
                    raise PrhEvalError(
                        f"one image of {preprocessing.crop} x {preprocessing.crop} pixels does not "
                        f"fit into the memory of {model.device}; use another device"
                    ) from error
                batch_size = math.ceil(batch_size / 2)
                logger.warning("out of memory on %s: batches of %d now", model.device, batch_size)
                clear_device_cache(garbage_collection=True)
                continue
            bar.update(stop - start)
            start = stop
    return [torch.cat(layer) for layer in zip(*batches, strict=True)]


def _states(model: PreTrainedModel, pixels: Tensor, norm: Norm) -> list[Tensor]:
    """The hidden states after every block, each (images, tokens, width)."""
    pixels = pixels.to(model.device, model.dtype)
    name = type(model).__name__
    # cuDNN would otherwise round the patch embedding's float32 input to TF32.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        try:
            output = model(pixel_values=pixels, output_hidden_states=True)
        except (TypeError, ValueError) as error:
            raise PrhEvalError(f"the encoder {name} cannot take these images: {error}") from error
    states = getattr(output, "hidden_states", None) or ()
    blocks = [state for state in states[1:] if state.ndim == 3]
    if not blocks or len(blocks) != len(states) - 1:
        raise PrhEvalError(
            f"the encoder {name} gives no hidden states of shape (images, tokens, width); "
            "choose a vision transformer"
        )
    if norm == "after":
        blocks[-1] = output.last_hidden_state
    return blocks


def _pool(blocks: list[Tensor], token: Token, prefix: int) -> list[Tensor]:
    if token == "class":
        return [state[:, 0].float().cpu() for state in blocks]
    return [state[:, prefix:].float().mean(dim=1).cpu() for state in blocks]


def _prefix_tokens(model: PreTrainedModel, token: Token) -> int:
    """How many tokens stand before the patches: the class token and registers."""
    names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    has_class = not names.isdisjoint(_CLASS_TOKENS)
    if token == "class" and not has_class:
        raise PrhEvalError(
            f"the encoder {type(model).__name__} has no class token; 'token' should be 'mean'"
        )
    return int(has_class) + int(getattr(model.config, "num_register_tokens", 0))
