"""Encoders that timm loads: features, preprocessing, and the same weights through transformers."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from vision_zoo import noise, randomise

from prh_eval.errors import PrhEvalError
from prh_eval.features.images import prepare
from prh_eval.features.vision import load_vision_model, vision_features
from prh_eval.schema import Preprocessing, VisionEncoder

timm = pytest.importorskip("timm")

from prh_eval.features.vision_timm import own_preprocessing  # noqa: E402

SIDE = 64
EXPLICIT = Preprocessing(
    resize=SIDE, crop=SIDE, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)
IMAGES = [noise(40, 50), noise(60, 30, seed=1), noise(64, 64, seed=2)]
PIXELS = torch.stack([prepare(image, EXPLICIT) for image in IMAGES])
_VIT = {"img_size": SIDE, "patch_size": 16, "embed_dim": 16, "depth": 3, "num_heads": 2}

# timm's name of the architecture, its arguments, where its blocks are, and its tokens: the class
# token's presence and how many tokens come before the patches.
ZOO: dict[str, tuple[str, dict[str, Any], list[str], bool, int]] = {
    "vit": ("vit_tiny_patch16_224", _VIT, ["blocks"], True, 1),
    "registers": ("vit_tiny_patch16_224", {**_VIT, "reg_tokens": 3}, ["blocks"], True, 4),
    "clip": ("vit_base_patch16_clip_224", _VIT, ["blocks"], True, 1),
    "siglip": ("vit_base_patch16_siglip_224", _VIT, ["blocks"], False, 0),
    "mean_pooled": (
        "vit_tiny_patch16_224",
        {**_VIT, "global_pool": "avg", "class_token": False},
        ["blocks"],
        False,
        0,
    ),
    "distilled": ("deit_tiny_distilled_patch16_224", _VIT, ["blocks"], True, 2),
    "eva": ("eva02_tiny_patch14_224", _VIT, ["blocks"], True, 1),
    "convnext": (
        "convnext_atto",
        {"dims": [8, 12, 16, 20], "depths": [1, 1, 2, 1]},
        ["stages"],
        False,
        0,
    ),
    "resnet": (
        "resnet18",
        {"layers": [1, 1, 1, 1], "channels": [8, 8, 12, 16]},
        ["layer1", "layer2", "layer3", "layer4"],
        False,
        0,
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": SIDE, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4},
        ["layers"],
        False,
        0,
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every tiny model, in a folder as timm's hub repositories are laid out."""
    root = tmp_path_factory.mktemp("timm")
    return {name: save(root / name, name) for name in ZOO}


def save(folder: Path, name: str, **preprocessing: Any) -> Path:
    architecture, arguments, *_ = ZOO[name]
    model = randomise(timm.create_model(architecture, num_classes=0, **arguments))
    folder.mkdir()
    timm.models._hub.save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
    if preprocessing:
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"].update(preprocessing)
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def read(folder: Path, **changes: Any) -> list[Tensor]:
    values = {"loader": "timm", "path": str(folder), "preprocessing": EXPLICIT, **changes}
    model = load_vision_model(VisionEncoder(**values))
    return vision_features(model, IMAGES, progress=False)


def own_model(folder: Path) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()


def own_states(model: Any, name: str) -> list[Tensor]:
    """What leaves every block, as (b, tokens, width), with timm alone."""
    with torch.inference_mode():
        if ZOO[name][2] == ["blocks"]:
            pairs = model.forward_intermediates(
                PIXELS, norm=False, intermediates_only=True, output_fmt="NLC",
                return_prefix_tokens=True,
            )  # fmt: skip
            pairs = [pair if isinstance(pair, tuple) else (pair, pair[:, :0]) for pair in pairs]
            return [torch.cat([prefix, patches], dim=1) for patches, prefix in pairs]
        maps = model.forward_intermediates(PIXELS, norm=False, intermediates_only=True)
        maps = maps[-4:] if name == "resnet" else maps
        return [x.flatten(2).transpose(1, 2) for x in maps]


def close(features: list[Tensor], expected: list[Tensor]) -> None:
    assert len(features) == len(expected)
    for layer, state in zip(features, expected, strict=True):
        assert layer.dtype == torch.float32
        torch.testing.assert_close(layer, state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_features_are_those_of_the_blocks(folders: dict[str, Path], name: str) -> None:
    _, _, _, has_class, prefix = ZOO[name]
    model = own_model(folders[name])
    states = own_states(model, name)
    assert len(states) == {"convnext": 4, "resnet": 4, "swin": 2}.get(name, 3)
    mean = read(folders[name], token="mean")
    close(mean, [state[:, prefix:].mean(dim=1) for state in states])
    if has_class:
        assert states[0].shape[1] == 16 + prefix
        close(read(folders[name], token="class"), [state[:, 0] for state in states])
    else:
        with pytest.raises(PrhEvalError, match="no class token"):
            read(folders[name], token="class")
    with torch.inference_mode():
        pooled = model.forward_head(model.forward_features(PIXELS), pre_logits=True)
    close(read(folders[name], token="pooled"), [pooled])


@pytest.mark.parametrize("name", ["vit", "registers", "clip", "siglip", "distilled", "swin"])
def test_after_the_final_norm(folders: dict[str, Path], name: str) -> None:
    _, _, _, has_class, prefix = ZOO[name]
    model = own_model(folders[name])
    with torch.inference_mode():
        last = model.forward_features(PIXELS)
    last = last.flatten(1, 2) if name == "swin" else last
    before = read(folders[name], token="mean")
    after = read(folders[name], token="mean", norm="after")
    close(after, [*before[:-1], last[:, prefix:].mean(dim=1)])
    assert (after[-1] - before[-1]).abs().max() > 0.01
    if has_class:
        close(read(folders[name], token="class", norm="after")[-1:], [last[:, 0]])


@pytest.mark.parametrize("name", ["mean_pooled", "convnext"])
def test_a_norm_of_the_mean(folders: dict[str, Path], name: str) -> None:
    after = read(folders[name], token="mean", norm="after")
    close(after[-1:], read(folders[name], token="pooled"))


def test_no_final_norm(folders: dict[str, Path]) -> None:
    with pytest.raises(PrhEvalError, match=r"/resnet' has no final norm for 'token: mean'"):
        read(folders["resnet"], token="mean", norm="after")


def test_a_model_that_does_not_pool(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["vit"], tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["global_pool"] = ""
    (folder / "config.json").write_text(json.dumps(config))
    close(read(folder, token="class"), read(folders["vit"], token="class"))
    with pytest.raises(PrhEvalError, match="has no pooled output of its own"):
        read(folder, token="pooled")


def test_what_enters_the_first_block(folders: dict[str, Path]) -> None:
    model = own_model(folders["vit"])
    with torch.inference_mode():
        x = model.norm_pre(model._pos_embed(model.patch_embed(PIXELS)))
    features = read(folders["vit"], token="class", layers="embedding_and_blocks")
    close(features[:1], [x[:, 0]])
    close(features[1:], read(folders["vit"], token="class"))


def test_another_size(folders: dict[str, Path]) -> None:
    spec = Preprocessing(
        resize=(48, 96), interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    model = own_model(folders["vit"])
    model.set_input_size(img_size=(48, 96))
    pixels = torch.stack([prepare(image, spec) for image in IMAGES])
    with torch.inference_mode():
        expected = model.forward_features(pixels)[:, 0]
    features = read(folders["vit"], token="class", norm="after", preprocessing=spec)
    close(features[-1:], [expected])


def test_half_precision(folders: dict[str, Path]) -> None:
    whole = read(folders["vit"], token="class")
    half = read(folders["vit"], token="class", dtype="bfloat16")
    for layer, expected in zip(half, whole, strict=True):
        assert layer.dtype == torch.float32
        assert 0 < (layer - expected).norm() < 0.05 * expected.norm()


def test_an_architecture_without_blocks(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm, "create_model", lambda name, **options: torch.nn.Conv2d(3, 4, 1))
    with pytest.raises(PrhEvalError, match=r"/vit' has no blocks, stages or layers"):
        read(folders["vit"], token="mean")


# ------------------------------------------------------------------ preprocessing

SHAPES = [(1, 1), (300, 1), (1, 300), (37, 200), (500, 333), (224, 224), (225, 640), (61, 60)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def steps(ours: Tensor, theirs: Tensor) -> Tensor:
    """How far two inputs are apart, in steps of 1/255 before normalising."""
    assert ours.shape == theirs.shape
    return (ours - theirs).abs() * torch.tensor(STD).view(3, 1, 1) * 255


def config(size: tuple[int, int], crop_pct: float, mode: str, interpolation: str) -> dict[str, Any]:
    return {
        "input_size": (3, *size),
        "crop_pct": crop_pct,
        "crop_mode": mode,
        "interpolation": interpolation,
        "mean": MEAN,
        "std": STD,
    }


def smooth(width: int, height: int, seed: int) -> Image.Image:
    """As photographs are: without cut-off values between the two passes of resampling."""
    small = noise(4, 4, seed).point(lambda value: 64 + value // 2)
    return small.resize((width, height), Image.Resampling.BILINEAR)


@settings(max_examples=60)
@given(
    shape=st.sampled_from(SHAPES) | st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.integers(8, 64),
    crop_pct=st.sampled_from([1.0, 0.95, 0.9, 0.875, 0.6]),
    mode=st.sampled_from(["center", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "lanczos", "nearest"]),
    seed=st.integers(0, 99),
)
def test_own_preprocessing_is_that_of_timm(
    shape: tuple[int, int], size: int, crop_pct: float, mode: str, interpolation: str, seed: int
) -> None:
    stated = config((size, size), crop_pct, mode, interpolation)
    transform = timm.data.create_transform(**stated, is_training=False)
    spec = own_preprocessing(stated, "the encoder")
    # Pillow 13 may take columns first where we take rows first, and each pass rounds to a byte.
    image = smooth(*shape, seed)
    assert steps(prepare(image, spec), transform(image)).max() < 3.01
    # With one pass there is one order, and where nothing is resized there is none.
    image = noise(shape[0], math.floor(size / crop_pct), seed)
    if mode == "squash":
        assert steps(prepare(image, spec), transform(image)).max() < 0.001


def test_a_size_that_is_not_square() -> None:
    stated = config((24, 40), 1.0, "squash", "bicubic")
    transform = timm.data.create_transform(**stated, is_training=False)
    image = smooth(61, 30, 0)
    ours = prepare(image, own_preprocessing(stated, "the encoder"))
    assert steps(ours, transform(image)).max() < 3.01


@pytest.mark.parametrize(
    "stated",
    [
        config((32, 32), 1.0, "border", "bicubic"),
        config((32, 32), 0.9, "center", "random"),
        config((32, 40), 0.9, "center", "bicubic"),
        config((32, 40), 0.9, "squash", "bicubic"),
        config((32, 32), 1.2, "center", "bicubic"),
        {**config((32, 32), 1.0, "center", "bicubic"), "input_size": (1, 32, 32)},
    ],
)
def test_preprocessing_that_has_no_counterpart(stated: dict[str, Any]) -> None:
    with pytest.raises(PrhEvalError, match=r"timm's own preprocessing of a/b .* should be expl"):
        own_preprocessing(stated, "a/b")


def test_own_preprocessing_is_used(tmp_path: Path) -> None:
    folder = save(
        tmp_path / "vit", "vit", crop_pct=0.8, interpolation="bilinear", mean=MEAN, std=STD
    )
    encoder = VisionEncoder(
        loader="timm", path=str(folder), token="class", preprocessing="processor"
    )
    model = load_vision_model(encoder)
    assert model.input == {
        "resize": 80,
        "crop": SIDE,
        "interpolation": "bilinear",
        "mean": list(MEAN),
        "std": list(STD),
    }
    own = own_model(folder)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(own))
    image = smooth(200, 130, 0)
    assert steps(model.prepare(image), transform(image)).max() < 3.01


def test_timm_and_transformers_prepare_alike(tmp_path: Path) -> None:
    """One image through timm's transform, transformers' processor, and ours."""
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size=64, resample=3, image_mean=MEAN, image_std=STD
    )
    processor.save_pretrained(tmp_path)
    config_file = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.ViTModel(config_file).save_pretrained(tmp_path)
    encoder = VisionEncoder(path=str(tmp_path), token="class", preprocessing="processor")
    theirs = load_vision_model(encoder)
    stated = config((64, 64), 1.0, "center", "bicubic")
    transform = timm.data.create_transform(**stated, is_training=False)
    for seed, shape in enumerate([(200, 130), (64, 64), (30, 90), (333, 77)]):
        image = smooth(*shape, seed)
        ours = prepare(image, own_preprocessing(stated, "the encoder"))
        assert steps(theirs.prepare(image), transform(image)).max() < 3.01
        assert steps(ours, theirs.prepare(image)).max() < 3.01


# ------------------------------------------------------------------ timm and transformers


def test_the_same_weights_give_the_same_features(tmp_path: Path) -> None:
    """DINOv2 by either library, before and after the norm, with the weights renamed by hand."""
    own = timm.create_model(
        "vit_small_patch14_dinov2", num_classes=0, img_size=56, patch_size=14, embed_dim=16,
        depth=3, num_heads=2, init_values=1.0,
    )  # fmt: skip
    randomise(own)
    arguments = {
        "img_size": 56, "patch_size": 14, "embed_dim": 16, "depth": 3, "num_heads": 2,
        "init_values": 1.0,
    }  # fmt: skip
    (tmp_path / "timm").mkdir()
    timm.models._hub.save_for_hf(
        own, tmp_path / "timm", model_args=arguments, safe_serialization=True
    )
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    other = transformers.Dinov2Model(config)
    weights = {
        "embeddings.cls_token": own.cls_token,
        "embeddings.mask_token": torch.zeros(1, 16),
        "embeddings.position_embeddings": own.pos_embed,
        "embeddings.patch_embeddings.projection.weight": own.patch_embed.proj.weight,
        "embeddings.patch_embeddings.projection.bias": own.patch_embed.proj.bias,
        "layernorm.weight": own.norm.weight,
        "layernorm.bias": own.norm.bias,
    }
    for number, block in enumerate(own.blocks):
        at = f"encoder.layer.{number}"
        for kind in ("weight", "bias"):
            for name, part in zip(
                ("query", "key", "value"), getattr(block.attn.qkv, kind).chunk(3), strict=True
            ):
                weights[f"{at}.attention.attention.{name}.{kind}"] = part.clone()
            weights[f"{at}.attention.output.dense.{kind}"] = getattr(block.attn.proj, kind)
            for name, module in (
                ("norm1", block.norm1),
                ("norm2", block.norm2),
                ("mlp.fc1", block.mlp.fc1),
                ("mlp.fc2", block.mlp.fc2),
            ):
                weights[f"{at}.{name}.{kind}"] = getattr(module, kind)
        weights[f"{at}.layer_scale1.lambda1"] = block.ls1.gamma
        weights[f"{at}.layer_scale2.lambda1"] = block.ls2.gamma
    other.save_pretrained(tmp_path / "transformers", state_dict=weights)
    spec = Preprocessing(resize=56, crop=56, interpolation="bicubic", mean=MEAN, std=STD)
    for token in ("class", "mean"):
        for norm in ("before", "after"):
            options = {"token": token, "norm": norm, "preprocessing": spec}
            one = read(tmp_path / "timm", **options)
            two = read(tmp_path / "transformers", loader="transformers", **options)
            for a, b in zip(one, two, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------ loading


@pytest.mark.parametrize(
    ("path", "revision", "words"),
    [
        ("timm/vit_small_patch14_dinov2.lvd142m", None, "HF_HUB_OFFLINE"),
        ("timm/vit_small_patch14_dinov2.lvd142m", "abc", r"\(revision 'abc'\).*HF_HUB_OFFLINE"),
        ("./no/such", None, "there is no folder './no/such'"),
    ],
)
def test_what_cannot_be_loaded(path: str, revision: str | None, words: str) -> None:
    with pytest.raises(PrhEvalError, match=words) as error:
        read(Path("unused"), path=path, revision=revision, token="class")
    assert "\n" not in str(error.value)


def test_from_the_hub_cache(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--vit"
    shutil.copytree(folders["vit"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for revision in (None, "v1", commit):
        encoder = VisionEncoder(
            loader="timm",
            path="someone/vit",
            revision=revision,
            token="class",
            preprocessing=EXPLICIT,
        )
        model = load_vision_model(encoder)
        assert model.commit == commit
        close(model.read(PIXELS), read(folders["vit"], token="class"))
    local = VisionEncoder(
        loader="timm", path=str(folders["vit"]), token="class", preprocessing=EXPLICIT
    )
    own = own_model(folders["vit"])
    assert load_vision_model(local).commit is None
    assert load_vision_model(local).parameters == sum(p.numel() for p in own.parameters())


def test_timm_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert importlib.util.find_spec("prh_eval.features.vision_timm") is not None
    with pytest.raises(PrhEvalError, match=r"'loader: timm' needs timm.*prh_eval\[timm\]"):
        read(Path("unused"), path="timm/vit", token="class")
