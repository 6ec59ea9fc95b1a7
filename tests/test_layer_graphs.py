"""Graphs made layer by layer: those of brute force, and after any stop only what was missing."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from aligning_worlds import compared, drawn, nearest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prh_eval import layer_graphs as module
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.preprocess import protocol
from prh_eval.errors import PrhEvalError
from prh_eval.layer_graphs import (
    GraphParts,
    features_fingerprint,
    layer_graphs,
    made_from,
    warn_unkept,
)
from prh_eval.processes import Processes

PAPER = protocol("paper")
ALONE = Processes(0, 1, 0, torch.device("cpu"))


def graphs(layers: list[Tensor], k: int, **options: Any) -> NeighborGraph:
    options = {"protocol": PAPER, "processes": ALONE, **options}
    graph = layer_graphs(layers, k, **options)
    assert graph is not None
    return graph


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The widths of the layers that were searched, in order."""
    seen: list[int] = []
    search = module.neighbor_graph

    def counted(rows: Any, *arguments: Any, **options: Any) -> NeighborGraph:
        assert len(rows) == 1
        seen.append(rows[0].dim)
        return search(rows, *arguments, **options)

    monkeypatch.setattr(module, "neighbor_graph", counted)
    return seen


@settings(max_examples=20)
@given(
    dims=st.lists(st.integers(3, 9), min_size=1, max_size=4),
    n=st.integers(12, 40),
    k=st.integers(1, 9),
    similarity=st.sampled_from(["cosine", "euclidean"]),
    name=st.sampled_from(["paper", "unclipped"]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_neighbours_are_those_of_brute_force(
    dims: list[int], n: int, k: int, similarity: Any, name: str, dtype: torch.dtype
) -> None:
    # Few dimensions of few digits would tie: each layer is mixed with noise of many.
    layers = [drawn(1, n, dim + 8, dim)[0].to(dtype) for dim in dims]
    steps: list[int] = []
    graph = graphs(layers, k, protocol=protocol(name), similarity=similarity, progress=steps.append)
    assert (graph.layers, graph.n, graph.k) == (len(dims), n, k)
    assert steps == list(range(1, len(dims) + 1))
    for layer, rows in enumerate(compared(layers, similarity, clip=name == "paper")):
        found = np.sort(graph.indices[layer, :, :k].numpy())
        np.testing.assert_array_equal(found, np.sort(nearest(rows, k)))


def test_a_wide_layer_widens_the_others() -> None:
    layers = drawn(3, 20, 5, 1)
    layers[1][4:] = layers[1][4]  # 16 items that all tie
    graph = graphs(layers, 3)
    assert graph.width >= 15
    for layer in (0, 2):
        assert (graph.indices[layer, :, 3:] == -1).all()
        assert not graph.tied[layer, :, 3:].any()
    weights = graph.weights(3)[1, 10]
    assert weights.sum() == pytest.approx(3)
    assert (weights > 0).sum() == 15


@pytest.mark.parametrize("tied", [16, 0])
def test_ties_that_would_not_fit_into_memory_are_refused(
    tied: int, monkeypatch: pytest.MonkeyPatch, searched: list[int]
) -> None:
    layers = [drawn(1, 20, dim, dim)[0] for dim in (4, 5, 6, 7)]
    if tied:
        layers[1][-tied:] = layers[1][-1]
    width = max(graphs([layer], 3).width for layer in layers)
    whole, held = 5 * 4 * 20 * width, 5 * 20 * (3 + width)

    def free(size: int) -> None:
        monkeypatch.setattr(
            module.psutil, "virtual_memory", lambda: SimpleNamespace(available=size)
        )

    # What is held once the wide layer is found is given up for the whole.
    free(whole - held)
    assert graphs(layers, 3).width == width
    del searched[:]
    free(whole - held - 1)
    if not tied:
        assert graphs(layers, 3).width == 3
        return
    said = rf"layer 1 has {width} neighbours that tie for its 3 nearest.* of 4 layers.* repeat"
    with pytest.raises(PrhEvalError, match=said):
        graphs(layers, 3)
    # The layers after it are not searched in vain.
    assert searched == [4, 5]


def test_a_stopped_run_goes_on_at_the_layer_it_reached(tmp_path: Path, searched: list[int]) -> None:
    layers = [drawn(1, 30, dim, dim)[0] for dim in (4, 5, 6, 7)]
    whole = graphs(layers, 4)
    definition = made_from(features_fingerprint(layers), PAPER, "cosine")
    del searched[:]

    class Stopped(Exception):
        pass

    def stop(done: int) -> None:
        if done == 2:
            raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            graphs(layers, 4, parts=GraphParts(tmp_path / "p", definition, 4), progress=stop)
    assert searched == [4, 5]
    again = graphs(layers, 4, parts=GraphParts(tmp_path / "p", definition, 4))
    assert searched == [4, 5, 6, 7]
    assert torch.equal(again.indices, whole.indices)
    assert torch.equal(again.tied, whole.tied)
    parts = GraphParts(tmp_path / "p", definition, 4)
    (tmp_path / "p" / ".000001.layer.safetensors.abc.tmp").write_bytes(b"left by a kill")
    parts.clear()
    assert not (tmp_path / "p").exists()
    parts.clear()


def test_parts_of_anything_else_are_made_anew(tmp_path: Path, searched: list[int]) -> None:
    layers = drawn(2, 30, 4, 1)
    others = drawn(2, 30, 4, 2)

    def run(layers: list[Tensor], k: int, name: str, similarity: Any) -> None:
        rule = protocol(name)
        definition = made_from(features_fingerprint(layers), rule, similarity)
        options = {"protocol": rule, "similarity": similarity}
        graph = graphs(layers, k, parts=GraphParts(tmp_path, definition, k), **options)
        oracle = graphs(layers, k, **options)
        assert torch.equal(graph.indices, oracle.indices)

    expected = 0
    for case in (
        (layers, 4, "paper", "cosine"),
        (layers, 5, "paper", "cosine"),
        (layers, 3, "paper", "cosine"),
        (layers, 3, "unclipped", "cosine"),
        (layers, 3, "paper", "euclidean"),
        (others, 3, "paper", "euclidean"),
    ):
        run(*case)
        expected += 4
        assert len(searched) == expected, case
        run(*case)
        expected += 2  # the oracle's
        assert len(searched) == expected, case


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other layer"])
def test_a_damaged_part_is_made_anew(damage: str, tmp_path: Path, searched: list[int]) -> None:
    layers = [drawn(1, 30, dim, dim)[0] for dim in (4, 5, 6)]
    definition = made_from(features_fingerprint(layers), PAPER, "cosine")
    whole = graphs(layers, 4, parts=GraphParts(tmp_path, definition, 4))
    files = sorted(tmp_path.glob("*.safetensors"))
    content = bytearray(files[1].read_bytes())
    if damage == "cut":
        files[1].write_bytes(content[:-3])
    elif damage == "empty":
        files[1].write_bytes(b"")
    elif damage == "flip":
        content[-1] ^= 1
        files[1].write_bytes(content)
    else:
        files[1].write_bytes(files[0].read_bytes())
    del searched[:]
    again = graphs(layers, 4, parts=GraphParts(tmp_path, definition, 4))
    assert searched == [5]
    assert torch.equal(again.indices, whole.indices)


@pytest.mark.parametrize("reason", ["full", "no folder"])
def test_what_cannot_be_kept_is_one_warning(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layers = drawn(3, 20, 4, 1)
    folder = tmp_path / "in the way" / "parts"
    tries = []
    if reason == "no folder":
        folder.parent.write_text("a file")
    else:

        def full(path: Path, artifact: Any) -> None:
            tries.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(module, "write_artifact", full)
    made = made_from("f" * 64, PAPER, "cosine")
    refused = (errno.ENOSPC, "No space left on device")
    if reason == "no folder":
        refused = (errno.ENOTDIR, "Not a directory")
    parts = GraphParts(folder / "a", made, 3, within=folder)
    with caplog.at_level(logging.WARNING, logger="prh_eval"):
        graph = graphs(layers, 3, parts=parts)
        # Another file's graphs in the same place, and the whole graph, say nothing more.
        graphs(layers, 3, parts=GraphParts(folder / "b", made, 3, within=folder))
        warn_unkept(folder, OSError(*refused))
    assert torch.equal(graph.indices, graphs(layers, 3).indices)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"cannot write to {folder} ({refused[1]}): the run goes")
    # What lm-eval and `references build` can set too.
    assert "PRH_EVAL_CACHE, or --work of prh-eval align, can name" in record.getMessage()
    assert len(tries) == (2 if reason == "full" else 0)


def test_no_graph_is_kept_whose_check_fails(tmp_path: Path, searched: list[int]) -> None:
    layers = [drawn(1, 30, dim, dim)[0] for dim in (4, 5, 6)]

    def check() -> None:
        if searched == [4, 5]:
            raise PrhEvalError("changed")

    definition = made_from("f" * 64, PAPER, "cosine")
    with pytest.raises(PrhEvalError, match="changed"):
        graphs(layers, 4, parts=GraphParts(tmp_path, definition, 4), check=check)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["000000.layer.safetensors"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory.\nMore")])
def test_memory_that_runs_out_is_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(module, "neighbor_graph", search)
    words = "MemoryError" if isinstance(error, MemoryError) else "CUDA out of memory."
    expected = f"memory ran out on cpu in the search of layer 0 ({words}); --memory of prh-eval"
    with pytest.raises(PrhEvalError, match=re.escape(expected)):
        graphs(drawn(1, 20, 4, 1), 3)


def test_a_defect_is_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(module, "neighbor_graph", search)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        graphs(drawn(1, 20, 4, 1), 3)


# Fingerprints


def oracle_fingerprint(layers: list[Tensor]) -> str:
    whole = hashlib.sha256()
    for layer in layers:
        values = layer.contiguous().view(torch.uint8).numpy().tobytes()
        head = f"{layer.dtype} {json.dumps(list(layer.shape))}\n".encode()
        whole.update(hashlib.sha256(head + values).digest())
    return whole.hexdigest()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_fingerprint_is_that_of_types_shapes_and_values(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 7)
    layers = [layer.to(dtype) for layer in drawn(2, 9, 4, 1)]
    expected = oracle_fingerprint(layers)
    assert features_fingerprint(layers) == expected
    stacked = torch.stack(layers, dim=1)
    assert features_fingerprint(stacked.unbind(dim=1)) == expected
    steps: list[int] = []
    changed = [layers[0], layers[1].clone()]
    changed[1][8, 3] += 1
    for other in (
        changed,
        layers[::-1],
        layers[:1],
        [layers[0], layers[1].T.contiguous()],
        [layer.double() if dtype != torch.float64 else layer.float() for layer in layers],
    ):
        assert features_fingerprint(other, steps.append) != expected
    assert steps == [1, 2, 1, 2, 1, 1, 2, 1, 2]
