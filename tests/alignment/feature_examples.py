"""Layers of features to try metrics on: related, unrelated, and what a metric may not depend on."""

from __future__ import annotations

import numpy as np
import torch
from alignment.oracles import Array


def unit(x: Array) -> torch.Tensor:
    """Rows of unit length, float64."""
    return torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True))


def noise(g: np.random.Generator, n: int, dim: int) -> torch.Tensor:
    """A layer that tells nothing."""
    return unit(g.standard_normal((n, dim)))


def related(
    g: np.random.Generator, n: int, dims: list[int], noise: float = 0.5, latent: int = 4
) -> list[torch.Tensor]:
    """Layers that are noisy linear maps of the same latent values."""
    z = g.standard_normal((n, latent))
    return [
        unit(z @ g.standard_normal((latent, dim)) + noise * g.standard_normal((n, dim)))
        for dim in dims
    ]


def rotation(g: np.random.Generator, dim: int) -> torch.Tensor:
    """A random orthogonal matrix, of either determinant."""
    return torch.from_numpy(np.linalg.qr(g.standard_normal((dim, dim)))[0])


def moved(g: np.random.Generator, x: torch.Tensor) -> torch.Tensor:
    """The layer turned, scaled and moved."""
    turned = x @ rotation(g, x.shape[1])
    return turned * float(g.uniform(0.1, 10)) + torch.from_numpy(g.standard_normal(x.shape[1]))
