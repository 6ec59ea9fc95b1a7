"""The request that asks a language model for the neighbour graphs of a task's captions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from torch import Tensor, nn

from prh_eval import __version__
from prh_eval.alignment.graph import GRAPH_VERSION, NeighborGraph
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import preprocess, protocol, validate_features
from prh_eval.alignment.sharing import ALONE
from prh_eval.alignment.tiles import told_of_memory
from prh_eval.errors import PrhEvalError
from prh_eval.features.captions import mean_over_items
from prh_eval.features.identity import tokenizer_fingerprint, weights_fingerprint
from prh_eval.features.language import LanguageFeatures, language_features
from prh_eval.features.language_body import body
from prh_eval.features.language_pooling import Pooling
from prh_eval.features.untrained import CONTROLS, architecture, refuse
from prh_eval.harness.answers import (
    REQUEST_TYPE,
    Answer,
    CaptionSettings,
    Corpus,
    cache_key,
    from_database,
    from_folder,
    is_first,
    keep,
)
from prh_eval.harness.token_bags import TokenBags, keep_tokens, token_bags
from prh_eval.hub import cached_commit
from prh_eval.processes import Processes
from prh_eval.store import GraphArtifact

__all__ = [
    "REQUEST_TYPE",
    "CaptionNeighbors",
    "CaptionSettings",
    "caption_request",
    "neighbor_graphs",
    "register",
]

# Of so many items a processor finds the neighbours at once; of more, the model's device does, and
# processes share them.
FEW_ITEMS = 4096

# What the weights of untrained models are drawn from, and the orders of shuffled ones.
CONTROL_SEED = 0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionNeighbors:
    """The response to one request: an item's position in what is shared by all of them.

    It prints as one short line, since lm-eval logs every response.

    Attributes:
        position: Of the item.
        graphs: Of all items.
        nats: float64, one an item: minus the natural logarithm of the probability of its captions
            that are read; ``None`` where that was not asked.
        features: float32 on the CPU, one tensor (n, dim_l) a layer: of the items, before
            preprocessing, not to be written to; ``None`` where that was not asked.
        tokens: Of each item, of each of its captions that is read: the token ids of the model's
            own tokenizer, the caption uncut, without special tokens. ``None`` where the model did
            not run and they were not kept.
        controls: Where they were asked for, the graphs of :data:`CONTROLS` by name; one that gives
            no usable features is left out, with a warning.
    """

    position: int
    graphs: GraphArtifact
    nats: Tensor | None = None
    features: list[Tensor] | None = None
    tokens: TokenBags | None = None
    controls: Mapping[str, GraphArtifact] = field(default_factory=dict)

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
            for probabilities or an untrained control and has none.
    """
    _check_backend(lm)
    mine = [_request(instance) for instance in requests]
    everyones = mine if lm.world_size <= 1 else _from_all_ranks(mine)
    corpora = _corpora(everyones)
    untrained = any(settings.control for settings in corpora)
    if untrained:
        refuse(lm.model)
    header = _model_header(lm)
    answers = _answers(lm, header, corpora, progress=not disable_tqdm)
    controls = _controls(lm, header, corpora, progress=not disable_tqdm) if untrained else {}
    bags = {settings: token_bags(lm.tokenizer, items) for settings, items in corpora.items()}
    if is_first(lm):
        for settings, tokens in bags.items():
            keep_tokens(answers[settings].graphs.header, tokens)
    shared = {
        settings: {
            **vars(answer),
            "tokens": bags[settings],
            "controls": controls.get(_plain(settings), {}) if settings.control else {},
        }
        for settings, answer in answers.items()
    }
    return [CaptionNeighbors(request.position, **shared[request.settings]) for request in mine]


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


def _plain(settings: CaptionSettings) -> CaptionSettings:
    """What is asked of a control: its graphs alone."""
    return replace(settings, probabilities=False, features=False, control=None)


def _answers(
    lm: Any, header: dict[str, Any], corpora: dict[CaptionSettings, Corpus], *, progress: bool
) -> dict[CaptionSettings, Answer]:
    keys = {settings: cache_key(header, settings, corpus) for settings, corpus in corpora.items()}
    answers = _on_every_process(lm, {s: from_database(lm, key, s) for s, key in keys.items()})
    missing = {settings: corpora[settings] for settings in corpora if settings not in answers}
    for settings, answer in _computed(lm, lm.model, header, missing, progress=progress):
        answers[settings] = answer
        keep(lm, keys[settings], answer)
    return answers


def _controls(
    lm: Any, header: dict[str, Any], corpora: dict[CaptionSettings, Corpus], *, progress: bool
) -> dict[CaptionSettings, dict[str, GraphArtifact]]:
    """The graphs of untrained models; these are made one at a time, where graphs are missing."""
    asked = {_plain(settings): corpus for settings, corpus in corpora.items() if settings.control}
    found: dict[CaptionSettings, dict[str, GraphArtifact]] = {settings: {} for settings in asked}
    for name, make in CONTROLS.items():
        about = {**header, "kind": "control", "control": name, "seed": CONTROL_SEED}
        if name == "reinitialized":
            # Models that differ in their weights alone share it.
            about["weights"] = architecture(lm.model)
        keys = {settings: cache_key(about, settings, corpus) for settings, corpus in asked.items()}
        kept = _on_every_process(
            lm,
            {s: from_database(lm, key, s) or from_folder(about, key) for s, key in keys.items()},
        )
        missing = {settings: asked[settings] for settings in asked if settings not in kept}
        if missing:
            log.info("The captions are read by the model's control, %s.", name)
            control = make(lm.model, CONTROL_SEED)
            try:
                for settings, answer in _computed(lm, control, about, missing, progress=progress):
                    kept[settings] = answer
                    keep(lm, keys[settings], answer)
            except PrhEvalError as error:
                log.warning("The control %s is left out: %s", name, error)
            # Before the next one is made.
            del control
        for settings, answer in kept.items():
            found[settings][name] = answer.graphs
    return found


def _computed(
    lm: Any,
    model: nn.Module,
    about: dict[str, Any],
    corpora: dict[CaptionSettings, Corpus],
    *,
    progress: bool,
) -> Iterator[tuple[CaptionSettings, Answer]]:
    """What a model makes of all captions, read as lm-eval's model is, one setting at a time."""
    for pooling in sorted({settings.pooling for settings in corpora}):
        group = {s: corpus for s, corpus in corpora.items() if s.pooling == pooling}
        # One pass over the captions of all tasks; each distinct one is run once.
        everything = [caption for c in group.values() for captions in c for caption in captions]
        asked = any(settings.probabilities for settings in group)
        features = _features(lm, model, everything, pooling, asked, progress=progress)
        start = 0
        for settings, corpus in group.items():
            counts = [len(captions) for captions in corpus]
            stop = start + sum(counts)
            header = {
                **about,
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
            graphs = GraphArtifact(_graph(lm, layers, settings), header)
            yield settings, Answer(graphs, nats, layers if settings.features else None)


def _features(
    lm: Any,
    model: nn.Module,
    captions: list[str],
    pooling: Pooling,
    probabilities: bool,
    *,
    progress: bool,
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
        model,
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
    instead = "the model, or others on that device, should take less of it (dtype, parallelize)"
    with told_of_memory(device, "the search of the captions' neighbours", instead):
        found = neighbor_graph(
            rows,
            settings.graph_k,
            device=device if device.type == "cuda" else None,
            sharing=Processes.current(device) if lm.world_size > 1 else ALONE,
        )
        return found.cpu()


def _model_header(lm: Any) -> dict[str, Any]:
    """What a reader needs to know the model again, and what the cache tells models apart by."""
    model = lm.model
    name = lm.pretrained if isinstance(lm.pretrained, str) else model.config._name_or_path
    return {
        "graph_version": GRAPH_VERSION,
        "kind": "language model",
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


def _on_every_process(
    lm: Any, found: dict[CaptionSettings, Answer | None]
) -> dict[CaptionSettings, Answer]:
    """The answers that every process has found, so that all go on with the same work."""
    have = [answer is not None for answer in found.values()]
    if lm.world_size > 1:
        flags = torch.tensor([have], dtype=torch.int32, device=lm.device)
        have = lm.all_gather(flags).cpu().bool().all(dim=0).tolist()
    return {
        s: a for (s, a), everywhere in zip(found.items(), have, strict=True) if a and everywhere
    }
