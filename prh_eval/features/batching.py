"""Captions to batches of token ids: each distinct sequence once, longest first, padded right."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from prh_eval.errors import PrhEvalError
from prh_eval.features.ahead import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Four bytes a token; a tuple of integers takes 40, for all captions a tenth of small features.
Tokens: TypeAlias = "array[int]"

# So many times more of the shortest sequences than of the longest, since each has pooled rows.
_MORE = 16
# Texts that are tokenised at once: what tokenizers make on the way takes far more than the ids.
_TEXTS = 64


@dataclass(frozen=True)
class TokenizedCaptions:
    """The distinct token sequences of n captions.

    Attributes:
        sequences: Token ids, longest first; equal lengths in order of first appearance.
        index: int64, shape (n,): the sequence of each caption.
        truncated: Positions of the captions that were cut, rising.
    """

    sequences: list[Tokens]
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

    encode = functools.partial(token_ids, tokenizer, add_special_tokens)
    ids = encode(captions)
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

    numbers: dict[bytes, int] = {}
    distinct: list[Tokens] = []
    found: list[int] = []
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
        found.append(numbers.setdefault(tokens.tobytes(), len(distinct)))
        if found[-1] == len(distinct):
            distinct.append(tokens)
    longest_first = sorted(range(len(distinct)), key=lambda one: len(distinct[one]), reverse=True)
    place = torch.empty(len(distinct), dtype=torch.int64)
    place[longest_first] = torch.arange(len(distinct))
    return TokenizedCaptions([distinct[one] for one in longest_first], place[found], long)


def contents(tokenizer: PreTrainedTokenizerBase, captions: Sequence[str]) -> list[tuple[int, ...]]:
    """The tokens of captions, whole and without special tokens; a caption may have none."""
    return list(map(tuple, token_ids(tokenizer, False, captions)))


def token_ids(
    tokenizer: PreTrainedTokenizerBase,
    add_special_tokens: bool | None,
    texts: Sequence[str],
    **options: Any,
) -> list[Tokens]:
    """The token ids of each text, some texts at a time.

    Args:
        tokenizer: Fast or slow.
        add_special_tokens: ``None`` for the tokenizer's own default.
        texts: Any number of them.
        options: Further ones of the tokenizer.
    """
    if add_special_tokens is not None:
        options["add_special_tokens"] = add_special_tokens
    ids: list[Tokens] = []
    for start in range(0, len(texts), _TEXTS):
        some = list(texts[start : start + _TEXTS])
        # verbose=False: the tokenizer's own remark on length names neither caption nor count.
        encoded = tokenizer(some, return_attention_mask=False, verbose=False, **options)
        ids += [array("i", tokens) for tokens in encoded["input_ids"]]
    return ids


@dataclass(frozen=True)
class Plan:
    """Which sequences are run together, by which process, and where their rows end up.

    A batch has no more tokens, padding included, than ``batch_size`` of the longest sequences, so
    that of shorter ones it has more. Processes take the batches in turn, and keep their rows one
    after the other. All processes' rows are then concatenated.

    Attributes:
        lengths: Tokens of each sequence, falling; at least one.
        batch_size: Sequences a batch where they are the longest, at least 1.
        world_size: Number of processes.
    """

    lengths: Sequence[int]
    batch_size: int
    world_size: int = 1

    def stop(self, start: int) -> int:
        """The end of the batch that begins with a sequence."""
        fitting = self.batch_size * self.lengths[0] // self.lengths[start]
        return min(start + min(fitting, _MORE * self.batch_size), len(self.lengths))

    @cached_property
    def batches(self) -> list[range]:
        """All batches in their order, as ranges of sequences."""
        found, start = [], 0
        while start < len(self.lengths):
            found.append(range(start, self.stop(start)))
            start = found[-1].stop
        return found

    def share(self, rank: int) -> list[range]:
        """The batches of one process.

        A process without a batch of its own repeats the last one, whose rows nobody reads: it must
        know the layers' widths to take part in the gathering.
        """
        return self.batches[rank :: self.world_size] or self.batches[-1:]

    @cached_property
    def rows(self) -> int:
        """Rows that every process keeps, the same for all; some may stay unused."""
        return max(sum(map(len, self.share(rank))) for rank in range(self.world_size))

    def positions(self) -> Tensor:
        """int64, one a sequence: its row among all processes' concatenated rows."""
        places = torch.empty(len(self.lengths), dtype=torch.int64)
        filled = [rank * self.rows for rank in range(self.world_size)]
        for number, batch in enumerate(self.batches):
            rank = number % self.world_size
            places[batch.start : batch.stop] = torch.arange(len(batch)) + filled[rank]
            filled[rank] += len(batch)
        return places


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
    moved = to_device(torch.tensor([ids, mask]), device)
    return moved[0], moved[1]
