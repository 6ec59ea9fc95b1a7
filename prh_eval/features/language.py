"""Pooled hidden states of a Hugging Face language model, one vector a caption and layer."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.features.batching import Plan, pad, tokenize
from prh_eval.features.language_body import body, context_length, embedding_rows, input_device
from prh_eval.features.parts import Parts, resumed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pooling = Literal["mean", "last"]
POOLINGS = ("mean", "last")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LanguageFeatures:
    """What a language model makes of n captions.

    Attributes:
        layers: One float32 tensor on the CPU for each of the model's own hidden states, shape
            (n, dim_l): the embedding output, then every block's, the last after the final norm.
            (State space models such as Mamba leave the embedding output out.)
        truncated: Positions of the captions that were cut to the context, rising.
        batch_size: The batch size that was used.
    """

    layers: list[Tensor]
    truncated: list[int]
    batch_size: int


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
    device: torch.device | None = None,
    autocast_dtype: torch.dtype | None = None,
    rank: int = 0,
    world_size: int = 1,
    all_gather: Callable[[Tensor], Tensor] | None = None,
    progress: bool = True,
    parts: Parts | None = None,
) -> LanguageFeatures:
    """Run a language model over captions and pool every hidden state over each caption's tokens.

    The mean over tokens of every hidden state is the reading of Huh et al. 2024 (arXiv 2405.07987).
    Captions of equal token ids are run once and get equal bits. The vocabulary head is not run.

    Args:
        model: As for `body`. Put in evaluation mode for the run, then back.
        tokenizer: The model's own, fast or slow.
        captions: n texts.
        pooling: Mean over a caption's tokens, special tokens included, or its last token.
        batch_size: Captions a batch, or "auto": the largest that fits the longest captions, tried
            downwards from ``max_batch_size``, the smallest over all processes.
        max_batch_size: Where "auto" starts.
        max_length: Largest number of tokens; ``None`` for the model's own limit. The tokenizer's
            limit holds in any case. Longer captions are cut on the right, with one warning.
        add_special_tokens: ``None`` for the tokenizer's own default.
        device: Where ``all_gather`` communicates; ``None`` for the model's input device.
        autocast_dtype: Run the model under `torch.autocast` to this type.
        rank: This process's number, 0 <= rank < world_size.
        world_size: Number of processes. Each is given all captions, runs its share of the batches
            and returns all features, bit for bit those of one process with the same batches.
        all_gather: Concatenates equal-shaped tensors of all processes along the first dimension;
            needed where ``world_size`` > 1.
        progress: Show a progress bar, in process 0.
        parts: Where batches are kept once they are run, in one process only; those that are there
            are read instead, whatever their size.

    Returns:
        The features of all n captions, in their order.

    Raises:
        PrhEvalError: If the model gives no hidden states, an adapter would be dropped, a caption
            has no token, token ids and model disagree, the pooling is unknown, or one caption
            alone does not fit in memory under "auto".
        ValueError: If a batch size is below 1, ``all_gather`` is missing, or ``parts`` are given to
            several processes.
    """
    if pooling not in POOLINGS:
        raise PrhEvalError(f"pooling {pooling!r} is unknown: {suggestion(pooling, POOLINGS)}")
    if (max_batch_size if batch_size == "auto" else batch_size) < 1:
        raise ValueError(f"batch size {batch_size} (at most {max_batch_size}) is below 1")
    if world_size > 1 and all_gather is None:
        raise ValueError(f"all_gather is needed for {world_size} processes")
    if world_size > 1 and parts is not None:
        raise ValueError(f"parts are for one process, not {world_size}")

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

    pad_id = tokenizer.pad_token_id
    run = functools.partial(
        _pooled_batch,
        part,
        # Padding is masked; its id need only be one that the model can embed.
        pad_id=pad_id if pad_id is not None and 0 <= pad_id < rows else 0,
        pooling=pooling,
        autocast_dtype=autocast_dtype,
    )
    device = input_device(part) if device is None else device
    with _evaluating(model):
        if batch_size == "auto":
            batch_size = _fitting_batch_size(run, tokens.sequences, max_batch_size)
            if all_gather is not None:
                batch_size = int(all_gather(torch.tensor([batch_size], device=device)).min())
        plan = Plan(len(tokens.sequences), batch_size, world_size)
        batches = plan.share(rank)
        pieces: Iterable[list[Tensor]]
        if parts is None:
            pieces = (run([tokens.sequences[i] for i in batch]) for batch in batches)
        else:
            pieces = resumed(run, tokens.sequences, batch_size, parts)
        kept: list[Tensor] = []
        filled = 0
        with tqdm(
            total=sum(map(len, batches)),
            desc="Language features",
            unit="caption",
            disable=not progress or rank != 0,
        ) as bar:
            for pooled in pieces:
                if not kept:
                    kept = [torch.zeros(plan.rows, layer.shape[1]) for layer in pooled]
                stop = filled + len(pooled[0])
                for rows_of_layer, layer in zip(kept, pooled, strict=True):
                    rows_of_layer[filled:stop] = layer
                bar.update(stop - filled)
                filled = stop

    row = plan.positions()[tokens.index]
    layers = []
    while kept:
        # One layer at a time, each given up once it is copied, to hold the features once.
        layer = kept.pop(0)
        if all_gather is not None:
            layer = all_gather(layer.to(device)).cpu()
        layers.append(layer[row])
    return LanguageFeatures(layers, tokens.truncated, batch_size)


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector a caption from the hidden states of its real tokens.

    Args:
        hidden: Shape (b, tokens, dim), any floating type.
        mask: Shape (b, tokens), same device: 1 at real tokens, 0 at the padding on the right.
        pooling: "mean" (summed in float64, so that bags of equal tokens have equal means; in
            float32 on devices without it) or "last".

    Returns:
        float32, shape (b, dim).
    """
    count = mask.sum(dim=1)
    if pooling == "last":
        item = torch.arange(len(hidden), device=hidden.device)
        return hidden[item, count - 1].to(torch.float32)
    # Not a product with the mask: padding may hold NaN.
    real = torch.where(mask.bool().unsqueeze(-1), hidden, 0)
    total = real.sum(dim=1, dtype=_widest(hidden.device))
    return (total / count.unsqueeze(-1)).to(torch.float32)


@functools.cache
def _widest(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has none (Apple's and some of Intel's)."""
    try:
        torch.ones(1, dtype=torch.float64, device=device).sum()
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64


@torch.inference_mode()
def _pooled_batch(
    part: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    *,
    pad_id: int,
    pooling: Pooling,
    autocast_dtype: torch.dtype | None,
) -> list[Tensor]:
    """One batch through the model: float32 on the CPU, (b, dim_l) a layer."""
    device = input_device(part)
    ids, mask = pad(sequences, pad_id, device)
    accepted = inspect.signature(part.forward).parameters
    options: dict[str, Any] = {"output_hidden_states": True}
    if "use_cache" in accepted:
        options["use_cache"] = False
    if "attention_mask" in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        options["attention_mask"] = mask
    with torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None):
        states = getattr(part(input_ids=ids, **options), "hidden_states", None)
    if states is None:
        raise PrhEvalError(
            f"a model of class {type(part).__name__} gives no hidden states: one whose forward "
            "honours output_hidden_states is needed"
        )
    for number, hidden in enumerate(states):
        if hidden.shape[:2] != ids.shape:
            raise PrhEvalError(
                f"hidden state {number} of {type(part).__name__} has shape {tuple(hidden.shape)}: "
                f"one vector for each of {tuple(ids.shape)} (captions, tokens) is needed"
            )
    # A model that is spread over devices leaves its hidden states where they were made.
    return [pool(hidden, mask.to(hidden.device), pooling).cpu() for hidden in states]


def _fitting_batch_size(
    run: Callable[[Sequence[Sequence[int]]], list[Tensor]],
    sequences: Sequence[Sequence[int]],
    max_batch_size: int,
) -> int:
    """The largest batch of the longest sequences, up to max_batch_size, that fits in memory."""
    from accelerate.utils import find_executable_batch_size
    from accelerate.utils.memory import should_reduce_batch_size

    def attempt(batch_size: int) -> int:
        try:
            run(sequences[:batch_size])
        except RuntimeError as error:
            if batch_size == 1 and should_reduce_batch_size(error):
                raise PrhEvalError(
                    f"the longest caption ({len(sequences[0])} tokens) does not fit in memory by "
                    "itself: set a smaller max_length, or a device with more memory"
                ) from error
            raise
        return batch_size

    start = min(max_batch_size, len(sequences))
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
