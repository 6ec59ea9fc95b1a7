"""What one process of a data-parallel run does; importable, as spawned processes need it."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from features.language_zoo import CAPTIONS, tiny_model, word_tokenizer
from torch import distributed

from prh_eval.features.language import language_features


def run(rank: int, world_size: int, folder: str, kind: str) -> None:
    """Extract features and losses as process ``rank`` over gloo, and save them in ``folder``."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    # What a launcher would say; without it, Accelerate finds one process.
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    numbers["LOCAL_WORLD_SIZE"] = world_size
    os.environ.update({name: str(number) for name, number in numbers.items()})
    # lm-eval gathers with it.
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == world_size
    results = [
        language_features(
            tiny_model(kind),
            # With special tokens, captions are scored on the way; without, read a second time.
            word_tokenizer(special=special),
            CAPTIONS,
            batch_size=2,
            prefix=2,
            rank=rank,
            world_size=world_size,
            all_gather=accelerator.gather,
            progress=False,
        )
        for special in (False, True)
    ]
    torch.save([[*result.layers, result.nats] for result in results], Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
