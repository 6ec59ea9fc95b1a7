"""Findings of drawn numbers, of any number of layers, with every part or without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def record(
    layers: int = 4, reference_layers: int = 3, seed: int = 0, n: int = 1024
) -> dict[str, Any]:
    """What a result file has under ``metadata.alignment``, every part of it, in JSON values."""
    drawn = np.random.default_rng(seed)
    chance = 10 / (n - 1)
    rise = np.linspace(0.2, 1, layers)[:, None] * np.linspace(0.4, 1, reference_layers)[None]
    fall = 1 - 0.5 * np.linspace(0, 1, layers)[:, None] ** 4
    grid = np.round(0.02 + 0.15 * rise * fall + drawn.uniform(0, 0.004, rise.shape), 6)
    best = divmod(int(grid.argmax()), reference_layers)
    score, stderr = float(grid.max()), 0.0062
    null = np.sort(np.round(chance + 0.0015 * np.abs(drawn.normal(size=1000)) + 0.001, 6))
    threshold = float(null[950])

    def of_layer(layer: int) -> dict[str, Any]:
        pair = [layer, int(grid[layer].argmax())]
        return {"score": float(grid[layer].max()), "stderr": 0.005, "layers": pair}

    sizes = [size for size in (1, 2, 3, 5, 7, 10, 20, 30, 50, 70, 100) if size < n]
    counts = [count for count in (64, 128, 256, 512, 1024) if count < n] + [n]
    return {
        "n": n,
        "k": 10,
        "metric": "mutual_knn",
        "protocol": "paper",
        "pooling": "mean",
        "chance": chance,
        "layers": list(best),
        "last_layers": of_layer(layers - 1)["layers"],
        "layer_grid": grid.tolist(),
        "score": score,
        "stderr": stderr,
        "interval": [score - 1.96 * stderr, score + 1.96 * stderr],
        "corrected": (score - chance) / (1 - chance),
        "z": 41.27,
        "z_grid": np.round(grid * 250, 3).tolist(),
        "null": {
            "draws": 1000,
            "seed": 0,
            "alpha": 0.05,
            "threshold": threshold,
            "calibrated": (score - threshold) / (1 - threshold),
            "p": 1 / 1001,
            "values": null.tolist(),
        },
        "cross_fitted": {
            "score": score - 0.0021,
            "stderr": 0.0064,
            "layers": [list(best)] * 7 + [[max(best[0] - 1, 0), best[1]]] * 3,
        },
        "embedding": of_layer(0),
        "last": of_layer(layers - 1),
        "controls": {
            "shared_words": {"score": 0.0736},
            "shared_tokens": {"score": 0.0689},
            "reinitialized": {"score": 0.0981},
            "shuffled": {"score": 0.0912},
            "ceiling": {"score": 0.3127, "name": "dinov2_large"},
        },
        "k_curve": [
            {"k": k, "score": score * (k / 10) ** 0.35, "chance": k / (n - 1)} for k in sizes
        ],
        "n_curve": [
            {
                "n": count,
                "score": score * (n / count) ** 0.4,
                "spread": 0.012 * (64 / count) ** 0.5 if count < n else 0.0,
                "repeats": 16 if count < n else 1,
                "chance": 10 / (count - 1),
            }
            for count in counts
        ],
        "hubs": {
            "model_skewness": 1.84,
            "reference_skewness": 0.97,
            "model_orphans": 0.0312,
            "reference_orphans": 0.0117,
            "model_largest": 8.4,
            "reference_largest": 4.9,
            "carried": 0.034,
        },
        "pairs": {"name": "wit_1024", "caption": 0, "items": n},
        "reference": {"reference": "dinov2_giant", "kind": "vision", "pairs": {"name": "wit_1024"}},
        "model": {
            "model": "EleutherAI/pythia-160m",
            "revision": "main",
            "dtype": "float16",
            "parameters": 162322944,
        },
        "versions": {"prh_eval": "0.1.0"},
    }


def write(path: Path, records: dict[str, dict[str, Any]], date: float = 1.0) -> Path:
    """A result file of lm-eval's form with the records of several tasks, and one of another."""
    content = {
        "results": {
            **{
                task: {"alias": task, "mnn,none": of.get("score", 0.5)}
                for task, of in records.items()
            },
            "other": {"alias": "other", "acc,none": 0.25},
        },
        "configs": {
            **{task: {"task": task, "metadata": {"alignment": of}} for task, of in records.items()},
            "other": {"task": "other", "metadata": {"version": 1.0}},
        },
        "versions": {**dict.fromkeys(records, 1.0), "other": 1.0},
        "config": {"model": "hf"},
        "date": date,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
