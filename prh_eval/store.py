"""Graphs and features on disk: safetensors and a JSON header, verified, locked, written whole."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.errors import PrhEvalError

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
FORMAT = "prh_eval.graph/1"
FEATURES_FORMAT = "prh_eval.features/1"

# Up to this many items an index, and the length of a row, fit into 16 bits.
_MAX_UINT16_ITEMS = 1 << 16
# Bytes of an array that are read together to be hashed.
_BLOCK_BYTES = 1 << 24
# What safetensors calls NumPy's types.
_TYPES = {
    f"{letter}{8 * size}": np.dtype(f"{kind}{size}")
    for letter, kind, sizes in (
        ("U", "u", (1, 2, 4, 8)),
        ("I", "i", (1, 2, 4, 8)),
        ("F", "f", (2, 4, 8)),
    )
    for size in sizes
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


class ArtifactError(PrhEvalError):
    """A file that is not a whole, unaltered artifact; the message says which and why."""


@dataclass(frozen=True)
class GraphArtifact:
    """The neighbour graphs of one model or reference on one set of items.

    Attributes:
        graph: The graphs of all layers.
        header: What made them, in JSON values (dict, list, str, int, float, bool, None).
    """

    graph: NeighborGraph
    header: dict[str, Any] = field(default_factory=dict)


def fingerprint(value: Any) -> str:
    """SHA-256 of a value's canonical JSON (keys sorted, no spaces, ASCII), in hexadecimal.

    Raises:
        TypeError: If the value does not consist of JSON values.
        ValueError: If it holds NaN or infinity.
    """
    return hashlib.sha256(_canonical(value).encode("ascii")).hexdigest()


def content_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; read in blocks.

    Raises:
        OSError: If it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def write_artifact(path: Path, artifact: GraphArtifact) -> None:
    """Write a file that is there whole or not at all, even if the process is killed.

    Beside the graphs, no more than the neighbours of one layer are held.

    Args:
        path: Where to; folders are made as needed.
        artifact: What to write.

    Raises:
        OSError: If the folder cannot be written.
        TypeError: If the header does not consist of JSON values.
        ValueError: If the header holds NaN or infinity.
    """
    about = {"k": str(artifact.graph.k), "header": _canonical(artifact.header)}
    _write(path, {"format": FORMAT, **about}, _graph_arrays(artifact.graph))


def write_features(path: Path, layers: Sequence[Tensor], header: Mapping[str, Any]) -> None:
    """Write layer features to a file that is there whole or not at all.

    Args:
        path: Where to; folders are made as needed.
        layers: One tensor (n, width_l) a layer on the CPU, of a type that NumPy has.
        header: What made them, in JSON values.

    Raises:
        OSError: If the folder cannot be written.
    """
    arrays = {
        f"layer_{i:04}": _Array(
            layer[:0].numpy().dtype, tuple(layer.shape), map(np.ascontiguousarray, (layer.numpy(),))
        )
        for i, layer in enumerate(layers)
    }
    _write(path, {"format": FEATURES_FORMAT, "header": _canonical(header)}, arrays)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file that is there whole or not at all.

    Args:
        path: The file; its folder exists.

    Yields:
        What to write to in its place; it becomes the file when the block ends without an error.
    """
    # Not tempfile's, which only its owner may read: a cache folder may be shared.
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_artifact(path: Path, artifact: GraphArtifact) -> bool:
    """Write an artifact if the folder allows it; otherwise warn, once per folder, and go on.

    Returns:
        Whether it was written.
    """
    try:
        write_artifact(path, artifact)
    except OSError as error:
        warn_unwritable(path, error)
        return False
    return True


def read_artifact(path: Path) -> GraphArtifact:
    """Read and verify an artifact.

    Beside the graphs, no more than the neighbours of one layer are held.

    Raises:
        ArtifactError: If the file is missing, cut short, edited, of another format, or not ours.
    """
    file, metadata = _opened(path, FORMAT)
    with file:
        _verify(path, file, metadata)
        try:
            return GraphArtifact(_graph(file, int(metadata["k"])), json.loads(metadata["header"]))
        except (KeyError, ValueError, safetensors.SafetensorError) as error:
            raise ArtifactError(f"{path} does not hold neighbour graphs: {error}") from error


def read_features(path: Path) -> tuple[list[Tensor], dict[str, Any]]:
    """Read and verify what :func:`write_features` wrote: the layers, and the header.

    Raises:
        ArtifactError: If the file is missing, cut short, edited, of another format, or not ours.
    """
    file, metadata = _opened(path, FEATURES_FORMAT)
    with file:
        _verify(path, file, metadata)
        layers = [torch.from_numpy(file.get_tensor(name)) for name in sorted(file.keys())]
    return layers, json.loads(metadata["header"])


def read_metadata(path: Path) -> dict[str, str]:
    """What an artifact's file says of itself; the graphs are neither read nor verified.

    Raises:
        ArtifactError: If the file is missing, cut short, of another format, or not ours.
    """
    return _opened(path, FORMAT)[1]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of one artifact, among processes and threads; a holder may take it again.

    Raises:
        OSError: If the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock", is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process that is making %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def warn_unwritable(path: Path, error: OSError) -> None:
    """Say once per folder that nothing can be kept there."""
    _warn_once(str(path.parent), error.strerror or str(error))


@functools.cache
def _warn_once(folder: str, reason: str) -> None:
    logger.warning(
        "cannot write to the cache folder %s (%s): the run goes on, but what it makes is not "
        "kept; PRH_EVAL_CACHE can name another folder",
        folder,
        reason,
    )


# ---------------------------------------------------------------- files, a part at a time


class _Array(NamedTuple):
    """An array that is made while it is written."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    blocks: Iterable[npt.NDArray[Any]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def _write(path: Path, metadata: Mapping[str, str], arrays: Mapping[str, _Array]) -> None:
    """Write arrays block by block, and their checksum, known then, where room is left for it."""
    digest = _begun(metadata, {name: (x.dtype, x.shape) for name, x in arrays.items()})
    with locked(path):
        # We hold the lock, so any temporary of this file was left behind by a killed process.
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            begins = len(_head(metadata, digest.hexdigest(), arrays))
            offsets = _offsets(arrays)
            for name in sorted(arrays):
                file.seek(begins + offsets[name])
                for block in arrays[name].blocks:
                    digest.update(block.data)
                    file.write(block.data)
                    del block  # before the next one is made
            file.seek(0)
            file.write(_head(metadata, digest.hexdigest(), arrays))


def _head(metadata: Mapping[str, str], sha256: str, arrays: Mapping[str, _Array]) -> bytes:
    """The beginning of a safetensors file: the length of a JSON header, and the header."""
    header: dict[str, Any] = {"__metadata__": {**metadata, "sha256": sha256}}
    for name, start in _offsets(arrays).items():
        array = arrays[name]
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, start + array.nbytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _offsets(arrays: Mapping[str, _Array]) -> dict[str, int]:
    """Where each array begins: those of the widest types first, so that all are aligned."""
    offsets, end = {}, 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name)):
        offsets[name] = end
        end += arrays[name].nbytes
    return offsets


def _opened(path: Path, format_: str) -> tuple[Any, dict[str, str]]:
    """A file, of which nothing but the header is read yet, and its metadata."""
    try:
        file: Any = safetensors.safe_open(path, framework="numpy")
        metadata = file.metadata() or {}
    except FileNotFoundError:
        raise ArtifactError(f"there is no artifact {path}") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise ArtifactError(f"{path} is cut short or is no artifact: {error}") from error
    if metadata.get("format") != format_:
        found_format = repr(metadata["format"]) if "format" in metadata else "none"
        raise ArtifactError(f"{path} has the format {found_format}; this version reads {format_!r}")
    return file, metadata


def _verify(path: Path, file: Any, metadata: Mapping[str, str]) -> None:
    """Refuse a file whose checksum does not fit it."""
    arrays = {name: file.get_slice(name) for name in sorted(file.keys())}
    kinds = {name: (_TYPES.get(x.get_dtype()), x.get_shape()) for name, x in arrays.items()}
    digest = _begun(metadata, kinds)
    for array in arrays.values():
        for block in _blocks(array):
            digest.update(block.data)
    if metadata.get("sha256") != digest.hexdigest():
        raise ArtifactError(f"{path} was edited or damaged: its checksum does not fit its content")


def _blocks(array: Any) -> Iterator[npt.NDArray[Any]]:
    """An array of a file in blocks of rows."""
    if not (shape := array.get_shape()):
        return  # a single value is in no file of ours
    count, *row = shape
    rows = max(1, _BLOCK_BYTES // max(1, 8 * prod(row)))
    for start in range(0, count, rows):
        yield np.ascontiguousarray(array[start : min(start + rows, count)])


def _begun(metadata: Mapping[str, str], kinds: Mapping[str, tuple[Any, Sequence[int]]]) -> Any:
    """SHA-256 over everything in a file but itself, up to the arrays, in the order of names."""
    described = {key: value for key, value in metadata.items() if key != "sha256"}
    shapes = {name: [str(dtype), list(shape)] for name, (dtype, shape) in kinds.items()}
    return hashlib.sha256(_canonical([described, shapes]).encode("ascii"))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


# ---------------------------------------------------------------- graphs, a layer at a time


def _graph_arrays(graph: NeighborGraph) -> dict[str, _Array]:
    """Rows end to end without their padding: one row of many ties does not widen all others."""
    layers = range(graph.layers)
    short = graph.n <= _MAX_UINT16_ITEMS
    index = np.dtype(np.uint16 if short else np.int32)
    lengths = np.empty((graph.layers, graph.n), dtype=index)
    starts, last, count = [0], 0, 0

    def rows(layer: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Neighbours, and which of them are none."""
        found: npt.NDArray[np.int32] = graph.indices[layer].detach().cpu().numpy()
        return found, found >= 0

    def neighbours(layer: int) -> npt.NDArray[Any]:
        found, present = rows(layer)
        return found[present].astype(index, copy=False)

    def ties(layer: int) -> npt.NDArray[np.int64]:
        # They are rare, so where they are takes less room than whether there is one.
        tied = graph.tied[layer].detach().cpu().numpy()[rows(layer)[1]]
        return starts[layer] + np.flatnonzero(tied)

    for layer in layers:
        lengths[layer] = np.count_nonzero(rows(layer)[1], axis=1)
        starts.append(starts[-1] + int(lengths[layer].sum()))
        if (found := ties(layer)).size:
            count, last = count + found.size, int(found[-1])
    tie = np.dtype(np.int32 if last <= np.iinfo(np.int32).max else np.int64)
    return {
        "indices": _Array(index, (starts[-1],), map(neighbours, layers)),
        "lengths": _Array(index, lengths.shape, (lengths,)),
        "tied": _Array(tie, (count,), (ties(layer).astype(tie) for layer in layers)),
    }


def _graph(file: Any, k: int) -> NeighborGraph:
    stored, lengths, ties = file.get_slice("indices"), *map(file.get_tensor, ("lengths", "tied"))
    shape = stored.get_shape()
    if (len(shape), lengths.ndim, ties.ndim) != (1, 2, 1) or lengths.sum() != shape[0]:
        raise ValueError(f"its {prod(shape)} indices do not make rows of the lengths it says")
    n, width = lengths.shape[1], int(lengths.max())
    if not 1 <= k <= min(int(lengths.min()), n - 1):
        raise ValueError(f"its k is {k} where it has {n} items and rows of {lengths.min()}")
    in_order = bool((ties[1:] > ties[:-1]).all())
    if ties.size and not (in_order and ties[0] >= 0 and ties[-1] < shape[0]):
        raise ValueError("a tie is outside the graph")
    indices = np.full((*lengths.shape, width), -1, dtype=np.int32)
    tied = np.zeros(indices.shape, dtype=np.bool_)
    ends = [0, *lengths.sum(axis=1, dtype=np.int64).cumsum().tolist()]

    def place(layer: int) -> None:
        start, stop = ends[layer : layer + 2]
        neighbours = stored[start:stop]
        if not 0 <= neighbours.min() <= neighbours.max() < n:
            raise ValueError(f"an index is outside 0..{n - 1}")
        marked = np.zeros(neighbours.size, dtype=np.bool_)
        own = ties[slice(*np.searchsorted(ties, (start, stop)))]
        marked[own.astype(np.int64) - start] = True
        present = np.arange(width) < lengths[layer][:, None]
        indices[layer][present] = neighbours
        tied[layer][present] = marked

    for layer in range(len(lengths)):
        place(layer)
    return NeighborGraph(torch.from_numpy(indices), torch.from_numpy(tied), k)
