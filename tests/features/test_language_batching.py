"""Which process runs which sequences, where their rows end up, and right padding."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from prh_eval.features.batching import Plan, pad


@given(count=st.integers(1, 60), batch_size=st.integers(1, 70), world_size=st.integers(1, 9))
def test_every_sequence_is_found_again(count: int, batch_size: int, world_size: int) -> None:
    plan = Plan(count, batch_size, world_size)
    rows, runs = [], [0] * count
    for rank in range(world_size):
        share = plan.share(rank)
        assert share
        kept = [i for batch in share for i in batch]
        assert all(len(batch) <= batch_size for batch in share)
        assert len(kept) <= plan.rows
        rows += kept + [-1] * (plan.rows - len(kept))
        for i in kept:
            runs[i] += 1
    assert [rows[position] for position in plan.positions()] == list(range(count))
    # Once each, but for the last batch where a process would have nothing to do.
    batches = -(-count // batch_size)
    idle = max(0, world_size - batches)
    first_of_last = (batches - 1) * batch_size
    assert runs == [1] * first_of_last + [1 + idle] * (count - first_of_last)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5))
def test_padding_is_on_the_right_and_masked(sequences: list[list[int]]) -> None:
    ids, mask = pad(sequences, 7, torch.device("cpu"))
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.shape == mask.shape == (len(sequences), max(map(len, sequences)))
    for row, real, tokens in zip(ids.tolist(), mask.tolist(), sequences, strict=True):
        assert row[: len(tokens)] == tokens
        assert set(row[len(tokens) :]) <= {7}
        assert real == [1] * len(tokens) + [0] * (len(row) - len(tokens))
