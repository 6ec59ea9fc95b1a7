"""``prh-eval demo`` as a person runs it: its options, its folder, its failures, one real run."""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import prh_eval
from prh_eval import demo
from prh_eval.demo.ladder import FAMILIES
from prh_eval.demo.ladder import LARGEST_SEED as LARGEST_SEED_OF_TORCH
from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.config import read_board

OPTIONS = {"families": 1, "steps": 2, "seed": 0}


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(arguments)


def command(folder: Path, *arguments: str, first: Path | None = None) -> subprocess.Popen[str]:
    """Start the demo in a folder, with what lies in another one before all else on the path."""
    checkout = str(Path(prh_eval.__file__).parents[1])
    paths = [str(first)] if first else []
    paths += [checkout, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "prh_eval", "demo", "--families", "1", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,  # a signal to the demo alone reaches it alone
        # Tests that a shell runs in the background have inherited that interrupts are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


# ------------------------------------------------------------------ options


def test_the_defaults() -> None:
    assert vars(parse()) == {
        "output": Path("prh_eval_demo"),
        "families": len(FAMILIES),
        "steps": 300,
        "seed": 0,
    }
    assert demo.LARGEST_SEED == LARGEST_SEED_OF_TORCH


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--steps", "1"), "1 is not 2 or more"),
        (("--families", "0"), "0 is not 1 to 8"),
        (("--families", "9"), "9 is not 1 to 8"),
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


# ------------------------------------------------------------------ the folder


def test_a_new_an_empty_and_a_demos_own_folder_are_taken(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "demo"
    demo.prepare(output, OPTIONS)
    for name in demo.FOLDERS:
        (output / name / "of-an-earlier-one").mkdir()
    (output / "notes.txt").write_text("mine")
    demo.prepare(output, OPTIONS)
    found = sorted(str(path.relative_to(output)) for path in output.rglob("*"))
    assert found == sorted([*demo.FOLDERS, "notes.txt", demo.MARKER])
    empty = tmp_path / "empty"
    empty.mkdir()
    demo.prepare(empty, OPTIONS)
    assert json.loads((empty / demo.MARKER).read_text()) == OPTIONS


def test_a_folder_that_holds_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    precious = tmp_path / "models" / "thesis.txt"
    precious.write_text("years of work")
    with pytest.raises(PrhEvalError, match=r"is not empty and no demo wrote it") as caught:
        demo.prepare(tmp_path, OPTIONS)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert precious.read_text() == "years of work"
    assert not (tmp_path / demo.MARKER).exists()


def test_a_path_that_cannot_be_a_folder_gets_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(PrhEvalError, match="is a file, and --output should be a folder"):
        demo.prepare(file, OPTIONS)
    with pytest.raises(PrhEvalError, match="cannot be written"):
        demo.prepare(file / "below", OPTIONS)
    assert file.read_text() == "x"


# ------------------------------------------------------------------ failures


def output_where(behaviour: str, folder: Path) -> Path:
    """A demo's folder in which the stand-in for lm-eval does so."""
    output = folder / "prh_eval_demo"
    demo.prepare(output, OPTIONS)
    (output / behaviour).touch()
    return output


def test_a_failing_lm_eval_gives_one_error_and_loses_nothing(tmp_path: Path, stub: Path) -> None:
    output = output_where("all_fail", tmp_path)
    run = command(tmp_path, "--steps", "2", first=stub)
    _, said = run.communicate()
    assert run.returncode == 2
    assert "Traceback" not in said and "prh-eval: error: lm_eval ended with exit status 1" in said
    assert "ValueError: it went wrong" in said and "line 50" not in said
    assert (output / "models" / "gpt_neox-64-step0" / "model.safetensors").is_file()
    assert not list((output / "leaderboard").iterdir())


def test_an_interrupt_ends_training_and_every_child(tmp_path: Path, stub: Path) -> None:
    pid_file = output_where("all_sleep", tmp_path) / "gpt_neox-64-step0.pid"
    # Far more steps than would ever be done.
    run = command(tmp_path, "--steps", "1000000000", first=stub)
    while run.poll() is None and not (pid_file.exists() and pid_file.read_text()):
        time.sleep(0.05)
    assert run.poll() is None, run.communicate()
    run.send_signal(signal.SIGINT)
    _, said = run.communicate()
    assert run.returncode == 130
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


# ------------------------------------------------------------------ all of it


def test_the_whole_demo_from_the_command_line(tmp_path: Path) -> None:
    """A family through the real lm_eval; needs no installed hook and no network."""
    run = command(tmp_path, "--steps", "2", "--output", "out")
    printed, said = run.communicate()
    assert run.returncode == 0, said
    names = {f"gpt_neox-{each}" for each in ("64-step0", "64-step1", "64-step2", "32-step2")}
    board = tmp_path / "out" / "leaderboard"
    assert {path.name for path in (tmp_path / "out" / "models").iterdir()} == names

    # Every number on the board is in lm-eval's own files, and in the table that was printed.
    scores = {}
    for file in (tmp_path / "out" / "results").glob("*/results_*.json"):
        content = json.loads(file.read_text())
        found = content["results"]
        scores[content["config"]["model_args"]["pretrained"]] = (
            found["prh_align_color"]["mnn,none"],
            found["prh_color_choice"]["acc,none"],
        )
    assert set(scores) == {f"models/{name}" for name in names}
    written = json.loads((board / "leaderboard.json").read_text())
    rows = [*written["rows"], *written["controls"]]
    assert [row["control"] for row in rows] == [None, None, None, "untrained weights"]
    assert {row["model"]: len(row["cells"]) for row in rows} == dict.fromkeys(scores, 2)
    for row in rows:
        mnn, acc = scores[row["model"]]
        assert row["cells"]["prh_align_color"]["value"] == pytest.approx(mnn, abs=1e-6)
        assert row["cells"]["prh_color_choice"]["value"] == pytest.approx(acc, abs=1e-6)
        assert row["family"] == "GPT-NeoX"
        (line,) = (line for line in printed.splitlines() if line.startswith(row["name"] + " "))
        assert f"{mnn:.3f}" in line and f"{acc:.3f}" in line
        assert f"{row['model'].removeprefix('models/')}: mnn {mnn:.3f}, acc {acc:.3f}" in printed
    (association,) = written["associations"]
    assert association["primary"] and association["models"] == 3
    assert f"Spearman {association['spearman']['value']:.2f}" in printed
    assert str(Path("out", "leaderboard", "README.md")) in printed

    # The board can be made again from what was left, and nothing tells where it was made.
    config = read_board(board / "board.yaml")
    assert {card.name for card in config.models} == set(scores)
    assert "prh-eval demo" in str(config.about)
    with (board / "leaderboard.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) >= 1 + len(rows)
    for path in board.rglob("*"):
        if path.is_file() and path.suffix != ".png":
            text = path.read_text()
            assert str(tmp_path) not in text and os.uname().nodename not in text, path
    check = subprocess.run(
        [
            *(sys.executable, "-m", "prh_eval", "leaderboard", "out/leaderboard/results"),
            *("--output", "out/leaderboard", "--check"),
            *([] if (board / "figures").is_dir() else ["--no-figures"]),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr
