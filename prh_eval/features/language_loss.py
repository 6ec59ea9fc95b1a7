"""How improbable captions are to a causal language model, without logits of all their tokens."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from prh_eval.alignment.heap import KEPT_BYTES
from prh_eval.features.ahead import to_device
from prh_eval.features.batching import Tokens
from prh_eval.features.language_pooling import widest

# Bytes of float32 logits at a time: no more than a CPU's product, or a GPU's, needs to be fast; and
# on a CPU what is kept from one to the next.
_CPU_LOGITS = KEPT_BYTES
_GPU_LOGITS = 2**29


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens that a model reads, and those that it is asked for on the way.

    Attributes:
        tokens: What it reads, at least one.
        targets: The tokens whose probabilities are wanted, one after the other.
        first: Position of the token that the first target comes after.
    """

    tokens: Tokens
    targets: Sequence[int] = ()
    first: int = 0


@dataclass
class ScoringPlan:
    """In which runs the tokens of captions are scored.

    Every token of a caption is scored once, given what stands before it; before the first one
    stands a prefix. A caption that is longer than the context is scored in windows, each as far
    to the left as it goes, as lm-eval's ``loglikelihood_rolling`` does it.

    Attributes:
        sequences: One run for each sequence that is read for the features, with what can be
            scored on the way: a caption whose sequence begins with the prefix.
        windows: All other runs, longest first, each once.
        pairs: A caption and one of its runs each; windows are counted on after the sequences.
    """

    sequences: list[Run]
    windows: list[Run] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)

    def total(self, nats: Tensor, captions: int) -> Tensor:
        """Nats of each caption, float64, from those of the sequences and then the windows."""
        caption, run = torch.tensor(self.pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
        total = torch.zeros(captions, dtype=torch.float64)
        return total.index_add_(0, caption, nats.double()[run])


def plan_scoring(
    texts: Sequence[Tokens],
    prefix: int,
    sequences: Sequence[Tokens],
    index: Sequence[int],
    limit: int | None,
) -> ScoringPlan:
    """Find where each caption can be scored.

    Args:
        texts: The tokens of n captions without special tokens and uncut, maybe none.
        prefix: The token before the first.
        sequences: What is read for the features.
        index: The sequence of each caption.
        limit: The model's context; ``None`` for no limit.
    """
    targets: dict[int, Tokens] = {}
    windows: dict[tuple[bytes, bytes], tuple[Run, list[int]]] = {}
    pairs = []
    for caption, text in enumerate(texts):
        whole, number = array("i", [prefix, *text]), index[caption]
        if sequences[number][: len(whole)] == whole:
            targets[number] = text
            pairs.append((caption, number))
            continue
        step = limit or max(1, len(text))
        for start in range(0, len(text), step):
            stop = min(start + step, len(text))
            first = max(0, stop - step)
            tokens, wanted = whole[first:stop], text[start:stop]
            # Targets end a window, so that their number says where they begin.
            key = tokens.tobytes(), wanted.tobytes()
            run = Run(tokens, wanted, start - first)
            windows.setdefault(key, (run, []))[1].append(caption)
    ordered = sorted(windows.values(), key=lambda window: len(window[0].tokens), reverse=True)
    for number, (_, captions) in enumerate(ordered, start=len(sequences)):
        pairs += [(caption, number) for caption in captions]
    runs = [Run(tokens, targets.get(number, ())) for number, tokens in enumerate(sequences)]
    return ScoringPlan(runs, [run for run, _ in ordered], pairs)


def nats(
    head: Callable[[Tensor], Tensor], vocabulary: int, hidden: Tensor, runs: Sequence[Run]
) -> Tensor:
    """Minus the log-probability of each run's targets, summed.

    Args:
        head: From last hidden states, shape (tokens, dim), to logits, shape (tokens, vocabulary).
        vocabulary: How many logits a token has.
        hidden: Last hidden states of the runs, shape (b, tokens, dim), padded on the right.
        runs: b of them.

    Returns:
        float32, shape (b,), on the device of ``hidden``: log-softmax in float32, summed in float64.
    """
    width = hidden.shape[1]
    places = [
        (row * width + run.first + offset, target)
        for row, run in enumerate(runs)
        for offset, target in enumerate(run.targets)
    ]
    device = hidden.device
    states = hidden.flatten(0, 1)
    lost = torch.zeros(len(states), dtype=torch.float32, device=device)
    size = _CPU_LOGITS if device.type == "cpu" else _GPU_LOGITS
    wanted = to_device(torch.tensor(places, dtype=torch.int64).reshape(-1, 2), device)
    # Of even sizes, as few rows are slow.
    chunks = math.ceil(4 * vocabulary * len(places) / size)
    for chunk in torch.tensor_split(wanted, chunks) if places else ():
        position, target = chunk.unbind(1)
        logits = head(states[position])
        # A model that is spread over devices may have its head on another one.
        each = functional.cross_entropy(logits.float(), target.to(logits.device), reduction="none")
        lost[position] = each.to(device)
    return lost.reshape(-1, width).sum(dim=1, dtype=widest(device)).to(torch.float32)
