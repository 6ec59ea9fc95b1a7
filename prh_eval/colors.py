"""sRGB colours in CIELAB, where Euclidean distance is perceptual difference (CIE76)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from prh_eval.errors import PrhEvalError

_HEX = re.compile(r"#[0-9a-fA-F]{6}")

# Linear sRGB to CIE 1931 XYZ: the primaries of IEC 61966-2-1:1999 and the white point D65 with
# X, Y, Z = 0.95047, 1, 1.08883 (ASTM E308, 2 degrees), to seven decimals.
_LINEAR_TO_XYZ = torch.tensor(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ],
    dtype=torch.float64,
)

# D65 again, as the sum of the rows, so that every grey has a* = b* = 0 in spite of rounding.
_WHITE = _LINEAR_TO_XYZ.sum(dim=1)


def cielab(hex_codes: Sequence[str]) -> Tensor:
    """CIELAB coordinates of sRGB colours.

    The white point is D65 (X, Y, Z = 0.95047, 1, 1.08883) and the observer the CIE 1931 one of
    2 degrees. The Euclidean distance of two rows is the colour difference CIE76.

    The transfer function and the primaries are those of sRGB (IEC 61966-2-1:1999, section 5.2);
    L*, a* and b* are defined in CIE 15:2004, section 8.2.1.

    Args:
        hex_codes: n colours as ``#rrggbb``.

    Returns:
        float64, shape (n, 3): L* in 0..100, a* (green to red) and b* (blue to yellow), both
        within about -108..99.

    Raises:
        PrhEvalError: If a code is not ``#rrggbb``; the message names the first such item.
    """
    for position, code in enumerate(hex_codes):
        if not _HEX.fullmatch(code):
            raise PrhEvalError(
                f"item {position} has the colour {code!r}, which is not like '#1f77b4'"
            )
    bytes_ = b"".join(bytes.fromhex(code[1:]) for code in hex_codes)
    encoded = torch.tensor(list(bytes_), dtype=torch.float64).reshape(-1, 3) / 255
    linear = torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    relative = linear @ _LINEAR_TO_XYZ.T / _WHITE
    x, y, z = torch.where(
        relative > (6 / 29) ** 3, relative ** (1 / 3), relative * (29 / 6) ** 2 / 3 + 4 / 29
    ).unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
