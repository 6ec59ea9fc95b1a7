"""Features in two files to their alignment: against brute force, kept, resumed, shared, refused."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aligning_worlds import (
    align_and_print,
    align_on_two_machines,
    brute_force_grid,
    compared,
    drawn,
    runs_out_of_memory,
    save,
)
from kept_graphs import features as values
from kept_graphs import keep_model, keep_reference
from process_worlds import world

from prh_eval import aligning, layer_graphs, store
from prh_eval.aligning import Source, align_files
from prh_eval.alignment.layers import Alignment
from prh_eval.errors import PrhEvalError
from prh_eval.processes import Processes

N = 60
X, Y = drawn(3, N, 12, 1), drawn(2, N, 9, 2)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return save(X, tmp_path / "x.safetensors"), save(Y, tmp_path / "y.safetensors")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of layers of the features whose graphs were made, in order."""
    seen: list[int] = []
    make = aligning.layer_graphs

    def counted(features: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(len(features))
        return make(features, *arguments, **options)

    monkeypatch.setattr(aligning, "layer_graphs", counted)
    return seen


def aligned(x: Path | Source, y: Path | Source, **options: Any) -> Alignment:
    sources = [Source(str(each)) if isinstance(each, Path) else each for each in (x, y)]
    result = align_files(*sources, **options)
    assert result is not None
    return result[0].alignment


def refusal(x: Path | Source, y: Path | Source, **options: Any) -> str:
    with pytest.raises(PrhEvalError) as caught:
        aligned(x, y, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("k", [1, 5])
def test_the_grid_is_that_of_brute_force(files: tuple[Path, Path], k: int) -> None:
    result = aligned(*files, k=k)
    grid = brute_force_grid(compared(X), compared(Y), k)
    np.testing.assert_allclose(result.grid.numpy(), grid, atol=1e-12)
    assert result.score == pytest.approx(grid.max())
    assert (result.x_layer, result.y_layer) == divmod(int(grid.argmax()), 2)
    assert result.last_layer_score == pytest.approx(grid[-1].max())
    assert (result.n, result.k, result.chance) == (N, k, k / (N - 1))


def test_every_choice_reaches_the_graphs(files: tuple[Path, Path]) -> None:
    x, y = (str(file) for file in files)
    euclidean = compared(X, "euclidean")
    cases: list[tuple[Source, Source, dict[str, Any], Any, Any]] = [
        (Source(x, similarity="euclidean"), Source(y), {}, euclidean, compared(Y)),
        (Source(y), Source(x, similarity="euclidean"), {}, compared(Y), euclidean),
        (
            Source(x),
            Source(y),
            {"protocol": "unclipped"},
            compared(X, clip=False),
            compared(Y, clip=False),
        ),
        # What values are clipped to is of the layers that are read.
        (Source(x, ["layer_2", "layer_0"]), Source(y), {}, compared([X[2], X[0]]), compared(Y)),
    ]
    for one, other, options, left, right in cases:
        result = aligned(one, other, k=4, **options)
        np.testing.assert_allclose(
            result.grid.numpy(), brute_force_grid(left, right, 4), atol=1e-12
        )


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_other_files_of_the_same_values_are_the_same_features(
    suffix: str, files: tuple[Path, Path], tmp_path: Path, made: list[int]
) -> None:
    expected = aligned(*files, k=4)
    other = tmp_path / f"elsewhere{suffix}"
    stacked = torch.stack(X, dim=1)
    if suffix == ".npy":
        np.save(other, stacked.numpy())
    elif suffix == ".npz":
        np.savez(other, **{f"l{number}": layer.numpy() for number, layer in enumerate(X)})
    else:
        torch.save({"feats": stacked}, other)
    assert torch.equal(aligned(other, files[1], k=4).grid, expected.grid)
    assert made == [3, 2]


def test_graphs_are_made_once(files: tuple[Path, Path], tmp_path: Path, made: list[int]) -> None:
    x, y = files
    first = aligned(x, y, k=4, graph_k=6)
    z = save(drawn(4, N, 7, 3), tmp_path / "z.safetensors")
    aligned(x, z, k=4)
    assert made == [3, 2, 4]
    x.rename(tmp_path / "moved.safetensors")
    again = aligned(tmp_path / "moved.safetensors", y, k=4)
    assert made == [3, 2, 4]
    assert torch.equal(first.grid, again.grid)
    # A graph for more neighbours serves fewer; not the other way round.
    aligned(tmp_path / "moved.safetensors", y, k=6)
    assert made == [3, 2, 4]
    aligned(tmp_path / "moved.safetensors", y, k=7)
    assert made == [3, 2, 4, 3, 2]
    aligned(y, y, k=4, folder=tmp_path / "work")
    assert made == [3, 2, 4, 3, 2, 2]
    aligned(y, y, k=4, graph_k=9, folder=tmp_path / "work")
    assert made == [3, 2, 4, 3, 2, 2, 2]
    (kept,) = (tmp_path / "work").glob("*.safetensors")
    assert store.read_artifact(kept).graph.k == 9
    assert len(list((tmp_path / "work").glob("*.safetensors"))) == 1
    assert not list(tmp_path.rglob("unfinished/*"))


def test_a_damaged_graph_is_made_anew(
    files: tuple[Path, Path], tmp_path: Path, made: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    first = aligned(*files, k=4, folder=tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        if file not in files:
            file.write_bytes(file.read_bytes()[:-1])
    again = aligned(*files, k=4, folder=tmp_path)
    assert made == [3, 2, 3, 2]
    assert torch.equal(first.grid, again.grid)
    assert "cut short" in caplog.text
    aligned(*files, k=4, folder=tmp_path)
    assert made == [3, 2, 3, 2]


# A run that is killed once its third part is on disk: x's first two layers and then it goes.
_KILLED = """
import os, sys
from prh_eval import layer_graphs
from prh_eval.aligning import Source, align_files

write = layer_graphs.GraphParts.write

def and_die(self, layer, graph):
    write(self, layer, graph)
    if layer == 1:
        os.kill(os.getpid(), 9)

layer_graphs.GraphParts.write = and_die
align_files(Source(sys.argv[1]), Source(sys.argv[2]), k=4)
"""


def test_a_killed_run_goes_on_at_the_layer_it_reached(
    files: tuple[Path, Path], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(aligning.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = subprocess.run([sys.executable, "-c", _KILLED, *map(str, files)], env=environment)
    assert killed.returncode == -9
    assert len(list(cache_folder.glob("aligned/unfinished/*/*.safetensors"))) == 2
    assert not list(cache_folder.glob("aligned/*.safetensors"))
    searched = []
    search = layer_graphs.neighbor_graph

    def counted(rows: Any, *arguments: Any, **options: Any) -> Any:
        searched.append(rows[0].dim)
        return search(rows, *arguments, **options)

    monkeypatch.setattr(layer_graphs, "neighbor_graph", counted)
    result = aligned(*files, k=4)
    assert searched == [12, 9, 9]
    grid = brute_force_grid(compared(X), compared(Y), 4)
    np.testing.assert_allclose(result.grid.numpy(), grid, atol=1e-12)
    assert not list(cache_folder.glob("aligned/unfinished/*"))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_file_that_changes_while_it_is_read_leaves_no_wrong_graph(
    at: int, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = aligned(*files, k=4, folder=tmp_path / "other")
    copy = files[0].read_bytes()
    work = tmp_path / "work"
    search = layer_graphs.neighbor_graph
    searches = iter(range(9))

    def disturbed(*arguments: Any, **options: Any) -> Any:
        if next(searches) == at:
            with files[0].open("r+b") as file:
                file.seek(-3 * N * 12 * 4, os.SEEK_END)
                file.write(torch.stack(drawn(3, N, 12, 7)).numpy().tobytes())
            os.utime(files[0], ns=(1, 1))  # no two writes within one tick of a clock
        return search(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(layer_graphs, "neighbor_graph", disturbed)
        message = refusal(*files, k=4, folder=work)
    assert message == f"{files[0]} changed while it was read; run it again"
    assert len(list(work.glob("unfinished/*/*.layer.safetensors"))) == at
    assert not list(work.glob("*.safetensors"))
    files[0].write_bytes(copy)
    assert torch.equal(aligned(*files, k=4, folder=work).grid, before.grid)


def test_a_copy_that_changes_on_another_machine_is_told(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gathered(self: Processes, value: Any) -> list[Any]:
        return [value, value is False or value]

    monkeypatch.setattr(Processes, "all_gather_object", gathered)
    assert f"{files[0]} changed" in refusal(*files, k=4, folder=tmp_path / "work")


def test_a_file_that_changes_between_fingerprint_and_search_is_told(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = aligning.validate_features

    def rewritten(*arguments: Any, **options: Any) -> None:
        validate(*arguments, **options)
        os.utime(files[1], ns=(1, 1))

    monkeypatch.setattr(aligning, "validate_features", rewritten)
    assert f"{files[1]} changed" in refusal(*files, k=4, folder=tmp_path / "work")


def test_a_folder_that_cannot_be_written_is_a_warning(
    files: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, logger="prh_eval"):
        result = aligned(*files, k=4, folder=tmp_path / "file" / "work")
    assert result.score == pytest.approx(brute_force_grid(compared(X), compared(Y), 4).max())
    assert caplog.text.count("cannot write to") == 1


@pytest.mark.parametrize(("draws", "drawn_before"), [(0, []), (20, ["20 random re-pairings"])])
def test_how_far_it_is_after_the_last_layer_is_told(
    draws: int, drawn_before: list[str], files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Where there is no terminal: a line a stage, before it."""
    with caplog.at_level(logging.INFO, logger="prh_eval"):
        shown = aligned(*files, k=4, draws=draws, progress=True)
        told = [m.rpartition(", begun after ") for m in caplog.messages if ", begun after " in m]
        assert [stage for stage, _, _ in told] == [
            "scores of all layer pairs",
            "variances under re-pairing",
            *drawn_before,
            "pairs chosen on halves of the items",
            "curves and hubs",
        ]
        assert all(re.fullmatch(r"\d+ s", seconds) for _, _, seconds in told)
        caplog.clear()
        silent = aligned(*files, k=4, draws=draws)
        assert caplog.messages == []
    assert torch.equal(shown.grid, silent.grid)


# Graphs in place of features


def test_graphs_that_were_kept_are_a_side(
    files: tuple[Path, Path], tmp_path: Path, made: list[int]
) -> None:
    result = align_files(Source(str(files[0])), Source(str(files[1])), k=4)
    assert result is not None
    expected, x, _ = result
    kept = [path for path in (tmp_path / "cache" / "aligned").glob("*.safetensors")]
    by_layers = {store.read_artifact(path).graph.layers: path for path in kept}
    again = align_files(Source(str(by_layers[3])), Source(str(files[1])), k=4)
    assert again is not None
    assert torch.equal(again[0].alignment.grid, expected.alignment.grid)
    assert made == [3, 2]
    assert (again[1].features, again[1].protocol) == (x.features, "paper")
    assert again[1].names == x.names == ["layer_0", "layer_1", "layer_2"]
    assert again[1].dtypes == x.dtypes == ["float32"] * 3
    assert again[1].widths == x.widths == [12] * 3


def test_graphs_that_do_not_fit_are_refused(files: tuple[Path, Path]) -> None:
    x = keep_reference("dino", values(2, N, 1), k=6)
    y = keep_model("org/gpt2", values(3, N, 2), k=6)
    other = keep_model("org/other", values(3, N, 2), k=6, data="sounds")
    assert aligned(x, y, k=6).grid.shape == (2, 3)
    assert aligned(x, files[1], k=6).grid.shape == (2, 2)
    assert "for k up to 6, where k = 7 is asked for" in refusal(x, y, k=7)
    assert "of the protocol 'paper', where 'unclipped'" in refusal(x, y, k=4, protocol="unclipped")
    euclidean = Source(str(x), similarity="euclidean")
    assert "by cosine similarity, where euclidean" in refusal(euclidean, y, k=4)
    assert "no tensors can be named" in refusal(Source(str(x), names=["layer_0"]), y, k=4)
    assert "are not of the same data" in refusal(x, other, k=4)
    old = store.read_artifact(y)
    old.header["graph_version"] = 0
    store.write_artifact(y, old)
    assert "of version 0" in refusal(x, y, k=4)


# What is refused


def test_wrong_files_and_numbers_are_one_sentence(
    files: tuple[Path, Path], tmp_path: Path, made: list[int]
) -> None:
    x, y = files
    short = save([layer[:-1] for layer in Y], tmp_path / "short.safetensors")
    message = refusal(x, short)
    assert f"{x} has 60 items and {short} has 59" in message
    assert "perhaps" not in message
    assert "k = 60 nearest neighbours cannot be found among 60 items" in refusal(x, y, k=60)
    assert "k must be between 1 and 59" in refusal(x, y, k=0)
    assert "up to 4 are asked for, which should be from k = 5" in refusal(x, y, k=5, graph_k=4)
    assert "up to 60 are asked for" in refusal(x, y, k=5, graph_k=60)
    assert "is not there" in refusal(x, tmp_path / "none.npy")
    assert "no protocol 'papr'; did you mean 'paper'" in refusal(x, y, protocol="papr")
    assert "no tensor 'layr_1'" in refusal(Source(str(x), names=["layr_1"]), y)
    assert made == []


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_items(n: int, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.eye(n, 4))
    message = refusal(path, path, k=1)
    assert f"have {n} item{'' if n == 1 else 's'}; nearest neighbours need 3 items" in message


def test_dimensions_in_another_order_are_hinted_at(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    layers_first, transposed = tmp_path / "layers_first.npy", tmp_path / "transposed.npy"
    np.save(layers_first, torch.stack(X).numpy())
    np.save(transposed, X[0].T.numpy())
    tall = tmp_path / "tall.npy"  # as many layers as the other file seems to have items
    np.save(tall, torch.stack(X, dim=1).numpy())
    hint = f"; {layers_first} has 60 layers, so perhaps (layers, items, width) where"
    assert hint in refusal(layers_first, files[1])
    assert hint in refusal(files[1], layers_first)
    for one, other in ((layers_first, tall), (tall, layers_first)):
        assert refusal(one, other).count("perhaps") == 1
        assert hint in refusal(one, other)
    assert f"{transposed} is 60 wide, so perhaps (width, items)" in refusal(files[1], transposed)


def test_what_is_beyond_float16_names_the_type(files: tuple[Path, Path], tmp_path: Path) -> None:
    large = [layer.clone() for layer in Y]
    large[1][5, 0] = 1e5
    path = save([layer.half() for layer in large], tmp_path / "half.safetensors")
    message = refusal(files[0], path)
    assert "(stored in float16, which ends at 65,504) is NaN, infinite" in message
    assert "at item 5" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_found_before_any_search(
    value: float, files: tuple[Path, Path], tmp_path: Path, made: list[int]
) -> None:
    bad = [layer.clone() for layer in Y]
    bad[1][37, 4] = value
    path = save(bad, tmp_path / "bad.safetensors")
    message = refusal(files[0], path)
    assert f"layer 1 of the features in {path}" in message
    assert "item 37" in message
    assert made == []


def test_too_little_memory_is_told_before_any_search(
    files: tuple[Path, Path], tmp_path: Path, made: list[int]
) -> None:
    wide = save([drawn(1, N, 9, 1)[0], drawn(1, N, 3000, 2)[0]], tmp_path / "wide.safetensors")
    message = refusal(files[0], wide, k=4, memory_bytes=2_000_000)
    assert "60 items in 3000 dimensions take at least" in message
    assert "of memory, where 2" in message
    assert made == []
    assert aligned(*files, k=4, memory_bytes=2_000_000).n == N


# Several processes


def test_processes_align_as_one_does(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = world(align_and_print, 2, tmp_path)
    assert [each.status for each in ended] == [0, 0], ended
    printed = json.loads((tmp_path / "stdout_0").read_text())
    assert (tmp_path / "stdout_1").read_text() == ""
    alone = aligned(*files, k=10, folder=tmp_path / "alone")
    assert printed["layer_grid"] == alone.grid.numpy().round(6).tolist()
    assert printed["stderr"] == alone.stderr
    folders = [tmp_path / "cache" / "aligned", tmp_path / "alone"]
    kept = [{path.name for path in folder.glob("*.safetensors")} for folder in folders]
    assert kept[0] == kept[1]
    assert (tmp_path / "graphs_0").exists()
    assert not (tmp_path / "graphs_1").exists()
    for name in kept[0]:
        one, other = (store.read_artifact(folder / name).graph for folder in folders)
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.tied, other.tied)


def test_memory_that_runs_out_in_one_process_is_one_sentence_in_all(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    ended = world(runs_out_of_memory, 2, tmp_path)
    assert [each.status for each in ended] == [2, 2], ended
    reason = (
        "memory ran out on cpu in the search of layer 1 (CUDA out of memory. Tried to allocate 2 "
        "GiB.); --memory of prh-eval align, or of prh-eval references build, whose graphs lm-eval "
        "reads, should be smaller than what is free there"
    )
    assert ended[1].lines[-1] == f"prh-eval: error: {reason}"
    assert ended[0].lines[-1] == f"prh-eval: error: process 1 of 2 stopped: {reason}"
    assert not any("Traceback" in each.stderr for each in ended)
    (part,) = (tmp_path / "cache" / "aligned" / "unfinished").glob("*/*.safetensors")
    assert part.name.startswith("000000")


def test_machines_with_different_files_are_told(tmp_path: Path) -> None:
    for rank in (0, 1):
        save(X, tmp_path / f"x{rank}.safetensors")
        save(drawn(2, N, 9, rank), tmp_path / f"y{rank}.safetensors")
    ended = world(align_on_two_machines, 2, tmp_path)
    assert [each.status for each in ended] == [2, 2]
    for each in ended:
        assert "is not the same file on every machine" in each.stderr
