"""From the features in two files to their alignment, at any number of items."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from prh_eval import __version__, store
from prh_eval.alignment.frames import Similarity
from prh_eval.alignment.graph import GRAPH_VERSION, NeighborGraph
from prh_eval.alignment.preprocess import Protocol, validate_features
from prh_eval.alignment.preprocess import protocol as named_protocol
from prh_eval.alignment.report import Report, report
from prh_eval.alignment.tiles import least_memory, plan_search
from prh_eval.artifacts import different_data, protocol_of, same_data
from prh_eval.errors import PrhEvalError
from prh_eval.features.files import named_features
from prh_eval.layer_graphs import (
    GraphParts,
    features_fingerprint,
    layer_graphs,
    made_from,
    warn_unkept,
)
from prh_eval.processes import Processes
from prh_eval.resources import cache_folder
from prh_eval.schema import FeatureFile
from prh_eval.store import ArtifactError, GraphArtifact

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A file to align, as a person names it.

    Attributes:
        path: Of features, as :func:`prh_eval.features.files.file_features` reads them, or of
            neighbour graphs that prh_eval made.
        names: Which tensors of a file of features, in the order of the layers; None: all of them.
        similarity: How neighbours are ranked among features; None: by cosine.
        named_by: What a person names the tensors with, for messages.
    """

    path: str
    names: list[str] | None = None
    similarity: Similarity | None = None
    named_by: str = "'names'"


@dataclass(frozen=True)
class Side:
    """What was aligned of a file.

    Attributes:
        file: Its path, as it was given.
        names: What the tensors of the layers are called; None where the file has graphs and does
            not say it, as for the types and widths.
        dtypes: The types in which the layers are stored.
        widths: Of the layers.
        features: SHA-256 over the types, shapes and values of all layers; None where the file has
            graphs and does not say what they were made from.
        protocol: The preprocessing; None where values were compared as they are.
        similarity: How neighbours were ranked.
        artifact: The graphs of all layers.
    """

    file: str
    names: list[str] | None
    dtypes: list[str] | None
    widths: list[int] | None
    features: str | None
    protocol: str | None
    similarity: str
    artifact: GraphArtifact


def align_files(
    x: Source,
    y: Source,
    *,
    k: int = 10,
    graph_k: int | None = None,
    draws: int | None = None,
    protocol: str = "paper",
    memory_bytes: int | None = None,
    folder: Path | None = None,
    processes: Processes | None = None,
    progress: bool = False,
) -> tuple[Report, Side, Side] | None:
    """Align the features in two files.

    The graphs of each file are kept under a name that is made of the features' values and of how
    they are compared, so that aligning the same features with others makes them once. A run that
    was killed goes on at the layer it reached.

    Args:
        x: The model.
        y: The reference: the same n items in the same order.
        k: Neighbourhood size, 1 <= k <= n - 1.
        graph_k: Neighbourhood size that new graphs answer for, at least ``k``; None: ``k``.
        draws: Number of permutations, as :func:`prh_eval.alignment.report.report` takes it.
        protocol: Name of the preprocessing; it does not apply to Euclidean similarity.
        memory_bytes: What the search of a layer may take on its device, beyond what the features
            are stored in; None: half of what is free on a GPU, 4 GiB elsewhere.
        folder: Where graphs are kept; None: ``aligned`` in the cache folder.
        processes: Those that share the work, each of which calls this with the same arguments;
            None: those of torch's process group, where there is one, else this one alone.
        progress: Whether to show how far it is.

    Returns:
        What is found, and what was aligned; None in processes other than the first.

    Raises:
        PrhEvalError: If a file cannot be read, has a value that is not finite, changes while it is
            read or is another one on another machine, the files differ in the number of items, k
            does not fit them, or the memory is too small.
    """
    rule = named_protocol(protocol)
    for source in (x, y):
        _check_named(source)
    processes = processes or Processes.current()
    folder = cache_folder() / "aligned" if folder is None else folder
    contents = [_read(source) for source in (x, y)]
    n, other = map(_items, contents)
    if n != other:
        # There are more items than layers and, mostly, dimensions: the shorter one is suspected.
        suspects = sorted([(n, other, 0), (other, n, 1)])
        hints = [_swapped((x, y)[side], contents[side], items) for _, items, side in suspects]
        raise PrhEvalError(
            f"{x.path} has {n} items and {y.path} has {other}; both must describe the same items, "
            f"in the same order{hints[0] or hints[1]}"
        )
    if n < _FEWEST_ITEMS:
        raise PrhEvalError(
            f"{x.path} and {y.path} have {n} item{'' if n == 1 else 's'}; nearest neighbours need "
            f"{_FEWEST_ITEMS} items at least"
        )
    if not 1 <= k <= n - 1:
        raise PrhEvalError(
            f"k = {k} nearest neighbours cannot be found among {n} items; k must be between 1 and "
            f"{n - 1}"
        )
    graph_k = k if graph_k is None else graph_k
    if not k <= graph_k <= n - 1:
        raise PrhEvalError(
            f"graphs for k up to {graph_k} are asked for, which should be from k = {k} to the "
            f"{n - 1} other items"
        )
    _check_same_data(x, y, contents)
    # All that can be wrong shows before the first search.
    prepared = [
        _of_graphs(source, content, k, rule)
        if isinstance(content, GraphArtifact)
        else _of_features(source, content, graph_k, rule, folder, processes, progress)
        for source, content in zip((x, y), contents, strict=True)
    ]
    _check_memory([each for each in prepared if isinstance(each, _Unmade)], memory_bytes, processes)
    side_x, side_y = (
        _made(each, memory_bytes, processes, progress) if isinstance(each, _Unmade) else each
        for each in prepared
    )
    if not processes.first or side_x is None or side_y is None:
        return None
    started = time.monotonic()
    with tqdm(bar_format="{desc}", leave=False, disable=None if progress else True) as line:

        def tell(stage: str) -> None:
            line.set_description_str(stage)
            if progress and line.disable:  # no terminal
                logger.info("%s, begun after %.0f s", stage, time.monotonic() - started)

        found = report(side_x.artifact.graph, side_y.artifact.graph, k, draws=draws, progress=tell)
    return found, side_x, side_y


# As prh_eval.alignment.preprocess asks for: with two, each is the other's nearest.
_FEWEST_ITEMS = 3


@dataclass(frozen=True)
class _Features:
    """The layers of a file, and what the file was before any value of it was read."""

    names: list[str]
    layers: list[Tensor]
    state: _State

    @property
    def dtypes(self) -> list[str]:
        return [str(layer.dtype).removeprefix("torch.") for layer in self.layers]

    @property
    def widths(self) -> list[int]:
        return [layer.shape[1] for layer in self.layers]


_Content = GraphArtifact | _Features
# Size in bytes, time of the last change, and which file it is; None where there is none.
_State = tuple[int, int, int] | None


def _state(source: Source) -> _State:
    try:
        found = Path(source.path).expanduser().stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _check_named(source: Source) -> None:
    """Refuse a file, or a tensor, without a name."""
    if not source.path:
        raise PrhEvalError("a file to align has an empty name; it should be the path of a file")
    if source.names is not None and not (source.names and all(source.names)):
        raise PrhEvalError(
            f"{source.named_by} has an empty name; it should be those of tensors in {source.path}"
        )


def _read(source: Source) -> _Content:
    """What a file holds: graphs that prh_eval made, or the features of every layer."""
    path = Path(source.path).expanduser()
    try:
        store.read_metadata(path)
    except ArtifactError:
        state = _state(source)
        spec = FeatureFile(path=source.path, names=source.names)
        found = named_features(spec, named_by=source.named_by)
        return _Features([name for name, _ in found], [layer for _, layer in found], state)
    return store.read_artifact(path)


def _items(content: _Content) -> int:
    return content.graph.n if isinstance(content, GraphArtifact) else len(content.layers[0])


def _swapped(source: Source, content: _Content, items: int) -> str:
    """A hint, where another dimension of a file has the number of items that it should have."""
    if isinstance(content, GraphArtifact):
        return ""
    if items == len(content.layers) > 1:
        return f"; {source.path} has {items} layers, so perhaps (layers, items, width) " + (
            "where (items, layers, width) is needed"
        )
    if {*content.widths} == {items}:
        return f"; {source.path} is {items} wide, so perhaps (width, items) " + (
            "where (items, width) is needed"
        )
    return ""


def _check_same_data(x: Source, y: Source, contents: Sequence[_Content]) -> None:
    """Refuse graphs that say themselves that they are of other items."""
    headers = [each.header for each in contents if isinstance(each, GraphArtifact)]
    known = [header for header in headers if "pairs" in header]
    if len(known) == 2 and not same_data(*known):
        raise PrhEvalError(different_data(x.path, known[:1], y.path, known[1:]))


def _of_graphs(source: Source, artifact: GraphArtifact, k: int, rule: Protocol) -> Side:
    """A file of graphs, if they are what is asked for."""
    made = artifact.header.get("made_from", artifact.header)
    version = made.get("graph_version", GRAPH_VERSION)
    protocol = protocol_of(artifact.header)
    # Graphs of language models that lm-eval ran do not say it: they are all made by cosine.
    similarity = made.get("similarity", "cosine")
    wrong = ""
    if version != GRAPH_VERSION:
        wrong = f"of version {version}, where this version of prh_eval makes {GRAPH_VERSION}"
    elif k > artifact.graph.k:
        wrong = f"for k up to {artifact.graph.k}, where k = {k} is asked for"
    elif protocol not in (rule.name, None):
        wrong = f"of the protocol {protocol!r}, where {rule.name!r} is asked for"
    elif source.similarity not in (similarity, None):
        wrong = f"by {similarity} similarity, where {source.similarity} is asked for"
    elif source.names is not None:
        wrong = "of all layers, so that no tensors can be named"
    if wrong:
        raise PrhEvalError(f"the neighbour graphs in {source.path} are {wrong}")
    features = made.get("features")
    known = features if isinstance(features, str) else None
    names, dtypes, widths = (artifact.header.get(key) for key in ("names", "dtypes", "widths"))
    return Side(source.path, names, dtypes, widths, known, protocol, similarity, artifact)


@dataclass(frozen=True)
class _Unmade:
    """Features whose graphs are not kept yet: which, how they are to be made, and where kept."""

    source: Source
    features: _Features
    graph_k: int
    rule: Protocol
    similarity: Similarity
    made_from: dict[str, Any]
    path: Path

    def side(self, artifact: GraphArtifact) -> Side:
        source, features, made_from = self.source, self.features, self.made_from
        return Side(
            source.path,
            features.names,
            features.dtypes,
            features.widths,
            made_from["features"],
            made_from["protocol"],
            self.similarity,
            artifact,
        )


def _of_features(
    source: Source,
    features: _Features,
    graph_k: int,
    rule: Protocol,
    folder: Path,
    processes: Processes,
    progress: bool,
) -> Side | _Unmade | None:
    """Features with their graphs if those are kept, else checked; None where others know more."""
    similarity = source.similarity or "cosine"
    fingerprint = _fingerprint(source, features.layers, processes, progress)
    definition = made_from(fingerprint, rule, similarity)
    path = folder / f"{store.fingerprint(definition)[:32]}{store.SUFFIX}"
    unmade = _Unmade(source, features, graph_k, rule, similarity, definition, path)
    artifact = _kept(path, definition, graph_k) if processes.first else None
    if processes.broadcast_object(artifact is not None):
        return unmade.side(artifact) if artifact else None
    if processes.first:
        largest = " (stored in float16, which ends at 65,504)"
        hint = largest if {*features.dtypes} == {"float16"} else ""
        validate_features(features.layers, k=1, name=f"the features in {source.path}{hint}")
    return unmade


def _check_memory(unmade: list[_Unmade], memory_bytes: int | None, processes: Processes) -> None:
    """Refuse memory that is too small for the search of any layer, for what needs most."""
    device, count = processes.device, processes.world_size
    widths = {width for each in unmade for width in each.features.widths}
    if widths:
        n, k = _items(unmade[0].features), unmade[0].graph_k
        worst = max(widths, key=lambda width: least_memory(n, width, k, device, count))
        plan_search(n, worst, k, memory_bytes=memory_bytes, device=device, processes=count)


def _fingerprint(
    source: Source, features: Sequence[Tensor], processes: Processes, progress: bool
) -> str:
    """The fingerprint of features, which every machine finds to be the same."""
    made = None
    if processes.local_rank == 0:
        with _bar(f"reading {source.path}", len(features), progress and processes.first) as bar:
            made = features_fingerprint(features, lambda done: _advance(bar, done))
    found = {each for each in processes.all_gather_object(made) if each is not None}
    if len(found) > 1:
        raise PrhEvalError(
            f"{source.path} is not the same file on every machine; each must have a copy, or all "
            "a folder in common"
        )
    (fingerprint,) = found
    return fingerprint


def _made(
    unmade: _Unmade,
    memory_bytes: int | None,
    processes: Processes,
    progress: bool,
) -> Side | None:
    """Make graphs and keep them, unless another run has made them since; None but in the first."""
    path, where, layers = unmade.path, unmade.source.path, unmade.features.layers
    with ExitStack() as stack:
        artifact = parts = None
        if processes.first:
            try:
                stack.enter_context(store.locked(path))
            except OSError as error:
                warn_unkept(path.parent, error)
            else:
                artifact = _kept(path, unmade.made_from, unmade.graph_k)
                unfinished = path.parent / "unfinished" / path.stem
                parts = GraphParts(unfinished, unmade.made_from, unmade.graph_k, path.parent)
        if processes.broadcast_object(artifact is not None):
            return unmade.side(artifact) if artifact else None
        started = time.monotonic()
        bar = stack.enter_context(_bar(where, len(layers), progress and processes.first))

        def advance(done: int) -> None:
            _advance(bar, done)
            if progress and bar.disable:  # no terminal
                seconds = time.monotonic() - started
                logger.info("%s: %d of %d layers, %.0f s", where, done, bar.total, seconds)

        def check() -> None:
            changed = _state(unmade.source) != unmade.features.state
            # Copies of the file on other machines are parts of the same graph.
            if any(processes.all_gather_object(changed)):
                raise PrhEvalError(f"{where} changed while it was read; run it again")

        graph = layer_graphs(
            layers,
            unmade.graph_k,
            protocol=unmade.rule,
            processes=processes,
            similarity=unmade.similarity,
            memory_bytes=memory_bytes,
            parts=parts,
            check=check,
            progress=advance,
        )
        if graph is None:
            return None
        artifact = GraphArtifact(graph, _header(unmade))
        if parts:
            try:
                store.write_artifact(path, artifact)
            except OSError as error:
                warn_unkept(path.parent, error)
            else:
                logger.info("the neighbour graphs of %s are kept: %s", where, path)
                parts.clear()
    return unmade.side(artifact)


def _kept(path: Path, definition: Mapping[str, Any], k: int) -> GraphArtifact | None:
    """The graphs that were kept, as far as k, if they are whole and answer for it."""
    if not path.exists():
        return None
    try:
        artifact = store.read_artifact(path)
    except ArtifactError as error:
        logger.warning("%s; it is made anew", error)
        return None
    if artifact.header.get("made_from") != definition or artifact.graph.k < k:
        return None
    # Errors and curves look as far as a graph does: what is found may not depend on what was kept.
    near = artifact.graph.trimmed(k)
    # Copies, so that what is further away is given up.
    graph = NeighborGraph(near.indices.contiguous(), near.tied.contiguous(), k)
    return GraphArtifact(graph, artifact.header)


def _header(unmade: _Unmade) -> dict[str, Any]:
    return {
        "kind": "features",
        "file": unmade.source.path,
        "names": unmade.features.names,
        "dtypes": unmade.features.dtypes,
        "widths": unmade.features.widths,
        "made_from": unmade.made_from,
        "versions": {"prh_eval": __version__, "torch": torch.__version__},
    }


def _bar(what: str, layers: int, progress: bool) -> tqdm[NoReturn]:
    """A bar of layers, where there is a terminal."""
    shown = None if progress else True
    return tqdm(total=layers, desc=what, unit="layer", leave=False, disable=shown)


def _advance(bar: tqdm[NoReturn], done: int) -> None:
    bar.update(done - bar.n)
