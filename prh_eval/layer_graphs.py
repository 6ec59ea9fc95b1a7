"""From layer features to a neighbour graph, a layer at a time, resumed where a run was killed."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor

from prh_eval.alignment.frames import Similarity
from prh_eval.alignment.graph import GRAPH_VERSION, NeighborGraph
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import Protocol, preprocess
from prh_eval.alignment.rows import Rows
from prh_eval.alignment.threads import READERS
from prh_eval.alignment.tiles import told_of_memory
from prh_eval.errors import PrhEvalError
from prh_eval.processes import Processes
from prh_eval.store import GraphArtifact, read_artifact, write_artifact

logger = logging.getLogger(__name__)

_SUFFIX = ".layer.safetensors"
# Values that are hashed together: blocks of rows, so that a mapped file is never held whole.
_CHUNK = 1 << 22


class GraphParts:
    """The graphs of finished layers in a folder of their own, an artifact each.

    To be used by one builder at a time, which holds a lock.

    Args:
        folder: Where the parts are; made with the first of them.
        made_from: Everything that decides the graphs, in JSON values: a part that was made from
            anything else reads as absent.
        k: Neighbourhood size that the graphs answer for; a part for another reads as absent.
        within: The folder that a warning names, if it cannot be written; None: ``folder``.
    """

    def __init__(
        self, folder: Path, made_from: Mapping[str, Any], k: int, within: Path | None = None
    ) -> None:
        self._folder = folder
        self._within = within or folder
        self._k = k
        self._made_from = dict(made_from)
        self._writable = True

    def read(self, layer: int) -> NeighborGraph | None:
        """The graph of one layer; None if it is absent, cut short, damaged or of another making."""
        try:
            artifact = read_artifact(self._path(layer))
        except PrhEvalError:
            return None
        current = artifact.header == self._header(layer) and artifact.graph.k == self._k
        return artifact.graph if current else None

    def write(self, layer: int, graph: NeighborGraph) -> None:
        """Keep the graph of one layer; it is there whole or not at all.

        After the first failure (a full disk, a folder that cannot be written), which
        :func:`warn_unkept` says, no further part is written.
        """
        if not self._writable:
            return
        try:
            write_artifact(self._path(layer), GraphArtifact(graph, self._header(layer)))
        except OSError as error:
            self._writable = False
            warn_unkept(self._within, error)

    def clear(self) -> None:
        """Remove all parts, what killed writes have left, and the folder if nothing else is in it.

        What cannot be removed is left: it is read again at worst.
        """
        for pattern in (f"*{_SUFFIX}", f"*{_SUFFIX}.lock", f".*{_SUFFIX}.*.tmp"):
            for file in self._folder.glob(pattern):
                with suppress(OSError):
                    file.unlink()
        with suppress(OSError):
            self._folder.rmdir()

    def _path(self, layer: int) -> Path:
        return self._folder / f"{layer:06d}{_SUFFIX}"

    def _header(self, layer: int) -> dict[str, Any]:
        return {"made_from": self._made_from, "layer": layer}


def warn_unkept(folder: Path, error: OSError) -> None:
    """Say once a folder that what is made cannot be kept there."""
    _warn_once(folder, error.strerror or str(error))


@functools.cache
def _warn_once(folder: Path, reason: str) -> None:
    logger.warning(
        "cannot write to %s (%s): the run goes on, but what could not be kept there is made again "
        "by the next run; PRH_EVAL_CACHE, or --work of prh-eval align, can name another folder",
        folder,
        reason,
    )


def made_from(features: str, protocol: Protocol, similarity: Similarity) -> dict[str, Any]:
    """Everything that decides the graphs of features but for k, in JSON values.

    Args:
        features: Their fingerprint, of all layers together.
        protocol: The preprocessing; it does not apply to Euclidean similarity.
        similarity: How neighbours are ranked.
    """
    return {
        "graph_version": GRAPH_VERSION,
        "features": features,
        "protocol": protocol.name if similarity == "cosine" else None,
        "similarity": similarity,
    }


def features_fingerprint(
    features: Sequence[Tensor], progress: Callable[[int], None] | None = None
) -> str:
    """SHA-256 over the types, shapes and values of layer features, in hexadecimal.

    It is that of the digests of the layers, which several threads make.

    Args:
        features: One tensor (n, width_l) a layer on the CPU; read in blocks of rows.
        progress: Called with the number of layers done after each layer.
    """
    whole = hashlib.sha256()
    with ThreadPoolExecutor(READERS) as threads:
        for number, digest in enumerate(threads.map(_layer_digest, features)):
            whole.update(digest)
            if progress:
                progress(number + 1)
    return whole.hexdigest()


def _layer_digest(layer: Tensor) -> bytes:
    digest = hashlib.sha256(f"{layer.dtype} {list(layer.shape)}\n".encode("ascii"))
    rows = max(1, _CHUNK // max(1, layer.shape[1]))
    for start in range(0, layer.shape[0], rows):
        block = layer[start : start + rows].contiguous()
        digest.update(block.view(torch.uint8).numpy().data)
    return digest.digest()


def layer_graphs(
    features: Sequence[Tensor],
    k: int,
    *,
    protocol: Protocol,
    processes: Processes,
    similarity: Similarity = "cosine",
    memory_bytes: int | None = None,
    parts: GraphParts | None = None,
    check: Callable[[], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> NeighborGraph | None:
    """The neighbour graph of layer features, preprocessed and searched one layer at a time.

    Args:
        features: One float tensor (n, width_l) a layer, at least one layer, as
            :func:`~prh_eval.alignment.preprocess.validate_features` allows them; may be views of a
            mapped file. The same in every process.
        k: Neighbourhood size, 1 <= k <= n - 1.
        protocol: The preprocessing; it does not apply to Euclidean similarity.
        processes: Those that share the work, and where each computes.
        similarity: How neighbours are ranked.
        memory_bytes: What the search of a layer may take on its device, beyond what the features
            are stored in; None: half of what is free on a GPU, 4 GiB elsewhere.
        parts: Where finished layers are kept, and read if they are there, by the first process.
        check: Called in every process after the search of a layer and before its graph is kept;
            raises where that is of other values than ``parts`` say.
        progress: Called with the number of layers done after each layer.

    Returns:
        The graph of all layers, on the CPU; None in processes other than the first.

    Raises:
        PrhEvalError: If k is outside 1..n - 1, the memory is too small, it runs out in spite of
            the plan, or so many items tie that the graph of all layers would not fit into it.
    """
    rows = None
    graphs: list[NeighborGraph] = []
    for layer in range(len(features)):
        graph = parts.read(layer) if parts and processes.first else None
        if not processes.broadcast_object(graph is not None):
            if rows is None:
                rows = _rows(features, protocol, similarity, processes)
            # lm-eval comes here too, without the option.
            instead = (
                "--memory of prh-eval align, or of prh-eval references build, whose graphs lm-eval "
                "reads, should be smaller than what is free there"
            )
            with told_of_memory(processes.device, f"the search of layer {layer}", instead):
                graph = neighbor_graph(
                    rows[layer : layer + 1],
                    k,
                    similarity=similarity,
                    memory_bytes=memory_bytes,
                    device=processes.device,
                    sharing=processes,
                )
            graph = graph.cpu()
            if check:
                check()
            if parts and processes.first:
                parts.write(layer, graph)
        if graph is not None and processes.first:
            graphs.append(graph)
            _check_room(graphs, len(features))
        if progress:
            progress(layer + 1)
    return _stacked(graphs, k) if processes.first else None


def _rows(
    features: Sequence[Tensor], protocol: Protocol, similarity: Similarity, processes: Processes
) -> Sequence[Tensor] | Sequence[Rows]:
    """Layers as they are compared; each is made when it is asked for."""
    if similarity == "euclidean":
        return features
    if protocol.limit is None:
        return preprocess(features, protocol)
    # One process looks at all values of all layers, not each.
    limit = processes.broadcast_object(protocol.limit(features) if processes.first else 0.0)
    return preprocess(features, replace(protocol, limit=lambda _: limit))


def _check_room(graphs: list[NeighborGraph], layers: int) -> None:
    """Refuse ties for which the graph of all layers, as wide as the widest, would not fit.

    Args:
        graphs: Of the layers that are found.
        layers: How many there will be.
    """
    widest = max(graphs, key=lambda graph: graph.width)
    # An index and a tie; what the layers hold is given up as they are copied.
    whole = 5 * layers * widest.n * widest.width
    held = sum(5 * graph.n * graph.width for graph in graphs)
    free = psutil.virtual_memory().available + held
    if widest.width > 2 * widest.k and whole > free:
        raise PrhEvalError(
            f"an item of layer {graphs.index(widest)} has {widest.width} neighbours that tie for "
            f"its {widest.k} nearest, and the rows of {layers} layers, all so long, would take "
            f"{whole / 1e9:.2f} GB where {free / 1e9:.2f} GB are free; items that repeat "
            "should be removed"
        )


def _stacked(graphs: list[NeighborGraph], k: int) -> NeighborGraph:
    """The layers in one graph, as wide as the widest; each is given up once it is copied."""
    shape = len(graphs), graphs[0].n, max(graph.width for graph in graphs)
    # Pages of what is empty take no memory before they are written.
    indices, tied = torch.empty(shape, dtype=torch.int32), torch.empty(shape, dtype=torch.bool)
    for layer in range(len(graphs)):
        graph = graphs.pop(0)
        indices[layer, :, : graph.width] = graph.indices[0]
        indices[layer, :, graph.width :] = -1
        tied[layer, :, : graph.width] = graph.tied[0]
        tied[layer, :, graph.width :] = False
    return NeighborGraph(indices, tied, k)
