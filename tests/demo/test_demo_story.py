"""What the demo says is true of the numbers it says it of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prh_eval.cli import parse
from prh_eval.demo.ladder import LARGE, Model
from prh_eval.demo.story import about, board_config, pages, seen, table
from prh_eval.leaderboard.associations import associations
from prh_eval.leaderboard.board import Board, BoardColumn, Cell, Row
from prh_eval.leaderboard.config import BoardConfig

KEYS = ("prh_align_color", "prh_color_choice")


def board(scores: Sequence[tuple[str, float, float]]) -> Board:
    """As much of a board as is told of: family, alignment, accuracy; the first is a control too."""
    rows = [
        Row.model_construct(
            name=f"Model {number}",
            model=f"models/m{number}",
            family=family,
            parameters=1e4,
            training_tokens=1e5,
            kind="base",
            cells={
                key: Cell(value=value, stderr=0.0125, tier=1, date="", file="results.json")
                for key, value in zip(KEYS, values, strict=True)
            },
        )
        for number, (family, *values) in enumerate(scores)
    ]
    columns = [
        BoardColumn.model_construct(key=key, kind=kind)
        for key, kind in zip(KEYS, ("alignment", "task"), strict=True)
    ]
    return Board.model_construct(
        rows=tuple(rows),
        controls=(rows[0].model_copy(update={"name": "Untrained"}),),
        associations=associations(columns, rows, KEYS),
    )


def model(number: int, steps: int = 3) -> Model:
    return Model(
        name=f"m{number}",
        title=f"Model {number}",
        family="GPT-2",
        size=LARGE,
        steps=steps,
        tokens=96 * steps,
        parameters=12345,
        loss=number + 0.25,
    )


share = st.integers(0, 1000).map(lambda value: value / 1000)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), share, share), min_size=3, max_size=24),
)
@settings(max_examples=12)
def test_it_says_the_correlation_and_no_more_than_the_test_shows(
    scores: list[tuple[str, float, float]],
) -> None:
    made = board(scores)
    said = seen(made)
    families = len({family for family, _, _ in scores})
    assert said.startswith(f"Among {len(scores)} models of {families} famil")
    x, y = [a for _, a, _ in scores], [b for _, _, b in scores]
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert "have no correlation" in said and "shown" not in said
        return
    (value,) = re.findall(r"correlate with Spearman (-?\d\.\d\d) ", said)
    assert float(value) == pytest.approx(stats.spearmanr(x, y).statistic, abs=0.005 + 1e-9)
    p = made.associations[0].p
    assert (p is None) == (families < 6 or "not testable" in said)
    assert ("an association is shown" in said) == (p is not None and p < 0.05)
    assert ("no association is shown" in said) == (p is not None and p >= 0.05)


def test_the_sentences() -> None:
    rising = [(family, i / 10, i / 20) for i, family in enumerate("abcdefgh")]
    assert seen(board(rising)).replace("\u00a0", " ") == (
        "Among 8 models of 8 families, alignment and accuracy correlate with Spearman 1.00 (95 % "
        "over families 1.00 to 1.00). The test over families gives p = 0.008 (only 8 families: "
        "rough): an association is shown at the 5 % level."
    )
    few = seen(board(rising[:3])).replace("\u00a0", " ")
    assert few.startswith("Among 3 models of 3 families, alignment and accuracy correlate with")
    assert few.endswith(
        "Whether that is more than chance is not testable: 3 of the at least 6 families needed."
    )
    constant = [(family, 0.5, i / 20) for i, family in enumerate("abcdefgh")]
    assert "have no correlation: " in seen(board(constant))


def test_the_table_has_a_row_for_each_model() -> None:
    made = board([("a", 0.0853, 0.25), ("b", 0.28, 0.9)])
    lines = table(made, [model(0), model(1)]).replace("\u00a0", " ").splitlines()
    assert lines[0].split() == ["model", "loss", "mnn", "acc"]
    assert [re.split(r"  +", line.strip()) for line in lines[2:]] == [
        ["Model 0", "0.250", "0.085 ± 0.013", "0.250 ± 0.013"],
        ["Model 1", "1.250", "0.280 ± 0.013", "0.900 ± 0.013"],
        ["Untrained", "0.250", "0.085 ± 0.013", "0.250 ± 0.013"],
    ]


def test_where_the_board_is_and_how_to_get_figures() -> None:
    place = Path("a folder")
    said = pages(place, figures=True)
    assert "a folder/leaderboard/README.md and a folder/leaderboard/leaderboard.html" in said
    without = pages(place, figures=False)
    assert without.startswith(said + "\n") and "matplotlib" in without
    words = shlex.split(without.rpartition("drawn by: ")[2])
    assert words[0] == "prh-eval"
    arguments = parse(words[1:])
    assert arguments.results == place / "leaderboard" / "results"
    assert arguments.output == place / "leaderboard"


def test_the_config_has_a_card_for_every_model_and_says_what_they_are() -> None:
    content = board_config([model(0, steps=0), model(1)], {"seed": 4, "steps": 9, "families": 2})
    config = BoardConfig.model_validate(yaml.safe_load(yaml.safe_dump(content)))
    untrained, trained = config.models
    assert (untrained.name, untrained.title) == ("models/m0", "Model 0")
    assert (untrained.control, untrained.training_tokens) == ("untrained weights", None)
    assert (trained.control, trained.training_tokens) == (None, 288)
    assert (trained.family, trained.parameters, trained.kind) == ("GPT-2", 12345, "base")
    assert config.primary is not None
    assert (config.primary.reference, config.primary.task) == KEYS
    assert config.tasks[0].chance == 0.25
    assert config.about == about({"seed": 4, "steps": 9, "families": 2})
    for part in ("`prh-eval demo --seed 4 --steps 9 --families 2`", "None of them is a published"):
        assert part in config.about
