"""What one process of a data-parallel run does; importable, as spawned processes need it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
from features.language_zoo import CAPTIONS, tiny_model, word_tokenizer
from torch import Tensor, distributed

from prh_eval.features.language import language_features


def run(rank: int, world_size: int, folder: str, kind: str) -> None:
    """Extract features as process ``rank`` over gloo, and save them in ``folder``."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )

    def all_gather(tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(world_size)]
        distributed.all_gather(parts, tensor)
        return torch.cat(parts)

    result = language_features(
        tiny_model(kind),
        word_tokenizer(),
        CAPTIONS,
        batch_size=2,
        rank=rank,
        world_size=world_size,
        all_gather=all_gather,
        progress=False,
    )
    torch.save(result.layers, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
