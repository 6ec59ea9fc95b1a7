"""References that cost nothing to build: numbers in a file, captions in a table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import yaml


def write_captions(path: Path, captions: list[str]) -> Path:
    """A CSV of one caption an item."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([caption] for caption in captions)])
    return path


def write_numbers(
    folder: Path, name: str, rows: np.ndarray, captions: list[str] | None = None, **changes: Any
) -> Path:
    """A reference of the kind features, its features and its captions, all in one folder.

    Args:
        folder: Where ``<name>.yaml``, ``<name>.npy`` and ``captions.csv`` are written.
        name: The reference's.
        rows: (n, width) or (n, layers, width).
        captions: n texts; by default numbered words.
        **changes: Top-level keys of the YAML.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", rows)
    write_captions(
        folder / "captions.csv", captions or [f"item number {i}" for i in range(len(rows))]
    )
    content = {
        "kind": "features",
        "description": f"numbers of the name {name}",
        "features": {"path": f"{name}.npy"},
        "pairs": {"kind": "table", "path": "captions.csv"},
        "licence": "CC0-1.0",
        "citation": "none",
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
