"""CIELAB against published values and against the definition worked out another way."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prh_eval.colors import cielab
from prh_eval.errors import PrhEvalError


# Published for sRGB under D65, 2 degrees, to two decimals (e.g. Lindbloom's and easyrgb's tables).
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("#ffffff", (100.0, 0.0, 0.0)),
        ("#000000", (0.0, 0.0, 0.0)),
        ("#ff0000", (53.24, 80.09, 67.20)),
        ("#00FF00", (87.73, -86.18, 83.18)),
        ("#0000ff", (32.30, 79.19, -107.86)),
        ("#ffff00", (97.14, -21.55, 94.48)),
        ("#00ffff", (91.11, -48.09, -14.13)),
        ("#ff00ff", (60.32, 98.23, -60.82)),
        ("#808080", (53.59, 0.0, 0.0)),
    ],
)
def test_published_values(code: str, expected: tuple[float, float, float]) -> None:
    (row,) = cielab([code]).tolist()
    assert row == pytest.approx(expected, abs=0.01)


def from_primaries(code: str) -> np.ndarray:
    """CIELAB from the chromaticities of sRGB's primaries and white, one colour at a time."""
    primaries = np.array([[0.64, 0.33], [0.30, 0.60], [0.15, 0.06]])
    white = np.array([0.95047, 1.0, 1.08883])

    def xyz(xy: np.ndarray) -> np.ndarray:
        return np.array([xy[0] / xy[1], 1.0, (1 - xy.sum()) / xy[1]])

    columns = np.stack([xyz(each) for each in primaries], axis=1)
    matrix = columns * np.linalg.solve(columns, white)
    channels = [int(code[position : position + 2], 16) / 255 for position in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    ratios = matrix @ np.array(linear) / white
    # CIE 15's own constants, kappa = 24389/27 and epsilon = 216/24389.
    f = [t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in ratios]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@given(st.lists(st.integers(0, 0xFFFFFF), min_size=1, max_size=8))
def test_agrees_with_the_definition(colors: list[int]) -> None:
    codes = [f"#{color:06x}" for color in colors]
    result = cielab(codes)
    assert result.dtype == torch.float64
    assert result.shape == (len(codes), 3)
    expected = np.stack([from_primaries(code) for code in codes])
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-3)


@given(st.integers(0, 255))
def test_greys_have_no_colour(level: int) -> None:
    _, a, b = cielab([f"#{level:02x}{level:02x}{level:02x}"])[0].tolist()
    assert (a, b) == pytest.approx((0, 0), abs=1e-10)


@pytest.mark.parametrize("code", ["red", "#fff", "#12345g", "123456", "#1234567", ""])
def test_a_wrong_code_is_named(code: str) -> None:
    with pytest.raises(PrhEvalError, match=f"item 1 .*{re.escape(repr(code))}"):
        cielab(["#000000", code])
