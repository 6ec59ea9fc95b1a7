"""What else than the model is scored against a reference, for the record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.metrics import overlap
from prh_eval.features.words import Bags, shared_bags
from prh_eval.store import GraphArtifact


def scored_controls(
    reference: NeighborGraph,
    k: int,
    *,
    tokens: Bags | None = None,
    untrained: Mapping[str, GraphArtifact] | None = None,
    relative: GraphArtifact | None = None,
) -> dict[str, dict[str, Any]]:
    """Controls by name, as :class:`prh_eval.findings.Findings` has them, in JSON values.

    Args:
        reference: Graph of the reference.
        k: Neighbourhood size that all graphs answer for.
        tokens: The captions by the model's own tokenizer; None where they are not known.
        untrained: Graphs of untrained models, by the control's name.
        relative: Graphs of a near relative of the reference.
    """
    controls: dict[str, dict[str, Any]] = {}
    if tokens is not None:
        controls["shared_tokens"] = {"score": shared_bags(tokens, reference, k)}
    for name, artifact in (untrained or {}).items():
        controls[name] = {"score": _best(artifact.graph, reference, k)}
    if relative is not None:
        score = _best(relative.graph, reference, k)
        controls["ceiling"] = {"score": score, "name": relative.header["reference"]}
    return controls


def _best(x: NeighborGraph, y: NeighborGraph, k: int) -> float:
    """The best layer pair's score."""
    return float(overlap(x.trimmed(k), y.trimmed(k), k).max())
