"""Vision features against the model's own blocks, and preprocessing against brute force."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from tiny_hub import SIZE, make_dinov2

from prh_eval.errors import PrhEvalError
from prh_eval.features.vision import Preprocessing, load_vision_model, vision_features

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocessing(resize: int = SIZE, crop: int = SIZE, **changes: Any) -> Preprocessing:
    values = {"interpolation": "bicubic", "mean": MEAN, "std": STD, **changes}
    return Preprocessing(resize=resize, crop=crop, **values)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# ------------------------------------------------------------------ preprocessing


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resample(length: int, new: int) -> np.ndarray:
    """The (new, length) matrix of antialiased cubic interpolation."""
    scale = length / new
    widening = max(scale, 1.0)
    centers = (np.arange(new) + 0.5) * scale
    weights = cubic((np.arange(length) + 0.5 - centers[:, None]) / widening)
    return weights / weights.sum(axis=1, keepdims=True)


def brute_force(pixels: np.ndarray, resize: int, crop: int) -> np.ndarray:
    """uint8 (height, width, 3) to float (3, crop, crop), by matrices in float64."""
    height, width, _ = pixels.shape
    short = min(height, width)
    new_height = resize if height == short else int(Fraction(resize * height, short))
    new_width = resize if width == short else int(Fraction(resize * width, short))

    def byte(x: np.ndarray) -> np.ndarray:
        return np.clip(np.floor(x + 0.5), 0, 255)

    # Rows first, with bytes between the passes, as Pillow 11 does; the order shows where values
    # are cut off at 0 and 255.
    across = byte(np.einsum("xw,hwc->hxc", resample(width, new_width), pixels))
    both = byte(np.einsum("yh,hxc->yxc", resample(height, new_height), across))
    top = round(Fraction(new_height - crop, 2))
    left = round(Fraction(new_width - crop, 2))
    square = both[top : top + crop, left : left + crop] / 255
    return ((square - MEAN) / STD).transpose(2, 0, 1)


@settings(max_examples=60)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    crop=st.integers(1, 40),
    margin=st.integers(0, 15),
    seed=st.integers(0, 99),
)
def test_preprocessing_is_brute_force(
    width: int, height: int, crop: int, margin: int, seed: int
) -> None:
    image = noise(width, height, seed)
    result = preprocessing(crop + margin, crop)(image)
    assert result.dtype == torch.float32
    assert result.shape == (3, crop, crop)
    expected = brute_force(np.array(image), crop + margin, crop)
    # Pillow's weights are fixed-point numbers: each of the two passes may round the other way.
    error = np.abs(result.numpy() - expected) * np.array(STD)[:, None, None] * 255
    assert error.max() < 2.01


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 500), (2000, 7)])
def test_extreme_shapes(shape: tuple[int, int]) -> None:
    result = preprocessing(20, 14)(noise(*shape))
    assert result.shape == (3, 14, 14)
    assert result.isfinite().all()


def test_an_image_of_the_right_size_is_only_normalised() -> None:
    image = noise(SIZE, SIZE)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(preprocessing()(image), (pixels - mean) / std)


def test_other_modes_become_rgb() -> None:
    rgb = noise(SIZE, SIZE)
    grey = rgb.convert("L")
    assert torch.equal(preprocessing()(grey), preprocessing()(grey.convert("RGB")))
    transparent = rgb.copy()
    transparent.putalpha(10)
    assert torch.equal(preprocessing()(transparent), preprocessing()(rgb))


def test_filters_differ() -> None:
    image = noise(50, 60)
    names = ("bicubic", "bilinear", "lanczos", "nearest")
    results = [preprocessing(interpolation=name)(image) for name in names]
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop": 30}, "crop .30. should be at most resize .28."),
        ({"resize": 0}, "greater than 0"),
        ({"std": (0.1, 0.0, 0.1)}, "positive"),
        ({"interpolation": "cubic"}, "bicubic"),
        ({"size": 3}, "size"),
    ],
)
def test_wrong_preprocessing(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        preprocessing(**changes)


# ------------------------------------------------------------------ features


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> transformers.PreTrainedModel:
    return load_vision_model(str(make_dinov2(tmp_path_factory.mktemp("encoder"))))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [noise(20 + 3 * i, 50 - 2 * i, seed=i) for i in range(9)]


def blocks_of(
    model: transformers.PreTrainedModel, images: list[Image.Image]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Every block called by hand, and the final norm of the last one."""
    states = []
    with torch.inference_mode():
        x = model.embeddings(torch.stack([preprocessing()(image) for image in images]))
        for block in model.encoder.layer:
            x = block(x)
            states.append(x)
        return states, model.layernorm(x)


def test_every_layer_is_the_blocks_own_output(
    model: transformers.PreTrainedModel, images: list[Image.Image]
) -> None:
    features = vision_features(model, images, preprocessing=preprocessing(), batch_size=9)
    states, normed = blocks_of(model, images)
    assert len(features) == model.config.num_hidden_layers == 3
    for layer, state in zip(features, states, strict=True):
        assert layer.dtype == torch.float32
        torch.testing.assert_close(layer, state[:, 0], rtol=0, atol=0)
    assert (features[-1] - normed[:, 0]).abs().max() > 0.1
    with torch.inference_mode():
        pixels = torch.stack([preprocessing()(image) for image in images])
        direct = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert len(direct) == 4
    for layer, state in zip(features, direct[1:], strict=True):
        torch.testing.assert_close(layer, state[:, 0], rtol=0, atol=0)


def test_after_the_final_norm_and_mean_token(
    model: transformers.PreTrainedModel, images: list[Image.Image]
) -> None:
    states, normed = blocks_of(model, images)
    settings = {"preprocessing": preprocessing(), "batch_size": 9, "progress": False}
    after = vision_features(model, images, norm="after", **settings)
    torch.testing.assert_close(after[-1], normed[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(after[0], states[0][:, 0], rtol=0, atol=0)
    mean = vision_features(model, images, token="mean", **settings)
    for layer, state in zip(mean, states, strict=True):
        torch.testing.assert_close(layer, state[:, 1:].mean(dim=1))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_batches_change_nothing(
    model: transformers.PreTrainedModel, images: list[Image.Image], batch_size: int
) -> None:
    whole = vision_features(model, images, preprocessing=preprocessing(), batch_size=9)
    parts = vision_features(model, images, preprocessing=preprocessing(), batch_size=batch_size)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_registers_are_no_patches(images: list[Image.Image]) -> None:
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=14,
        num_register_tokens=3,
    )
    model = transformers.Dinov2WithRegistersModel(config).eval()
    (_, last) = vision_features(model, images, preprocessing=preprocessing(), token="mean")
    with torch.inference_mode():
        pixels = torch.stack([preprocessing()(image) for image in images])
        states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert states[-1].shape[1] == 1 + 3 + 4
    torch.testing.assert_close(last, states[-1][:, -4:].mean(dim=1))


def test_no_class_token(images: list[Image.Image]) -> None:
    config = transformers.SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=14,
    )
    model = transformers.SiglipVisionModel(config).eval()
    with pytest.raises(PrhEvalError, match="no class token; 'token' should be 'mean'"):
        vision_features(model, images, preprocessing=preprocessing())
    (_, last) = vision_features(model, images, preprocessing=preprocessing(), token="mean")
    with torch.inference_mode():
        pixels = torch.stack([preprocessing()(image) for image in images])
        states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(last, states[-1].mean(dim=1))


def test_an_encoder_without_tokens(images: list[Image.Image]) -> None:
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic"
    )
    model = transformers.ResNetModel(config).eval()
    with pytest.raises(PrhEvalError, match="ResNetModel gives no hidden states of shape"):
        vision_features(model, images, preprocessing=preprocessing(), token="mean")


class _Full:
    """A model call that runs out of memory beyond a number of images."""

    def __init__(self, model: transformers.PreTrainedModel, most: int) -> None:
        self.call, self.most, self.sizes = model.forward, most, []

    def __call__(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        self.sizes.append(len(pixel_values))
        if len(pixel_values) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.call(pixel_values=pixel_values, **kwargs)


def test_out_of_memory_halves_the_batch(
    model: transformers.PreTrainedModel,
    images: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = vision_features(model, images, preprocessing=preprocessing())
    full = _Full(model, most=2)
    monkeypatch.setattr(model, "forward", full)
    with caplog.at_level(logging.WARNING, logger="prh_eval"):
        features = vision_features(model, images, preprocessing=preprocessing(), batch_size=8)
    assert full.sizes == [8, 4, 2, 2, 2, 2, 1]
    assert "batches of 2 now" in caplog.text
    for a, b in zip(features, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_one_image_too_large(
    model: transformers.PreTrainedModel, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "forward", _Full(model, most=0))
    with pytest.raises(PrhEvalError, match="one image of 28 x 28 pixels does not fit"):
        vision_features(model, images, preprocessing=preprocessing())


def test_other_errors_are_not_memory(
    model: transformers.PreTrainedModel, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**kwargs: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        vision_features(model, images, preprocessing=preprocessing())


def test_loading(tmp_path: Path) -> None:
    folder = make_dinov2(tmp_path / "encoder")
    model = load_vision_model(str(folder), dtype="bfloat16")
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    features = vision_features(model, [noise(30, 30)], preprocessing=preprocessing())
    assert features[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("facebook/dinov2-giant", "'facebook/dinov2-giant' .*HF_HUB_OFFLINE.*prh_align_color"),
        ("./no/such", "there is no folder './no/such'"),
        ("/no/such", "there is no folder '/no/such'"),
    ],
)
def test_what_cannot_be_loaded(path: str, words: str) -> None:
    with pytest.raises(PrhEvalError, match=words) as error:
        load_vision_model(path, revision="abc")
    assert "revision 'abc'" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(PrhEvalError, match=r"could not be loaded: .*config\.json") as error:
        load_vision_model(str(tmp_path))
    assert "HF_HUB_OFFLINE" not in str(error.value)
