"""``prh-eval demo``: the main job on data that it makes, with no download.

A tiny language model is trained on text about colours and scored on the way, through lm-eval's own
command line, by its alignment with human colour perception.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from prh_eval.errors import PrhEvalError

if TYPE_CHECKING:
    from prh_eval.demo.report import Checkpoint

# Stands in every folder that a demo wrote, and says how.
MARKER = "prh_eval_demo.json"
MODELS, RESULTS, CACHE = "models", "results", "cache"

# Processes of lm-eval; each takes one core and about 1 GB of memory.
AT_ONCE = 2

HELD_OUT_SENTENCES = 1024
LARGEST_SEED = 2**32 - 1  # torch's generator looks at no more bits than these


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``prh-eval demo``."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("prh_eval_demo"),
        metavar="DIR",
        help="folder for what is made; an earlier demo in it is replaced (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=_whole(1), default=600, help="training steps (default: %(default)s)"
    )
    parser.add_argument(
        "--checkpoints",
        type=_whole(2),
        default=4,
        metavar="N",
        help="models to score, the untrained and the last among them (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_whole(0, LARGEST_SEED),
        default=0,
        help="decides weights and sentences (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Train, score, print.

    Args:
        args: What `add_arguments` declares.

    Returns:
        The exit status, 0.

    Raises:
        PrhEvalError: If the folder holds something else, cannot be written, or lm-eval fails.
    """
    output: Path = args.output
    settings = {"steps": args.steps, "checkpoints": args.checkpoints, "seed": args.seed}
    prepare(output, settings)
    steps = checkpoint_steps(args.steps, args.checkpoints)
    checkpoints = _train_and_score(output, steps, args.seed)

    from prh_eval.demo.report import seen, table

    print(f"\n{table(checkpoints)}\n\n{seen(checkpoints)}")
    print(f"Models and lm-eval's result files are in {output}.")
    return 0


def prepare(output: Path, settings: dict[str, int]) -> None:
    """Make the folder ready: new, empty, or emptied of what an earlier demo wrote.

    Args:
        output: The folder.
        settings: Kept in it, for whoever finds it.

    Raises:
        PrhEvalError: If it holds something that no demo wrote, or cannot be written.
    """
    try:
        if output.exists() and not output.is_dir():
            raise PrhEvalError(f"{output} is a file, and --output should be a folder")
        if output.is_dir() and any(output.iterdir()) and not (output / MARKER).is_file():
            raise PrhEvalError(
                f"{output} is not empty and no demo wrote it (it has no {MARKER}), so that "
                "--output should be another folder"
            )
        for name in (MODELS, RESULTS, CACHE):
            if (output / name).exists():
                shutil.rmtree(output / name)
        output.mkdir(parents=True, exist_ok=True)
        (output / MARKER).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise PrhEvalError(f"--output {output} cannot be written: {error}") from None


def checkpoint_steps(steps: int, count: int) -> list[int]:
    """When to save a model: after 0 steps and after the last, denser at the start.

    Args:
        steps: Training steps in all, at least 1.
        count: Number of checkpoints, at least 2; fewer are made where steps are too few.

    Returns:
        Rising, without duplicates.
    """
    # Learning is fastest at the start, so the gaps grow.
    return sorted({round(steps * (index / (count - 1)) ** 2) for index in range(count)})


def _train_and_score(output: Path, steps: Sequence[int], seed: int) -> list[Checkpoint]:
    """Score each checkpoint while training goes on.

    The first score that fails ends it, once training is through; what is written stays.
    """
    from prh_eval.demo.report import Checkpoint
    from prh_eval.demo.scoring import TASK, score

    # Training leaves a core idle, and half of the time goes into starting lm-eval.
    pool = ThreadPoolExecutor(min(AT_ONCE, _cores()))
    try:
        trained = []
        for step, loss in _train(output, steps, seed):
            model, results = _at(output, MODELS, step), _at(output, RESULTS, step)
            trained.append((step, loss, pool.submit(score, model, results, output / CACHE)))
        print(f"Scoring {len(steps)} checkpoints with lm_eval --tasks {TASK}", flush=True)
        checkpoints = []
        for step, loss, pending in trained:
            checkpoints.append(Checkpoint(step, loss, pending.result()))
            print(f"  after {step} steps: mnn {pending.result().mnn:.3f}", flush=True)
        return checkpoints
    finally:
        pool.shutdown(cancel_futures=True)


def _train(output: Path, checkpoints: Sequence[int], seed: int) -> Iterator[tuple[int, float]]:
    """Train; at each checkpoint save the model and yield its loss on held-out sentences."""
    import torch
    from tqdm import tqdm
    from transformers.utils import logging

    from prh_eval.demo.training import build_model, build_tokenizer, mean_loss, train
    from prh_eval.demo.world import coloured_world

    logging.disable_progress_bar()  # it would show one for each saved model
    # So small a model gains little by a second thread, and where the cores are busy two threads
    # that wait for each other take many times as long.
    torch.set_num_threads(1)
    world = coloured_world()
    tokenizer = build_tokenizer(world)
    model = build_model(tokenizer, seed)
    # Training draws with the seed itself; this is never the same one.
    other = torch.Generator().manual_seed(LARGEST_SEED - seed)
    held_out = world.sentences(HELD_OUT_SENTENCES, other)
    print(
        f"Training a GPT-NeoX of {model.num_parameters():,} parameters on sentences such as "
        f"{held_out[0]!r}",
        flush=True,
    )
    steps = checkpoints[-1]
    with tqdm(total=steps, desc="training", unit="step") as bar:
        for step in train(model, tokenizer, world, steps=steps, seed=seed):
            bar.update(step - bar.n)
            if step in checkpoints:
                with torch.no_grad():
                    loss = mean_loss(model, tokenizer, held_out).item()
                bar.set_postfix(loss=f"{loss:.3f}")
                target = _at(output, MODELS, step)
                model.save_pretrained(target)
                tokenizer.save_pretrained(target)
                yield step, loss


def _at(output: Path, kind: str, step: int) -> Path:
    return output / kind / f"step-{step:05d}"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number in a range."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least or (most is not None and value > most):
            upper = "or more" if most is None else f"to {most}"
            raise argparse.ArgumentTypeError(f"{value} is not {least} {upper}")
        return value

    return parse
