"""Preparing images against brute force: sizes, filters, crops, normalisation."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from vision_zoo import noise

from prh_eval.features.images import prepare
from prh_eval.schema import Preprocessing

SIZE = 28
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocessing(resize: Any = SIZE, crop: int | None = SIZE, **changes: Any) -> Preprocessing:
    values = {"interpolation": "bicubic", "mean": MEAN, "std": STD, **changes}
    return Preprocessing(**{"resize": resize, "crop": crop, **values})


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


def new_size(pixels: np.ndarray, resize: int) -> tuple[int, int]:
    height, width, _ = pixels.shape
    short = min(height, width)
    new_height = resize if height == short else int(Fraction(resize * height, short))
    return new_height, resize if width == short else int(Fraction(resize * width, short))


def brute_force(pixels: np.ndarray, new_height: int, new_width: int, crop: int) -> np.ndarray:
    """uint8 (height, width, 3) to float (3, crop, crop), by matrices in float64."""
    height, width, _ = pixels.shape

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
    pixels = np.array(image)
    result = prepare(image, preprocessing(crop + margin, crop))
    assert result.dtype == torch.float32
    assert result.shape == (3, crop, crop)
    expected = brute_force(pixels, *new_size(pixels, crop + margin), crop)
    # Pillow's weights are fixed-point numbers: each of the two passes may round the other way.
    error = np.abs(result.numpy() - expected) * np.array(STD)[:, None, None] * 255
    assert error.max() < 2.01


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    resize=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    crop=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_both_sides_given(
    shape: tuple[int, int], resize: tuple[int, int], crop: int, seed: int
) -> None:
    image = noise(*shape, seed)
    cropped = prepare(image, preprocessing(resize, crop))
    expected = brute_force(np.array(image), *resize, crop)
    error = np.abs(cropped.numpy() - expected) * np.array(STD)[:, None, None] * 255
    assert error.max() < 2.01
    whole = prepare(image, preprocessing(resize, None))
    assert whole.shape == (3, *resize)
    top, left = (round(Fraction(side - crop, 2)) for side in resize)
    assert torch.equal(whole[:, top : top + crop, left : left + crop], cropped)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 500), (2000, 7)])
def test_extreme_shapes(shape: tuple[int, int]) -> None:
    result = prepare(noise(*shape), preprocessing(20, 14))
    assert result.shape == (3, 14, 14)
    assert result.isfinite().all()


def test_an_image_of_the_right_size_is_only_normalised() -> None:
    image = noise(SIZE, SIZE)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(prepare(image, preprocessing()), (pixels - mean) / std)


def test_other_modes_become_rgb() -> None:
    rgb, spec = noise(SIZE, SIZE), preprocessing()
    grey = rgb.convert("L")
    assert torch.equal(prepare(grey, spec), prepare(grey.convert("RGB"), spec))
    transparent = rgb.copy()
    transparent.putalpha(10)
    assert torch.equal(prepare(transparent, spec), prepare(rgb, spec))


def test_filters_differ() -> None:
    image = noise(50, 60)
    names = ("bicubic", "bilinear", "lanczos", "nearest")
    results = [prepare(image, preprocessing(interpolation=name)) for name in names]
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
