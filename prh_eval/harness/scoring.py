"""What a task reports of a model: a value for every document, what all share, and the record."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prh_eval.alignment.layers import LayerScores, align, align_features
from prh_eval.alignment.preprocess import preprocess, protocol
from prh_eval.alignment.registry import HEADLINE, metric
from prh_eval.alignment.report import report
from prh_eval.controls import scored_controls
from prh_eval.errors import PrhEvalError
from prh_eval.harness.options import TaskOptions
from prh_eval.harness.requests import CaptionNeighbors
from prh_eval.recording import report_record, scores_record
from prh_eval.store import GraphArtifact

log = logging.getLogger(__name__)

# How documents' values are joined, and whether more is better.
Metrics = dict[str, tuple[Callable[[Sequence[Any]], Any], bool | None]]


def mean(values: Sequence[float]) -> float:
    """The mean, exactly rounded: the order in which processes are gathered changes nothing."""
    return math.fsum(values) / len(values)


def only(values: Sequence[Any]) -> Any:
    """The one value that a whole run shares; every document carries it."""
    return values[0]


# A standard error stands after its metric, so that it replaces the "N/A" which lm-eval puts there.
_HEADLINE: Metrics = {
    "mnn": (mean, True),
    "mnn_stderr": (only, None),
    "mnn_calibrated": (only, True),
    "mnn_p": (only, False),
    "mnn_z": (only, True),
    "mnn_cross_fitted": (only, True),
    "mnn_cross_fitted_stderr": (only, None),
    "mnn_last_layer": (mean, True),
    "mnn_last_layer_stderr": (only, None),
    "mnn_layer": (only, None),
    "mnn_reference_layer": (only, None),
    "mnn_chance": (only, None),
    "mnn_shared_words": (only, None),
}
_OF_DRAWS = ("mnn_calibrated", "mnn_p")


def reported(options: TaskOptions) -> Metrics:
    """What a task with these options reports of the alignment, in the order of lm-eval's table."""
    if options.metric == HEADLINE:
        left_out = _OF_DRAWS if options.draws == 0 else ()
        return {name: how for name, how in _HEADLINE.items() if name not in left_out}
    measure = metric(options.metric)
    join = mean if measure.items else only
    name, better = measure.prefix, measure.higher_is_better
    return {
        name: (join, better),
        f"{name}_last_layer": (join, better),
        f"{name}_layer": (only, None),
        f"{name}_reference_layer": (only, None),
    }


@dataclass(frozen=True)
class Against:
    """What a model is scored against, and what else is.

    Attributes:
        reference: Graphs of the reference.
        features: Its features, a float tensor (n, dim) a layer, where the metric compares those.
        shared_words: What the captions' words alone score against it.
        relative: Graphs of a near relative of it, where there are any.
    """

    reference: GraphArtifact
    features: list[Tensor] | None = None
    shared_words: float | None = None
    relative: GraphArtifact | None = None


@dataclass(frozen=True)
class Scored:
    """A model's results.

    Attributes:
        items: Of metrics that are means over items, every item's: float64, shape (n,).
        shared: Of the others, the one value.
        record: As :class:`prh_eval.findings.Findings` names it, in JSON values.
    """

    items: Mapping[str, Tensor]
    shared: Mapping[str, Any]
    record: Mapping[str, Any]

    def of(self, position: int) -> dict[str, Any]:
        """A value for every metric of one item."""
        own = {name: float(values[position]) for name, values in self.items.items()}
        return {**own, **self.shared}


def score(response: CaptionNeighbors, against: Against, options: TaskOptions) -> Scored:
    """Score a model against a reference.

    Raises:
        PrhEvalError: If the metric cannot compare them.
    """
    if options.metric == HEADLINE:
        return _headline(response, against, options)
    measure = metric(options.metric)
    name = measure.prefix
    items: dict[str, Tensor] = {}
    shared: dict[str, Any] = {}
    if measure.needs == "graphs":
        x, y = response.graphs.graph, against.reference.graph
        graphs = align(x, y, options.k, options.metric)
        items = {name: graphs.item_overlaps, f"{name}_last_layer": graphs.last_layer_item_overlaps}
        found: LayerScores = graphs
    else:
        if response.features is None or against.features is None:
            raise PrhEvalError(
                f"the metric {options.metric!r} compares features, and of this run only neighbour "
                "graphs were kept; the model should be run again with lm_eval"
            )
        similarity = against.reference.header["made_from"]["similarity"]
        found = align_features(
            _prepared(response.features, options.protocol, "cosine"),
            _prepared(against.features, options.protocol, similarity),
            options.k,
            options.metric,
        )
        shared = {name: found.score, f"{name}_last_layer": found.last_layer_score}
    shared |= {f"{name}_layer": found.x_layer, f"{name}_reference_layer": found.y_layer}
    return Scored(items, shared, scores_record(found))


def _headline(response: CaptionNeighbors, against: Against, options: TaskOptions) -> Scored:
    """Mutual k-nearest-neighbour alignment, with all that makes it one to be trusted."""
    graph, reference, k = response.graphs.graph, against.reference.graph, options.k
    found = report(graph, reference, k, draws=options.draws)
    alignment, null, crossed = found.alignment, found.null, found.cross_fitted
    if found.hub_warning:
        log.warning("%s", found.hub_warning)
    shared = {
        "mnn_stderr": alignment.stderr,
        "mnn_z": found.z,
        "mnn_last_layer_stderr": alignment.last_layer_stderr,
        "mnn_layer": alignment.x_layer,
        "mnn_reference_layer": alignment.y_layer,
        "mnn_chance": alignment.chance,
        "mnn_shared_words": against.shared_words,
    }
    if crossed is not None:
        shared |= {"mnn_cross_fitted": crossed.score, "mnn_cross_fitted_stderr": crossed.stderr}
    if null is not None:
        shared |= {"mnn_calibrated": null.calibrated.score, "mnn_p": null.calibrated.p}
    items = {
        "mnn": alignment.item_overlaps,
        "mnn_last_layer": alignment.last_layer_item_overlaps,
    }
    controls = {"shared_words": {"score": against.shared_words}} | scored_controls(
        reference,
        k,
        tokens=response.tokens,
        untrained=response.controls,
        relative=against.relative,
    )
    return Scored(items, shared, {**report_record(found), "controls": controls})


def _prepared(features: Sequence[Tensor], rule: str, similarity: str) -> list[Tensor]:
    """Features as neighbours are ranked by: clipped and normalised, or as they are."""
    if similarity == "euclidean":
        return list(features)
    return [rows[:].float() for rows in preprocess(features, protocol(rule))]
