"""Paired data as a person has them on disk: folders of drawn images, and tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image


def draw_images(folder: Path, names: Sequence[str], seed: int = 0) -> list[np.ndarray]:
    """Write PNGs of drawn pixels and differing shapes; return the pixels, (height, width, 3)."""
    random = np.random.default_rng(seed)
    drawn = []
    for number, name in enumerate(names):
        pixels = random.integers(0, 256, (5 + number % 7, 9, 3), dtype=np.uint8)
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, format="PNG")
        drawn.append(pixels)
    return drawn


def write_table(file: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """Write a table as its ending says, by the libraries people use for it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = list(zip(*columns.values(), strict=True))
    if file.suffix == ".csv":
        with file.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([list(columns), *rows])
    elif file.suffix == ".jsonl":
        lines = (
            json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows
        )
        file.write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")
    else:
        pd.DataFrame({name: list(values) for name, values in columns.items()}).to_parquet(file)
    return file


def make_image_folder(
    folder: Path, n: int = 14, metadata: str = "metadata.jsonl", **columns: Sequence[Any]
) -> Path:
    """Write n images, every second one in a subfolder, and a metadata file with a caption each."""
    names = [f"{'cats/' * (number % 2)}{number}.png" for number in range(n)]
    draw_images(folder, names)
    texts = {"text": [f"picture {number} in words" for number in range(n)]}
    write_table(folder / metadata, {"file_name": names, **texts, **columns})
    return folder


def write_reference_on(file: Path, pairs: Mapping[str, Any]) -> Path:
    """Write the YAML of a reference on these pairs; its encoder is never loaded."""
    content = {
        "kind": "vision",
        "description": "An encoder that nothing loads",
        "pairs": dict(pairs),
        "encoder": {"path": "./none", "token": "class", "preprocessing": "processor"},
        "licence": "CC0-1.0",
        "citation": "none",
    }
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file
