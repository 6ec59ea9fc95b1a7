"""What one of several processes does that encode a reference; importable, as spawned ones need."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from features.language_zoo import CAPTIONS
from PIL import Image
from torch import Tensor

from prh_eval.features import sentences, vision
from prh_eval.features.parts import Parts
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.processes import processes
from prh_eval.references.encode import encode
from prh_eval.schema import REFERENCE

N, PIECE = 6, 2
ENCODERS: dict[str, dict[str, Any]] = {
    "vision": {
        "token": "class",
        "preprocessing": {
            "resize": 28, "crop": 28, "interpolation": "bicubic", "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.3, 0.2],
        },
    },
    "language": {"pooling": "mean", "layers": [0, 2]},
    "sentence": {"pooling": "pooled", "loader": "sentence_transformers"},
}  # fmt: skip


def made(kind: str, folder: Path, **options: Any) -> list[Tensor]:
    """The layers of the encoder in ``folder/kind`` on a few items, in pieces of two."""
    vision._PART = sentences._PART = PIECE
    reference: Any = REFERENCE.validate_python(
        {
            "name": "tried",
            "kind": "vision" if kind == "vision" else "language",
            "description": "for the test",
            "pairs": {"kind": "embedded", "name": "xkcd_colors"},
            "licence": "CC0-1.0",
            "citation": "none",
            "encoder": {"path": str(folder / kind), **ENCODERS[kind]},
        }
    )
    random = np.random.default_rng(0)
    images: Any = [
        Image.fromarray(random.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)) for i in range(N)
    ]
    captions = tuple((caption,) for caption in CAPTIONS[:N])
    ids = tuple(map(str, range(N)))
    pairs = PairedDataset("some pairs", ids, captions, captions, {}, images=images)
    return encode(
        reference, pairs, batch_size=2, workers=1, device="cpu", progress=False, **options
    ).layers


def run(rank: int, world_size: int, port: int, folder: str, kinds: list[str]) -> None:
    """Encode each kind as one of several processes, and save all layers."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    root = Path(folder)
    with processes("cpu") as own:
        for kind in kinds:
            layers = made(kind, root, processes=own, parts=Parts(root / f"{kind}-parts"))
            torch.save(layers, root / f"{kind}-{rank}.pt")
