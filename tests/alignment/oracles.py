"""The alignment core over again in plain, slow NumPy: what the tests compare with."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prh_eval.alignment.graph import NeighborGraph

Array = NDArray[np.float64]

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "golden_metrics.json").read_text(encoding="utf-8")
)


def golden_sides(case: dict[str, Any]) -> list[list[torch.Tensor]]:
    """The features of a golden case, both sides, by the recipe in the file."""
    g = np.random.default_rng(case["seed"])
    n, latent, noise = case["n"], case["latent"], case["noise"]
    z = g.standard_normal((n, latent))
    sides = []
    for side in "ab":
        count, dim = case[f"layers_{side}"], case[f"dim_{side}"]
        layers = []
        for layer in range(count):
            s = noise * (1 + abs(layer - count / 2)) / 2
            w = g.standard_normal((latent, dim))
            x = z @ w / np.sqrt(latent) + s * g.standard_normal((n, dim))
            layers.append(torch.from_numpy(x.astype(np.float32)))
        sides.append(layers)
    return sides


def nearness(x: Array, similarity: str) -> Array:
    """(n, n) similarities, the larger the nearer, with the items themselves at -inf."""
    x = np.asarray(x, dtype=np.float64)
    if similarity == "euclidean":
        result = -np.square(x[:, None] - x[None, :]).sum(axis=2)
    else:
        # Squares may be beyond the range of float64.
        x = x * 2.0 ** -np.frexp(np.abs(x).max(axis=1, keepdims=True))[1].clip(-1000, 1000)
        length = np.linalg.norm(x, axis=1, keepdims=True)
        unit = np.divide(x, length, out=np.zeros_like(x), where=length > 0)
        result = unit @ unit.T
    np.fill_diagonal(result, -np.inf)
    return result


def weights(similarities: Array, k: int, tolerance: float = 1e-12) -> Array:
    """(n, n) weights of the k nearest of each row, ties at the k-th place shared equally."""
    n = len(similarities)
    result = np.zeros((n, n))
    for i, row in enumerate(similarities):
        ranking = sorted((j for j in range(n) if j != i), key=lambda j: -row[j])
        groups = [[ranking[0]]]
        for previous, j in itertools.pairwise(ranking):
            if row[previous] - row[j] <= tolerance:
                groups[-1].append(j)
            else:
                groups.append([j])
        places = k
        for group in groups:
            for j in group:
                result[i, j] = min(places, len(group)) / len(group)
            places -= min(places, len(group))
    return result


def dense(graph: NeighborGraph, k: int) -> Array:
    """(layers, n, n) weights that a graph gives its items."""
    result = np.zeros((graph.layers, graph.n, graph.n))
    given = graph.weights(k).cpu().numpy()
    for (layer, i, place), j in np.ndenumerate(graph.indices.cpu().numpy()):
        if j >= 0:
            result[layer, i, j] += given[layer, i, place]
        else:
            assert given[layer, i, place] == 0
    return result
