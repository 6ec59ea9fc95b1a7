"""Neighbour graphs of drawn features, kept in the cache as a build and a run keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from prh_eval import store
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.resources import cache_folder


def features(layers: int, n: int, seed: int, mixed_with: np.ndarray | None = None) -> np.ndarray:
    """Float64 (layers, n, 8); with ``mixed_with`` (n, 8) a part of each layer is that."""
    drawn = np.random.default_rng(seed).normal(size=(layers, n, 8))
    return drawn if mixed_with is None else drawn + mixed_with


def nearest(layer: np.ndarray, k: int) -> np.ndarray:
    """int (n, k): each row's nearest others by Euclidean distance; drawn features have no ties."""
    distance = ((layer[:, None] - layer[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1)[:, :k]


def graph(layers: np.ndarray, k: int) -> NeighborGraph:
    """The graph of drawn features."""
    indices = torch.from_numpy(np.stack([nearest(layer, k) for layer in layers])).int()
    return NeighborGraph(indices, torch.zeros_like(indices, dtype=torch.bool), k)


def pairs(n: int, data: str = "pictures", captions: str = "0") -> dict[str, Any]:
    """What a header says of the data; fingerprints are 64 digits as real ones are."""
    items = store.fingerprint([data, n])
    read = store.fingerprint([data, n, captions])
    return {"name": data, "n": n, "items": items, "captions": read}


def keep_reference(
    name: str, layers: np.ndarray, *, k: int = 12, kind: str = "vision", **about: Any
) -> Path:
    """Write a reference's graph; ``about`` may hold ``protocol``, and what `pairs` takes."""
    protocol = about.pop("protocol", "paper")
    header = {
        "reference": name,
        "kind": kind,
        "pairs": pairs(layers.shape[1], **about),
        "made_from": {"protocol": protocol, "graph_version": 1},
    }
    return _keep("references", name, header, layers, k)


def keep_model(name: str, layers: np.ndarray, *, k: int = 12, **about: Any) -> Path:
    """Write a model's graph; ``about`` may hold any field of its header, and what `pairs` takes."""
    data = {key: about.pop(key) for key in ("data", "captions") if key in about}
    header = {
        "model": name,
        "revision": "main",
        "dtype": "float32",
        "pooling": "mean",
        "protocol": "paper",
        "graph_k": k,
        "kind": "language model",
        "pairs": pairs(layers.shape[1], **data),
        **about,
    }
    return _keep("models", name.replace("/", "_"), header, layers, k)


def _keep(folder: str, name: str, header: dict[str, Any], layers: np.ndarray, k: int) -> Path:
    path = cache_folder() / folder / f"{name}-{store.fingerprint(header)[:16]}.safetensors"
    store.write_artifact(path, store.GraphArtifact(graph(layers, k), header))
    return path
