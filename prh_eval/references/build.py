"""The neighbour graphs and features of a reference: from the cache, or made and kept there."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeGuard

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from prh_eval import __version__, store
from prh_eval.alignment.graph import GRAPH_K, GRAPH_VERSION
from prh_eval.alignment.preprocess import protocol as named_protocol
from prh_eval.alignment.preprocess import validate_features
from prh_eval.errors import PrhEvalError
from prh_eval.features.files import file_fingerprint
from prh_eval.features.parts import Parts
from prh_eval.hub import folder_fingerprint
from prh_eval.layer_graphs import GraphParts, features_fingerprint, layer_graphs, made_from
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.processes import Processes
from prh_eval.references.definition import definition, differences
from prh_eval.references.encode import Encoded, encode
from prh_eval.references.registry import relative_of
from prh_eval.resources import cache_folder
from prh_eval.schema import (
    FeaturesReference,
    LanguageReference,
    Reference,
    ValuesReference,
    VisionReference,
)
from prh_eval.store import ArtifactError, GraphArtifact, fingerprint

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)

_NOT_YET = "it is not in the cache yet"
_VERSIONED = ("torch", "transformers", "datasets", "pillow")


class Building(TypedDict, total=False):
    """How graphs that are not in the cache are built, as :func:`shared_reference_artifact` says."""

    k: int
    graph_k: int
    batch_size: int
    workers: int | None
    progress: bool
    trust_remote_code: bool
    rebuild: bool
    features: Path | None
    memory_bytes: int | None


def reference_artifact(
    reference: Reference,
    pairs: PairedDataset,
    *,
    protocol: str,
    device: torch.device | str | None = None,
    **building: Unpack[Building],
) -> GraphArtifact:
    """The neighbour graphs of a reference on paired data: from the cache, or built and kept there.

    A cached artifact needs the captions only: no images and no encoder. It is built anew, and the
    reason logged, if it is missing, cut short, edited, or anything that made it has changed.
    Where several call this at once, one builds and the others wait; a build that was killed goes on
    where it was.

    Args:
        reference: What to build.
        pairs: The items.
        protocol: Name of the preprocessing protocol; it does not apply to Euclidean similarity.
        device: Where the encoder computes and neighbours are searched; None: the first GPU, else
            the CPU.
        **building: As for :func:`shared_reference_artifact`.

    Returns:
        The graphs of all layers, with a header of everything that made them: ``made_from`` and
        ``evidence`` decide whether it is current, ``facts`` and ``versions`` are recorded only.

    Raises:
        PrhEvalError: If the encoder cannot be loaded, an image or file cannot be read, or the
            pairs do not have what the reference needs, or the memory is too small for the search.
    """
    # Of several that lm-eval has started, each comes here by itself.
    alone = Processes(0, 1, 0, Processes.current(device).device)
    artifact = shared_reference_artifact(
        reference, pairs, protocol=protocol, processes=alone, **building
    )
    assert artifact is not None  # the first process has it
    return artifact


def shared_reference_artifact(
    reference: Reference,
    pairs: PairedDataset,
    *,
    protocol: str,
    processes: Processes,
    k: int = 10,
    graph_k: int = GRAPH_K,
    batch_size: int = 8,
    workers: int | None = None,
    progress: bool = True,
    trust_remote_code: bool = False,
    rebuild: bool = False,
    features: Path | None = None,
    keep_features: bool = False,
    memory_bytes: int | None = None,
) -> GraphArtifact | None:
    """The same, built by several processes together, the graphs in the first of them only.

    Args:
        reference: What to build.
        pairs: The items.
        protocol: Name of the preprocessing protocol; it does not apply to Euclidean similarity.
        processes: Those that share the work, each of which calls this with the same arguments.
        k: Neighbourhood size that the graph must answer for.
        graph_k: Neighbourhood size that a new graph answers for where the items allow it.
        batch_size: Images or captions at once; halved when memory runs out.
        workers: Threads that decode images; None: one a core, at most 8.
        progress: Whether to show progress bars.
        trust_remote_code: Whether the command line allows code from an encoder's repository; it
            is run only if the reference's file asks for it too.
        rebuild: Whether to build even where a current graph is in the cache.
        features: Where to keep the features of every layer as they leave the encoder
            (safetensors); None: they are not kept. Implies ``rebuild``.
        keep_features: Whether an encoder's features, where they are made, are kept in the cache
            too, from where :func:`reference_features` reads them.
        memory_bytes: What the search of a layer may take on its device, beyond what the features
            are stored in; None: half of what is free on a GPU, 4 GiB elsewhere.

    Returns:
        As :func:`reference_artifact`; None in processes other than the first.

    Raises:
        PrhEvalError: As :func:`reference_artifact`, or if a process ends before its time.
    """
    header = _header(reference, pairs, protocol)
    path = artifact_path(header)
    k = min(k, len(pairs) - 1)
    rebuild = rebuild or features is not None
    artifact, reason = None, "it was asked for"
    if processes.first and not rebuild:
        artifact, reason = _cached(path, header, k)
    with ExitStack() as stack:
        folder = None
        if processes.first and artifact is None:
            try:
                stack.enter_context(store.locked(path))
            except OSError as error:
                store.warn_unwritable(path, error)
            else:
                if not rebuild:
                    # Another process may have built it while this one waited.
                    artifact, reason = _cached(path, header, k)
                folder = _unfinished(path, header)
        cached, folder = processes.broadcast_object((artifact is not None, folder))
        if cached:
            return artifact
        logger.info("building the reference %s: %s", reference.name, reason)
        started = time.monotonic()
        parts = Parts(folder) if folder else None
        kept = None
        # Several processes may each have a cache folder of their own.
        if not rebuild and processes.world_size == 1:
            kept, _ = _kept_features(_features_header(header))
        encoded = kept
        if encoded is None:
            encoded = encode(
                reference,
                pairs,
                device=processes.device,
                batch_size=batch_size,
                workers=workers,
                progress=progress,
                trust_remote_code=trust_remote_code,
                parts=parts,
                processes=processes,
            )
        graph_k = min(max(k, graph_k), len(pairs) - 1)
        rule, similarity = named_protocol(protocol), reference.similarity
        graph_parts = None
        if processes.first:
            if features is not None:
                _write_features(features, encoded.layers, header)
            name = f"the features of the reference {reference.name}"
            validate_features(encoded.layers, k=1, name=name)
            if keep_features and kept is None and _has_encoder(reference):
                _keep_features(encoded, _features_header(header))
            if folder:
                made = made_from(features_fingerprint(encoded.layers), rule, similarity)
                graph_parts = GraphParts(folder, made, graph_k)
        graph = layer_graphs(
            encoded.layers,
            graph_k,
            protocol=rule,
            processes=processes,
            similarity=similarity,
            memory_bytes=memory_bytes,
            parts=graph_parts,
        )
        saved = False
        if graph is not None:
            artifact = GraphArtifact(graph, {**header, "facts": encoded.facts})
            saved = store.save_artifact(path, artifact)
            if saved:
                seconds = time.monotonic() - started
                logger.info("built the reference %s in %.0f s: %s", reference.name, seconds, path)
        # On every machine, since each may have a cache folder of its own.
        if processes.broadcast_object(saved) and folder:
            _clear(folder)
    return artifact


def reference_features(
    reference: Reference,
    pairs: PairedDataset,
    *,
    device: torch.device | str | None = None,
    batch_size: int = 8,
    workers: int | None = None,
    progress: bool = True,
    trust_remote_code: bool = False,
) -> list[Tensor]:
    """The layer features of a reference on paired data, neither clipped nor normalised.

    Those of an encoder come from the cache, or are made and kept there; graphs of any protocol are
    then built of them (:func:`reference_artifact`), so whoever needs both asks for features first.
    They are made anew, and the reason logged, where graphs would be. Numbers in files are read
    where they are.

    Args:
        reference: Whose features.
        pairs: The n items.
        device: Where the encoder computes; None: the first GPU, else the CPU.
        batch_size: Images or captions at once; halved when memory runs out.
        workers: Threads that decode images; None: one a core, at most 8.
        progress: Whether to show progress bars.
        trust_remote_code: Whether the command line allows code from an encoder's repository; it
            is run only if the reference's file asks for it too.

    Returns:
        One tensor (n, width_l) a layer on the CPU; float32 of an encoder, of a file as it stores
        them.

    Raises:
        PrhEvalError: If the encoder cannot be loaded, an image or file cannot be read, or the
            pairs do not have what the reference needs.
    """
    name = f"the features of the reference {reference.name}"
    if not _has_encoder(reference):
        layers = encode(reference, pairs).layers
        validate_features(layers, k=1, name=name)
        return layers
    header = _features_header(_header(reference, pairs, "paper"))
    path = _features_path(header)
    kept, _ = _kept_features(header)
    with ExitStack() as stack:
        parts = None
        if kept is None:
            try:
                stack.enter_context(store.locked(path))
            except OSError as error:
                store.warn_unwritable(path, error)
            else:
                parts = Parts(_unfinished(path, header))
            # Another process may have made them while this one waited.
            kept, reason = _kept_features(header)
        if kept is not None:
            return kept.layers
        logger.info("making %s: %s", name, reason)
        encoded = encode(
            reference,
            pairs,
            device=Processes.current(device).device,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
            trust_remote_code=trust_remote_code,
            parts=parts,
        )
        validate_features(encoded.layers, k=1, name=name)
        if _keep_features(encoded, header) and parts:
            parts.clear()
        return encoded.layers


def ceiling_artifact(
    reference: Reference, pairs: PairedDataset, *, protocol: str, k: int = 10
) -> GraphArtifact | None:
    """The graphs of a reference's near relative, if the cache has current ones; none are built.

    How well the two agree is a ceiling for what any model can score against the reference.

    Args:
        reference: Whose relative.
        pairs: The items.
        protocol: Name of the preprocessing protocol.
        k: Neighbourhood size that the graphs must answer for.

    Returns:
        Its graphs; None if there are no such graphs, or the reference names no relative.

    Raises:
        PrhEvalError: If the reference names a relative that there is not, or that is on other
            pairs.
    """
    relative = relative_of(reference)
    if relative is None:
        return None
    header = _header(relative, pairs, protocol)
    artifact, _ = _cached(artifact_path(header), header, min(k, len(pairs) - 1))
    return artifact


def artifact_path(header: Mapping[str, Any]) -> Path:
    """Where in the cache the artifact with this header belongs.

    What a run chooses is in the file's name; what makes a file stale is in its header.
    """
    made_from = header["made_from"]
    chosen = [made_from["items"], made_from.get("captions"), made_from["protocol"]]
    name = f"{header['reference']}-{fingerprint(chosen)[:16]}{store.SUFFIX}"
    return cache_folder() / "references" / name


def current_artifact(
    reference: Reference, pairs: PairedDataset, *, protocol: str
) -> tuple[Path, GraphArtifact]:
    """The artifact in the cache and its file; nothing is built.

    Raises:
        PrhEvalError: If there is none, or it is not current; the sentence says why.
    """
    header = _header(reference, pairs, protocol)
    path = artifact_path(header)
    artifact, reason = _cached(path, header, 1)
    if artifact is None:
        raise PrhEvalError(
            f"the reference {reference.name} has no current graphs: {reason}; "
            f"`prh-eval references build {reference.name}` builds them"
        )
    return path, artifact


def _has_encoder(reference: Reference) -> TypeGuard[VisionReference | LanguageReference]:
    """Whether its features are computed, not read."""
    return isinstance(reference, VisionReference | LanguageReference)


def _header(reference: Reference, pairs: PairedDataset, protocol: str) -> dict[str, Any]:
    """Everything that makes the reference's graphs on these pairs, in JSON values."""
    made_from = {
        "graph_version": GRAPH_VERSION,
        "items": pairs.items_fingerprint,
        **definition(reference, protocol),
    }
    evidence: dict[str, Any] = {}
    if isinstance(reference, LanguageReference):
        made_from["captions"] = pairs.fingerprint
    if isinstance(reference, VisionReference):
        evidence["commit"] = pairs.commit
        # A commit names the images; files of this machine have to be looked at.
        evidence["images"] = pairs.images.fingerprint if pairs.images and not pairs.commit else None
    if _has_encoder(reference):
        evidence["encoder"] = folder_fingerprint(reference.encoder.path)
    if isinstance(reference, FeaturesReference):
        evidence["features"] = _file(reference.features.path)
    if isinstance(reference, ValuesReference) and not isinstance(reference.values, str):
        evidence["values"] = _file(reference.values.path)
    return {
        "reference": reference.name,
        "kind": reference.kind,
        "pairs": {
            "name": pairs.name,
            "n": len(pairs),
            "items": pairs.items_fingerprint,
            "captions": pairs.fingerprint,
        },
        "made_from": made_from,
        "evidence": evidence,
        "versions": {"prh_eval": __version__, **{name: version(name) for name in _VERSIONED}},
    }


def _features_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """The header of the features that graphs with this header are of; any protocol has the same."""
    made_from = {**header["made_from"]}
    del made_from["protocol"], made_from["similarity"]
    return {**header, "made_from": made_from}


def _features_path(header: Mapping[str, Any]) -> Path:
    """Where in the cache the features with this header belong."""
    chosen = [header["made_from"]["items"], header["made_from"].get("captions")]
    name = f"{header['reference']}-{fingerprint(chosen)[:16]}{store.SUFFIX}"
    return cache_folder() / "features" / name


def _kept_features(header: Mapping[str, Any]) -> tuple[Encoded | None, str]:
    """The features in the cache, if they are whole and current; otherwise why they are not."""
    path = _features_path(header)
    if not path.exists():
        return None, _NOT_YET
    try:
        layers, then = store.read_features(path)
    except ArtifactError as error:
        return None, str(error)
    stale = _stale(then, header)
    return (None, stale) if stale else (Encoded(layers, then["facts"]), "")


def _keep_features(encoded: Encoded, header: Mapping[str, Any]) -> bool:
    """Write features to the cache if its folder allows it; whether they are there."""
    path = _features_path(header)
    try:
        store.write_features(path, encoded.layers, {**header, "facts": encoded.facts})
    except OSError as error:
        store.warn_unwritable(path, error)
        return False
    return True


def _file(path: str) -> str | None:
    return file_fingerprint(path) if Path(path).is_file() else None


def _cached(path: Path, header: Mapping[str, Any], k: int) -> tuple[GraphArtifact | None, str]:
    """The cached artifact, if it is whole and current; otherwise why it is not."""
    if not path.exists():
        return None, _NOT_YET
    try:
        artifact = store.read_artifact(path)
    except ArtifactError as error:
        return None, str(error)
    stale = _stale(artifact.header, header)
    if stale:
        return None, stale
    if artifact.graph.k < k:
        return None, f"its graph answers for k up to {artifact.graph.k} and {k} is asked for"
    return artifact, ""


def _stale(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What has changed between two headers, as a reason to build anew; empty if nothing has."""
    changed = differences(then.get("made_from"), now["made_from"])
    for name, found in now["evidence"].items():
        before = then.get("evidence", {}).get(name)
        # Offline, or where only captions are at hand, one of the two is not known.
        if None not in (before, found) and before != found:
            changed.append(name)
    return f"changed since it was built: {', '.join(changed)}" if changed else ""


def _unfinished(path: Path, header: Mapping[str, Any]) -> Path:
    """Where a build keeps what it has done; parts of an earlier definition are cleared away."""
    folder = path.parent / "unfinished"
    current = f"{path.stem}-{fingerprint([header['made_from'], header['evidence']])[:16]}"
    for other in folder.glob(f"{path.stem}-*"):
        if other.name != current:
            _clear(other)
    return folder / current


def _clear(folder: Path) -> None:
    """Remove what an unfinished build has kept."""
    Parts(folder).clear()
    GraphParts(folder, {}, 0).clear()


def _write_features(path: Path, layers: list[Tensor], header: Mapping[str, Any]) -> None:
    """Write features as a reference of the kind features reads them."""
    tensors = {f"layer_{number:03}": layer.contiguous() for number, layer in enumerate(layers)}
    about = {"reference": header["reference"], "items": header["made_from"]["items"]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with store.replacing(path) as temporary:
            safetensors.torch.save_file(tensors, temporary, about)
    # safetensors has errors of its own for a full disk.
    except (OSError, safetensors.SafetensorError) as error:
        raise PrhEvalError(f"the features cannot be written to {path}: {error}") from error
