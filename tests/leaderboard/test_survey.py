"""The statistics on 148 real models of 47 families: the right answers, and the right error rate."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from prh_eval.leaderboard.associations import associations
from prh_eval.leaderboard.board import BoardColumn, Cell, Row
from prh_eval.leaderboard.correlation import family_numbers
from prh_eval.leaderboard.inference import family_sign_flip_test

SURVEY = pd.read_csv(Path(__file__).parent / "data" / "survey.csv")
# 10^9 parameters as a stand-in for a score: what is known of these models is their size.
SCORES = {"size": "billion_parameters", "hellaswag": "hellaswag", "gsm8k": "gsm8k"}


@pytest.fixture(scope="module")
def found():
    columns = [
        BoardColumn(
            key=key,
            label=key,
            kind="alignment" if key == "size" else "task",
            task=key,
            metric="acc",
            filter="none",
            n_shot=None,
            version="1",
            higher_is_better=True,
            chance=None,
            models=len(SURVEY),
            alignment=None,
        )
        for key in SCORES
    ]
    rows = [
        Row(
            name=record["model"],
            model=record["model"],
            revision="main",
            dtype=None,
            adapter=None,
            commit=None,
            backend="hf",
            family=record["family"],
            parameters=record["billion_parameters"] * 1e9,
            training_tokens=None,
            release_date=None,
            kind="base",
            licence=None,
            link=None,
            notes=None,
            control=None,
            cells={
                key: Cell(value=record[name], stderr=None, tier=None, date="", file="")
                for key, name in SCORES.items()
                if not math.isnan(record[name])
            },
            reproduce=(),
        )
        for record in SURVEY.to_dict("records")
    ]
    return associations(columns, rows, ("size", "hellaswag"))


def test_hellaswag_against_parameters(found):
    primary, other = found
    assert (primary.primary, primary.models, primary.families) == (True, 148, 47)
    for association, task in ((primary, "hellaswag"), (other, "gsm8k")):
        both = SURVEY[["billion_parameters", task]]
        for method, ours in (
            ("spearman", association.spearman),
            ("kendall", association.kendall_b),
            ("pearson", association.pearson),
        ):
            assert ours.value == pytest.approx(both.corr(method=method).iloc[0, 1], abs=1e-6)
    assert round(primary.spearman.value, 2) == 0.83
    assert primary.over_families.low < 0.83 < primary.over_families.high
    # Families share what makes them good: models as if they were independent look surer.
    narrow = primary.over_models.high - primary.over_models.low
    assert narrow < primary.over_families.high - primary.over_families.low
    assert primary.p < 0.001 and not primary.p_exact
    assert primary.given_parameters.note == "the covariates determine the ranks of one side"
    assert primary.within_families.n == (SURVEY.groupby("family").size().loc[lambda n: n > 1]).sum()
    assert primary.base_only == primary.spearman


def test_leaving_families_out(found):
    without = {
        family: SURVEY[SURVEY["family"] != family][["billion_parameters", "hellaswag"]]
        .corr(method="spearman")
        .iloc[0, 1]
        for family in SURVEY["family"].unique()
    }
    left = found[0].leave_one_family_out
    assert left.low == pytest.approx(min(without.values()), abs=1e-6)
    assert left.high == pytest.approx(max(without.values()), abs=1e-6)
    whole = found[0].spearman.value
    assert left.most_influential == max(without, key=lambda name: abs(without[name] - whole))


def test_error_rate_on_these_families():
    """No link, and families alike on both sides (intra-class correlation 0.6)."""
    families = list(SURVEY["family"])
    names, of_model = family_numbers(families, len(families))
    rng = np.random.default_rng(0)

    def column():
        of_family = rng.standard_normal(len(names))[of_model]
        return math.sqrt(0.6) * of_family + math.sqrt(0.4) * rng.standard_normal(len(families))

    cases = [(column(), column()) for _ in range(600)]
    ours = [family_sign_flip_test(x, y, families, draws=1000).p <= 0.05 for x, y in cases]
    naive = [stats.spearmanr(x, y).pvalue <= 0.05 for x, y in cases]
    assert np.mean(ours) <= 0.07
    assert 0.15 <= np.mean(naive) <= 0.25
