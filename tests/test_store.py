"""Artifacts on disk: round trip, damage, locks, and writes that are cut off."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

from prh_eval import store
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.resources import cache_folder
from prh_eval.store import (
    ArtifactError,
    GraphArtifact,
    fingerprint,
    read_artifact,
    read_features,
    save_artifact,
    write_artifact,
    write_features,
)


def make_graph(layers: int, n: int, k: int, extra: int = 0, seed: int = 0) -> NeighborGraph:
    """Random rows of k..k+extra neighbours, some tied, padded as NeighborGraph says."""
    random = np.random.default_rng(seed)
    indices = np.full((layers, n, k + extra), -1, dtype=np.int32)
    tied = np.zeros(indices.shape, dtype=bool)
    for layer in range(layers):
        for item in range(n):
            length = min(k + int(random.integers(0, extra + 1)), n - 1)
            others = np.delete(np.arange(n), item)
            indices[layer, item, :length] = random.permutation(others)[:length]
            tied[layer, item, 1:length] = random.random(length - 1) < 0.2
    width = int((indices >= 0).sum(-1).max())
    return NeighborGraph(
        torch.from_numpy(indices[..., :width]), torch.from_numpy(tied[..., :width]), k
    )


def make_artifact(seed: int = 0) -> GraphArtifact:
    return GraphArtifact(make_graph(2, 7, 3, 2, seed), {"made_from": {"seed": seed}, "x": [None]})


def checksum(metadata: dict[str, str], arrays: dict[str, np.ndarray]) -> str:
    """The one that a file of these says: of its metadata, types and shapes, and all values."""
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    kinds = {name: [str(x.dtype), list(x.shape)] for name, x in arrays.items()}
    head = json.dumps([rest, kinds], sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(
        head + b"".join(arrays[name].tobytes() for name in sorted(arrays))
    ).hexdigest()


def assert_same(a: GraphArtifact, b: GraphArtifact) -> None:
    assert a.header == b.header
    assert a.graph.k == b.graph.k
    assert a.graph.indices.dtype == b.graph.indices.dtype == torch.int32
    assert a.graph.tied.dtype == b.graph.tied.dtype == torch.bool
    assert torch.equal(a.graph.indices, b.graph.indices)
    assert torch.equal(a.graph.tied, b.graph.tied)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Lone surrogates too: a caption may hold anything.
    | st.text(alphabet=st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    layers=st.integers(1, 3),
    n=st.integers(3, 9),
    data=st.data(),
    extra=st.integers(0, 2),
    header=st.dictionaries(st.text(), json_values, max_size=3),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    layers: int,
    n: int,
    extra: int,
    data: st.DataObject,
    header: dict[str, Any],
) -> None:
    k = data.draw(st.integers(1, n - 1))
    artifact = GraphArtifact(make_graph(layers, n, k, extra), header)
    path = tmp_path_factory.mktemp("round") / "sub" / "a.safetensors"
    write_artifact(path, artifact)
    assert_same(read_artifact(path), artifact)
    assert {file.name for file in path.parent.iterdir()} <= {path.name, f"{path.name}.lock"}


@pytest.mark.parametrize("n", [65_536, 65_537])
def test_indices_around_the_limit_of_16_bits(tmp_path: Path, n: int) -> None:
    indices = torch.full((1, n, 1), n - 1, dtype=torch.int32)
    indices[0, n - 1, 0] = 0
    artifact = GraphArtifact(NeighborGraph(indices, torch.zeros(1, n, 1, dtype=torch.bool), 1))
    path = tmp_path / "a.safetensors"
    write_artifact(path, artifact)
    assert_same(read_artifact(path), artifact)
    assert path.stat().st_size == pytest.approx(n * 2 * (2 if n == 65_536 else 4), rel=0.01)


def test_a_file_is_one_that_the_library_would_write(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_artifact(path, make_artifact())
    # As few items need 16 bits for an index and 32 for where a tie is, and the wider comes first.
    arrays = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    again = safetensors.numpy.save(arrays, metadata)
    content = path.read_bytes()
    assert len(content) == len(again)
    begins = 8 + int.from_bytes(content[:8], "little")
    assert content[begins:] == again[begins:]
    heads = [json.loads(each[8:begins]) for each in (content, again)]
    assert heads[0] == heads[1]
    assert metadata["sha256"] == checksum(metadata, arrays)


def test_one_layer_at_a_time_is_written_and_read(tmp_path: Path) -> None:
    layers, n, k = 16, 3000, 20
    indices = torch.arange(n, dtype=torch.int32)[None, :, None].repeat(layers, 1, k)
    tied = torch.zeros(layers, n, k, dtype=torch.bool)
    tied[:, ::9, 3] = True
    artifact = GraphArtifact(NeighborGraph(indices, tied, k))
    path, layer, peaks = tmp_path / "a.safetensors", 5 * n * k, []
    for run in (lambda: write_artifact(path, artifact), lambda: read_artifact(path)):
        tracemalloc.start()
        run()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    lengths = 2 * layers * n
    assert peaks[0] < lengths + 2 * layer
    assert peaks[1] < layers * layer + lengths + 2 * layer


def test_features_are_written_a_layer_at_a_time(tmp_path: Path) -> None:
    layers = [torch.randn(2, 5000, 8)[index] for index in (0, 1)] * 4
    transposed = [layer.T for layer in layers]
    tracemalloc.start()
    write_features(tmp_path / "a.safetensors", transposed, {"x": 1})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * layers[0].nbytes
    found, header = read_features(tmp_path / "a.safetensors")
    assert header == {"x": 1}
    assert all(map(torch.equal, found, transposed))
    loaded = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(loaded["layer_0007"], transposed[7].numpy())


def test_size_of_the_papers_reference(tmp_path: Path) -> None:
    indices = torch.arange(100, dtype=torch.int32).expand(40, 1024, 100)
    tied = torch.zeros(indices.shape, dtype=torch.bool)
    tied[::7, ::5, 3] = True
    path = tmp_path / "a.safetensors"
    write_artifact(path, GraphArtifact(NeighborGraph(indices, tied, 100)))
    assert path.stat().st_size < 8.4e6


def test_one_layer_of_ties_does_not_widen_the_others_in_the_file(tmp_path: Path) -> None:
    n = 300
    constant = NeighborGraph(
        torch.stack([torch.tensor([j for j in range(n) if j != i]) for i in range(n)])[None].int(),
        (torch.arange(n - 1) > 0).expand(1, n, -1),
        10,
    )
    plain = make_graph(9, n, 10)
    pad = (0, n - 1 - 10)
    graph = NeighborGraph(
        torch.cat([constant.indices, torch.nn.functional.pad(plain.indices, pad, value=-1)]),
        torch.cat([constant.tied, torch.nn.functional.pad(plain.tied, pad)]),
        10,
    )
    path = tmp_path / "a.safetensors"
    write_artifact(path, GraphArtifact(graph))
    assert_same(read_artifact(path), GraphArtifact(graph))
    assert path.stat().st_size < 2 * (n * n + 9 * n * 10 + 10 * n) + 4 * (n * n + 9 * n * 10) + 2000


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    artifact = make_artifact()
    write_artifact(path, artifact)
    whole = path.read_bytes()
    noticed = 0
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1
        path.write_bytes(changed)
        try:
            # A change that the format does not care about may pass, but only with equal content.
            assert_same(read_artifact(path), artifact)
        except ArtifactError as error:
            noticed += 1
            assert str(path) in str(error)
    assert noticed > len(whole) * 0.95


def test_features_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "features.safetensors"
    layers = [
        torch.randn(4, width).to(kind) for width, kind in ((3, torch.float32), (5, torch.half))
    ]
    layers.append(torch.randn(2, 4).T.double())
    store.write_features(path, layers, {"made_from": {"x": [None]}})
    read, header = store.read_features(path)
    assert header == {"made_from": {"x": [None]}}
    for one, other in zip(layers, read, strict=True):
        assert (one.dtype, one.tolist()) == (other.dtype, other.tolist())
    with pytest.raises(
        ArtifactError, match=r"'prh_eval\.features/1'; this version reads 'prh_eval\.g"
    ):
        read_artifact(path)
    content = path.read_bytes()
    for position in range(0, len(content), 17):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        )
        with pytest.raises(ArtifactError):
            store.read_features(path)


def test_more_layers_than_a_digit_has(tmp_path: Path) -> None:
    layers = [torch.full((2, 1), float(number)) for number in range(101)]
    store.write_features(tmp_path / "x.safetensors", layers, {})
    read, _ = store.read_features(tmp_path / "x.safetensors")
    assert [float(layer[0, 0]) for layer in read] == list(range(101))


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_artifact(path, make_artifact())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="cut short"):
            read_artifact(path)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ArtifactError, match="there is no artifact"):
        read_artifact(path)
    path.write_text("hello")
    with pytest.raises(ArtifactError, match="no artifact"):
        read_artifact(path)
    weights = {"w": np.zeros(3, dtype=np.float32)}
    safetensors.numpy.save_file(weights, path)
    with pytest.raises(ArtifactError, match="format none"):
        read_artifact(path)
    safetensors.numpy.save_file(weights, path, {"format": "prh_eval.graph/99"})
    with pytest.raises(ArtifactError, match=r"'prh_eval.graph/99'.*'prh_eval.graph/1'"):
        read_artifact(path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_artifact(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda arrays, metadata: arrays.update(indices=arrays["indices"] + np.uint16(7)),
        lambda arrays, metadata: arrays.update(indices=arrays["indices"][1:]),
        lambda arrays, metadata: arrays.update(tied=np.array([10**6], dtype=np.int32)),
        lambda arrays, metadata: arrays.update(tied=np.array([-1], dtype=np.int32)),
        lambda arrays, metadata: arrays.update(tied=np.array([5, 4], dtype=np.int32)),
        lambda arrays, metadata: arrays.update(lengths=arrays["lengths"][:0]),
        lambda arrays, metadata: arrays.pop("tied"),
        lambda arrays, metadata: arrays.update(lengths=arrays["lengths"][0]),
        lambda arrays, metadata: metadata.update(k="7"),
        lambda arrays, metadata: metadata.update(k="0"),
    ],
)
def test_a_graph_that_cannot_be_is_refused_in_spite_of_its_checksum(
    tmp_path: Path, spoil: Callable[[dict[str, Any], dict[str, str]], object]
) -> None:
    path = tmp_path / "a.safetensors"
    write_artifact(path, make_artifact())
    with safetensors.safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in ("indices", "lengths", "tied")}
        metadata = dict(file.metadata())
    spoil(arrays, metadata)
    metadata["sha256"] = checksum(metadata, arrays)
    safetensors.numpy.save_file(arrays, path, metadata)
    with pytest.raises(ArtifactError, match="does not hold neighbour graphs"):
        read_artifact(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("before", [False, True])
def test_killed_in_the_middle_of_a_write(tmp_path: Path, moment: str, before: bool) -> None:
    path = tmp_path / "a.safetensors"
    if before:
        write_artifact(path, make_artifact(1))
    child = os.fork()
    if child == 0:
        try:
            setattr(os, moment, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
            write_artifact(path, make_artifact(2))
        finally:
            os._exit(1)  # whatever happens, no second pytest goes on from here
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(list(tmp_path.glob(".*.tmp"))) >= 1
    if before:
        assert_same(read_artifact(path), make_artifact(1))
    else:
        assert not path.exists()
    write_artifact(path, make_artifact(3))
    assert_same(read_artifact(path), make_artifact(3))
    assert {file.name for file in tmp_path.iterdir()} <= {"a.safetensors", "a.safetensors.lock"}


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    before = os.umask(0o027)
    try:
        write_artifact(path, make_artifact())
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_artifact(tmp_path / "a.safetensors", make_artifact())
    assert {file.name for file in tmp_path.iterdir()} <= {"a.safetensors.lock"}


def test_an_unwritable_folder_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "cache" / "a.safetensors"
    with caplog.at_level(logging.WARNING, logger="prh_eval"):
        assert not save_artifact(path, make_artifact())
        assert not save_artifact(path, make_artifact())
    (record,) = caplog.records
    assert str(path.parent) in record.getMessage()
    assert save_artifact(tmp_path / "a.safetensors", make_artifact())


def test_one_thread_at_a_time_and_a_holder_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    inside: list[str] = []
    waiting = threading.Event()
    monkeypatch.setattr(store.logger, "info", lambda *args: waiting.set())

    def other() -> None:
        with store.locked(path):
            inside.append("other")

    thread = threading.Thread(target=other)
    with store.locked(path):
        thread.start()
        waiting.wait()
        with store.locked(path):
            inside.append("first")
    thread.join()
    assert inside == ["first", "other"]


def test_fingerprint() -> None:
    expected = hashlib.sha256(b'{"a":[1,null,"\\u00e9"],"b":0.5}').hexdigest()
    assert fingerprint({"b": 0.5, "a": (1, None, "é")}) == expected
    with pytest.raises(TypeError):
        fingerprint({"a": object()})
    with pytest.raises(ValueError):
        fingerprint(float("nan"))


@given(json_values, json_values)
def test_fingerprints_tell_values_apart(a: Any, b: Any) -> None:
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (fingerprint(a) == fingerprint(b)) == same


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRH_EVAL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PRH_EVAL_CACHE")
    assert "prh_eval" in cache_folder().parts


def test_a_single_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    about = {"format": store.FORMAT, "k": "3", "header": "{}", "sha256": "x"}
    safetensors.numpy.save_file({"indices": np.array(3, dtype=np.int32)}, path, about)
    with pytest.raises(ArtifactError, match="checksum does not fit"):
        read_artifact(path)
