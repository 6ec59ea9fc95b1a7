"""What the demo prints: a table of checkpoints, and what was seen in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from prh_eval.demo.scoring import Score

# A change counts from so many standard errors of the difference on: about the 5 % level.
SIGNIFICANT = 2.0


@dataclass(frozen=True)
class Checkpoint:
    """A model during training.

    Attributes:
        steps: Training steps done.
        loss: Nats a token on fresh sentences.
        score: Its alignment.
    """

    steps: int
    loss: float
    score: Score


def table(checkpoints: Sequence[Checkpoint]) -> str:
    """One row a checkpoint: steps, loss, alignment with its standard error, chance, best layer."""
    rows = [
        (
            point.steps,
            f"{point.loss:.3f}",
            f"{point.score.mnn:.3f} ± {point.score.stderr:.3f}",
            f"{point.score.chance:.3f}",
            point.score.layer,
        )
        for point in checkpoints
    ]
    headers = ("steps", "loss", "mnn", "chance", "layer")
    return tabulate(rows, headers=headers, disable_numparse=True, stralign="right")


def seen(checkpoints: Sequence[Checkpoint]) -> str:
    """One or two sentences on the first and the last checkpoint, said of their numbers only.

    The two scores' errors are taken as independent. They share their items, so that the error of
    the difference is rather smaller.

    Args:
        checkpoints: At least two, in the order of training.
    """
    first, last = checkpoints[0], checkpoints[-1]
    change = last.score.mnn - first.score.mnn
    error = math.hypot(first.score.stderr, last.score.stderr)
    loss = "fell" if last.loss < first.loss else "did not fall"
    texts = f"the loss {loss} (from {first.loss:.3f} to {last.loss:.3f})"
    values = f"from {_value(first.score)} to {_value(last.score)}"
    if abs(change) <= SIGNIFICANT * error:
        moved = (
            f"alignment did not change by more than {SIGNIFICANT:.0f} standard errors ({values})"
        )
    else:
        moved = f"alignment {'rose' if change > 0 else 'fell'} {values}"
    above = last.score.mnn - last.score.chance > SIGNIFICANT * last.score.stderr
    chance = (
        f"{last.score.mnn / last.score.chance:.0f} times the chance level"
        if above
        else "not above the chance level"
    )
    return (
        f"Over {last.steps - first.steps} training steps {texts} and {moved}. "
        f"The last checkpoint's alignment with human colour perception is {chance} of "
        f"{last.score.chance:.3f}."
    )


def _value(score: Score) -> str:
    return f"{score.mnn:.3f} ± {score.stderr:.3f}"
