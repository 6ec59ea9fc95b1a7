"""``prh-eval leaderboard`` and its subcommands, as a person runs them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from leaderboard.made_results import alignment, alignment_record, model_result, result, write

from prh_eval.cli import main, parse
from prh_eval.commands import leaderboard

FILES = {
    "README.md",
    "leaderboard.csv",
    "leaderboard.html",
    "leaderboard.json",
    "leaderboard.schema.json",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with the results of six models of two families."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        name = f"org{number % 2}/m{number}-1b"
        write(tmp_path / "results", model_result(name, 0.1 + number / 100, 0.4 + number / 20, 0.1))
    return tmp_path


def run(*arguments: str, figures: bool = False) -> int:
    more = [] if figures or arguments[0] in ("init", "validate", "pack") else ["--no-figures"]
    return main(["leaderboard", *arguments, *more])


def data(folder: str = "out") -> dict[str, Any]:
    return json.loads((Path(folder) / "leaderboard.json").read_text(encoding="utf-8"))


def failing(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence that a command ends with, for input at fault."""
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("prh-eval: error: ")]
    assert len(lines) == 1 and "Traceback" not in err
    return lines[0].removeprefix("prh-eval: error: ")


def board_yaml(folder: Path, **changes: Any) -> Path:
    config: dict[str, Any] = {
        "title": "Mine",
        "references": [{"task": "prh_align"}],
        "tasks": [{"task": "hellaswag", "metric": "acc_norm"}],
        "models": [
            {"name": f"org{number % 2}/m{number}-1b", "family": f"F{number % 2}"}
            for number in range(6)
        ],
    }
    file = folder / "board.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config | changes), encoding="utf-8")
    return file


# ---------------------------------------------------------------- which command


def test_two_words_are_a_command_and_a_folder_is_a_folder() -> None:
    assert parse(["leaderboard", "init", "r"]).command is leaderboard._init
    assert parse(["leaderboard", "validate", "r"]).command is leaderboard._validate
    assert parse(["leaderboard", "pack", "r", "--output", "o"]).command is leaderboard._pack
    assert parse(["leaderboard", "schema"]).command is leaderboard._schema
    board = parse(["leaderboard", "./init", "--output", "o"])
    assert (board.command, board.results) == (leaderboard._board, Path("init"))
    assert parse(["leaderboard", "--output", "init", "r"]).command is leaderboard._board


def test_the_usage_names_the_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["leaderboard", "pack", "r"])
    assert capsys.readouterr().err.startswith("usage: prh-eval leaderboard pack ")
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(command in shown for command in leaderboard.SUBCOMMANDS)


def test_the_commands_need_no_torch_and_no_lm_eval(home: Path) -> None:
    board_yaml(home)
    program = (
        "import sys\n"
        "from prh_eval.cli import main\n"
        "for arguments in sys.argv[1:]:\n"
        "    assert main(['leaderboard', *arguments.split()]) == 0\n"
        "assert not {'torch', 'lm_eval', 'transformers', 'matplotlib'} & set(sys.modules)\n"
    )
    commands = ["results --output out --no-figures", "init results --output new.yaml --offline"]
    commands += ["validate results", "pack results --output packed", "schema"]
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{program}", *commands],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- the board


def test_a_board_of_what_is_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(home / "results", model_result("org/limited", 0.2, 0.5, limit=3))
    (home / "results" / "results_cut.json").write_text("{")
    assert run("results", "--output", "out") == 0
    assert {path.name for path in Path("out").iterdir()} == FILES
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "6 models, families not stated; 0 controls",
        "7 result files read, 1 skipped in whole or part; 2 left out (README.md says why)",
        "dinov2_giant and HellaSwag, 6 models: Spearman 1.00 (no interval over families: "
        + data()["associations"][0]["over_families"]["note"]
        + ")",
        "out/README.md",
        "out/leaderboard.html",
    ]
    assert err.count("\n") == 1
    assert "prh-eval leaderboard init results --output out/board.yaml" in err


def test_the_command_that_is_suggested_works(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("results", "--output", "out")
    suggested = capsys.readouterr().err.rstrip().partition(": prh-eval ")[2]
    assert main([*suggested.split(), "--offline"]) == 0
    assert run("results", "--output", "out", "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert data()["config"] is True


def test_the_board_yaml_of_the_folder_decides(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board_yaml(home / "out")
    assert run("results", "--output", "out") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("6 models of 2 families; 0 controls\n")
    assert (data()["title"], data()["config"]) == ("Mine", True)
    assert [column["key"] for column in data()["columns"]] == ["prh_align", "hellaswag"]
    assert {row["family"] for row in data()["rows"]} == {"F0", "F1"}


def test_another_board_yaml_by_option(home: Path) -> None:
    board_yaml(home / "out")
    other = board_yaml(home / "other", title="Other")
    assert run("results", "--output", "out", "--board", str(other)) == 0
    assert data()["title"] == "Other"


def test_the_scores_are_those_of_the_files(home: Path) -> None:
    run("results", "--output", "out", "--quiet")
    with open("out/leaderboard.csv", encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["row"] == "model"]
    found = {line["name"]: (float(line["prh_align"]), float(line["hellaswag"])) for line in lines}
    assert found == {
        f"org{n % 2}/m{n}-1b": pytest.approx((0.1 + n / 100, 0.4 + n / 20)) for n in range(6)
    }


def test_figures_are_drawn_and_named_in_the_readme(home: Path) -> None:
    pytest.importorskip("matplotlib")
    board_yaml(home / "out")
    assert run("results", "--output", "out", "--quiet", figures=True) == 0
    figures = {path.name for path in Path("out/figures").iterdir()}
    assert figures and all(Path(name).suffix in (".svg", ".png") for name in figures)
    assert run("results", "--output", "out", "--check", figures=True) == 0
    assert run("results", "--output", "out", "--quiet") == 0
    assert list(Path("out/figures").iterdir()) == []


def test_the_same_bytes_from_anywhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("results", "--output", "out", "--quiet")
    first = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    (home / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(home / "deep")
    run(str(home / "results"), "--output", "er", "--quiet")
    assert {path.name: path.read_bytes() for path in Path("er").iterdir()} == first
    assert not any(str(home).encode() in content for content in first.values())


# ---------------------------------------------------------------- --task and --title


def arc(home: Path) -> None:
    for number in range(6):
        name = f"org{number % 2}/m{number}-1b"
        content = result(
            name,
            {"arc": {"acc,none": 0.3 + number / 50, "acc_norm,none": 0.5, "f1,strict": 0.2}},
            shots={"arc": 3},
        )
        write(home / "results", content, stamp="2026-05-05T00-00-00.0")


def columns() -> list[tuple[str, str, str]]:
    return [(each["key"], each["metric"], each["filter"]) for each in data()["columns"][1:]]


def test_tasks_by_option(home: Path) -> None:
    arc(home)
    options = ["--task", "arc=acc@3", "--task", "hellaswag", "--title", "By hand", "--quiet"]
    assert run("results", "--output", "out", *options) == 0
    assert columns() == [("arc", "acc", "none"), ("hellaswag", "acc_norm", "none")]
    assert [each["label"] for each in data()["columns"][1:]] == ["arc", "HellaSwag"]
    assert data()["title"] == "By hand"
    assert run("results", "--output", "out", "--task", "arc=f1,strict", "--quiet") == 0
    assert columns() == [("arc", "f1", "strict")]
    options = ["--task", "arc=acc", "--task", "arc=acc_norm", "--quiet"]
    assert run("results", "--output", "out", *options) == 0
    assert columns() == [("arc", "acc", "none"), ("arc=acc_norm", "acc_norm", "none")]


def test_a_few_shot_count_by_option_is_pinned(home: Path) -> None:
    arc(home)
    assert run("results", "--output", "out", "--task", "arc=acc@5", "--quiet") == 0
    assert data()["columns"][1]["models"] == 0
    assert "few-shot count is 3, where the board's is 5" in json.dumps(data()["left_out"])


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("helaswag", "did you mean 'hellaswag'?"),
        ("arc", "several metrics for arc; one should be named, as arc=acc (valid: acc, acc_norm"),
        ("arc=ac", "did you mean 'acc'?"),
        ("arc=", "should be TASK"),
        ("arc=acc@", "should be TASK"),
        ("arc=acc@few", "should be TASK"),
        ("=acc", "should be TASK"),
        ("prh_align", "an alignment task is a column without being named"),
    ],
)
def test_a_task_that_cannot_be(
    task: str, expected: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arc(home)
    said = failing("results", "--output", "out", "--task", task, capsys=capsys)
    assert said.startswith(f"--task {task}") and expected in said
    assert not Path("out").exists()


def test_the_same_task_twice(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ["--task", "hellaswag"]
    assert "given twice" in failing("results", "--output", "out", *task, *task, capsys=capsys)


@pytest.mark.parametrize("option", [["--task", "hellaswag"], ["--title", "x"]])
def test_a_fact_stands_in_one_place(
    option: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board_yaml(home / "out")
    said = failing("results", "--output", "out", *option, capsys=capsys)
    assert said == f"{option[0]} is for a board without a board.yaml, but here is out/board.yaml"


# ---------------------------------------------------------------- --check


def test_check_fails_once_a_number_has_changed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board_yaml(home / "out")
    assert run("results", "--output", "out", "--check") == 1
    assert "README.md is missing" in capsys.readouterr().out
    assert list(Path("out").iterdir()) == [Path("out/board.yaml")]
    run("results", "--output", "out", "--quiet")
    capsys.readouterr()
    assert run("results", "--output", "out", "--check") == 0
    assert capsys.readouterr().out == "The board in out is what results gives.\n"
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    file = next(Path("results").rglob("*m3-1b/*.json"))
    file.write_text(file.read_text().replace('"acc_norm,none": 0.55', '"acc_norm,none": 0.57'))
    assert run("results", "--output", "out", "--check") == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == (
        "To mend it: prh-eval leaderboard results --output out --no-figures"
    )
    for name in FILES - {"leaderboard.schema.json"}:
        assert f"{name} is stale: line " in out
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    assert main(out.splitlines()[-1].removeprefix("To mend it: prh-eval ").split()) == 0
    assert run("results", "--output", "out", "--check") == 0


def test_the_command_that_mends_has_the_options(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--task", "hellaswag@10", "--title", "A b"]
    assert run("results", "--output", "out", *options, "--check") == 1
    assert capsys.readouterr().out.endswith(
        "To mend it: prh-eval leaderboard results --output out --task hellaswag@10 "
        "--title 'A b' --no-figures\n"
    )
    board = board_yaml(home / "else")
    assert run("results", "--output", "out", "--board", str(board), "--check") == 1
    assert f"--output out --board {board} --no-figures" in capsys.readouterr().out


# ---------------------------------------------------------------- bad input


def test_no_folder_no_results_no_alignment(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere is no folder" in failing("nowhere", "--output", "out", capsys=capsys)
    Path("empty").mkdir()
    assert "holds no result file of lm-eval" in failing("empty", "--output", "out", capsys=capsys)
    write(home / "tasks", result("org/m", {"hellaswag": {"acc_norm,none": 0.5}}))
    assert "--tasks prh_align" in failing("tasks", "--output", "out", capsys=capsys)
    assert not Path("out").exists()


def test_a_mistake_in_board_yaml(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board_yaml(home / "out", titel="x")
    said = failing("results", "--output", "out", capsys=capsys)
    assert "unknown key 'titel'; did you mean 'title'?" in said
    said = failing("results", "--output", "out", "--board", "no.yaml", capsys=capsys)
    assert "no.yaml cannot be read" in said


def test_an_output_that_cannot_be_written(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("mine")
    assert "file is a file" in failing("results", "--output", "file", capsys=capsys)
    assert "cannot be written" in failing("results", "--output", "file/below", capsys=capsys)
    assert Path("file").read_text() == "mine"
    Path("out").mkdir()
    Path("out/README.md").write_text("# Mine\n")
    assert "out/README.md is not of a board" in failing("results", "--output", "out", capsys=capsys)
    assert [path.name for path in Path("out").iterdir()] == ["README.md"]


def test_the_summary_counts_models_of_no_family(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board_yaml(home / "out", models=[{"name": "org0/m0-1b", "family": "F"}])
    assert run("results", "--output", "out") == 0
    out = capsys.readouterr().out
    assert out.startswith("6 models of 1 family, 5 of no stated family; 0 controls\n")


@pytest.mark.parametrize("models", [1, 2, 3])
def test_few_models(models: int, home: Path) -> None:
    for number in range(models):
        write(home / "few", model_result(f"org/m{number}", 0.1, 0.5, 0.1))
    assert run("few", "--output", "out", "--quiet") == 0
    assert len(data()["rows"]) == models


# ---------------------------------------------------------------- init, validate, pack, schema


def test_init_then_the_board(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init", "results", "--offline") == 0
    assert "6 model cards" in capsys.readouterr().out
    file = Path("leaderboard/board.yaml")
    text = file.read_text(encoding="utf-8")
    assert [path.name for path in Path("leaderboard").iterdir()] == ["board.yaml"]
    assert run("validate", "results") == 1
    assert capsys.readouterr().out.count("should state its family") == 6
    file.write_text(text.replace("# family: ", "family: "), encoding="utf-8")
    assert run("validate", "results") == 0
    assert "Would be on the board:" in capsys.readouterr().out
    assert run("results", "--output", "leaderboard", "--quiet") == 0
    assert all(row["family"] for row in data("leaderboard")["rows"])


def test_init_does_not_touch_what_is_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("init", "results", "--offline")
    file = Path("leaderboard/board.yaml")
    before = file.read_bytes()
    capsys.readouterr()
    assert run("init", "results", "--offline") == 0
    assert "a card for every model" in capsys.readouterr().out
    write(home / "results", model_result("org/new-7b", 0.1, parameters=7))
    assert run("init", "results", "--offline") == 0
    out, err = capsys.readouterr()
    assert [card["name"] for card in yaml.safe_load(out)["models"]] == ["org/new-7b"]
    assert "was not touched" in err
    assert file.read_bytes() == before


def test_init_where_nothing_can_be_written(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("mine")
    said = failing("init", "results", "--offline", "--output", "file/b.yaml", capsys=capsys)
    assert "file cannot be written" in said


def test_validate_tells_everything_at_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board_yaml(home)
    records = {"prh_align": alignment_record([[0.1]], k=3)}
    write(home / "new", result("/x/y", {"prh_align": alignment(0.1)}, records=records))
    write(home / "new", model_result("org/l", 0.1, limit=1))
    assert run("validate", "new", "--board", "board.yaml") == 1
    out = capsys.readouterr().out
    assert out.startswith("Checked against board.yaml.\nWould be refused:\n  - ")
    for expected in ("its k is 3", "limit 1", "y has no card", "To be aware of:\n", "/x/y"):
        assert expected in out
    assert run("validate", "results") == 0
    assert capsys.readouterr().out.count("prh_align 0.1") == 6


def test_validate_without_a_board(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "name one with --board" in failing("validate", "results", capsys=capsys)


def test_pack_makes_what_the_board_takes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(home / "mine", model_result("/home/me/own-1b", 0.2, 0.7, pretty_env_info="GPU"))
    (home / "mine" / "results_cut.json").write_text("{")
    assert run("pack", "mine", "--output", "results") == 0
    out, err = capsys.readouterr()
    (file,) = out.split()
    assert Path(file).parts[:2] == ("results", "own-1b")
    assert "/home/me" not in Path(file).read_text() and "GPU" not in Path(file).read_text()
    assert "results_cut.json is not packed" in err
    assert run("results", "--output", "out", "--quiet") == 0
    assert data()["rows"][0]["model"] == "own-1b"


def test_the_schema_takes_what_init_writes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("init", "results", "--offline")
    capsys.readouterr()
    assert main(["leaderboard", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    content = yaml.safe_load(Path("leaderboard/board.yaml").read_text(encoding="utf-8"))
    validator.validate(content)
    assert not validator.is_valid({**content, "titel": "x"})
