"""Captions to batches of token ids: each distinct sequence once, longest first, padded right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prh_eval.errors import PrhEvalError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizedCaptions:
    """The distinct token sequences of n captions.

    Attributes:
        sequences: Token ids, longest first; equal lengths in order of first appearance.
        index: int64, shape (n,): the sequence of each caption.
        truncated: Positions of the captions that were cut, rising.
    """

    sequences: list[tuple[int, ...]]
    index: Tensor
    truncated: list[int]


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    captions: Sequence[str],
    *,
    limit: int | None,
    rows: int,
    add_special_tokens: bool | None,
) -> TokenizedCaptions:
    """Tokenise captions, cut them on the right, and find the distinct ones.

    Args:
        tokenizer: Fast or slow; left as it was found.
        captions: n texts, n >= 1.
        limit: Largest number of tokens, special tokens included; ``None`` for no limit.
        rows: Number of token ids that the model knows.
        add_special_tokens: ``None`` for the tokenizer's own default.

    Raises:
        PrhEvalError: If there is no caption, if one has no token, if a token id is not among the
            model's, or if ``limit`` leaves no room beside the special tokens.
    """
    if not captions:
        raise PrhEvalError("there is no caption to run the language model on: at least 1 is needed")
    special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}

    def encode(texts: list[str], **options: bool | int) -> list[list[int]]:
        # verbose=False: the tokenizer's own remark on length names neither caption nor count.
        encoded = tokenizer(texts, return_attention_mask=False, verbose=False, **special, **options)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    ids = encode(list(captions))
    long = [i for i, tokens in enumerate(ids) if limit is not None and len(tokens) > limit]
    if long and limit is not None:
        if limit <= len(encode([""])[0]):
            raise PrhEvalError(
                f"max_length = {limit} leaves no room for a caption beside the special tokens: "
                f"at least {len(encode([''])[0]) + 1} is needed"
            )
        side = tokenizer.truncation_side
        tokenizer.truncation_side = "right"
        try:
            cut = encode([captions[i] for i in long], truncation=True, max_length=limit)
        finally:
            tokenizer.truncation_side = side
        for i, tokens in zip(long, cut, strict=True):
            ids[i] = tokens

    places: dict[tuple[int, ...], list[int]] = {}
    for i, tokens in enumerate(ids):
        if not tokens:
            raise PrhEvalError(
                f"caption {i} ({captions[i][:40]!r}) has no token: each caption needs at least 1"
            )
        if max(tokens) >= rows:
            raise PrhEvalError(
                f"caption {i} ({captions[i][:40]!r}) has token id {max(tokens)} where the model "
                f"knows 0 to {rows - 1}: use the model's own tokenizer"
            )
        places.setdefault(tuple(tokens), []).append(i)
    sequences = sorted(places, key=len, reverse=True)
    index = torch.empty(len(ids), dtype=torch.int64)
    for number, sequence in enumerate(sequences):
        index[places[sequence]] = number
    return TokenizedCaptions(sequences, index, long)


@dataclass(frozen=True)
class Plan:
    """Which process runs which sequences, and where their rows end up.

    Batch b holds the sequences ``b * batch_size`` and on; process r runs the batches r,
    r + world_size, r + 2 * world_size and so on, and keeps their rows one after the other. All
    processes' rows are then concatenated.

    Attributes:
        count: Number of sequences, at least 1.
        batch_size: Sequences a batch, at least 1; the last batch may be smaller.
        world_size: Number of processes.
    """

    count: int
    batch_size: int
    world_size: int

    @property
    def _batches(self) -> int:
        return -(-self.count // self.batch_size)

    @property
    def rows(self) -> int:
        """Rows that every process keeps, the same for all; some may stay unused."""
        return min(self.count, -(-self._batches // self.world_size) * self.batch_size)

    def share(self, rank: int) -> list[range]:
        """The batches of one process, as ranges of sequences.

        A process without a batch of its own repeats the last one, whose rows nobody reads: it must
        know the layers' widths to take part in the gathering.
        """
        own = range(rank, self._batches, self.world_size) or range(self._batches)[-1:]
        size = self.batch_size
        return [range(b * size, min((b + 1) * size, self.count)) for b in own]

    def positions(self) -> Tensor:
        """int64, shape (count,): each sequence's row among all processes' concatenated rows."""
        sequence = torch.arange(self.count)
        batch = sequence // self.batch_size
        process, turn = batch % self.world_size, batch // self.world_size
        return process * self.rows + turn * self.batch_size + sequence % self.batch_size


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids padded on the right, and the mask of real tokens.

    Positions counted from the left are then those of the caption alone, whatever the model.

    Args:
        sequences: b lists of token ids, none empty.
        pad_id: Any id that the model knows.
        device: Where the result lies.

    Returns:
        Two int64 tensors of shape (b, longest): the ids, and 1 at real tokens, 0 at padding.
    """
    longest = max(map(len, sequences))
    ids = [[*tokens, *[pad_id] * (longest - len(tokens))] for tokens in sequences]
    mask = [[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
