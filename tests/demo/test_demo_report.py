"""What the demo says is true of the numbers it says it of."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from prh_eval.demo.report import Checkpoint, seen, table
from prh_eval.demo.scoring import Score

share = st.integers(0, 1000).map(lambda value: value / 1000)
error = st.integers(0, 200).map(lambda value: value / 1000)


def checkpoint(steps: int, mnn: float, stderr: float = 0.005, loss: float = 1.0) -> Checkpoint:
    return Checkpoint(steps, loss, Score(mnn, stderr, chance=10 / 948, layer=1))


@given(share, error, share, error)
def test_it_says_rose_or_fell_only_beyond_two_standard_errors(
    before: float, before_error: float, after: float, after_error: float
) -> None:
    said = seen([checkpoint(0, before, before_error), checkpoint(600, after, after_error)])
    error = math.sqrt(before_error**2 + after_error**2)
    if abs(after - before) > 2 * error * (1 + 1e-9):
        assert ("alignment rose" in said) == (after > before)
        assert ("alignment fell" in said) == (after < before)
    elif abs(after - before) < 2 * error * (1 - 1e-9):
        assert "alignment did not change by more than 2 standard errors" in said
        assert "alignment rose" not in said and "alignment fell" not in said
    assert f"from {before:.3f} ± {before_error:.3f} to {after:.3f} ± {after_error:.3f}" in said


def test_it_compares_with_chance_and_tells_of_the_loss() -> None:
    good = seen([checkpoint(0, 0.09, loss=6.1), checkpoint(600, 0.28, loss=0.9)])
    assert "600 training steps" in good
    assert "the loss fell (from 6.100 to 0.900)" in good
    assert "27 times the chance level of 0.011" in good
    bad = seen([checkpoint(0, 0.012, loss=1.0), checkpoint(5, 0.011, loss=2.0)])
    assert "the loss did not fall" in bad
    assert "not above the chance level of 0.011" in bad


def test_the_table_has_a_row_for_each_checkpoint() -> None:
    lines = table([checkpoint(0, 0.0853, 0.0041, 6.15), checkpoint(600, 0.28, 0.009, 0.8)])
    head, _, first, last = (line.split() for line in lines.splitlines())
    assert head == ["steps", "loss", "mnn", "chance", "layer"]
    assert first == ["0", "6.150", "0.085", "±", "0.004", "0.011", "1"]
    assert last == ["600", "0.800", "0.280", "±", "0.009", "0.011", "1"]
