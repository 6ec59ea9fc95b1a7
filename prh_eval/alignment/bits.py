"""How many of many words have each bit set: words added digit by digit, all bits at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

# Bits of a word.
WORD = 64
# What fields of so many bits are read as.
_TYPES = {8: torch.uint8, 16: torch.int16, 32: torch.int32}
# Integers of so many bits.
_WORDS = {8: torch.int8, 16: torch.int16, 32: torch.int32, WORD: torch.int64}
# Words that are added up to one number of each bit: as many as a field of 4 bits holds.
_GROUP = 15


def bit_counts(words: Tensor) -> Tensor:
    """How many of the words have each bit set.

    Args:
        words: int64 or shorter integers, shape (..., m, r); overwritten.

    Returns:
        int64, shape (bits of a word, ..., r): of the m words in each column, how many have bit 0,
        1, and so on.
    """
    columns, size = words.shape[-1], 8 * words.itemsize
    # Short words are counted side by side, as one of 64 bits.
    words = torch.nn.functional.pad(words, (0, -columns % (WORD // size))).view(torch.int64)
    counter = BitCounter(max(1, -(-words.shape[-2] // _GROUP)))
    counter.add(words)
    counts = torch.unflatten(counter.counts(), 0, (WORD // size, size))
    return counts.movedim(0, -1).flatten(-2)[..., :columns]


def shortest_word(bits: int) -> torch.dtype:
    """The shortest integers that have so many bits, at most 64."""
    return next(dtype for size, dtype in _WORDS.items() if bits <= size)


class BitCounter:
    """Counts how many words have each bit set, of words that need not come all at once.

    The counts of all bits of a word are added up together, their binary digits being words too:
    digit d of the count of bit b is bit b of word d. Adding two words to a digit takes five
    operations on words and leaves one that carries to the next digit (a full adder for every bit).

    Args:
        height: Rows of words that are not added to each other until the end, which makes the
            operations few and large.
    """

    def __init__(self, height: int) -> None:
        self._height = height
        self._digits: list[Tensor] = []
        self._added = 0

    def add(self, words: Tensor) -> None:
        """Count some more words.

        Args:
            words: int64, shape (..., m, r), with another m at every call; overwritten.
        """
        *rest, last = torch.split(words, self._height, dim=-2)
        # Words without bits make the last as high as the others.
        rest.append(torch.nn.functional.pad(last, (0, 0, 0, self._height - last.shape[-2])))
        self._added += len(rest)
        # No more digits than the counts can have: what would carry beyond them is 0.
        for place in range(self._added.bit_length()):
            if not rest:
                break
            if place == len(self._digits):
                self._digits.append(rest.pop(0).clone())
            rest = _carried(self._digits[place], rest)

    def counts(self) -> Tensor:
        """The counts, over each column: int64, shape (64, ..., r).

        At least one word has to have come. The digits are put side by side, in fields of as many
        bits, which are then read as numbers.
        """
        numbers = [digit[None] for digit in self._digits]
        if len(numbers) in (16, 32):
            # The largest bit of a field would be read as a sign.
            numbers.append(torch.zeros_like(numbers[0]))
        width = 1
        while len(numbers) > 1 or width not in _TYPES:
            alone = len(numbers) == 1
            pairs = zip_longest(numbers[::2], numbers[1::2])
            numbers = [_side_by_side(low, high, width) for low, high in pairs]
            if alone:
                # Full fields of w bits add up to a full one of 2w.
                numbers = [_sums(numbers[0], 2**width + 1)]
            width *= 2
        fields = torch.unflatten(numbers[0].view(_TYPES[width]), -1, (-1, WORD // width))
        # Lanes are in the order of the bits of a field.
        counts = fields.sum(dim=-3, dtype=torch.int64)
        return counts.movedim(-1, 0).flatten(0, 1)


def _carried(digit: Tensor, words: Sequence[Tensor]) -> list[Tensor]:
    """Add words to a digit; what carries to the next takes the place of every second word."""
    carries = list(words[::2])
    differ = torch.empty_like(digit)
    for word, other in zip_longest(carries, words[1::2]):
        digit ^= word
        # Where the digit is set now, it and the word differed, and the other decides what carries.
        if other is None:
            word &= torch.bitwise_not(digit, out=differ)
            continue
        torch.bitwise_xor(word, other, out=differ)
        differ &= digit
        word ^= differ
        digit ^= other
    return carries


def _side_by_side(low: Tensor, high: Tensor | None, width: int) -> Tensor:
    """Numbers in fields of w bits and any of 2^w times their worth, in fields of 2w bits.

    Both (lanes, ..., m, r); the lanes of the upper halves of fields follow those of the lower.
    """
    # Of every field of 2w bits the lower w.
    lower = sum(((1 << width) - 1) << start for start in range(0, WORD, 2 * width))
    odd = low >> width
    odd &= lower
    even = low & lower
    if high is not None:
        even |= (high & lower) << width
        odd |= high & ~lower
    return torch.cat([even, odd])


def _sums(lanes: Tensor, group: int) -> Tensor:
    """Sums (..., sums, r) of (..., m, r), each of ``group`` of the m at most."""
    m, r = lanes.shape[-2:]
    whole = m // group
    result = lanes.new_empty(*lanes.shape[:-2], -(-m // group), r)
    grouped = lanes[..., : whole * group, :].view(*lanes.shape[:-2], group, whole, r)
    torch.sum(grouped, dim=-3, out=result[..., :whole, :])
    if whole * group < m:
        torch.sum(lanes[..., whole * group :, :], dim=-2, out=result[..., whole, :])
    return result
