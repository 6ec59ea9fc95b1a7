"""What is asked about a task's captions, and its answers kept in lm-eval's cache and in ours."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from prh_eval.alignment.graph import GRAPH_VERSION, NeighborGraph
from prh_eval.features.language_pooling import Pooling
from prh_eval.resources import cache_folder
from prh_eval.store import ArtifactError, GraphArtifact, fingerprint, read_artifact, save_artifact

REQUEST_TYPE = "prh_neighbor_graphs"

# The captions that are read of every item, in the order of the items.
Corpus = list[tuple[str, ...]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionSettings:
    """What decides an item's row in a graph: the items it is ranked among and how it is read.

    Attributes:
        data: Name of the paired data, for the record.
        items: Fingerprint of the paired items, in order; they are ranked among these only.
        captions: Fingerprint of the captions that are read of them.
        pooling: Over a caption's tokens.
        protocol: Name of the preprocessing protocol.
        graph_k: Largest neighbourhood size the graph must answer for.
        probabilities: Whether it is asked, too, how probable the captions are; moves no graph.
        features: Whether the features are asked for, too, for which the model is run even where
            its graphs are kept; moves no graph.
        control: "untrained" where the graphs of the same architecture without what training gave
            it are asked for, too; moves no graph.
    """

    data: str
    items: str
    captions: str
    pooling: Pooling
    protocol: str
    graph_k: int
    probabilities: bool = False
    features: bool = False
    control: Literal["untrained"] | None = None


@dataclass(frozen=True)
class Answer:
    """What a model makes of one setting's items, as `CaptionNeighbors` has it."""

    graphs: GraphArtifact
    nats: Tensor | None = None
    features: list[Tensor] | None = None


def cache_key(header: dict[str, Any], settings: CaptionSettings, corpus: Corpus) -> str | None:
    """What identifies a graph; None where the weights cannot be read and so not be told apart."""
    if header["weights"] is None:
        return None
    decisive = ("weights", "tokenizer", "model_class", "dtype", "mixed_precision")
    context = ("max_length", "add_bos_token")
    drawn = ("control", "seed") if header["kind"] == "control" else ()
    identity = {name: header[name] for name in (*decisive, *context, *drawn)}
    # The data's name moves no graph, and a folder may be moved; nor does a further question.
    others = ("data", "probabilities", "features", "control")
    chosen = {name: value for name, value in vars(settings).items() if name not in others}
    return fingerprint([REQUEST_TYPE, GRAPH_VERSION, identity, chosen, corpus])


def from_database(lm: Any, key: str | None, settings: CaptionSettings) -> Answer | None:
    """What lm-eval's --use_cache holds, where it answers all that is asked."""
    database = getattr(lm.cache_hook, "dbdict", None)
    if database is None or key is None or settings.features or key not in database:
        return None
    graphs, prefix, nats = _unpacked(database[key])
    if not settings.probabilities:
        return Answer(graphs)
    return Answer(graphs, nats) if nats is not None and prefix == lm.prefix_token_id else None


def from_folder(header: dict[str, Any], key: str | None) -> Answer | None:
    """What our own cache holds of a control."""
    if key is None or not (path := _path(header, key)).exists():
        return None
    try:
        kept = read_artifact(path)
    except ArtifactError as error:
        log.warning("A control is made anew: %s", error)
        return None
    # As it was computed: the key is for the file alone.
    return Answer(kept) if kept.header.pop("key", None) == key else None


def _packed(graphs: GraphArtifact, prefix: int, nats: Tensor | None) -> dict[str, Any]:
    """Plain arrays, so that lm-eval's cache outlives changes to our classes."""
    graph = graphs.graph
    arrays = {"indices": graph.indices.cpu().numpy(), "tied": graph.tied.cpu().numpy()}
    asked = {} if nats is None else {"nats": nats.numpy(), "prefix": prefix}
    return {**arrays, **asked, "k": graph.k, "header": graphs.header}


def _unpacked(packed: dict[str, Any]) -> tuple[GraphArtifact, int | None, Tensor | None]:
    indices, tied = torch.from_numpy(packed["indices"]), torch.from_numpy(packed["tied"])
    graphs = GraphArtifact(NeighborGraph(indices, tied, packed["k"]), packed["header"])
    nats = packed.get("nats")
    return graphs, packed.get("prefix"), None if nats is None else torch.from_numpy(nats)


def keep(lm: Any, key: str | None, answer: Answer) -> None:
    """Into lm-eval's cache where one is in use, and into ours for later days."""
    if key is None:
        log.warning("The model's weights cannot be read (offloaded?): its graphs are not kept.")
        return
    graphs = answer.graphs
    database = getattr(lm.cache_hook, "dbdict", None)
    if database is not None:
        database[key] = _packed(graphs, lm.prefix_token_id, answer.nats)
    if is_first(lm):
        kept = GraphArtifact(graphs.graph, {**graphs.header, "key": key})
        save_artifact(_path(graphs.header, key), kept)


def _path(header: dict[str, Any], key: str) -> Path:
    """Controls have a folder of their own, where nobody looks for models."""
    folder, name = "models", header["model"]
    if header["kind"] == "control":
        folder, name = "controls", f"{header['model_class']}-{header['control']}"
    name = "".join(c if c.isalnum() or c in "-._" else "_" for c in name)
    return cache_folder() / folder / f"{name[-80:]}-{key[:16]}.safetensors"


def is_first(lm: Any) -> bool:
    """Whether this process is the one that writes for all."""
    return bool(lm.rank == 0 and os.environ.get("LOCAL_RANK", "0") == "0")
