"""The board in the repository is what its inputs give, and the README says what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from prh_eval.cli import main
from prh_eval.demo.story import seen
from prh_eval.leaderboard.pages.formats import coefficient
from prh_eval.leaderboard.pages.tabular import read_json

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "leaderboard"


def test_it_is_what_its_inputs_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    status = main(["leaderboard", "leaderboard/results", "--output", "leaderboard", "--check"])
    assert status == 0, capsys.readouterr().out


def test_nothing_of_it_would_be_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["leaderboard", "validate", "leaderboard/results"]) == 0
    assert "Would be refused" not in capsys.readouterr().out


def test_the_readme_says_what_it_shows() -> None:
    board = read_json((BOARD / "leaderboard.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert seen(board).replace("\u00a0", " ") in readme
    found = board.associations[0]
    spearman = coefficient(found.spearman.value)
    ends = [coefficient(end) for end in (found.over_families.low, found.over_families.high)]
    alt = f"Spearman {spearman}, 95 % interval over families {ends[0]} to {ends[1]}."
    assert alt in readme
    assert f"{found.models} tiny language models of {found.families} families" in readme
    untrained = board.controls[0].cells["prh_align_color"].value
    words = board.columns[0].alignment
    assert words is not None and words.shared_words is not None
    assert f"the demo's scores {untrained:.3f}" in readme
    assert f"the words alone {words.shared_words:.3f}" in readme
