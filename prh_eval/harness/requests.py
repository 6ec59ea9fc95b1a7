"""The request that asks a language model for the neighbour graphs of a task's captions."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from torch import Tensor

from prh_eval import __version__
from prh_eval.alignment.graph import GRAPH_VERSION, NeighborGraph
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import preprocess, protocol, validate_features
from prh_eval.alignment.sharing import ALONE
from prh_eval.errors import PrhEvalError
from prh_eval.features.captions import mean_over_items
from prh_eval.features.identity import tokenizer_fingerprint, weights_fingerprint
from prh_eval.features.language import LanguageFeatures, language_features
from prh_eval.features.language_body import body
from prh_eval.features.language_pooling import Pooling
from prh_eval.hub import cached_commit
from prh_eval.processes import Processes
from prh_eval.resources import cache_folder
from prh_eval.store import GraphArtifact, fingerprint, save_artifact

REQUEST_TYPE = "prh_neighbor_graphs"

# Of so many items a processor finds the neighbours at once; of more, the model's device does, and
# processes share them.
FEW_ITEMS = 4096

# The captions that are read of every item, in the order of the items.
Corpus = list[tuple[str, ...]]

# The graphs of all items, and the nats of each where they are asked for.
Answer = tuple[GraphArtifact, Tensor | None]

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
    """

    data: str
    items: str
    captions: str
    pooling: Pooling
    protocol: str
    graph_k: int
    probabilities: bool = False


@dataclass(frozen=True)
class CaptionNeighbors:
    """The response to one request: an item's position in what is shared by all of them.

    It prints as one short line, since lm-eval logs every response.

    Attributes:
        position: Of the item.
        graphs: Of all items.
        nats: float64, one an item: minus the natural logarithm of the probability of its captions
            that are read; ``None`` where that was not asked.
    """

    position: int
    graphs: GraphArtifact
    nats: Tensor | None = None

    def __str__(self) -> str:
        nearest = self.graphs.graph.indices[-1, self.position, :10].tolist()
        return (
            f"item {self.position}: nearest in the last of {self.graphs.graph.layers} layers "
            f"{[index for index in nearest if index >= 0]}"
        )

    __repr__ = __str__


@dataclass(frozen=True)
class _Request:
    """One item's captions as they travel between processes."""

    settings: CaptionSettings
    position: int
    captions: tuple[str, ...]


def caption_request(
    doc: dict[str, Any], captions: Sequence[str], settings: CaptionSettings, **kwargs: Any
) -> Instance:
    """The lm-eval request for one item.

    Args:
        doc: The document.
        captions: Its captions that are read; the item's features are the mean of theirs.
        settings: Shared by all items that are ranked together.
        **kwargs: lm-eval's own fields of an Instance (``metadata``).

    Returns:
        An Instance whose arguments are the first caption (lm-eval wants a string there), the
        settings as a plain dict, and all captions where there are several.
    """
    first, *others = captions
    return Instance(
        request_type=REQUEST_TYPE,
        doc=doc,
        arguments=(first, vars(settings), *([list(captions)] if others else [])),
        idx=0,
        **kwargs,
    )


def neighbor_graphs(
    lm: LM, requests: Sequence[Instance], disable_tqdm: bool = False
) -> list[CaptionNeighbors]:
    """Answer requests of type ``prh_neighbor_graphs``; becomes a method of every lm-eval model.

    Under data parallelism each process is asked about its share of the documents. The processes
    first tell each other their captions, then share the forward passes, so that every process
    ends with the graphs of all items, bit for bit those that one process alone would make.

    Args:
        lm: A model of lm-eval's ``hf`` family.
        requests: Instances made by :func:`caption_request`, of any number of tasks.
        disable_tqdm: Whether to hide the progress bar.

    Returns:
        One response a request, in the requests' order.

    Raises:
        PrhEvalError: Where the model cannot give hidden states, or gives unusable ones, or is asked
            for probabilities and cannot give them.
    """
    _check_backend(lm)
    mine = [_request(instance) for instance in requests]
    everyones = mine if lm.world_size <= 1 else _from_all_ranks(mine)
    corpora = _corpora(everyones)
    answers = _answers(lm, corpora, progress=not disable_tqdm)
    return [CaptionNeighbors(request.position, *answers[request.settings]) for request in mine]


def register() -> None:
    """Give every lm-eval model class the method; lm-eval calls it by the request's type."""
    setattr(LM, REQUEST_TYPE, neighbor_graphs)


def _request(instance: Instance) -> _Request:
    first, settings, *several = instance.args
    captions = tuple(several[0]) if several else (first,)
    return _Request(CaptionSettings(**settings), int(instance.doc_id or 0), captions)


def _check_backend(lm: LM) -> None:
    from lm_eval.models.huggingface import HFLM  # imports transformers

    name = type(lm).__name__
    if hasattr(lm, "hook_to_steer"):
        raise PrhEvalError(
            f"model class {name} steers activations outside the model, which hidden states would "
            "miss; use --model hf to score the unsteered model"
        )
    if not isinstance(lm, HFLM) or not isinstance(lm.model, torch.nn.Module):
        raise PrhEvalError(
            f"model class {name} gives no hidden states, which alignment is made of; use --model "
            "hf (API, vLLM and other serving backends return text or log-probabilities only)"
        )
    body(lm.model)


def _from_all_ranks(mine: list[_Request]) -> list[_Request]:
    world = torch.distributed.get_world_size()
    gathered: list[list[_Request]] = [[] for _ in range(world)]
    torch.distributed.all_gather_object(gathered, mine)
    return [request for share in gathered for request in share]


def _corpora(requests: Sequence[_Request]) -> dict[CaptionSettings, Corpus]:
    """The items of each setting in their order; lm-eval's padding drops out."""
    found: dict[CaptionSettings, dict[int, tuple[str, ...]]] = {}
    for request in requests:
        found.setdefault(request.settings, {})[request.position] = request.captions
    ordered = sorted(found.items(), key=lambda entry: repr(entry[0]))
    return {
        settings: [captions[position] for position in range(len(captions))]
        for settings, captions in ordered
    }


def _answers(
    lm: LM, corpora: dict[CaptionSettings, Corpus], *, progress: bool
) -> dict[CaptionSettings, Answer]:
    model_header = _model_header(lm)
    keys = {
        settings: _cache_key(model_header, settings, corpus) for settings, corpus in corpora.items()
    }
    answers = _cached(lm, keys)
    missing = {settings: corpora[settings] for settings in corpora if settings not in answers}
    for pooling in sorted({settings.pooling for settings in missing}):
        group = {s: corpus for s, corpus in missing.items() if s.pooling == pooling}
        # One pass over the captions of all tasks; each distinct one is run once.
        everything = [caption for c in group.values() for captions in c for caption in captions]
        asked = any(settings.probabilities for settings in group)
        features = _features(lm, everything, pooling, asked, progress=progress)
        start = 0
        for settings, corpus in group.items():
            counts = [len(captions) for captions in corpus]
            stop = start + sum(counts)
            header = {
                **model_header,
                "kind": "language model",
                "pairs": {
                    "name": settings.data,
                    "n": len(corpus),
                    "items": settings.items,
                    "captions": settings.captions,
                },
                "pooling": settings.pooling,
                "protocol": settings.protocol,
                "graph_k": settings.graph_k,
                "truncated_captions": sum(start <= cut < stop for cut in features.truncated),
                "batch_size": features.batch_size,
                "prh_eval": __version__,
            }
            layers = mean_over_items([layer[start:stop] for layer in features.layers], counts)
            nats = None
            if settings.probabilities:
                assert features.nats is not None
                each = torch.split(features.nats[start:stop], counts)
                nats = torch.stack([captions.sum() for captions in each])
            start = stop
            answers[settings] = GraphArtifact(_graph(lm, layers, settings), header), nats
            _keep(lm, keys[settings], *answers[settings])
    return answers


def _features(
    lm: Any, captions: list[str], pooling: Pooling, probabilities: bool, *, progress: bool
) -> LanguageFeatures:
    if probabilities and lm.prefix_token_id is None:
        raise PrhEvalError(
            "bits per byte need a token to stand before each caption, and the tokenizer has no "
            "beginning or end of text: name a token with --model_args prefix_token_id=..."
        )

    def all_gather(tensor: Tensor) -> Tensor:
        gathered: Tensor = lm.all_gather(tensor.to(lm.device))
        return gathered

    return language_features(
        lm.model,
        lm.tokenizer,
        captions,
        pooling=pooling,
        batch_size=lm.batch_size_per_gpu,
        max_batch_size=lm.max_batch_size or 64,
        max_length=lm.max_length,
        add_special_tokens=lm.add_bos_token,
        prefix=lm.prefix_token_id if probabilities else None,
        device=lm.device,
        autocast_dtype=lm.mixed_precision_dtype,
        rank=lm.rank,
        world_size=lm.world_size,
        all_gather=all_gather if lm.world_size > 1 else None,
        progress=progress,
    )


def _graph(lm: Any, layers: list[Tensor], settings: CaptionSettings) -> NeighborGraph:
    # The embedding of the last token is the same for all captions that end alike.
    validate_features(
        layers,
        k=1,
        name="the language model's features",
        constant="allow" if settings.pooling == "last" else "raise",
    )
    rows = preprocess(layers, protocol(settings.protocol))
    if len(layers[0]) <= FEW_ITEMS:
        return neighbor_graph(rows, settings.graph_k)
    device = torch.device(lm.device)
    found = neighbor_graph(
        rows,
        settings.graph_k,
        device=device if device.type == "cuda" else None,
        sharing=Processes.current(device) if lm.world_size > 1 else ALONE,
    )
    return NeighborGraph(found.indices.cpu(), found.tied.cpu(), found.k)


def _model_header(lm: Any) -> dict[str, Any]:
    """What a reader needs to know the model again, and what the cache tells models apart by."""
    model = lm.model
    name = lm.pretrained if isinstance(lm.pretrained, str) else model.config._name_or_path
    return {
        "graph_version": GRAPH_VERSION,
        "model": name,
        "model_class": type(model).__name__,
        "revision": lm.revision,
        "commit": cached_commit(name, lm.revision),
        "peft": lm.peft,
        "delta": lm.delta,
        "dtype": str(model.dtype).removeprefix("torch."),
        "mixed_precision": str(lm.mixed_precision_dtype or ""),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "max_length": lm.max_length,
        "add_bos_token": lm.add_bos_token,
        "weights": weights_fingerprint(model),
        "tokenizer": tokenizer_fingerprint(lm.tokenizer),
    }


def _cache_key(header: dict[str, Any], settings: CaptionSettings, corpus: Corpus) -> str | None:
    """What identifies a graph; None where the weights cannot be read and so not be told apart."""
    if header["weights"] is None:
        return None
    decisive = ("weights", "tokenizer", "model_class", "dtype", "mixed_precision")
    context = ("max_length", "add_bos_token")
    identity = {name: header[name] for name in (*decisive, *context)}
    # The data's name moves no graph, and a folder may be moved; nor does a further question.
    others = ("data", "probabilities")
    chosen = {name: value for name, value in vars(settings).items() if name not in others}
    return fingerprint([REQUEST_TYPE, GRAPH_VERSION, identity, chosen, corpus])


def _cached(lm: Any, keys: dict[CaptionSettings, str | None]) -> dict[CaptionSettings, Answer]:
    """Answers that lm-eval's --use_cache holds; the same ones on every process, or none."""
    database = getattr(lm.cache_hook, "dbdict", None)
    if database is None:
        return {}
    found: dict[CaptionSettings, Answer] = {}
    for settings, key in keys.items():
        if key is not None and key in database:
            graphs, prefix, nats = _unpacked(database[key])
            if not settings.probabilities:
                found[settings] = graphs, None
            elif nats is not None and prefix == lm.prefix_token_id:
                found[settings] = graphs, nats
    have = [settings in found for settings in keys]
    if lm.world_size > 1:
        flags = torch.tensor([have], dtype=torch.int32, device=lm.device)
        have = lm.all_gather(flags).cpu().bool().all(dim=0).tolist()
    return {s: found[s] for s, everywhere in zip(keys, have, strict=True) if everywhere}


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


def _keep(lm: Any, key: str | None, graphs: GraphArtifact, nats: Tensor | None) -> None:
    """Into lm-eval's cache where one is in use, and into ours for references of later days."""
    if key is None:
        log.warning("The model's weights cannot be read (offloaded?): its graphs are not kept.")
        return
    database = getattr(lm.cache_hook, "dbdict", None)
    if database is not None:
        database[key] = _packed(graphs, lm.prefix_token_id, nats)
    if lm.rank == 0 and os.environ.get("LOCAL_RANK", "0") == "0":
        folder = cache_folder() / "models"
        name = "".join(c if c.isalnum() or c in "-._" else "_" for c in graphs.header["model"])
        path = folder / f"{name[-80:]}-{key[:16]}.safetensors"
        save_artifact(path, GraphArtifact(graphs.graph, {**graphs.header, "key": key}))
