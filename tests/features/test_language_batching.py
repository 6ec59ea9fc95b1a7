"""Which process runs which sequences, where their rows end up, and right padding."""

from __future__ import annotations

import tracemalloc
from typing import Any, cast

import pytest
import torch
from features.language_zoo import WORDS, word_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from prh_eval.features import batching
from prh_eval.features.batching import Plan, contents, pad, tokenize

LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=80).map(
    lambda lengths: sorted(lengths, reverse=True)
)


@given(lengths=LENGTHS, batch_size=st.integers(1, 70), world_size=st.integers(1, 9))
def test_every_sequence_is_found_again(
    lengths: list[int], batch_size: int, world_size: int
) -> None:
    plan = Plan(lengths, batch_size, world_size)
    rows, runs = [], [0] * len(lengths)
    for rank in range(world_size):
        share = plan.share(rank)
        assert share
        kept = [i for batch in share for i in batch]
        assert len(kept) <= plan.rows
        rows += kept + [-1] * (plan.rows - len(kept))
        for i in kept:
            runs[i] += 1
    assert [rows[position] for position in plan.positions()] == list(range(len(lengths)))
    # Once each, but for the last batch where a process would have nothing to do.
    idle = max(0, world_size - len(plan.batches))
    last = plan.batches[-1]
    assert runs == [1] * last.start + [1 + idle] * len(last)


@given(lengths=LENGTHS, batch_size=st.integers(1, 20))
def test_batches_are_as_large_as_the_tokens_allow(lengths: list[int], batch_size: int) -> None:
    batches = Plan(lengths, batch_size).batches
    budget, most = batch_size * lengths[0], 16 * batch_size
    assert [i for batch in batches for i in batch] == list(range(len(lengths)))
    for batch in batches:
        width = lengths[batch.start]
        assert len(batch) * width <= budget
        assert len(batch) <= most
        full = (len(batch) + 1) * width > budget or len(batch) == most
        assert full or batch.stop == len(lengths)


def test_short_sequences_are_no_more_than_sixteen_times_as_many() -> None:
    # Their pooled rows would outgrow the tokens' states.
    batches = Plan([100, *[1] * 50], 1).batches
    assert list(map(len, batches)) == [1, 16, 16, 16, 2]


@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9), min_size=1),
    at_once=st.integers(1, 7),
    special=st.booleans(),
)
def test_captions_that_are_tokenized_in_parts_have_the_same_tokens(
    texts: list[list[str]], at_once: int, special: bool
) -> None:
    tokenizer, captions = word_tokenizer(special=special), [" ".join(words) for words in texts]
    whole = tokenizer(captions)["input_ids"]
    plain = [tuple(ids) for ids in word_tokenizer()(captions)["input_ids"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "_TEXTS", at_once)
        found = tokenize(tokenizer, captions, limit=None, rows=99, add_special_tokens=None)
        assert contents(tokenizer, captions) == plain
    assert [list(found.sequences[i]) for i in found.index.tolist()] == whole


def test_distinct_sequences_are_in_order_of_first_appearance() -> None:
    # The order of the batches, and so the last bits of features, depend on it.
    captions = ["b c", "a", "d a b", "a c", "a", "b  c", "c"]
    found = tokenize(word_tokenizer(), captions, limit=None, rows=99, add_special_tokens=None)
    wanted = ["d a b", "b c", "a c", "a", "c"]
    assert list(map(list, found.sequences)) == word_tokenizer()(wanted)["input_ids"]
    assert found.index.tolist() == [1, 3, 0, 2, 3, 1, 4]


def test_a_token_takes_four_bytes() -> None:
    # No small integers, which Python keeps anyway.
    texts = [list(range(1000 + i, 1400 + i)) for i in range(50)]

    def tokenizer(some: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[token + 0 for token in texts[int(text)]] for text in some]}

    names: Any = list(map(str, range(50)))
    tracemalloc.start()
    try:
        kept = tokenize(cast(Any, tokenizer), names, limit=None, rows=9999, add_special_tokens=None)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert sum(map(len, kept.sequences)) == 50 * 400
    assert held < 5 * 50 * 400


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5))
def test_padding_is_on_the_right_and_masked(sequences: list[list[int]]) -> None:
    ids, mask = pad(sequences, 7, torch.device("cpu"))
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.shape == mask.shape == (len(sequences), max(map(len, sequences)))
    for row, real, tokens in zip(ids.tolist(), mask.tolist(), sequences, strict=True):
        assert row[: len(tokens)] == tokens
        assert set(row[len(tokens) :]) <= {7}
        assert real == [1] * len(tokens) + [0] * (len(row) - len(tokens))
