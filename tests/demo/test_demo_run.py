"""``prh-eval demo`` as a person runs it: its options, its folder, its failures, one real run."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prh_eval
from prh_eval import demo
from prh_eval.demo import scoring
from prh_eval.errors import PrhEvalError

SETTINGS = {"steps": 2, "checkpoints": 2, "seed": 0}


def write_result(results: Path, stamp: str, **values: object) -> Path:
    """A result file where and as lm-eval writes one."""
    file = results / "models__step-00000" / f"results_{stamp}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = {"mnn": 0.25, "mnn_stderr": 0.01, "mnn_chance": 0.0105, "mnn_layer": 2, **values}
    scores = {"alias": scoring.TASK, **{f"{name},none": value for name, value in whole.items()}}
    file.write_text(json.dumps({"results": {scoring.TASK: scores}}))
    return file


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(arguments)


# ------------------------------------------------------------------ options


def test_the_defaults() -> None:
    assert vars(parse()) == {
        "output": Path("prh_eval_demo"),
        "steps": 600,
        "checkpoints": 4,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--steps", "0"), "0 is not 1 or more"),
        (("--checkpoints", "1"), "1 is not 2 or more"),
        (("--seed", "-1"), "-1 is not 0 to 4294967295"),
        (("--seed", str(2**32)), "is not 0 to 4294967295"),
        (("--steps", "many"), "'many' is not a whole number"),
    ],
)
def test_wrong_numbers_are_refused(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(*arguments)
    assert says in capsys.readouterr().err


@given(st.integers(1, 10_000), st.integers(2, 50))
def test_checkpoints_start_untrained_and_end_with_the_last_step(steps: int, count: int) -> None:
    found = demo.checkpoint_steps(steps, count)
    assert found[0] == 0 and found[-1] == steps
    assert found == sorted(set(found))
    assert len(found) <= count


def test_checkpoints_are_denser_at_the_start() -> None:
    assert demo.checkpoint_steps(600, 4) == [0, 67, 267, 600]


# ------------------------------------------------------------------ the folder


def test_a_new_an_empty_and_a_demos_own_folder_are_taken(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "demo"
    demo.prepare(output, SETTINGS)
    for name in ("models", "results", "cache"):
        (output / name / "step-00000").mkdir(parents=True)
    (output / "notes.txt").write_text("mine")
    demo.prepare(output, SETTINGS)
    assert sorted(path.name for path in output.iterdir()) == ["notes.txt", demo.MARKER]
    empty = tmp_path / "empty"
    empty.mkdir()
    demo.prepare(empty, SETTINGS)
    assert json.loads((empty / demo.MARKER).read_text()) == SETTINGS


def test_a_folder_that_holds_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    precious = tmp_path / "models" / "thesis.txt"
    precious.write_text("years of work")
    with pytest.raises(PrhEvalError, match=r"is not empty and no demo wrote it") as caught:
        demo.prepare(tmp_path, SETTINGS)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert precious.read_text() == "years of work"
    assert not (tmp_path / demo.MARKER).exists()


def test_a_path_that_cannot_be_a_folder_gets_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(PrhEvalError, match="is a file, and --output should be a folder"):
        demo.prepare(file, SETTINGS)
    with pytest.raises(PrhEvalError, match="cannot be written"):
        demo.prepare(file / "below", SETTINGS)
    assert file.read_text() == "x"


# ------------------------------------------------------------------ lm-eval


def test_the_newest_result_is_read(tmp_path: Path) -> None:
    write_result(tmp_path, "2026-01-02T00-00-00.5", mnn=0.3)
    write_result(tmp_path, "2026-01-01T00-00-00.5", mnn=0.1)
    assert scoring.read_score(tmp_path) == scoring.Score(0.3, 0.01, 0.0105, 2)


@pytest.mark.parametrize(
    "values", [{"mnn_stderr": "N/A"}, {"mnn": float("nan")}, {"mnn_layer": None}]
)
def test_a_result_without_the_whole_score_is_refused(
    tmp_path: Path, values: dict[str, object]
) -> None:
    file = write_result(tmp_path, "2026-01-01T00-00-00.5", **values)
    with pytest.raises(PrhEvalError, match="holds no whole score of prh_align_color") as caught:
        scoring.read_score(tmp_path)
    assert str(file) in str(caught.value)


def test_a_cut_or_missing_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrhEvalError, match="no results_"):
        scoring.read_score(tmp_path)
    file = write_result(tmp_path, "2026-01-01T00-00-00.5")
    file.write_text(file.read_text()[:40])
    with pytest.raises(PrhEvalError, match="holds no whole score"):
        scoring.read_score(tmp_path)


def test_lm_eval_is_told_of_the_tasks_only_where_the_hook_is_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from prh_eval import _plugin

    monkeypatch.setattr(sys, "meta_path", [])
    assert "--include_path" in scoring.lm_eval_command(tmp_path, tmp_path)
    monkeypatch.setattr(sys, "meta_path", [_plugin._Finder()])
    command = scoring.lm_eval_command(tmp_path / "a, b=c", tmp_path)
    assert "--include_path" not in command
    assert json.loads(command[command.index("--model_args") + 1]) == {
        "pretrained": str(tmp_path / "a, b=c")
    }


def test_a_failing_child_gives_one_error_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The first child succeeds and the second fails, as lm_eval would: by a sentence on stderr.
    child = """
import os, pathlib, sys
results = pathlib.Path(sys.argv[1])
assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"
if results.name == "step-00000":
    file = results / "model" / "results_2026-01-01.json"
    file.parent.mkdir(parents=True)
    file.write_text(sys.argv[2])
else:
    for line in range(100):
        print("line", line)
    sys.exit("ValueError: it went wrong")
"""
    result = write_result(tmp_path / "made", "2026-01-01").read_text()
    monkeypatch.setattr(
        scoring,
        "lm_eval_command",
        lambda model, results: [sys.executable, "-c", child, str(results), result],
    )
    output = tmp_path / "demo"
    with pytest.raises(PrhEvalError) as caught:
        demo.run(parse("--output", str(output), "--steps", "2", "--checkpoints", "2"))
    said = str(caught.value)
    assert "exit status 1" in said and "step-00002" in said
    assert "ValueError: it went wrong" in said and "line 99" in said and "line 50" not in said
    assert "after 0 steps: mnn 0.250" in capsys.readouterr().out
    assert (output / "models" / "step-00002" / "model.safetensors").is_file()
    assert len(list(output.rglob("results_*.json"))) == 1
    assert "line 50" in (output / "results" / "step-00002" / "lm_eval.log").read_text()


def test_the_whole_demo_from_the_command_line(tmp_path: Path) -> None:
    """Two checkpoints through the real lm_eval; needs no installed hook and no network."""
    checkout = str(Path(prh_eval.__file__).parents[1])
    paths = [checkout, *filter(None, [os.environ.get("PYTHONPATH")])]
    run = subprocess.run(
        [sys.executable, "-m", "prh_eval", "demo", "--steps", "40", "--checkpoints", "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 0, run.stderr
    rows = [line.split() for line in run.stdout.splitlines() if "±" in line and "Over" not in line]
    assert [row[0] for row in rows] == ["0", "40"]
    output = tmp_path / "prh_eval_demo"
    for row, step in zip(rows, ("step-00000", "step-00040"), strict=True):
        (file,) = (output / "results" / step).rglob("results_*.json")
        written = json.loads(file.read_text())["results"]["prh_align_color"]
        assert row[2:5] == [f"{written['mnn,none']:.3f}", "±", f"{written['mnn_stderr,none']:.3f}"]
        assert row[5] == "0.011"  # 10 / 948
        assert int(row[6]) == written["mnn_layer,none"]
        assert 0.01 < written["mnn,none"] < 0.5
    assert float(rows[1][1]) < float(rows[0][1])
    assert "Over 40 training steps the loss fell" in run.stdout
