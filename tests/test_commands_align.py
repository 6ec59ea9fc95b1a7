"""``prh-eval align`` as a person types it: what it prints, writes and says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aligning_worlds import brute_force_grid, compared, drawn, save

import prh_eval
from prh_eval.aligning import Source, align_files
from prh_eval.alignment.preprocess import PROTOCOLS
from prh_eval.cli import main
from prh_eval.commands.align import table
from prh_eval.findings import Findings

HERE = {**os.environ, "PYTHONPATH": str(Path(prh_eval.__file__).parents[1])}
N, K = 60, 5
X, Y = drawn(3, N, 12, 1), drawn(2, N, 9, 4)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    return (
        str(save(X, tmp_path / "x.safetensors")),
        str(save(Y, tmp_path / "y.safetensors")),
    )


def tables(out: str) -> list[list[list[str]]]:
    """The cells of every table: what follows a line of dashes, split where two spaces are."""
    found: list[list[list[str]]] = []
    inside = False
    for line in out.splitlines():
        if line.startswith("---"):
            found.append([])
            inside = True
        elif not line:
            inside = False
        elif inside:
            found[-1].append([cell.strip() for cell in line.split("  ") if cell.strip()])
    return found


def test_the_table(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", *files, "--k", str(K)]) == 0
    out = capsys.readouterr().out
    grid = brute_force_grid(compared(X), compared(Y), K)
    assert out.splitlines()[:3] == [
        f"X: {files[0]} (3 layers, cosine, protocol paper)",
        f"Y: {files[1]} (2 layers, cosine, protocol paper)",
        "n = 60 items, k = 5 nearest neighbours; layers count from 0",
    ]
    assert len(set(grid.argmax(axis=1).tolist())) == 2  # each layer of Y is best for some
    scores, best = tables(out)
    row, column = divmod(int(grid.argmax()), 2)
    score, error = scores[0][1].split(" ± ")
    assert float(score) == pytest.approx(grid.max(), abs=6e-4)
    assert 0 < float(error) < 0.2
    assert scores[0][2:] == [str(row), str(column)]
    for line, layer in ((2, 2), (3, 0)):
        assert float(scores[line][1].split(" ± ")[0]) == pytest.approx(grid[layer].max(), abs=6e-4)
        assert scores[line][2:] == [str(layer), str(grid[layer].argmax())]
    assert float(scores[4][1]) == pytest.approx(K / (N - 1), rel=0.01)
    assert [cells[:2] for cells in best] == [[str(i), str(grid[i].argmax())] for i in range(3)]
    for cells, scores_of_layer in zip(best, grid, strict=True):
        assert float(cells[2]) == pytest.approx(scores_of_layer.max(), abs=6e-4)


def test_json_on_stdout_and_in_a_file(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.json"
    options = ["--k", str(K), "--x-similarity", "euclidean", "--y-names", "layer_1"]
    options += ["--graph-k", "7", "--device", "cpu"]
    assert main(["align", *files, *options, "--json", "--output", str(output)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads(output.read_text(encoding="utf-8")) == printed
    grid = brute_force_grid(compared(X, "euclidean"), compared(Y[1:]), K)
    found = Findings.model_validate(printed)
    for key in set(Findings.model_fields) - {"metric", "n", "k", "chance", "versions"}:
        printed.pop(key, None)
    np.testing.assert_allclose(found.layer_grid, grid, atol=6e-7)
    assert found.score == pytest.approx(grid.max())
    assert found.layers == (int(grid.argmax()), 0)
    assert found.stderr is not None and 0 < found.stderr < 0.2
    assert found.last is not None and found.last.score == pytest.approx(grid[2, 0])
    assert found.null is not None and found.null.draws == 1000
    sides = printed.pop("x"), printed.pop("y")
    for side in sides:
        assert len(side.pop("features")) == 64
    assert sides == (
        {
            "file": files[0],
            "names": ["layer_0", "layer_1", "layer_2"],
            "dtypes": ["float32"] * 3,
            "widths": [12] * 3,
            "layers": 3,
            "protocol": None,
            "similarity": "euclidean",
            "graph_k": 7,
        },
        {
            "file": files[1],
            "names": ["layer_1"],
            "dtypes": ["float32"],
            "widths": [9],
            "layers": 1,
            "protocol": "paper",
            "similarity": "cosine",
            "graph_k": 7,
        },
    )
    assert printed == {
        "metric": "mutual_knn",
        "chance": K / (N - 1),
        "n": N,
        "k": K,
        "device": "cpu",
        "versions": {"prh_eval": prh_eval.__version__, "torch": torch.__version__, "graphs": 1},
    }


def test_one_similarity_for_both(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    grids = {
        (a, b): brute_force_grid(compared(X, a), compared(Y, b), K).tolist()
        for a in ("cosine", "euclidean")
        for b in ("cosine", "euclidean")
    }
    for options, chosen in (
        ([], ("cosine", "cosine")),
        (["--similarity", "euclidean"], ("euclidean", "euclidean")),
        (["--similarity", "euclidean", "--x-similarity", "cosine"], ("cosine", "euclidean")),
        (["--y-similarity", "euclidean"], ("cosine", "euclidean")),
    ):
        assert main(["align", *files, "--k", str(K), "--json", *options]) == 0
        grid = json.loads(capsys.readouterr().out)["layer_grid"]
        np.testing.assert_allclose(grid, grids[chosen], atol=6e-7)


def test_small_errors_have_the_digits_they_need(files: tuple[str, str]) -> None:
    """A million items have standard errors of 1e-4: three decimals would hide them."""
    result = align_files(*(Source(file) for file in files), k=3)
    assert result is not None
    found, x, y = result
    numbers = {"score": 0.0123456, "stderr": 0.000123, "chance": 1.000001e-5}
    small = replace(found, alignment=replace(found.alignment, **numbers))
    text = table(small, x, y)
    assert "0.01235 ± 0.00012" in text
    assert "1e-05" in text


def test_work_and_graph_k_say_where_and_how_many_are_kept(
    files: tuple[str, str], tmp_path: Path, cache_folder: Path
) -> None:
    from prh_eval.store import read_artifact

    work = tmp_path / "work"
    assert main(["align", *files, "--k", "3", "--graph-k", "9", "--work", str(work)]) == 0
    kept = list(work.glob("*.safetensors"))
    assert [read_artifact(path).graph.k for path in kept] == [9, 9]
    assert not cache_folder.exists()
    assert main(["align", *files, "--k", "3"]) == 0
    assert len(list((cache_folder / "aligned").glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--k", "60"], "k = 60 nearest neighbours cannot be found among 60 items"),
        (["--output", "nowhere/at/all.json"], "is in nowhere/at, which is no folder"),
        (["--output", "."], "is a folder"),
        (["--memory", "1kB"], "of memory, where "),
        (["--device", "banana"], "the device 'banana' cannot be used here"),
        (["--device", "meta"], "the device 'meta' cannot be used here: it should be cpu, cuda or"),
        (["--device", "mps"], "the device 'mps' cannot be used here: it should be cpu, cuda or"),
        (["--x-names", "layer_0", "layer_0"], "is named twice"),
        (["--device", "cuda:99"], "the device 'cuda:99' cannot be used here"),
        (["--protocol", "papr"], "did you mean 'paper'"),
        (["--x-names", "layr_0"], "did you mean 'layer_0'"),
        (["--x-names", ""], "--x-names has an empty name; it should be those of tensors in "),
        (["--y-names", "layer_0", ""], "--y-names has an empty name"),
        (["--device", ""], "the device '' cannot be used here: it should be cpu, cuda or cuda and"),
        (["--device", "foo"], "the device 'foo' cannot be used here: it should be cpu, cuda or"),
    ],
)
def test_wrong_input_is_one_sentence(
    options: list[str], words: str, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["align", *files, *options]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("prh-eval: error: ")
    assert words in last


@pytest.mark.parametrize("side", [0, 1])
def test_a_file_without_a_name_is_one_sentence(
    side: int, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = list(files)
    given[side] = ""
    assert main(["align", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "prh-eval: error: a file to align has an empty name; it should be the path of a file"
    )


def test_a_work_folder_without_a_name_is_refused(
    files: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SystemExit, match="2"):
        main(["align", *files, "--work", ""])
    assert "argument --work: '' should be the name of a folder" in capsys.readouterr().err
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("below", ["", "work"])
def test_work_that_cannot_be_a_folder_is_refused_before_any_search(
    below: str,
    files: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("prh_eval.aligning.align_files", lambda *_, **__: pytest.fail("begun"))
    work = tmp_path / "file" / below
    assert main(["align", *files, "--work", str(work)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"prh-eval: error: --work {work} is no folder and cannot become one (")


def test_the_help_lists_every_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["align", "--help"])
    *first, last = PROTOCOLS
    listed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert f"preprocessing: {', '.join(first)} or {last}; default" in listed


@pytest.mark.parametrize("kept", [6, 40])
def test_a_result_is_the_same_whatever_was_kept(
    kept: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kept graphs may reach further than a run asks for, and errors look as far as a graph does."""
    rough = [(layer * 2).round() for layer in drawn(2, N, 3, 7)]  # with items that repeat: ties
    paths = [
        str(save(layers, tmp_path / name))
        for layers, name in ((X, "x.safetensors"), (rough, "y.safetensors"))
    ]

    def printed(work: str, *options: str) -> str:
        command = ["align", *paths, "--k", "3", "--json", "--work", str(tmp_path / work)]
        assert main([*command, *options]) == 0
        return capsys.readouterr().out

    anew = printed("anew")
    wide = printed("work", "--graph-k", str(kept))
    assert printed("work") == anew
    assert json.loads(wide)["k_curve"][-1]["k"] == kept
    # The kept graphs still reach as far as they did.
    assert printed("work", "--graph-k", str(kept)) == wide


def test_names_for_a_file_without_names_say_which_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.npy"
    np.save(path, X[0].numpy())
    assert main(["align", str(path), str(path), "--x-names", "a"]) == 2
    assert "--x-names should be left out" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["0", "-1", "2.5", "x"])
def test_a_k_that_is_no_number_is_told(
    option: str, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["align", *files, "--k", option])
    assert "should be a number from 1" in capsys.readouterr().err


def test_an_output_that_turns_out_unwritable_loses_no_graphs(
    files: tuple[str, str], tmp_path: Path, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Linux's device that is always full.
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    assert main(["align", *files, "--k", "3", "--output", str(full)]) == 2
    captured = capsys.readouterr()
    assert "best pair of layers" in captured.out
    assert "cannot be written: No space left on device; the same command" in captured.err
    assert len(list((cache_folder / "aligned").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_an_output_that_is_an_input_is_refused(
    side: int,
    link: Any,
    files: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "output"
    if link:
        link(files[side], output)
    else:
        output = tmp_path / "." / Path(files[side]).name
    before = output.read_bytes()
    assert main(["align", *files, "--output", str(output)]) == 2
    assert f"is the input {files[side]}; it should be another file" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_an_output_behind_a_link_to_nowhere_is_refused_at_once(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "nowhere" / "all.json")
    assert main(["align", *files, "--k", "3", "--output", str(link)]) == 2
    captured = capsys.readouterr()
    assert f"is in {tmp_path / 'nowhere'}, which is no folder" in captured.err
    assert captured.out == ""


def test_an_output_in_a_folder_that_cannot_be_written_is_refused_at_once(
    files: tuple[str, str],
    tmp_path: Path,
    cache_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A folder's own permissions would not stop root.
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    assert main(["align", *files, "--output", str(tmp_path / "result.json")]) == 2
    assert f"cannot be written: {tmp_path} is not writable" in capsys.readouterr().err
    assert not cache_folder.exists()


def test_a_result_outlives_a_closed_stdout_and_replaces_a_link_s_target(
    files: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    target, output = tmp_path / "folder" / "target.json", tmp_path / "result.json"
    target.write_text("{}")
    output.symlink_to(target)
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "prh_eval", "align", *files, "--output", str(output)]
    with os.fdopen(writing, "wb") as closed:
        subprocess.run(command, stdout=closed, stderr=subprocess.DEVNULL, env=HERE)
    assert output.is_symlink()
    assert json.loads(target.read_text(encoding="utf-8"))["n"] == N
    assert [path.name for path in target.parent.iterdir()] == ["target.json"]
