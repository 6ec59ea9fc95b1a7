"""What a contributor is told before a board refuses anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_results import alignment, alignment_record, model_result, result, write

from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.assemble import assemble
from prh_eval.leaderboard.config import read_board
from prh_eval.leaderboard.contribution import Report, find_board, validate
from prh_eval.leaderboard.results import read_results

NEW = "org/new-1b"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A board's folder, with three models on it and a card for one more."""
    for number in range(3):
        write(tmp_path / "results", model_result(f"org/m{number}", 0.1, 0.5, 0.1))
    configure(tmp_path)
    return tmp_path


def configure(home: Path, **changes: Any) -> Path:
    names = ["org/m0", "org/m1", "org/m2", NEW]
    config: dict[str, Any] = {
        "references": [
            {
                "task": "prh_align",
                "version": "1",
                "captions": "a" * 64,
                "k": 10,
                "protocol": "paper",
                "pooling": "mean",
            }
        ],
        "tasks": [
            {"task": "hellaswag", "metric": "acc_norm", "num_fewshot": 10, "version": "1"},
            {"task": "gsm8k", "metric": "exact_match,strict-match", "label": "GSM8K"},
        ],
        "models": [{"name": name, "family": "F"} for name in names],
    }
    file = home / "board.yaml"
    file.write_text(yaml.safe_dump(config | changes), encoding="utf-8")
    return file


def contribute(home: Path, content: dict[str, Any], **place: str) -> Report:
    """What is said of one more file among the board's results."""
    path = write(home / "results", content, **place)
    return validate(path.parent, home / "board.yaml")


def on_board(home: Path) -> set[str]:
    config = read_board(home / "board.yaml")
    return {row.model for row in assemble(read_results(home / "results"), config).rows}


# ---------------------------------------------------------------- what is taken


def test_a_good_contribution(home: Path) -> None:
    report = contribute(home, model_result(NEW, 0.1234, 0.5678, 0.0912))
    assert report.refused == report.warnings == []
    assert report.added == [
        "org/new-1b (bfloat16): prh_align 0.1234 ± 0.0050; "
        "hellaswag 0.5678 ± 0.0045 (10-shot); GSM8K 0.0912 ± 0.0100 (5-shot)"
    ]


def test_a_folder_that_is_not_among_the_boards(home: Path) -> None:
    path = write(home / "elsewhere", model_result(NEW, 0.1234))
    report = validate(path.parent, home / "board.yaml")
    assert report.refused == []
    assert len(report.added) == 1 and "0.1234" in report.added[0]


def test_all_of_the_boards_results(home: Path) -> None:
    report = validate(home / "results", home / "board.yaml")
    assert report.refused == report.warnings == []
    assert [line.split()[0] for line in report.added] == ["org/m0", "org/m1", "org/m2"]


def test_a_task_for_a_model_that_is_on_the_board(home: Path) -> None:
    content = result("org/m1", {"hellaswag": {"acc_norm,none": 0.7}}, shots={"hellaswag": 10})
    report = contribute(home, content, stamp="2026-02-02T00-00-00.0")
    # The folder also has the model's earlier file.
    assert report.refused == []
    elsewhere = write(home / "elsewhere", content, stamp="2026-03-03T00-00-00.0")
    report = validate(elsewhere.parent, home / "board.yaml")
    assert report.refused == []
    assert "hellaswag 0.7000 (10-shot), replacing 0.7000" in report.added[0]


def test_a_control_needs_no_family(home: Path) -> None:
    configure(home, models=[{"name": NEW, "control": "untrained weights"}])
    assert contribute(home, model_result(NEW, 0.1)).refused == []


# ---------------------------------------------------------------- what is refused

OTHER = {
    "k": alignment_record([[0.1]], k=20),
    "protocol": alignment_record([[0.1]], protocol="none"),
    "pooling": alignment_record([[0.1]], pooling="last"),
    "data fingerprint": alignment_record([[0.1]], pairs={"fingerprint": "b" * 64}),
}


@pytest.mark.parametrize("what", OTHER)
def test_another_setup(what: str, home: Path) -> None:
    content = result(NEW, {"prh_align": alignment(0.1)}, records={"prh_align": OTHER[what]})
    (sentence,) = contribute(home, content).refused
    assert f"{NEW} on prh_align: its {what} is" in sentence
    assert "results_2026" in sentence and "where the board's is" in sentence
    assert NEW not in on_board(home)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"limit": 10}, "with limit 10"),
        (
            {"shots": {"hellaswag": 5}},
            "hellaswag: its few-shot count is 5, where the board's is 10",
        ),
        ({"versions": {"hellaswag": 2.0}}, "hellaswag: its task version is 2, where the board's"),
        ({"versions": {"prh_align": 2.0}}, "prh_align: its task version is 2, where the board's"),
        ({"records": {}}, "prh_align: the result file has no whole record"),
        ({"chat_template_sha": "x"}, "hellaswag: it was run with a chat template"),
    ],
)
def test_another_run(changes: dict[str, Any], expected: str, home: Path) -> None:
    report = contribute(home, model_result(NEW, 0.1, 0.5, **changes))
    (sentence,) = report.refused
    assert expected in sentence and "results_2026" in sentence
    assert report.warnings == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [(float("nan"), "no finite number"), (1.5, "in 0..1"), (-0.1, "in 0..1")],
)
def test_impossible_values(value: float, expected: str, home: Path) -> None:
    (sentence,) = contribute(home, model_result(NEW, 0.1, value, 0.1)).refused[:1]
    assert "results_2026" in sentence and "hellaswag acc" in sentence and expected in sentence


@pytest.mark.parametrize("text", ['{"results": {', "[1]", '{"results": {"x": {}}}', "{}"])
def test_a_file_that_is_no_result(text: str, home: Path) -> None:
    path = home / "results" / "x" / "results_2026-01-01T00-00-00.0.json"
    path.parent.mkdir()
    path.write_text(text)
    (sentence,) = validate(path.parent, home / "board.yaml").refused
    assert sentence.startswith(f"{path}: it ")


def test_no_card(home: Path) -> None:
    configure(home, models=[])
    (sentence,) = contribute(home, model_result(NEW, 0.1)).refused
    assert f"{NEW} has no card in {home / 'board.yaml'}" in sentence


def test_a_card_without_family(home: Path) -> None:
    configure(home, models=[{"name": NEW}])
    (sentence,) = contribute(home, model_result(NEW, 0.1)).refused
    assert f"the card of {NEW} in {home / 'board.yaml'} should state its family" in sentence


def test_no_alignment_score(home: Path) -> None:
    content = result(NEW, {"hellaswag": {"acc_norm,none": 0.5}}, shots={"hellaswag": 10})
    (sentence,) = contribute(home, content).refused
    assert f"{NEW} has no alignment score; run lm_eval with --tasks prh_align" in sentence


def test_a_model_that_the_boards_filters_leave_out(home: Path) -> None:
    configure(home, filters={"exclude": ["org/new*"]})
    (sentence,) = contribute(home, model_result(NEW, 0.1)).refused
    assert "filters.exclude" in sentence


def test_everything_is_said_in_one_run(home: Path) -> None:
    configure(home, models=[])
    folder = home / "results" / "many"
    write(folder, model_result("org/a", 0.1, limit=5))
    write(folder, model_result("org/b", 0.1, 0.5, shots={"hellaswag": 3}))
    write(folder, model_result("org/c", 7.0))
    (folder / "results_cut.json").write_text("{")
    report = validate(folder, home / "board.yaml")
    text = "\n".join(report.refused)
    for expected in ("limit 5", "few-shot count is 3", "mnn,none is 7.0", "results_cut.json"):
        assert expected in text
    assert text.count("has no card") == 3


# ---------------------------------------------------------------- what should be known


def test_a_score_that_a_newer_run_supersedes(home: Path) -> None:
    write(home / "results" / "new", model_result(NEW, 0.3), stamp="2026-05-05T00-00-00.0")
    write(home / "results" / "old", model_result(NEW, 0.2), stamp="2026-01-01T00-00-00.0")
    report = validate(home / "results" / "old", home / "board.yaml")
    assert report.refused == report.added == []
    (warning,) = report.warnings
    assert f"the score of {NEW} on prh_align does not count, for that of" in warning
    assert "2026-05-05" in warning


def test_a_path_of_a_machine(home: Path) -> None:
    configure(home, models=[{"name": "own", "family": "F"}])
    report = contribute(home, model_result("/home/me/own", 0.1))
    assert report.refused == []
    (warning,) = report.warnings
    assert "/home/me/own" in warning and "leaderboard pack" in warning
    assert report.added == ["own (bfloat16): prh_align 0.1000 ± 0.0050"]


def test_runs_in_two_dtypes_are_kept_apart(home: Path) -> None:
    write(home / "results", model_result(NEW, 0.1), stamp="2026-01-01T00-00-00.0")
    report = contribute(home, model_result(NEW, 0.2, dtype="torch.float16"))
    assert report.refused == []
    assert any("dtype bfloat16 and float16" in warning for warning in report.warnings)
    assert len(report.added) == 2


def test_what_is_to_say_of_other_models_is_not_said(home: Path) -> None:
    stamp = "2026-05-05T00-00-00.0"
    write(home / "results", model_result("org/m0", 0.2, dtype="torch.float16"), stamp=stamp)
    write(home / "results", model_result("org/m1", 0.2, limit=3), stamp=stamp)
    report = contribute(home, model_result(NEW, 0.1))
    assert report.refused == report.warnings == []


def test_a_file_of_other_tasks(home: Path) -> None:
    write(home / "results" / "x", model_result(NEW, 0.1))
    content = result(NEW, {"arc": {"acc,none": 0.5}})
    path = write(home / "results" / "x", content, stamp="2026-05-05T00-00-00.0")
    report = validate(home / "results" / "x", home / "board.yaml")
    assert report.refused == []
    (warning,) = report.warnings
    assert warning.startswith(str(path)) and "prh_align, hellaswag, gsm8k" in warning


# ---------------------------------------------------------------- which board


def test_the_nearest_board_is_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home / "results" / "x" / "y"
    folder.mkdir(parents=True)
    assert find_board(folder).resolve() == home / "board.yaml"
    (home / "results" / "board.yaml").touch()
    assert find_board(folder).resolve() == home / "results" / "board.yaml"
    monkeypatch.chdir(home / "results")
    assert find_board(Path("x")) == Path("board.yaml")


def test_else_that_of_the_folder_leaderboard(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path_factory.mktemp("away")
    monkeypatch.chdir(away)
    with pytest.raises(PrhEvalError, match=r"no board\.yaml .* --board"):
        find_board(away)
    (away / "leaderboard").mkdir()
    (away / "leaderboard" / "board.yaml").touch()
    assert find_board(away) == Path("leaderboard/board.yaml")


def test_nothing_to_look_at(home: Path) -> None:
    (home / "empty").mkdir()
    with pytest.raises(PrhEvalError, match="empty holds no result file"):
        validate(home / "empty", home / "board.yaml")
    with pytest.raises(PrhEvalError, match="is no folder"):
        validate(home / "nowhere", home / "board.yaml")
    (home / "empty" / "other.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(PrhEvalError, match="holds no result file"):
        validate(home / "empty", home / "board.yaml")
