"""A tiny DINOv2 and a small image-caption data set, on disk as the hub has the real ones."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

SIZE = 28  # pixels a side that the tiny encoder sees: 2 x 2 patches


def make_dinov2(folder: Path, layers: int = 3, width: int = 32, seed: int = 0) -> Path:
    """Save a DINOv2 with random weights; every part of it moves its output."""
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=14,
        mlp_ratio=2,
        use_swiglu_ffn=True,
    )
    model = Dinov2Model(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    return folder


def make_image_captions(
    folder: Path, n: int = 24, seed: int = 0, captions: int = 2, **replaced: Any
) -> Path:
    """Write n images of differing shapes, each with several captions, as one parquet shard.

    Args:
        folder: Becomes a data set folder as the hub has them.
        n: Number of items.
        seed: Of the drawn pixels.
        captions: Captions per item.
        **replaced: Whole columns (``image``: list of file contents, ``text``) to write instead.
    """
    random = np.random.default_rng(seed)
    images = [_image_file(random) for _ in range(n)]
    columns = {
        "image": replaced.get("image", images),
        "text": replaced.get(
            "text", [[f"picture {i} in words, way {j}" for j in range(captions)] for i in range(n)]
        ),
    }
    text = columns["text"][0]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": [datasets.Value("string")]
            if isinstance(text, list)
            else datasets.Value("string"),
        }
    )
    columns["image"] = [
        content and {"bytes": content, "path": None} for content in columns["image"]
    ]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    data = datasets.Dataset.from_dict(columns, features=features)
    data.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def write_reference(path: Path, encoder: Path, data: Path, /, **changes: Any) -> Path:
    """Write the YAML of a reference; ``changes`` are dotted keys with ``__`` for the dot."""
    content: dict[str, Any] = {
        "kind": "vision",
        "description": "A tiny DINOv2 with random weights",
        "pairs": {
            "kind": "hub",
            "path": str(data),
            "split": "train",
            "caption_column": "text",
            "image_column": "image",
        },
        "encoder": {
            "path": str(encoder),
            "token": "class",
            "norm": "before",
            "preprocessing": {
                "resize": SIZE,
                "crop": SIZE,
                "interpolation": "bicubic",
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            },
        },
        "similarity": "cosine",
        "licence": "CC0-1.0",
        "citation": "none",
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        section = content
        for name in sections:
            section = section[name]
        if value is None:
            del section[last]
        else:
            section[last] = value
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def cache_data_set(home: Path, folder: Path, hub_id: str, commit: str) -> None:
    """Fill a hub cache (``HF_HOME``) as datasets does when it downloads a data set.

    Args:
        home: The cache.
        folder: What ``make_image_captions`` wrote.
        hub_id: ``owner/name``.
        commit: The commit that was downloaded.
    """
    owner, name = hub_id.split("/")
    prepared = datasets.load_dataset(str(folder), split="train", cache_dir=folder / "prepared")
    made = Path(prepared.cache_files[0]["filename"])
    target = home / "datasets" / f"{owner}___{name}" / "default" / "0.0.0" / commit
    shutil.copytree(made.parent, target)
    (target / made.name).rename(target / f"{name}-train.arrow")
    info = json.loads((target / "dataset_info.json").read_text())
    info.update(config_name="default", dataset_name=name)
    (target / "dataset_info.json").write_text(json.dumps(info))


def cache_revision(home: Path, hub_id: str, revision: str, commit: str) -> None:
    """Let a hub cache know which commit a data set's revision is."""
    refs = home / "hub" / f"datasets--{hub_id.replace('/', '--')}" / "refs"
    refs.mkdir(parents=True)
    (refs / revision).write_text(commit)


def cache_model(home: Path, folder: Path, hub_id: str, commit: str) -> None:
    """Fill a hub cache as transformers does when it downloads a model at a commit."""
    snapshots = home / "hub" / f"models--{hub_id.replace('/', '--')}" / "snapshots"
    shutil.copytree(folder, snapshots / commit)


def _image_file(random: np.random.Generator) -> bytes:
    """A PNG of drawn size and smooth content, so that resizing keeps images apart."""
    height, width = random.integers(20, 60, size=2)
    coarse = random.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
