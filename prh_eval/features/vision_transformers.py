"""Image encoders that transformers loads."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from prh_eval.errors import PrhEvalError
from prh_eval.features import images
from prh_eval.features.loading import encoder_folder, encoder_name, failed
from prh_eval.features.vision import VisionModel
from prh_eval.features.vision_blocks import BlockModel, Loaded
from prh_eval.hub import cached_commit, load_error
from prh_eval.schema import Preprocessing, VisionEncoder


def load_transformers(encoder: VisionEncoder) -> VisionModel:
    """Load an image encoder through transformers.

    Of a model with a vision and a text part, the former is kept; its ``pooled`` output is what it
    compares with texts (the projected image embedding). Code in the repository is run if the
    encoder's description asks for it.

    Raises:
        PrhEvalError: If it cannot be found, reached or read, lacks weights, or does not have the
            layers, token or preprocessing that are asked for.
    """
    from transformers import AutoModel

    path = str(encoder_folder(encoder) or encoder.path)
    try:
        model, info = AutoModel.from_pretrained(
            path,
            revision=encoder.revision,
            trust_remote_code=encoder.trust_remote_code,
            dtype=getattr(torch, encoder.dtype),
            output_loading_info=True,
        )
    # Any failure here comes from the person's path, revision or network, whatever its class.
    except Exception as error:
        raise failed(encoder, error) from error
    prepare, described = _input(encoder, path)
    tower, projection, prefixes = _vision_part(model)
    projection = projection if encoder.token == "pooled" else None
    _check_weights(encoder, info["missing_keys"], prefixes)
    config = tower.config
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0  # masked autoencoders leave most of an image out otherwise

    def run(pixels: Tensor) -> Tensor | None:
        output = tower(**_arguments(tower, pixels))
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        return pooled if projection is None or pooled is None else projection(pooled)

    module = tower if projection is None else nn.ModuleDict({"0": tower, "1": projection})
    return BlockModel(
        Loaded(
            module=module.eval(),
            blocks=[] if encoder.token == "pooled" else _blocks(tower, encoder_name(encoder)),
            run=run,
            prepare=prepare,
            input=described,
            commit=cached_commit(encoder.path, encoder.revision),
            patch_size=_patch_size(config),
            channels_last=False if hasattr(config, "hidden_sizes") else None,
        ),
        encoder,
    )


def _vision_part(model: Any) -> tuple[Any, nn.Module | None, tuple[str, ...]]:
    """The part that sees images, what projects its output, and how their weights' names begin."""
    if hasattr(model, "vision_model") and hasattr(model, "text_model"):
        projection = getattr(model, "visual_projection", None)
        return model.vision_model, projection, ("vision_model.", "visual_projection.")
    if hasattr(model, "encoder") and hasattr(model, "predictor"):
        return model.encoder, None, ("encoder.",)  # V-JEPA 2
    return model, None, ("",)


def _check_weights(encoder: VisionEncoder, missing: list[str], prefixes: tuple[str, ...]) -> None:
    """Refuse an encoder that would be read where transformers drew its weights at random."""
    unused = ["mask_token"] + ([] if encoder.token == "pooled" else ["pooler."])
    needed = sorted(
        name
        for name in missing
        if name.startswith(prefixes) and not any(part in name for part in unused)
    )
    if needed:
        raise PrhEvalError(
            f"{encoder_name(encoder)} has no trained weights for {needed[0]!r}"
            + (f" and {len(needed) - 1} more" if needed[1:] else "")
            + ("; 'token' should be 'class' or 'mean'" if encoder.token == "pooled" else "")
        )


def _arguments(tower: Any, pixels: Tensor) -> dict[str, Any]:
    """What a model's forward pass wants to be told about images of one size."""
    names = inspect.signature(tower.forward).parameters
    batch, _, height, width = pixels.shape
    if "pixel_values_videos" in names:  # a still image: all frames of one tubelet are the same
        frames = tower.config.tubelet_size
        return {"pixel_values_videos": pixels[:, None].expand(-1, frames, -1, -1, -1)}
    if not {"noise", "spatial_shapes"} & names.keys():
        return {"pixel_values": pixels}
    side = tower.config.patch_size
    rows, columns = height // side, width // side
    if "noise" in names:  # masked autoencoders put patches into the order of this
        noise = torch.arange(rows * columns, device=pixels.device).expand(batch, -1)
        return {"pixel_values": pixels, "noise": noise}
    # SigLIP 2 (NaFlex) takes patches, each as (row, column, colour).
    patches = pixels[:, :, : rows * side, : columns * side]
    patches = patches.reshape(batch, 3, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
    mask = "pixel_attention_mask" if "pixel_attention_mask" in names else "attention_mask"
    return {
        "pixel_values": patches.reshape(batch, rows * columns, -1),
        mask: torch.ones(batch, rows * columns, dtype=torch.int64, device=pixels.device),
        "spatial_shapes": torch.tensor([[rows, columns]], device=pixels.device).expand(batch, -1),
    }


def _blocks(tower: nn.Module, name: str) -> list[nn.Module]:
    """The one list of modules that is not inside another one."""
    lists: dict[str, nn.ModuleList] = {}
    for at, module in tower.named_modules():
        outer = any(at.startswith(f"{other}.") for other in lists)
        if isinstance(module, nn.ModuleList) and len(module) and not outer:
            lists[at] = module
    if len(lists) != 1:
        found = f"several ({', '.join(lists)})" if lists else "none"
        raise PrhEvalError(
            f"{name} should have one list of blocks and has {found}, "
            "so that its layers cannot be read; 'token' should be 'pooled'"
        )
    (blocks,) = lists.values()
    return list(blocks)


def _patch_size(config: Any) -> tuple[int, int] | None:
    size = getattr(config, "patch_size", None)
    if size is None or hasattr(config, "depths"):
        return None
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _input(
    encoder: VisionEncoder, path: str
) -> tuple[Callable[[Image.Image], Tensor], dict[str, Any]]:
    """How an image becomes pixels, and what that is in JSON values."""
    spec = encoder.preprocessing
    if isinstance(spec, Preprocessing):
        return lambda image: images.prepare(image, spec), spec.model_dump(mode="json")
    processor = _processor(encoder, path)

    def prepare(image: Image.Image) -> Tensor:
        pixels = processor(images=image.convert("RGB"), return_tensors="pt").get("pixel_values")
        if not isinstance(pixels, Tensor) or pixels.shape[:2] != (1, 3) or pixels.ndim != 4:
            raise PrhEvalError(
                f"the own processor of {encoder_name(encoder)}, {type(processor).__name__}, does "
                "not give one picture an image; 'preprocessing' should be explicit"
            )
        return pixels[0].float()

    return prepare, json.loads(processor.to_json_string())


def _processor(encoder: VisionEncoder, path: str) -> Any:
    """The model's own image processor, computing with Pillow whatever is installed.

    With torchvision, transformers resizes otherwise, and the numbers would depend on whether it is
    there.
    """
    import transformers

    # transformers 5 chooses by name; 4 knows the torchvision kind as fast.
    old = transformers.__version__.startswith("4.")
    with_pillow = {"use_fast": False} if old else {"backend": "pil"}
    what = f"the image processor of {encoder_name(encoder)}"
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            path,
            revision=encoder.revision,
            trust_remote_code=encoder.trust_remote_code,
            **with_pillow,
        )
    # Any failure here comes from what the person named, whatever its class.
    except Exception as error:
        raise PrhEvalError(f"{load_error(what, error)}; 'preprocessing' can be explicit") from error
    kinds = {kind.__name__ for kind in type(processor).__mro__}
    if kinds & {"TorchvisionBackend", "BaseImageProcessorFast"}:
        raise PrhEvalError(
            f"{what}, {type(processor).__name__}, has no form that computes with Pillow in "
            f"transformers {transformers.__version__}; 'preprocessing' should be explicit"
        )
    return processor
