"""Graphs and features on disk: safetensors and a JSON header, verified, locked, written whole."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
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

_Arrays = dict[str, npt.NDArray[Any]]


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

    Args:
        path: Where to; folders are made as needed.
        artifact: What to write.

    Raises:
        OSError: If the folder cannot be written.
        TypeError: If the header does not consist of JSON values.
        ValueError: If the header holds NaN or infinity.
    """
    _write(path, _encode(artifact))


def write_features(path: Path, layers: Sequence[Tensor], header: Mapping[str, Any]) -> None:
    """Write layer features to a file that is there whole or not at all.

    Args:
        path: Where to; folders are made as needed.
        layers: One tensor (n, width_l) a layer on the CPU, of a type that NumPy has.
        header: What made them, in JSON values.

    Raises:
        OSError: If the folder cannot be written.
    """
    arrays = {f"layer_{i:04}": layer.contiguous().numpy() for i, layer in enumerate(layers)}
    metadata = {"format": FEATURES_FORMAT, "header": _canonical(header)}
    metadata["sha256"] = _digest(metadata, arrays)
    _write(path, safetensors.numpy.save(arrays, metadata))


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

    Raises:
        ArtifactError: If the file is missing, cut short, edited, of another format, or not ours.
    """
    metadata, arrays = _verified(path, FORMAT)
    try:
        return _decode(metadata, arrays)
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"{path} does not hold neighbour graphs: {error}") from error


def read_features(path: Path) -> tuple[list[Tensor], dict[str, Any]]:
    """Read and verify what :func:`write_features` wrote: the layers, and the header.

    Raises:
        ArtifactError: If the file is missing, cut short, edited, of another format, or not ours.
    """
    metadata, arrays = _verified(path, FEATURES_FORMAT)
    layers = [torch.from_numpy(arrays[name]) for name in sorted(arrays)]
    return layers, json.loads(metadata["header"])


def read_metadata(path: Path) -> dict[str, str]:
    """What an artifact's file says of itself; the graphs are neither read nor verified.

    Raises:
        ArtifactError: If the file is missing, cut short, of another format, or not ours.
    """
    return _opened(path, FORMAT, arrays=False)[0]


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


def _write(path: Path, data: bytes) -> None:
    with locked(path):
        # We hold the lock, so any temporary of this file was left behind by a killed process.
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(data)


def _verified(path: Path, format_: str) -> tuple[dict[str, str], _Arrays]:
    """A file's metadata and arrays, if its checksum fits them."""
    metadata, arrays = _opened(path, format_, arrays=True)
    if metadata.get("sha256") != _digest(metadata, arrays):
        raise ArtifactError(f"{path} was edited or damaged: its checksum does not fit its content")
    return metadata, arrays


def _opened(path: Path, format_: str, *, arrays: bool) -> tuple[dict[str, str], _Arrays]:
    """A file's metadata and, if wanted, its arrays."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = file.keys() if arrays else ()
            found = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise ArtifactError(f"there is no artifact {path}") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise ArtifactError(f"{path} is cut short or is no artifact: {error}") from error
    if metadata.get("format") != format_:
        found_format = repr(metadata["format"]) if "format" in metadata else "none"
        raise ArtifactError(f"{path} has the format {found_format}; this version reads {format_!r}")
    return metadata, found


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _encode(artifact: GraphArtifact) -> bytes:
    """Rows end to end without their padding: one row of many ties does not widen all others."""
    graph = artifact.graph
    indices = graph.indices.detach().cpu().numpy()
    present = indices >= 0
    # Ties are rare, so where they are takes less room than whether there is one.
    tied = np.flatnonzero(graph.tied.detach().cpu().numpy()[present])
    small = tied.size == 0 or tied[-1] <= np.iinfo(np.int32).max
    short = graph.n <= _MAX_UINT16_ITEMS
    arrays = {
        "indices": indices[present].astype(np.uint16 if short else np.int32),
        "lengths": present.sum(axis=2).astype(np.uint16 if short else np.int32),
        "tied": tied.astype(np.int32 if small else np.int64),
    }
    metadata = {"format": FORMAT, "k": str(graph.k), "header": _canonical(artifact.header)}
    metadata["sha256"] = _digest(metadata, arrays)
    return safetensors.numpy.save(arrays, metadata)


def _decode(metadata: Mapping[str, str], arrays: _Arrays) -> GraphArtifact:
    stored, ties = arrays["indices"], arrays["tied"]
    lengths = arrays["lengths"].astype(np.int64)
    k = int(metadata["k"])
    if (stored.ndim, lengths.ndim, ties.ndim) != (1, 2, 1) or lengths.sum() != stored.size:
        raise ValueError(f"its {stored.size} indices do not make rows of the lengths it says")
    n, width = lengths.shape[1], int(lengths.max(initial=0))
    if not 1 <= k <= min(int(lengths.min(initial=n)), n - 1):
        raise ValueError(f"its k is {k} where it has {n} items and rows of {lengths.min()}")
    if not 0 <= stored.min() <= stored.max() < n:
        raise ValueError(f"an index is outside 0..{n - 1}")
    if ties.size and not 0 <= ties.min() <= ties.max() < stored.size:
        raise ValueError("a tie is outside the graph")
    present = np.arange(width) < lengths[..., None]
    indices = np.full(present.shape, -1, dtype=np.int32)
    indices[present] = stored
    tied_stored = np.zeros(stored.size, dtype=np.bool_)
    tied_stored[ties] = True
    tied = np.zeros(present.shape, dtype=np.bool_)
    tied[present] = tied_stored
    graph = NeighborGraph(torch.from_numpy(indices), torch.from_numpy(tied), k)
    return GraphArtifact(graph, json.loads(metadata["header"]))


def _digest(metadata: Mapping[str, str], arrays: _Arrays) -> str:
    """SHA-256 over everything in the file but itself."""
    described = {key: value for key, value in metadata.items() if key != "sha256"}
    shapes = {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}
    digest = hashlib.sha256(_canonical([described, shapes]).encode("ascii"))
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
