"""Image encoders that timm loads."""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from torch import Tensor, nn

from prh_eval.errors import PrhEvalError
from prh_eval.features import images
from prh_eval.features.loading import encoder_folder, encoder_name
from prh_eval.features.vision import VisionModel
from prh_eval.features.vision_blocks import BlockModel, Loaded
from prh_eval.hub import cached_commit, load_error
from prh_eval.schema import Interpolation, Preprocessing, VisionEncoder


def load_timm(encoder: VisionEncoder) -> VisionModel:
    """Load an image encoder through timm, without its classifier.

    ``preprocessing: processor`` is timm's own for evaluation, computed as in
    `prh_eval.features.images`. With explicit preprocessing, position embeddings are resampled to
    its size where timm can do that for the model.

    Raises:
        PrhEvalError: If timm is not installed, the encoder cannot be found, reached or read, or it
            does not have the layers, token or preprocessing that are asked for.
    """
    try:
        import timm
    # torchvision, which it imports, fails in many ways beside a torch that it was not built for.
    except Exception as error:
        raise PrhEvalError(
            f"'loader: timm' needs timm, which cannot be imported ({error}); install it with "
            "pip install 'prh_eval[timm]'"
        ) from error

    folder = encoder_folder(encoder)
    revision = f"@{encoder.revision}" if encoder.revision else ""
    name = f"local-dir:{folder}" if folder else f"hf-hub:{encoder.path}{revision}"
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    # Any failure here comes from the person's path, revision or network, whatever its class.
    except Exception as error:
        raise load_error(encoder_name(encoder), error) from error
    spec = encoder.preprocessing
    if isinstance(spec, Preprocessing):
        if hasattr(model, "set_input_size"):
            model.set_input_size(img_size=_size(spec))
    else:
        spec = own_preprocessing(timm.data.resolve_model_data_config(model), encoder_name(encoder))

    def run(pixels: Tensor) -> Tensor | None:
        features = model.forward_features(pixels)
        pooled: Tensor | None = model.forward_head(features, pre_logits=True)
        return pooled

    patches = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    return BlockModel(
        Loaded(
            module=model.to(getattr(torch, encoder.dtype)).eval(),
            blocks=[] if encoder.token == "pooled" else _blocks(model, encoder_name(encoder)),
            run=run,
            prepare=lambda image: images.prepare(image, spec),
            input=spec.model_dump(mode="json"),
            commit=cached_commit(encoder.path, encoder.revision),
            patch_size=patches if hasattr(model, "blocks") else None,
            channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC",
        ),
        encoder,
    )


def own_preprocessing(config: dict[str, Any], name: str) -> Preprocessing:
    """What timm's evaluation transform does, in our words.

    Args:
        config: What ``timm.data.resolve_model_data_config`` gives.
        name: What messages call the encoder.

    Raises:
        PrhEvalError: If it does what we have no words for.
    """
    channels, height, width = config["input_size"]
    mode, interpolation = config["crop_mode"], config["interpolation"]
    squash = mode == "squash"
    resize = tuple(math.floor(side / config["crop_pct"]) for side in (height, width))
    crop = None if squash and resize == (height, width) else height
    if (
        channels != 3
        or mode not in ("center", "squash")
        or interpolation not in get_args(Interpolation)
        or (height != width and crop is not None)
        or min(resize) < max(height, width) * (crop is not None)
    ):
        raise PrhEvalError(
            f"timm's own preprocessing of {name} (input size {channels} x {height} x {width}, crop "
            f"mode {mode!r}, crop share {config['crop_pct']}, interpolation {interpolation!r}) is "
            "not one of ours; 'preprocessing' should be explicit"
        )
    return Preprocessing(
        resize=(resize[0], resize[1]) if squash else resize[0],
        crop=crop,
        interpolation=interpolation,
        mean=config["mean"],
        std=config["std"],
    )


def _size(spec: Preprocessing) -> tuple[int, int]:
    """Height and width of a prepared image."""
    if spec.crop is not None:
        return spec.crop, spec.crop
    assert not isinstance(spec.resize, int)  # the schema wants a crop with it
    return spec.resize


def _blocks(model: nn.Module, name: str) -> list[nn.Module]:
    """Blocks of a transformer, stages of a convolutional network, by timm's names for them."""
    for attribute in ("blocks", "stages", "layers"):
        found = getattr(model, attribute, None)
        if isinstance(found, (nn.Sequential, nn.ModuleList)) and len(found):
            return list(found)
    found = [module for at, module in model.named_children() if at[:-1] == "layer"]
    if not found:
        raise PrhEvalError(
            f"{name} has no blocks, stages or layers that could be read; 'token' should be 'pooled'"
        )
    return found
