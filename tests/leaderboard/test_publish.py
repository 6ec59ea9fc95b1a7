"""A board's files: written whole or not at all, and compared with what they should be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema
import pytest
from sample_board import sample_board

from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard import publish
from prh_eval.leaderboard.publish import check, render, write

TEXTS = {
    "README.md",
    "leaderboard.csv",
    "leaderboard.json",
    "leaderboard.schema.json",
    "leaderboard.html",
}


def tree(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden files included, by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return render(sample_board(), figures=False)


@pytest.fixture(scope="module")
def others() -> dict[str, bytes]:
    return render(sample_board(seed=1, title="Another"), figures=False)


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    pytest.importorskip("matplotlib")
    return render(sample_board(families=3, of_each=2), figures=True)


# ---------------------------------------------------------------- rendering


def test_the_files_of_a_board(files: dict[str, bytes]) -> None:
    assert set(files) == TEXTS
    data, schema = (
        json.loads(files[name]) for name in ("leaderboard.json", "leaderboard.schema.json")
    )
    jsonschema.Draft202012Validator(schema).validate(data)
    assert [row["name"] for row in data["rows"]] == [row.name for row in sample_board().rows]


def test_every_figure_is_an_svg_and_a_png_that_the_readme_shows(drawn: dict[str, bytes]) -> None:
    figures = set(drawn) - TEXTS
    names = {name.rpartition(".")[0] for name in figures}
    assert names and figures == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert all(drawn[f"{name}.png"].startswith(b"\x89PNG") for name in names)
    assert all(b"<svg" in drawn[f"{name}.svg"] for name in names)
    assert all(name.encode() in drawn["README.md"] for name in names)


def test_without_matplotlib_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    with pytest.raises(PrhEvalError, match=r"prh_eval\[plots\].* --no-figures"):
        render(sample_board(), figures=True)
    assert set(render(sample_board(), figures=False)) == TEXTS


# ---------------------------------------------------------------- writing


def test_writing_makes_the_folder_and_leaves_nothing_else(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "some" / "where"
    write(files, folder)
    assert tree(tmp_path) == {f"some/where/{name}": content for name, content in files.items()}
    assert list(folder.glob(".*")) == []


def test_other_files_of_the_folder_are_left_alone(files: dict[str, bytes], tmp_path: Path) -> None:
    there = {
        "board.yaml": b"title: x\n",
        "results/m/results.json": b"{}",
        "figures/photo.png": b"p",
    }
    for name, content in there.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write(files, tmp_path)
    assert tree(tmp_path) == {**files, **there}


def test_what_is_unchanged_is_not_touched(
    files: dict[str, bytes], others: dict[str, bytes], tmp_path: Path
) -> None:
    write(files, tmp_path)
    before = {name: (tmp_path / name).stat().st_ino for name in files}
    write(files, tmp_path)
    assert {name: (tmp_path / name).stat().st_ino for name in files} == before
    write(others, tmp_path)
    assert tree(tmp_path) == others
    after = {name: (tmp_path / name).stat().st_ino for name in files}
    assert [name for name in files if after[name] == before[name]] == ["leaderboard.schema.json"]


def test_figures_of_an_earlier_board_go_and_a_persons_stay(
    drawn: dict[str, bytes], tmp_path: Path
) -> None:
    write(drawn, tmp_path)
    (tmp_path / "figures" / "mine.svg").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "figures" / "mine.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    fewer = {name: content for name, content in drawn.items() if "figures/" not in name}
    write(fewer, tmp_path)
    assert set(tree(tmp_path)) == {*fewer, "figures/mine.svg", "figures/mine.png"}


FOREIGN = {
    "README.md": b"# My own notes\n",
    "leaderboard.csv": b"a,b,c\n1,2,3\n",
    "leaderboard.json": b'{"rows": []}',
    "leaderboard.schema.json": b'{"title": "Of something else"}',
    "leaderboard.html": b"<!DOCTYPE html><title>My page</title>",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_no_boards_is_not_overwritten(
    name: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(FOREIGN[name])
    with pytest.raises(PrhEvalError, match=rf"{name} is not of a board"):
        write(files, tmp_path)
    assert tree(tmp_path) == {name: FOREIGN[name]}


@pytest.mark.parametrize("name", ["leaderboard.json", "leaderboard.schema.json"])
@pytest.mark.parametrize("content", [b"no JSON", b"[]", b"\xff"])
def test_nor_is_one_that_is_no_json(
    name: str, content: bytes, files: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PrhEvalError, match="is not of a board"):
        write(files, tmp_path)


def test_a_persons_picture_of_a_figures_name_is_not_overwritten(
    drawn: dict[str, bytes], tmp_path: Path
) -> None:
    name = next(name for name in drawn if name.endswith(".svg"))
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b"<svg/>")
    with pytest.raises(PrhEvalError, match="is not of a board"):
        write(drawn, tmp_path)
    assert tree(tmp_path) == {name: b"<svg/>"}


class _Failing:
    """An `os` call that fails at the n-th time."""

    def __init__(self, call, at: int, error: BaseException) -> None:
        self.call, self.at, self.error, self.count = call, at, error, 0

    def __get__(self, instance, owner):
        return lambda *args, **kwargs: self(instance, *args, **kwargs)

    def __call__(self, *args, **kwargs):
        self.count += 1
        if self.count == self.at:
            raise self.error
        return self.call(*args, **kwargs)


FAILURES = [OSError(28, "No space left on device"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", FAILURES)
@pytest.mark.parametrize("call", ["replace", "write_bytes", "mkdir"])
@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("empty", [True, False])
def test_a_failure_in_the_middle_leaves_what_was_there(
    error: BaseException,
    call: str,
    at: int,
    empty: bool,
    files: dict[str, bytes],
    others: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not empty:
        write(files, tmp_path)
    before = tree(tmp_path)
    failing = _Failing(getattr(Path, call), at, error)
    with monkeypatch.context() as patched:
        patched.setattr(Path, call, failing)
        with pytest.raises((PrhEvalError, KeyboardInterrupt)) as raised:
            write(others, tmp_path)
    assert isinstance(error, KeyboardInterrupt) or "No space left" in str(raised.value)
    assert failing.count >= at
    assert tree(tmp_path) == before
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("error", FAILURES)
def test_a_file_that_cannot_be_removed_leaves_what_was_there(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"a": b"a", "b": b"b"}
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", _Failing(Path.unlink, 1, error))
        with pytest.raises((PrhEvalError, KeyboardInterrupt)):
            publish.replace(tmp_path, {"a": b"new", "b": None, "c": b"new"}, before)
    assert tree(tmp_path) == before


def test_what_a_killed_run_left_is_cleared_away(files: dict[str, bytes], tmp_path: Path) -> None:
    stage = tmp_path / publish._STAGE / "new"
    stage.mkdir(parents=True)
    (stage / "README.md").write_bytes(b"half")
    assert "README.md is missing" in check(files, tmp_path).problems
    write(files, tmp_path)
    assert tree(tmp_path) == files


def test_a_file_in_place_of_the_folder(files: dict[str, bytes], tmp_path: Path) -> None:
    place = tmp_path / "out"
    place.write_bytes(b"mine")
    with pytest.raises(PrhEvalError, match="out is a file"):
        write(files, place)
    with pytest.raises(PrhEvalError, match="out is a file"):
        check(files, place)
    with pytest.raises(PrhEvalError, match="cannot be written"):
        write(files, place / "below")
    assert tree(tmp_path) == {"out": b"mine"}


def test_a_folder_in_place_of_a_file(files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    with pytest.raises(PrhEvalError, match=r"README\.md cannot be read"):
        write(files, tmp_path)
    assert tree(tmp_path) == {}


# ---------------------------------------------------------------- checking


def test_what_was_written_is_what_it_should_be(drawn: dict[str, bytes], tmp_path: Path) -> None:
    write(drawn, tmp_path)
    assert check(drawn, tmp_path) == ([], [])


def test_every_missing_stale_and_superfluous_file_is_named(
    drawn: dict[str, bytes], tmp_path: Path
) -> None:
    write(drawn, tmp_path)
    svg, png = (next(n for n in drawn if n.endswith(end)) for end in (".svg", ".png"))
    (tmp_path / "leaderboard.csv").unlink()
    text = (tmp_path / "README.md").read_text(encoding="utf-8").split("\n")
    text[2] = "changed by hand"
    (tmp_path / "README.md").write_text("\n".join(text), encoding="utf-8")
    (tmp_path / svg).write_bytes(drawn[svg] + b" ")
    (tmp_path / "figures" / "old.png").write_bytes(drawn[png])
    before = tree(tmp_path)
    found = check(drawn, tmp_path)
    assert found.remarks == []
    by_name = {problem.split()[0]: problem for problem in found.problems}
    assert set(by_name) == {"README.md", "leaderboard.csv", svg, "figures/old.png"}
    should_be = drawn["README.md"].decode().split("\n")[2]
    assert "line 3 is 'changed by hand'" in by_name["README.md"]
    assert should_be[:50] in by_name["README.md"]
    assert by_name["leaderboard.csv"].endswith("is missing")
    assert "should be removed" in by_name["figures/old.png"]
    assert tree(tmp_path) == before  # nothing is written


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("a\nb\n", "a\nc\n", "line 2 is 'b', and should be 'c'"),
        ("a\n", "a\nb\n", "line 2 is '', and should be 'b'"),
        ("a\nb", "a", "line 2 is 'b', and should be not there"),
        ("", "a", "line 1 is '', and should be 'a'"),
    ],
)
def test_the_first_line_that_differs(old: str, new: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(old)
    (problem,) = check({"README.md": new.encode()}, tmp_path).problems
    assert problem == f"README.md is stale: {expected}"


def test_a_figure_of_another_matplotlib_is_a_remark_if_it_is_of_this_board(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    about = {b"now": ("3.11", "d"), b"then": ("3.9", "d"), b"other": ("3.9", "e")}
    monkeypatch.setattr(publish.drawing, "drawn_from", about.get)
    (tmp_path / "figures").mkdir()
    place = tmp_path / "figures" / "x.svg"
    place.write_bytes(b"then")
    remark = "figures/x.svg was drawn from this board by matplotlib 3.9, and now would be by 3.11"
    assert check({"figures/x.svg": b"now"}, tmp_path) == ([], [remark])
    place.write_bytes(b"other")
    assert len(check({"figures/x.svg": b"now"}, tmp_path).problems) == 1
    place.write_bytes(b"unknown")
    assert len(check({"figures/x.svg": b"now"}, tmp_path).problems) == 1
