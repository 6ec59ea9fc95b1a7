"""Pooled hidden states of a Hugging Face language model, one vector a caption and layer."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from prh_eval.alignment.heap import keep_freed_memory
from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.features.ahead import overlapped
from prh_eval.features.batching import Plan, token_ids, tokenize
from prh_eval.features.language_body import body, context_length, embedding_rows, input_device
from prh_eval.features.language_loss import Run, ScoringPlan, plan_scoring
from prh_eval.features.language_pooling import POOLINGS, Pooling
from prh_eval.features.language_reader import Reader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LanguageFeatures", "Pooling", "language_features"]

_log = logging.getLogger(__name__)

# Columns that are put in order at a time: those of one line of a processor's cache.
_COLUMNS = 16


@dataclass(frozen=True)
class LanguageFeatures:
    """What a language model makes of n captions.

    Attributes:
        layers: One float32 tensor on the CPU for each of the model's own hidden states, shape
            (n, dim_l): the embedding output, then every block's, the last after the final norm.
            (State space models such as Mamba leave the embedding output out.)
        truncated: Positions of the captions that were cut to the context, rising.
        batch_size: The batch size that was used.
        nats: float64, shape (n,): minus the natural logarithm of each caption's probability, the
            caption uncut; ``None`` where no prefix was given.
    """

    layers: list[Tensor]
    truncated: list[int]
    batch_size: int
    nats: Tensor | None = None


def language_features(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    captions: Sequence[str],
    *,
    pooling: Pooling = "mean",
    batch_size: int | Literal["auto"] = 1,
    max_batch_size: int = 64,
    max_length: int | None = None,
    add_special_tokens: bool | None = None,
    prefix: int | None = None,
    device: torch.device | None = None,
    autocast_dtype: torch.dtype | None = None,
    rank: int = 0,
    world_size: int = 1,
    all_gather: Callable[[Tensor], Tensor] | None = None,
    progress: bool = True,
) -> LanguageFeatures:
    """Run a language model over captions and pool every hidden state over each caption's tokens.

    The mean over tokens of every hidden state is the reading of Huh et al. 2024 (arXiv 2405.07987).
    Captions of equal token ids are run once and get equal bits. Hidden states are pooled as the
    model makes them, so that no stack of them exists; where a model passes them in no place that
    can be watched, they are stacked. The vocabulary head is run only where a prefix is given, and
    on real tokens only.

    Args:
        model: As for `body`. Put in evaluation mode for the run, then back.
        tokenizer: The model's own, fast or slow.
        captions: n texts.
        pooling: Mean over a caption's tokens, special tokens included, or its last token.
        batch_size: Captions a batch where they are the longest; of shorter ones as many more as
            have no more tokens, padding included. Or "auto": the largest that fits the longest
            captions, tried downwards from ``max_batch_size``, the smallest over all processes.
        max_batch_size: Where "auto" starts.
        max_length: Largest number of tokens; ``None`` for the model's own limit. The tokenizer's
            limit holds in any case. Longer captions are cut on the right, with one warning.
        add_special_tokens: ``None`` for the tokenizer's own default.
        prefix: A token to put before each caption, after which the model is asked how probable the
            caption is: all its tokens, without special ones, in windows where they are more than
            the context holds. Captions that the tokenizer begins with this token are asked about
            in the pass that makes the features, others in a second pass. ``None`` not to ask.
        device: Where ``all_gather`` communicates; ``None`` for the model's input device.
        autocast_dtype: Run the model under `torch.autocast` to this type.
        rank: This process's number, 0 <= rank < world_size.
        world_size: Number of processes. Each is given all captions, runs its share of the batches
            and returns all features, bit for bit those of one process with the same batches.
        all_gather: Concatenates equal-shaped tensors of all processes along the first dimension;
            needed where ``world_size`` > 1.
        progress: Show a progress bar, in process 0.

    Returns:
        The features of all n captions, in their order.

    Raises:
        PrhEvalError: If the model gives no hidden states, an adapter would be dropped, a caption
            has no token, token ids and model disagree, the pooling is unknown, one caption alone
            does not fit in memory under "auto", or a prefix is given and the model is not causal,
            has no vocabulary head or does not know the prefix.
        ValueError: If a batch size is below 1 or ``all_gather`` is missing.
    """
    if pooling not in POOLINGS:
        raise PrhEvalError(f"pooling {pooling!r} is unknown: {suggestion(pooling, POOLINGS)}")
    if (max_batch_size if batch_size == "auto" else batch_size) < 1:
        raise ValueError(f"batch size {batch_size} (at most {max_batch_size}) is below 1")
    if world_size > 1 and all_gather is None:
        raise ValueError(f"all_gather is needed for {world_size} processes")

    part = body(model)
    rows = embedding_rows(part)
    limit = context_length(part, tokenizer, max_length)
    tokens = tokenize(
        tokenizer, captions, limit=limit, rows=rows, add_special_tokens=add_special_tokens
    )
    if tokens.truncated and rank == 0:
        _log.warning(
            "%d of %d captions are longer than %d tokens and were cut on the right",
            len(tokens.truncated),
            len(captions),
            limit,
        )
    scoring = ScoringPlan([Run(sequence) for sequence in tokens.sequences])
    if prefix is not None:
        if not 0 <= prefix < rows:
            raise PrhEvalError(f"the prefix {prefix} is no token of the model, 0 to {rows - 1}")
        texts = token_ids(tokenizer, False, captions)
        scoring = plan_scoring(texts, prefix, tokens.sequences, tokens.index.tolist(), limit)

    pad_id = tokenizer.pad_token_id
    reader = Reader(
        part,
        # Padding is masked; its id need only be one that the model can embed.
        pad_id=pad_id if pad_id is not None and 0 <= pad_id < rows else 0,
        pooling=pooling,
        autocast_dtype=autocast_dtype,
        example=[Run(tokens.sequences[0][:8]), Run(tokens.sequences[-1][:5])],
    )
    device = input_device(part) if device is None else device

    def gathered(rows_of_layer: Tensor) -> Tensor:
        if all_gather is None:
            return rows_of_layer
        return all_gather(rows_of_layer.to(device)).cpu()

    keep_freed_memory()
    with _evaluating(model):
        if prefix is not None:
            reader.ask(model, tokens.sequences[0])
        if batch_size == "auto":
            batch_size = _fitting_batch_size(reader.features, scoring.sequences, max_batch_size)
            if all_gather is not None:
                batch_size = int(all_gather(torch.tensor([batch_size], device=device)).min())
        own_rows = functools.partial(
            _own_rows,
            device=reader.device,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            progress=progress,
        )
        # Room to put them in order without a second array.
        room = len(captions) if world_size == 1 else 0
        kept, place = own_rows(reader.features, scoring.sequences, "Language features", room=room)
        probabilities = []
        if prefix is not None:
            probabilities.append(gathered(kept.pop())[place])
        if scoring.windows:
            asked, where = own_rows(reader.nats, scoring.windows, "Caption probabilities")
            probabilities.append(gathered(asked.pop())[where])

    row = place[tokens.index]
    layers = []
    while kept:
        # One layer at a time, each given up once it is copied, to hold the features once.
        layers.append(_in_order(gathered(kept.pop(0)), row))
    total = None
    if prefix is not None:
        total = scoring.total(torch.cat(probabilities).squeeze(1), len(captions))
    return LanguageFeatures(layers, tokens.truncated, batch_size, total)


def _own_rows(
    read: Callable[[Sequence[Run]], list[Tensor]],
    runs: Sequence[Run],
    what: str,
    *,
    device: torch.device,
    batch_size: int,
    rank: int,
    world_size: int,
    progress: bool,
    room: int = 0,
) -> tuple[list[Tensor], Tensor]:
    """This process's rows of every layer, and where each run's row is once all are gathered.

    A layer has room for at least so many rows.
    """
    plan = Plan([len(run.tokens) for run in runs], batch_size, world_size)
    kept: list[Tensor] = []
    filled = 0

    batches = plan.share(rank)
    with tqdm(
        total=sum(map(len, batches)),
        desc=what,
        unit="caption",
        disable=not progress or rank != 0,
    ) as bar:
        for layers in overlapped(_batch(read, runs), batches, device):
            if not kept:
                kept = [torch.zeros(max(plan.rows, room), layer.shape[1]) for layer in layers]
            stop = filled + len(layers[0])
            for rows_of_layer, layer in zip(kept, layers, strict=True):
                rows_of_layer[filled:stop] = layer
            # They would be held beside the next batch's.
            del layers, layer
            bar.update(stop - filled)
            filled = stop
    return kept, plan.positions()


def _in_order(rows: Tensor, order: Tensor) -> Tensor:
    """Rows in an order, some of them maybe several times; in their own memory where they fit."""
    if len(order) > len(rows):
        return rows[order]
    for columns in torch.split(rows, _COLUMNS, dim=1):
        columns[: len(order)] = columns[order]
    return rows[: len(order)]


def _batch(
    read: Callable[[Sequence[Run]], list[Tensor]], runs: Sequence[Run]
) -> Callable[[range], list[Tensor]]:
    return lambda batch: read(runs[batch.start : batch.stop])


def _fitting_batch_size(
    read: Callable[[Sequence[Run]], list[Tensor]],
    runs: Sequence[Run],
    max_batch_size: int,
) -> int:
    """The largest batch of the longest runs, up to max_batch_size, that fits in memory."""
    from accelerate.utils import find_executable_batch_size
    from accelerate.utils.memory import should_reduce_batch_size

    def attempt(batch_size: int) -> int:
        try:
            read(runs[:batch_size])
        except RuntimeError as error:
            if batch_size == 1 and should_reduce_batch_size(error):
                raise PrhEvalError(
                    f"the longest caption ({len(runs[0].tokens)} tokens) does not fit in memory by "
                    "itself: set a smaller max_length, or a device with more memory"
                ) from error
            raise
        return batch_size

    start = min(max_batch_size, len(runs))
    fitting: int = find_executable_batch_size(attempt, starting_batch_size=start)()
    return fitting


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
