"""The ladder of models that the demo trains: families, sizes and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging

from prh_eval.demo.training import Size, build_model, build_tokenizer, mean_loss, train
from prh_eval.demo.world import coloured_world

# What a family is called, by transformers' name of its architecture. All else that models of a
# family share is what they differ in from other families: normalisation, positions, perceptrons.
FAMILIES = {
    "gpt_neox": "GPT-NeoX",
    "gpt2": "GPT-2",
    "llama": "Llama",
    "opt": "OPT",
    "bloom": "BLOOM",
    "gemma": "Gemma",
    "phi": "Phi",
    "mpt": "MPT",
}
SMALL, LARGE = Size(width=32, layers=1), Size(width=64, layers=2)
EARLY = 1 / 3  # of the steps, after which the larger model is scored for the first time

HELD_OUT_SENTENCES = 1024
LARGEST_SEED = 2**32 - 1  # torch's generator looks at no more bits than these


@dataclass(frozen=True)
class Model:
    """A saved model.

    Attributes:
        name: Its folder's.
        title: Its name for a reader.
        family: Its family's name.
        size: Its size.
        steps: Training steps done.
        tokens: Tokens that it was trained on.
        parameters: Their number.
        loss: Nats a token on sentences that it was not trained on.
    """

    name: str
    title: str
    family: str
    size: Size
    steps: int
    tokens: int
    parameters: int
    loss: float


def plan(families: int, steps: int) -> list[tuple[str, Size, list[int]]]:
    """What is trained, in this order: architectures, sizes, and the steps after which to save.

    Args:
        families: How many of `FAMILIES`.
        steps: Training steps of each model, at least 2.
    """
    early = max(1, round(steps * EARLY))
    planned: list[tuple[str, Size, list[int]]] = []
    for architecture in list(FAMILIES)[:families]:
        # One untrained model is enough to see what its architecture gives for nothing.
        untrained = [] if planned else [0]
        planned.append((architecture, LARGE, [*untrained, early, steps]))
        planned.append((architecture, SMALL, [steps]))
    return planned


def climb(
    folder: Path, planned: Sequence[tuple[str, Size, Sequence[int]]], seed: int
) -> Iterator[Model | None]:
    """Train and save the models of a plan.

    Args:
        folder: Gets a folder for each model.
        planned: As `plan` gives it.
        seed: Decides all weights and sentences.

    Yields:
        A model when it was saved, None after each step of training.
    """
    logging.disable_progress_bar()  # it would show one for each saved model
    logging.set_verbosity_error()  # it would warn of padding that no token looks at
    # So small a model gains little by a second thread, and where the cores are busy two threads
    # that wait for each other take many times as long.
    torch.set_num_threads(1)
    world = coloured_world()
    tokenizer = build_tokenizer(world)
    generator = torch.Generator().manual_seed(seed)
    held_out = world.sentences(HELD_OUT_SENTENCES, generator)
    total = sum(checkpoints[-1] for _, _, checkpoints in planned)
    with tqdm(total=total, desc="training", unit="step", disable=None) as bar:
        for architecture, size, checkpoints in planned:
            own_seed = int(torch.randint(LARGEST_SEED, (), generator=generator))
            model = build_model(architecture, size, tokenizer, own_seed)
            family = FAMILIES[architecture]
            bar.set_postfix_str(f"{family} {size.width}")
            for step, tokens in train(
                model, tokenizer, world, steps=checkpoints[-1], seed=own_seed
            ):
                bar.update(step > 0)
                if step in checkpoints:
                    name = f"{architecture}-{size.width}-step{step}"
                    model.save_pretrained(folder / name)
                    tokenizer.save_pretrained(folder / name)
                    yield Model(
                        name=name,
                        title=f"{family} {size.width}, step {step}",
                        family=family,
                        size=size,
                        steps=step,
                        tokens=tokens,
                        parameters=model.num_parameters(),
                        loss=mean_loss(model, tokenizer, held_out),
                    )
                yield None
