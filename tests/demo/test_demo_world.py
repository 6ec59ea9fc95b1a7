"""The coloured world draws what its definition says, by SciPy and by brute force."""

from __future__ import annotations

import csv
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import prh_eval
from prh_eval.demo.world import ColouredWorld, coloured_world, partner_probabilities

CSV = Path(prh_eval.__file__).parent / "data" / "xkcd_colors.csv"


@pytest.fixture(scope="module")
def world() -> ColouredWorld:
    return coloured_world()


def brute_force(lab: list[list[float]]) -> list[list[float]]:
    rows = []
    for i, a in enumerate(lab):
        weights = [
            0.0 if i == j else math.exp(-((math.dist(a, b) / 8) ** 2) / 2)
            for j, b in enumerate(lab)
        ]
        rows.append([weight / sum(weights) for weight in weights])
    return rows


coordinate = st.floats(-20, 20, allow_nan=False, width=32)


@given(st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=2, max_size=12))
@settings(deadline=None, max_examples=50)
def test_partners_follow_the_softmax_of_closeness(points: list[tuple[float, float, float]]) -> None:
    found = partner_probabilities(torch.tensor(points, dtype=torch.float64))
    expected = torch.tensor(brute_force([list(point) for point in points]), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_colour_far_from_all_others_still_has_partners() -> None:
    lab = torch.tensor([[0.0, 0, 0], [100.0, 0, 0], [100.0, 300.0, 300.0]], dtype=torch.float64)
    found = partner_probabilities(lab)
    assert torch.isfinite(found).all()
    assert found[2, 1] == pytest.approx(1.0)


def test_it_knows_the_colours_of_the_survey(world: ColouredWorld) -> None:
    with CSV.open(encoding="utf-8", newline="") as file:
        assert list(world.names) == [row["name"] for row in csv.DictReader(file)]
    assert world.partners.shape == (949, 949)
    likeliest = world.partners[world.names.index("light grey")].argmax()
    assert world.names[likeliest] == "silver"


def test_sentences_are_drawn_with_these_frequencies() -> None:
    lab = torch.tensor([[50.0, 0, 0], [55.0, 0, 0], [50.0, 9, 0], [60.0, 9, 9]]).double()
    names = ("red", "dark red", "rust", "robin's egg/blue")
    partners = partner_probabilities(lab)
    drawn = 20_000
    sentences = ColouredWorld(names, partners).sentences(drawn, torch.Generator().manual_seed(0))
    counts = Counter(sentences)
    possible = [f"{a} looks like {b} ." for a in names for b in names if a != b]
    assert set(counts) <= set(possible)
    expected = [
        drawn / 4 * probability
        for i, row in enumerate(brute_force(lab.tolist()))
        for j, probability in enumerate(row)
        if i != j
    ]
    observed = [counts[sentence] for sentence in possible]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_first_colours_of_the_whole_world_are_uniform(world: ColouredWorld) -> None:
    sentences = world.sentences(30_000, torch.Generator().manual_seed(1))
    counts = Counter(sentence.split(" looks like ")[0] for sentence in sentences)
    assert stats.chisquare([counts[name] for name in world.names]).pvalue > 1e-3


def test_a_seed_decides_the_sentences(world: ColouredWorld) -> None:
    draw = [world.sentences(50, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert draw[0] == draw[1] != draw[2]
