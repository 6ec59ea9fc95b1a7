"""Tiny image encoders of many families, made from configs, saved as the hub has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import nn

SIDE = 32  # pixels a side that the tiny encoders see
PATCH = 8
PATCHES = (SIDE // PATCH) ** 2
WIDTH = 16

_VIT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIDE,
    "patch_size": PATCH,
}
_TEXT = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": 0,
}
_STAGES = {"hidden_sizes": [8, 12, 16], "depths": [1, 2, 1]}


def _usual(family: str, **changes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        config = getattr(transformers, f"{family}Config")(**{**_VIT, **changes})
        return getattr(transformers, f"{family}Model")(config)

    return make


def _stages(family: str, **changes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        config = getattr(transformers, f"{family}Config")(**_STAGES, **changes)
        return getattr(transformers, f"{family}Model")(config)

    return make


def _two_towers(family: str, **changes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        config = getattr(transformers, f"{family}Config")(
            text_config=_TEXT, vision_config={**_VIT, **changes}, projection_dim=12
        )
        return getattr(transformers, f"{family}Model")(config)

    return make


def _swin() -> nn.Module:
    config = transformers.SwinConfig(
        image_size=SIDE, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=4
    )
    return transformers.SwinModel(config)


def _vjepa2() -> nn.Module:
    config = transformers.VJEPA2Config(
        **{**_VIT, "hidden_size": 24},
        crop_size=SIDE,
        frames_per_clip=4,
        tubelet_size=2,
        mlp_ratio=2,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=3,
    )
    return transformers.VJEPA2Model(config)


ZOO: dict[str, Callable[[], nn.Module]] = {
    "dinov2": _usual("Dinov2", mlp_ratio=2),
    "dinov2_registers": _usual("Dinov2WithRegisters", num_register_tokens=3),
    "dinov3": _usual("DINOv3ViT", num_register_tokens=2),
    "vit": _usual("ViT"),
    "deit": _usual("DeiT"),
    "mae": _usual("ViTMAE"),
    "beit": _usual("Beit", use_mean_pooling=False, use_relative_position_bias=True),
    "beit_mean": _usual("Beit", use_mean_pooling=True),
    "data2vec": _usual("Data2VecVision", use_shared_relative_position_bias=True),
    "ijepa": _usual("IJepa"),
    "clip": _two_towers("CLIP"),
    "clip_vision": _usual("CLIPVision"),
    "siglip": _two_towers("Siglip"),
    "siglip_vision": _usual("SiglipVision"),
    "siglip2": _two_towers("Siglip2", num_patches=PATCHES),
    "vjepa2": _vjepa2,
    "convnext": _stages("ConvNext", num_stages=3),
    "convnextv2": _stages("ConvNextV2", num_stages=3),
    "dinov3_convnext": _stages("DINOv3ConvNext"),
    "resnet": _stages("ResNet", embedding_size=8, layer_type="basic"),
    "swin": _swin,
}
STAGES = ("convnext", "convnextv2", "dinov3_convnext", "resnet", "swin")


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights with which every part of a model moves its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return model.eval()


def save_encoder(folder: Path, family: str) -> Path:
    """A model folder with random weights, as ``save_pretrained`` writes it."""
    randomise(ZOO[family]()).save_pretrained(folder)
    return folder


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image of drawn pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
