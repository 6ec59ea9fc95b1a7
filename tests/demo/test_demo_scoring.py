"""Runs of lm-eval's command line: what they are told, how they fail, how they end."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prh_eval import _plugin
from prh_eval.demo import FOLDERS, scoring
from prh_eval.demo.scoring import Scoring
from prh_eval.errors import PrhEvalError


@pytest.fixture
def output(tmp_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A demo's folder, in a world where lm-eval is the stand-in."""
    # A forkserver would go on with whatever it has imported for another test.
    monkeypatch.setattr(scoring, "CONTEXT", multiprocessing.get_context("spawn"))
    monkeypatch.syspath_prepend(str(stub))
    for name in FOLDERS:
        (tmp_path / "demo" / name).mkdir(parents=True)
    return tmp_path / "demo"


def results(output: Path, name: str) -> dict[str, object]:
    (file,) = (output / "results" / f"models__{name}").iterdir()
    found: dict[str, object] = json.loads(file.read_text())
    return found


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def pids(output: Path) -> Iterator[int]:
    return (int(file.read_text()) for file in output.glob("*.pid") if file.read_text())


def test_all_models_are_scored_each_in_a_process_of_its_own(output: Path) -> None:
    names = ["a", "b", "c"]
    with Scoring(output, at_once=2) as runs:
        for name in names:
            runs.add(name)
        lines = [*runs.poll(), *runs.rest()]
        assert runs.poll() == [] == list(runs.rest())
    assert sorted(lines) == [f"{name}: mnn 0.250, acc 0.500" for name in names]
    assert len(set(pids(output))) == 3 and os.getpid() not in pids(output)
    for name in names:
        assert results(output, name)["environment"] == {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PRH_EVAL_CACHE": str(output / "cache"),
        }
        log = (output / "logs" / f"{name}.log").read_text().splitlines()
        assert log[0].startswith(f"$ lm_eval run --model hf --model_args pretrained=models/{name} ")
        assert log[1:] == ["on stdout", "on stderr", "of a child"]
    assert (Path.cwd() / "a.pid").exists() is False


def test_no_more_run_at_once_than_were_asked_for(output: Path) -> None:
    with Scoring(output, at_once=1) as runs:
        runs.add("sleeps")
        runs.add("waits")
        assert runs.poll() == [] == runs.poll()
        assert len(multiprocessing.active_children()) == 1
    assert multiprocessing.active_children() == []
    assert not (output / "logs" / "waits.log").exists()


def test_a_failure_is_one_error_with_the_last_lines_and_ends_the_others(output: Path) -> None:
    with (
        pytest.raises(PrhEvalError) as caught,
        Scoring(output, at_once=2) as runs,
    ):
        runs.add("sleeps")
        runs.add("fails")
        runs.add("waits")
        runs.poll()
        list(runs.rest())
    said = str(caught.value)
    assert "exit status 1 on fails" in said and str(output / "logs" / "fails.log") in said
    assert "ValueError: it went wrong" in said and "line 99" in said and "line 50" not in said
    assert "line 50" in (output / "logs" / "fails.log").read_text()
    assert multiprocessing.active_children() == []
    assert all(gone(pid) for pid in pids(output))
    assert not (output / "logs" / "waits.log").exists()


def test_a_killed_run_is_told(output: Path) -> None:
    with (
        pytest.raises(PrhEvalError, match="exit status -9 on sleeps"),
        Scoring(output, at_once=1) as runs,
    ):
        runs.add("sleeps")
        runs.poll()
        multiprocessing.active_children()[0].kill()
        list(runs.rest())


def test_a_result_without_all_scores_is_refused(output: Path) -> None:
    with (
        pytest.raises(PrhEvalError, match="wrote no acc of prh_color_choice") as caught,
        Scoring(output, at_once=1) as runs,
    ):
        runs.add("half")
        runs.poll()
        list(runs.rest())
    assert str(output / "results" / "models__half") in str(caught.value)


def test_lm_eval_is_told_of_the_tasks_only_where_the_hook_is_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "meta_path", [])
    assert "--include_path" in scoring.lm_eval_arguments("a")
    monkeypatch.setattr(sys, "meta_path", [_plugin._Finder()])
    assert "--include_path" not in scoring.lm_eval_arguments("a")
