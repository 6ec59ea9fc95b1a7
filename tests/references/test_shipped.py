"""The references that come with the package say what their encoders are."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from PIL import Image, ImageOps

from prh_eval import resources
from prh_eval.features.images import prepare
from prh_eval.features.vision import load_vision_model
from prh_eval.references.registry import load_reference, relative_of
from prh_eval.schema import LanguageReference, Preprocessing, VisionReference

FILES = {path.stem: path for path in sorted(resources.folder("references").glob("*.yaml"))}

# The vision models of the paper, as its released code names them (its set "val").
PAPER = {
    "vit_tiny_in21k": "vit_tiny_patch16_224.augreg_in21k",
    "vit_small_in21k": "vit_small_patch16_224.augreg_in21k",
    "vit_base_in21k": "vit_base_patch16_224.augreg_in21k",
    "vit_large_in21k": "vit_large_patch16_224.augreg_in21k",
    "mae_base": "vit_base_patch16_224.mae",
    "mae_large": "vit_large_patch16_224.mae",
    "mae_huge": "vit_huge_patch14_224.mae",
    "dinov2_small": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_base": "vit_base_patch14_dinov2.lvd142m",
    "dinov2_large": "vit_large_patch14_dinov2.lvd142m",
    "dinov2_giant": "vit_giant_patch14_dinov2.lvd142m",
    "clip_base": "vit_base_patch16_clip_224.laion2b",
    "clip_large": "vit_large_patch14_clip_224.laion2b",
    "clip_huge": "vit_huge_patch14_clip_224.laion2b",
    "clip_base_in12k": "vit_base_patch16_clip_224.laion2b_ft_in12k",
    "clip_large_in12k": "vit_large_patch14_clip_224.laion2b_ft_in12k",
    "clip_huge_in12k": "vit_huge_patch14_clip_224.laion2b_ft_in12k",
}

# What timm calls the same weights.
TIMM = {
    **PAPER,
    "aimv2_large": "aimv2_large_patch14_224.apple_pt",
    "clip_openai_large": "vit_large_patch14_clip_224.openai",
    "convnextv2_base": "convnextv2_base.fcmae_ft_in22k_in1k",
    "deit3_base": "deit3_base_patch16_224.fb_in1k",
    "dinov2_registers_large": "vit_large_patch14_reg4_dinov2.lvd142m",
    "dinov3_base": "vit_base_patch16_dinov3.lvd1689m",
    "dinov3_large": "vit_large_patch16_dinov3.lvd1689m",
    "dinov3_small": "vit_small_patch16_dinov3.lvd1689m",
    "ijepa_huge": "vit_huge_patch14_gap_224.in1k_ijepa",
    "pe_core_large": "vit_pe_core_large_patch14_336.fb",
    "siglip2_base": "vit_base_patch16_siglip_224.v2_webli",
    "siglip2_so400m": "vit_so400m_patch14_siglip_378.v2_webli",
    "siglip_base": "vit_base_patch16_siglip_224.webli",
}

# Those that timm lacks, or of which it is not said which of timm's they are: shorter side, crop and
# interpolation of their own processors (ConvNext's with crop_pct 0.875; V-JEPA 2's).
NOT_IN_TIMM = {"resnet50": (256, 224, "bicubic"), "vjepa2_large": (292, 256, "bilinear")}


def _shape(width: int, blocks: int, heads: int, **others: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        **others,
    }


# The encoders that transformers loads: their class, and what makes the size in their config.json.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2_small": ("Dinov2", _shape(384, 12, 6, image_size=518, patch_size=14)),
    "dinov2_base": ("Dinov2", _shape(768, 12, 12, image_size=518, patch_size=14)),
    "dinov2_large": ("Dinov2", _shape(1024, 24, 16, image_size=518, patch_size=14)),
    "dinov2_giant": (
        "Dinov2",
        _shape(1536, 40, 24, image_size=518, patch_size=14, use_swiglu_ffn=True),
    ),
    "dinov2_registers_large": (
        "Dinov2WithRegisters",
        _shape(1024, 24, 16, image_size=518, patch_size=14, num_register_tokens=4),
    ),
    "dinov3_small": (
        "DINOv3ViT",
        _shape(384, 12, 6, intermediate_size=1536, num_register_tokens=4),
    ),
    "dinov3_base": (
        "DINOv3ViT",
        _shape(768, 12, 12, intermediate_size=3072, num_register_tokens=4),
    ),
    "dinov3_large": (
        "DINOv3ViT",
        _shape(1024, 24, 16, intermediate_size=4096, num_register_tokens=4),
    ),
    "siglip_base": ("SiglipVision", _shape(768, 12, 12, image_size=224, patch_size=16)),
    "siglip2_base": ("SiglipVision", _shape(768, 12, 12, image_size=224, patch_size=16)),
    "siglip2_so400m": (
        "SiglipVision",
        _shape(1152, 27, 16, intermediate_size=4304, image_size=384, patch_size=14),
    ),
    "clip_openai_large": (
        "CLIPVision",
        _shape(1024, 24, 16, intermediate_size=4096, image_size=224, patch_size=14),
    ),
    "ijepa_huge": (
        "IJepa",
        _shape(1280, 32, 16, intermediate_size=5120, image_size=224, patch_size=14),
    ),
    "vjepa2_large": ("VJEPA2", _shape(1024, 24, 16, patch_size=16, crop_size=256)),
    "convnextv2_base": (
        "ConvNextV2",
        {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]},
    ),
    "resnet50": ("ResNet", {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]}),
    "minilm_l6": ("Bert", _shape(384, 6, 12, vocab_size=30522, intermediate_size=1536)),
    "pythia_160m": ("GPTNeoX", _shape(768, 12, 12, vocab_size=50304, intermediate_size=3072)),
}

# Which encoders have no class token to be read.
WITHOUT_CLASS_TOKEN = {
    *("aimv2_large", "convnextv2_base", "ijepa_huge", "resnet50", "vjepa2_large"),
    *("siglip2_base", "siglip2_so400m", "siglip_base"),
}

# No sibling of theirs is among the references.
WITHOUT_RELATIVE = {
    *("aimv2_large", "cielab", "convnextv2_base", "deit3_base", "ijepa_huge", "minilm_l6"),
    *("pe_core_large", "pythia_160m", "resnet50", "vjepa2_large"),
}

# timm's repositories keep their weights; for the others, the reason is in the file.
WITHOUT_REVISION = {name for name, timm_name in PAPER.items() if "dinov2" not in timm_name} | {
    *("aimv2_large", "convnextv2_base", "deit3_base")
}


def _encoders() -> dict[str, VisionReference | LanguageReference]:
    found = {name: load_reference(path) for name, path in FILES.items()}
    return {
        name: reference
        for name, reference in found.items()
        if isinstance(reference, (VisionReference, LanguageReference))
    }


ENCODERS = _encoders()
VISION = {name: each for name, each in ENCODERS.items() if isinstance(each, VisionReference)}


@functools.cache
def _timm() -> ModuleType:
    """The library; the test is skipped where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    import timm

    module: ModuleType = timm
    return module


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _build(name: str, **smaller: Any) -> torch.nn.Module:
    """An encoder of transformers without weights."""
    architecture, shape = ARCHITECTURES[name]
    config = getattr(transformers, f"{architecture}Config")(**{**shape, **smaller})
    model: torch.nn.Module = getattr(transformers, f"{architecture}Model")(config)
    return model


# ---------------------------------------------------------------- what the files say


def test_all_encoders_of_the_paper_are_there() -> None:
    assert len(PAPER) == 17
    for name, timm_name in PAPER.items():
        encoder = VISION[name].encoder
        size = name.removeprefix("dinov2_")
        expected = f"facebook/dinov2-{size}" if "dinov2" in name else f"timm/{timm_name}"
        assert encoder.path == expected
        assert encoder.token == "class"


def test_tables_of_this_test_are_complete() -> None:
    assert set(VISION) == set(TIMM) | set(NOT_IN_TIMM)
    by_transformers = {n for n, each in ENCODERS.items() if each.encoder.loader == "transformers"}
    assert by_transformers == set(ARCHITECTURES)


@pytest.mark.parametrize("name", FILES)
def test_file(name: str) -> None:
    text = FILES[name].read_text(encoding="utf-8")
    reference = load_reference(FILES[name])
    assert text.startswith("# ")  # why it is there
    assert max(map(len, text.splitlines())) <= 100
    assert len(reference.description) <= 90 and "\n" not in reference.description
    assert reference.family and reference.licence and reference.citation
    assert reference.name == name and name == name.lower()


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name: str) -> None:
    reference = ENCODERS[name]
    assert reference.parameters
    assert re.search(r"arXiv \d{4}\.\d{5}", reference.citation)
    assert reference.similarity == "cosine"
    assert not reference.encoder.trust_remote_code


def test_encoders_are_used_on_the_papers_pairs_at_a_pinned_revision() -> None:
    for reference in ENCODERS.values():
        pairs = reference.pairs.model_dump()
        image = "image" if reference.kind == "vision" else None
        assert (pairs["path"], pairs["revision"]) == ("minhuh/prh", "wit_1024")
        assert (pairs["split"], pairs["caption_column"], pairs["image_column"]) == (
            *("train", "text"),
            image,
        )


def test_revisions_are_commits() -> None:
    revisions = {name: each.encoder.revision for name, each in ENCODERS.items()}
    assert {name for name, revision in revisions.items() if revision is None} == WITHOUT_REVISION
    given = [revision for revision in revisions.values() if revision is not None]
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in given)
    assert len(set(given)) == len(given)


def test_no_two_references_are_the_same() -> None:
    readings = [
        each.encoder.model_dump_json(include={"path", "layers", "token", "norm", "pooling"})
        for each in ENCODERS.values()
    ]
    assert len(set(readings)) == len(readings)
    assert len({load_reference(path).description for path in FILES.values()}) == len(FILES)


def test_near_relatives_are_siblings_read_alike() -> None:
    named = 0
    for path in FILES.values():
        reference = load_reference(path)
        assert reference.metric == "mutual_knn"
        relative = relative_of(reference)  # which is there, on the same pairs
        if relative is None:
            continue
        named += 1
        assert (relative.name in FILES, relative.name == reference.name) == (True, False)
        assert (relative.family, relative.kind) == (reference.family, reference.kind)
        assert reference.parameters and relative.parameters
        assert 1 / 5 < relative.parameters / reference.parameters < 5
    assert named == len(FILES) - len(WITHOUT_RELATIVE)
    assert all(load_reference(FILES[name]).relative is None for name in WITHOUT_RELATIVE)


def test_class_token_is_read_where_there_is_one() -> None:
    means = {name for name, each in VISION.items() if each.encoder.token == "mean"}
    classes = {name for name, each in VISION.items() if each.encoder.token == "class"}
    assert means == WITHOUT_CLASS_TOKEN
    assert classes == set(VISION) - means


def test_encoders_are_read_as_the_paper_reads_its_own() -> None:
    for reference in ENCODERS.values():
        encoder = reference.encoder
        assert encoder.dtype == "float32"
        if reference.kind == "vision":
            assert (encoder.layers, encoder.norm) == ("blocks", "before")
        else:
            assert (encoder.layers, encoder.pooling) == ("hidden_states", "mean")
            assert not encoder.prompt


# ---------------------------------------------------------------- what the libraries say


@pytest.mark.parametrize("name", TIMM)
def test_preprocessing_and_licence_are_timms(name: str) -> None:
    timm = _timm()
    config = timm.get_pretrained_cfg(TIMM[name])
    transform = timm.data.create_transform(**timm.data.resolve_data_config(config.to_dict()))
    resize, crop, _, normalise = transform.transforms
    encoder, licence = VISION[name].encoder, VISION[name].licence
    assert config.crop_mode == "center"
    assert encoder.preprocessing == Preprocessing(
        resize=resize.size,
        crop=crop.size[0],
        interpolation=resize.interpolation.value,
        mean=tuple(config.mean),
        std=tuple(config.std),
    )
    assert encoder.preprocessing.mean == pytest.approx(normalise.mean.tolist())
    grey = Image.effect_mandelbrot((700, 500), (-2, -1.5, 1, 1.5), 50)
    image = Image.merge("RGB", (grey, ImageOps.flip(grey), ImageOps.mirror(grey)))
    # A step of 1/255, where Pillow resized in another order.
    torch.testing.assert_close(
        prepare(image, encoder.preprocessing), transform(image), rtol=0, atol=0.02
    )
    if name != "clip_openai_large":  # timm's own conversion of it; OpenAI's repository says MIT
        assert licence.lower() == config.license
    if encoder.loader == "timm":
        assert encoder.path == config.hf_hub_id == f"timm/{TIMM[name]}"


@pytest.mark.parametrize("name", NOT_IN_TIMM)
def test_preprocessing_is_the_models_own(name: str) -> None:
    resize, crop, interpolation = NOT_IN_TIMM[name]
    assert VISION[name].encoder.preprocessing == Preprocessing(
        resize=resize,
        crop=crop,
        interpolation=interpolation,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


@pytest.mark.parametrize("name", [n for n, each in VISION.items() if each.encoder.loader == "timm"])
def test_parameters_are_timms(name: str) -> None:
    timm = _timm()
    with torch.device("meta"):
        model = timm.create_model(TIMM[name], pretrained=False, num_classes=0)
    assert VISION[name].parameters == _count(model)
    assert f"each of {len(model.blocks)} blocks" in VISION[name].description
    assert (model.num_prefix_tokens == 0) == (name in WITHOUT_CLASS_TOKEN)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_those_of_transformers(name: str) -> None:
    with torch.device("meta"):
        model = _build(name)
    if name == "vjepa2_large":  # it comes with its predictor, which is not the encoder
        model = model.get_submodule("encoder")
    assert ENCODERS[name].parameters == _count(model)
    shape = ARCHITECTURES[name][1]
    count = shape.get("num_hidden_layers") or len(shape["depths"])
    assert re.search(rf"\b{count} (blocks|stages)", ENCODERS[name].description)


# ---------------------------------------------------------------- whether they can be read


@pytest.mark.parametrize("name", VISION)
def test_every_vision_encoder_can_be_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block (or one in a stage), with weights at random, reads an image as the file says."""
    encoder = VISION[name].encoder
    if encoder.loader == "timm":
        timm = _timm()
        create = timm.create_model

        def created(path: str, pretrained: bool, **others: Any) -> torch.nn.Module:
            assert (path.partition("@")[0], pretrained) == (f"hf-hub:timm/{TIMM[name]}", True)
            model: torch.nn.Module = create(TIMM[name], pretrained=False, depth=1, **others)
            return model

        monkeypatch.setattr(timm, "create_model", created)
    else:
        smaller: Mapping[str, Any] = (
            {"depths": [1] * 4} if "depths" in ARCHITECTURES[name][1] else {"num_hidden_layers": 1}
        )

        def loaded(path: str, revision: str | None, **_: Any) -> tuple[torch.nn.Module, Any]:
            assert (path, revision) == (encoder.path, encoder.revision)
            return _build(name, **smaller), {"missing_keys": []}

        monkeypatch.setattr(transformers.AutoModel, "from_pretrained", loaded)
    model = load_vision_model(encoder)
    assert isinstance(encoder.preprocessing, Preprocessing)
    pixels = model.prepare(Image.new("RGB", (640, 480), "teal"))
    side = encoder.preprocessing.crop
    assert pixels.shape == (3, side, side)
    layers = model.read(pixels[None])
    stages = "stages" in VISION[name].description
    assert len(layers) == (4 if stages else 1)
    assert all(layer.isfinite().all() and len(layer) == 1 for layer in layers)


# ---------------------------------------------------------------- how to write one


def test_examples_of_the_readme_are_valid(tmp_path: Path) -> None:
    text = (FILES["cielab"].parent / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    kinds = set()
    for number, example in enumerate(examples):
        path = tmp_path / f"example_{number}.yaml"
        path.write_text(example, encoding="utf-8")
        kinds.add(load_reference(path).kind)
    assert kinds == {"vision", "language", "features", "values"}
