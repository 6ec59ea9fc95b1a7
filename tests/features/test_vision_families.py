"""Every family of image encoders against its own forward pass, layer by layer."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor
from vision_zoo import PATCH, PATCHES, SIDE, STAGES, ZOO, noise, save_encoder

from prh_eval.errors import PrhEvalError
from prh_eval.features.images import prepare
from prh_eval.features.vision import load_vision_model, vision_features
from prh_eval.schema import Preprocessing, VisionEncoder

EXPLICIT = Preprocessing(
    resize=SIDE, crop=SIDE, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)
IMAGES = [noise(40, 50), noise(60, 30, seed=1), noise(32, 32, seed=2)]
PIXELS = torch.stack([prepare(image, EXPLICIT) for image in IMAGES])

# What a block is called, how many tokens come before the patches, and whether one is the class's.
BLOCKS = {
    "dinov2": ("Dinov2Layer", 1, True),
    "dinov2_registers": ("Dinov2WithRegistersLayer", 4, True),
    "dinov3": ("DINOv3ViTLayer", 3, True),
    "vit": ("ViTLayer", 1, True),
    "deit": ("DeiTLayer", 2, True),
    "mae": ("ViTMAELayer", 1, True),
    "beit": ("BeitLayer", 1, True),
    "beit_mean": ("BeitLayer", 1, True),
    "data2vec": ("Data2VecVisionLayer", 1, True),
    "ijepa": ("IJepaLayer", 0, False),
    "clip": ("CLIPEncoderLayer", 1, True),
    "clip_vision": ("CLIPEncoderLayer", 1, True),
    "siglip": ("SiglipEncoderLayer", 0, False),
    "siglip_vision": ("SiglipEncoderLayer", 0, False),
    "siglip2": ("Siglip2EncoderLayer", 0, False),
    "vjepa2": ("VJEPA2Layer", 0, False),
    "convnext": ("ConvNextStage", 0, False),
    "convnextv2": ("ConvNextV2Stage", 0, False),
    "dinov3_convnext": ("DINOv3ConvNextStage", 0, False),
    "resnet": ("ResNetStage", 0, False),
    "swin": ("SwinStage", 0, False),
}
WITH_CLASS = [family for family, (_, _, has_class) in BLOCKS.items() if has_class]
WITHOUT_CLASS = [family for family in BLOCKS if family not in WITH_CLASS]
# What the model gives for what is read of the last block behind the final norm.
CLASS_AFTER: dict[str, Callable[[Any], Tensor]] = {
    **{family: lambda output: output.last_hidden_state[:, 0] for family in WITH_CLASS},
    "clip": lambda output: output.pooler_output,
    "clip_vision": lambda output: output.pooler_output,
}
MEAN_AFTER: dict[str, Callable[[Any], Tensor]] = {
    **{
        family: lambda output: output.last_hidden_state[:, -PATCHES:].mean(dim=1)
        for family in BLOCKS
    },
    "swin": lambda output: output.last_hidden_state.mean(dim=1),
    "convnext": lambda output: output.pooler_output,
    "convnextv2": lambda output: output.pooler_output,
    "dinov3_convnext": lambda output: output.last_hidden_state[:, 1:].mean(dim=1),
    "beit_mean": lambda output: output.pooler_output,
}
WITHOUT_CLASS_AFTER = ("beit_mean", "data2vec")
WITHOUT_MEAN_AFTER = ("clip", "clip_vision", "resnet", "data2vec")
WITHOUT_POOLED = ("mae", "ijepa", "data2vec", "vjepa2")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's model folder, made once."""

    @functools.cache
    def make(family: str) -> Path:
        return save_encoder(tmp_path_factory.mktemp("encoders") / family, family)

    return make


def read(folder: Path, **changes: Any) -> list[Tensor]:
    values = {"path": str(folder), "preprocessing": EXPLICIT, **changes}
    model = load_vision_model(VisionEncoder(**values))
    return vision_features(model, IMAGES, progress=False)


def own_forward(folder: Path, family: str) -> tuple[list[Tensor], Any]:
    """What leaves every block, and what the whole vision part gives, with transformers alone."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    model = getattr(model, "vision_model", model)
    blocks = [m for m in model.modules() if type(m).__name__ == BLOCKS[family][0]]
    if family == "vjepa2":
        blocks = blocks[:3]
    states: list[Tensor] = []

    def record(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        states.append(output[0] if isinstance(output, tuple) else output)
        return output

    for block in blocks:
        block.forward = functools.partial(record, block.forward)
    with torch.inference_mode():
        if family == "mae":
            x = (
                model.embeddings.patch_embeddings(PIXELS)
                + model.embeddings.position_embeddings[:, 1:]
            )
            token = model.embeddings.cls_token + model.embeddings.position_embeddings[:, :1]
            x = torch.cat([token.expand(len(x), -1, -1), x], dim=1)
            for block in blocks:
                x = block(x)
                x = x[0] if isinstance(x, tuple) else x
            output = transformers.modeling_outputs.BaseModelOutputWithPooling(model.layernorm(x))
        elif family == "vjepa2":
            output = model(torch.stack([PIXELS, PIXELS], dim=1), skip_predictor=True)
        elif family == "siglip2":
            output = model(by_patches(PIXELS), torch.ones(3, PATCHES), torch.tensor([[4, 4]] * 3))
        else:
            output = model(pixel_values=PIXELS)
    return states, output


def by_patches(pixels: Tensor) -> Tensor:
    """Patches row by row, each as (row, column, colour), by the slow way."""
    rows = range(0, pixels.shape[2], PATCH)
    columns = range(0, pixels.shape[3], PATCH)
    return torch.stack(
        [
            pixels[:, :, r : r + PATCH, c : c + PATCH].permute(0, 2, 3, 1).flatten(1)
            for r in rows
            for c in columns
        ],
        dim=1,
    )


def mean(state: Tensor, prefix: int) -> Tensor:
    return state.mean(dim=(2, 3)) if state.ndim == 4 else state[:, prefix:].mean(dim=1)


def close(features: list[Tensor], expected: list[Tensor]) -> None:
    assert len(features) == len(expected)
    for layer, state in zip(features, expected, strict=True):
        assert layer.dtype == torch.float32
        torch.testing.assert_close(layer, state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", WITH_CLASS)
def test_class_token(saved: Callable[[str], Path], family: str) -> None:
    states, output = own_forward(saved(family), family)
    assert len(states) == 3
    features = read(saved(family), token="class")
    close(features, [state[:, 0] for state in states])
    assert states[0].shape[1] == PATCHES + BLOCKS[family][1]
    if family in WITHOUT_CLASS_AFTER:
        with pytest.raises(PrhEvalError, match=r"no final norm for 'token: class'.*'before'"):
            read(saved(family), token="class", norm="after")
        return
    after = read(saved(family), token="class", norm="after")
    close(after, [*features[:-1], CLASS_AFTER[family](output)])
    assert (after[-1] - features[-1]).abs().max() > 0.1


@pytest.mark.parametrize("family", BLOCKS)
def test_mean_over_patches(saved: Callable[[str], Path], family: str) -> None:
    states, output = own_forward(saved(family), family)
    features = read(saved(family), token="mean")
    close(features, [mean(state, BLOCKS[family][1]) for state in states])
    assert len(features) == (2 if family == "swin" else 3)
    if family in WITHOUT_MEAN_AFTER:
        with pytest.raises(PrhEvalError, match=r"no final norm for 'token: mean'.*'before'"):
            read(saved(family), token="mean", norm="after")
        return
    after = read(saved(family), token="mean", norm="after")
    close(after, [*features[:-1], MEAN_AFTER[family](output)])
    assert (after[-1] - features[-1]).abs().max() > 0.01


@pytest.mark.parametrize("family", BLOCKS)
def test_pooled_output(saved: Callable[[str], Path], family: str) -> None:
    if family in WITHOUT_POOLED:
        with pytest.raises(PrhEvalError, match=r"no pooled output .*'token' should be 'class' or"):
            read(saved(family), token="pooled")
        return
    _, output = own_forward(saved(family), family)
    expected = output.pooler_output.flatten(1)
    if family == "clip":  # what is compared with texts is the projection
        model = transformers.CLIPModel.from_pretrained(saved(family)).eval()
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([[0, 5, 1]]), pixel_values=PIXELS).image_embeds
        (features,) = read(saved(family), token="pooled")
        close([torch.nn.functional.normalize(features)], [expected])
        return
    close(read(saved(family), token="pooled"), [expected])


def test_masked_autoencoders_see_everything_in_order(saved: Callable[[str], Path]) -> None:
    torch.manual_seed(0)
    one = read(saved("mae"), token="mean")
    torch.manual_seed(1)
    for a, b in zip(one, read(saved("mae"), token="mean"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("family", WITHOUT_CLASS)
def test_without_a_class_token(saved: Callable[[str], Path], family: str) -> None:
    with pytest.raises(PrhEvalError, match="no class token; 'token' should be 'mean' or 'pooled'"):
        read(saved(family), token="class")


@pytest.mark.parametrize("family", ["dinov2", "clip", "vit", "ijepa", "resnet", "swin"])
def test_what_enters_the_first_block(saved: Callable[[str], Path], family: str) -> None:
    model = transformers.AutoModel.from_pretrained(saved(family)).eval()
    with torch.inference_mode():
        output = getattr(model, "vision_model", model)(PIXELS, output_hidden_states=True)
    features = read(saved(family), token="mean", layers="embedding_and_blocks")
    states = [mean(state, BLOCKS[family][1]) for state in output.hidden_states]
    close(features[:-1], states[:-1])
    close(features[1:], read(saved(family), token="mean"))


def test_chosen_blocks(saved: Callable[[str], Path]) -> None:
    folder = saved("dinov2")
    every = read(folder, token="class", norm="after")
    close(read(folder, token="class", norm="after", layers=[-1, 0]), [every[2], every[0]])
    close(read(folder, token="class", norm="after", layers=[-2]), [every[1]])
    for number in (3, -4):
        with pytest.raises(
            PrhEvalError, match=rf"the block {number} and .* has 3; it should be from 0 to 2, or"
        ):
            read(folder, token="class", layers=[0, number])


def test_a_norm_that_is_not_read_may_be_missing(saved: Callable[[str], Path]) -> None:
    first = read(saved("resnet"), token="mean")[0]
    close(read(saved("resnet"), token="mean", norm="after", layers=[0]), [first])


def test_a_norm_of_something_else(saved: Callable[[str], Path]) -> None:
    encoder = VisionEncoder(
        path=str(saved("vit")), token="mean", norm="after", preprocessing=EXPLICIT
    )
    load_vision_model(encoder).read(PIXELS)
    model: Any = load_vision_model(encoder)  # what the norm sees is looked at in the first batch
    norm = model.loaded.module.layernorm
    norm.register_forward_pre_hook(lambda module, args: (args[0] * 1.1,))
    with pytest.raises(PrhEvalError, match="no final norm for 'token: mean'"):
        model.read(PIXELS)


def test_images_that_are_not_square(saved: Callable[[str], Path]) -> None:
    spec = Preprocessing(
        resize=(16, 40), interpolation="nearest", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    pixels = torch.stack([prepare(image, spec) for image in IMAGES])
    model = transformers.AutoModel.from_pretrained(saved("siglip2")).eval().vision_model
    with torch.inference_mode():
        output = model(by_patches(pixels), torch.ones(3, 10), torch.tensor([[2, 5]] * 3))
    features = read(saved("siglip2"), token="mean", norm="after", preprocessing=spec)
    close(features[-1:], [output.last_hidden_state.mean(dim=1)])
    with pytest.raises(PrhEvalError, match=r"/vit' cannot take these images: .*16"):
        read(saved("vit"), token="mean", preprocessing=spec)


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_only_the_vision_part_stays(saved: Callable[[str], Path], family: str) -> None:
    whole = transformers.AutoModel.from_pretrained(saved(family))
    encoder = VisionEncoder(path=str(saved(family)), token="mean", preprocessing=EXPLICIT)
    model = load_vision_model(encoder)
    assert model.parameters == sum(p.numel() for p in whole.vision_model.parameters())
    pooled = load_vision_model(
        VisionEncoder(path=str(saved(family)), token="pooled", preprocessing=EXPLICIT)
    )
    projection = 12 * 16 if family == "clip" else 0
    assert pooled.parameters == model.parameters + projection


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["dinov2", "dinov3", "clip", "convnext"])
def test_half_precision(saved: Callable[[str], Path], family: str, dtype: str) -> None:
    whole = read(saved(family), token="mean")
    half = read(saved(family), token="mean", dtype=dtype)
    for layer, expected in zip(half, whole, strict=True):
        assert layer.dtype == torch.float32
        assert 0 < (layer - expected).norm() < 0.05 * expected.norm()
    if family != "clip":
        after = read(saved(family), token="mean", norm="after", dtype=dtype)[-1]
        expected = read(saved(family), token="mean", norm="after")[-1]
        assert (after - expected).norm() < 0.05 * expected.norm()


def test_dtype_of_the_weights(saved: Callable[[str], Path]) -> None:
    encoder = {"path": str(saved("vit")), "token": "mean", "preprocessing": EXPLICIT}
    one = load_vision_model(VisionEncoder(**encoder, dtype="bfloat16")).read(PIXELS)
    model = transformers.AutoModel.from_pretrained(saved("vit"), dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        states = model(PIXELS.bfloat16(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(one[0], states[1][:, 1:].float().mean(dim=1), rtol=0, atol=0)


# ------------------------------------------------------------------ the model's own processor


def with_processor(folder: Path, to: Path, **changes: Any) -> Path:
    """The same encoder with a processor's configuration beside it."""
    shutil.copytree(folder, to)
    content = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(EXPLICIT.mean),
        "image_std": list(EXPLICIT.std),
        **changes,
    }
    (to / "preprocessor_config.json").write_text(json.dumps(content))
    return to


def test_own_processor(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = with_processor(saved("vit"), tmp_path / "vit")
    encoder = VisionEncoder(path=str(folder), token="class", preprocessing="processor")
    model = load_vision_model(encoder)
    assert model.input["size"] == {"height": SIDE, "width": SIDE}
    assert model.input == json.loads(json.dumps(model.input))
    explicit = Preprocessing(
        resize=(SIDE, SIDE), interpolation="bilinear", mean=EXPLICIT.mean, std=EXPLICIT.std
    )
    for image in [*IMAGES, noise(33, 90, seed=3).convert("L")]:
        pixels = model.prepare(image)
        assert pixels.shape == (3, SIDE, SIDE)
        steps = (
            (pixels - prepare(image, explicit)).abs()
            * 255
            * torch.tensor(EXPLICIT.std).view(3, 1, 1)
        )
        # Pillow may choose the other order of its two passes; each rounds to a byte.
        assert steps.max() < 3.01
    close(
        vision_features(model, IMAGES[2:], progress=False),
        [layer[2:] for layer in read(saved("vit"), token="class", preprocessing=explicit)],
    )


def test_explicit_preprocessing_is_on_record(saved: Callable[[str], Path]) -> None:
    encoder = VisionEncoder(path=str(saved("vit")), token="class", preprocessing=EXPLICIT)
    assert load_vision_model(encoder).input == {
        "resize": SIDE,
        "crop": SIDE,
        "interpolation": "bicubic",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
    }


def test_a_fast_processor_is_read_with_pillow(saved: Callable[[str], Path], tmp_path: Path) -> None:
    slow = with_processor(saved("vit"), tmp_path / "slow")
    fast = with_processor(
        saved("vit"), tmp_path / "fast", image_processor_type="ViTImageProcessorFast"
    )
    one, other = (
        load_vision_model(VisionEncoder(path=str(f), token="class", preprocessing="processor"))
        for f in (slow, fast)
    )
    assert torch.equal(one.prepare(IMAGES[0]), other.prepare(IMAGES[0]))


@pytest.mark.parametrize("base", ["TorchvisionBackend", "BaseImageProcessorFast"])
def test_a_processor_without_a_pillow_form(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    processor = type("SomeImageProcessor", (type(base, (), {}),), {})()
    monkeypatch.setattr(
        transformers.AutoImageProcessor, "from_pretrained", lambda *args, **options: processor
    )
    with pytest.raises(PrhEvalError, match=r"SomeImageProcessor, has no form that computes with P"):
        read(saved("vit"), token="class", preprocessing="processor")


def test_no_processor(saved: Callable[[str], Path]) -> None:
    with pytest.raises(PrhEvalError, match=r"the image processor of .*; 'preprocessing' can be ex"):
        read(saved("vit"), token="class", preprocessing="processor")


def test_images_of_different_shapes(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = with_processor(
        saved("resnet"),
        tmp_path / "resnet",
        image_processor_type="CLIPImageProcessor",
        size={"shortest_edge": SIDE},
        do_center_crop=False,
    )
    with pytest.raises(PrhEvalError, match=r"different shapes, \(3, 32, 32\) and \(3, 32, 64\)"):
        read(folder, token="mean", preprocessing="processor")


def test_a_processor_of_patches(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = with_processor(
        saved("siglip2"),
        tmp_path / "siglip2",
        image_processor_type="Siglip2ImageProcessor",
        patch_size=PATCH,
        max_num_patches=PATCHES,
    )
    with pytest.raises(PrhEvalError, match=r"does not give one picture an image; 'preprocessing'"):
        read(folder, token="mean", preprocessing="processor")


# ------------------------------------------------------------------ what is refused


def without(folder: Path, to: Path, *parts: str) -> Path:
    """The same encoder without the weights whose names hold one of these."""
    shutil.copytree(folder, to)
    file = to / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    kept = {name: w for name, w in weights.items() if not any(part in name for part in parts)}
    assert len(kept) < len(weights)
    safetensors.torch.save_file(kept, file, {"format": "pt"})
    return to


def test_untrained_weights(saved: Callable[[str], Path], tmp_path: Path) -> None:
    headless = without(saved("vit"), tmp_path / "headless", "pooler.")
    close(read(headless, token="class"), read(saved("vit"), token="class"))
    with pytest.raises(PrhEvalError, match=r"no trained weights for 'pooler.dense.bias' and 1 mor"):
        read(headless, token="pooled")
    cut = without(saved("vit"), tmp_path / "cut", "cls_token")
    with pytest.raises(PrhEvalError, match=r"no trained weights for 'embeddings.cls_token'$"):
        read(cut, token="class")
    unmasked = without(saved("dinov2"), tmp_path / "unmasked", "mask_token")
    close(read(unmasked, token="pooled"), read(saved("dinov2"), token="pooled"))
    textless = without(saved("clip"), tmp_path / "textless", "text_model.")
    close(read(textless, token="pooled"), read(saved("clip"), token="pooled"))
    blind = without(saved("clip"), tmp_path / "blind", "visual_projection.")
    with pytest.raises(PrhEvalError, match=r"no trained weights for 'visual_projection.weight'"):
        read(blind, token="pooled")


def test_code_from_the_repository(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    folder.mkdir()
    config = {
        "model_type": "drawn_by_hand",
        "auto_map": {"AutoConfig": "code.DrawnConfig", "AutoModel": "code.DrawnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(
        "import pathlib\n"
        "from transformers import ViTConfig, ViTModel\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class DrawnConfig(ViTConfig):\n"
        "    model_type = 'drawn_by_hand'\n"
        "class DrawnModel(ViTModel):\n"
        "    config_class = DrawnConfig\n"
    )
    vit = saved("vit")
    weights = transformers.ViTModel.from_pretrained(vit).state_dict()
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    own = json.loads((vit / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**own, **config}))

    def load(asked: bool, allowed: bool) -> list[Tensor]:
        encoder = VisionEncoder(
            path=str(folder), token="class", preprocessing=EXPLICIT, trust_remote_code=asked
        )
        return load_vision_model(encoder, trust_remote_code=allowed).read(PIXELS)

    with pytest.raises(PrhEvalError, match=r"is to run code from its repository"):
        load(asked=True, allowed=False)
    with pytest.raises(PrhEvalError, match=r"'encoder.trust_remote_code: true' in the file and"):
        load(asked=False, allowed=True)
    assert not (tmp_path / "ran").exists()
    close(load(asked=True, allowed=True), read(vit, token="class"))


def test_several_lists_of_blocks(tmp_path: Path) -> None:
    config = transformers.PvtConfig(
        image_size=64, hidden_sizes=[8, 16, 16, 16], depths=[1] * 4, num_attention_heads=[1] * 4
    )
    transformers.PvtModel(config).save_pretrained(tmp_path / "pvt")
    with pytest.raises(PrhEvalError, match=r"one list of blocks and has several \(encoder\."):
        read(tmp_path / "pvt", token="mean")


def test_tokens_that_nobody_knows(tmp_path: Path) -> None:
    config = transformers.YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[SIDE, SIDE],
        patch_size=PATCH,
        num_detection_tokens=5,
    )
    transformers.YolosModel(config).save_pretrained(tmp_path / "yolos")
    with pytest.raises(PrhEvalError, match="22 tokens where 16 patches and 1 others were expected"):
        read(tmp_path / "yolos", token="class")


def test_a_language_model_is_no_image_encoder(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(PrhEvalError, match=r"/bert' cannot take these images"):
        read(tmp_path / "bert", token="mean")


def test_every_family_is_tested() -> None:
    assert ZOO.keys() == BLOCKS.keys()
    assert set(STAGES) <= set(WITHOUT_CLASS)
