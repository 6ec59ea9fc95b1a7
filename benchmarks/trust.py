"""What chance, errors and controls add to a run: a report beside features, graphs and scores."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.common import Figure, Peak, Setting, main, synthetic_features
from benchmarks.features import extracted, made_captions, made_model, made_tokenizer, vocabulary
from benchmarks.timing import by_turns
from prh_eval.alignment.graph import GRAPH_K, NeighborGraph
from prh_eval.alignment.layers import align
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import PROTOCOLS, preprocess
from prh_eval.alignment.report import report

K = 10
# Layers of the reference, as many as its graphs in the cache have.
LAYERS = 13


def run(setting: Setting, peak: Peak) -> list[Figure]:
    """A small GPT-2 against a reference of unlike layers, for which the null takes longest."""
    count, dim = (48, 32) if setting.tiny else (1024, 768)
    graph_k = 3 * K // 2 if setting.tiny else GRAPH_K
    model = made_model(dim, vocabulary(setting), setting.device)
    tokenizer = made_tokenizer(vocabulary(setting))
    captions = made_captions(count, vocabulary(setting))
    layers = 3 if setting.tiny else LAYERS
    reference = neighbor_graph(
        synthetic_features(count, dim, "clustered", seed=1, device=setting.device, layers=layers),
        graph_k,
    )

    def features() -> list[torch.Tensor]:
        return list(extracted(model, tokenizer, captions).layers)

    def graph(rows: list[torch.Tensor]) -> NeighborGraph:
        rows = [layer.to(setting.device) for layer in rows]
        return neighbor_graph(preprocess(rows, PROTOCOLS["paper"]), graph_k).cpu()

    kept = features()
    of_model = graph(kept)
    timed = by_turns(
        {
            "features": features,
            "graphs": lambda: graph(kept),
            "align": lambda: align(of_model, reference, K),
            "report": lambda: report(of_model, reference, K),
        },
        setting.clock,
    )
    seconds = timed.seconds
    plain = seconds["features"] + seconds["graphs"] + seconds["align"]
    # A report aligns too.
    added = max(seconds["report"] - seconds["align"], 0.0)
    found: dict[str, Any] = {
        "captions": count,
        "draws": len(timed.results["report"].null.values),
        "difference_of_scores": abs(
            timed.results["report"].alignment.score - timed.results["align"].score
        ),
    }
    return [
        Figure(
            "trust added",
            f"chance, errors, cross-fitting, curves and hubs of {of_model.layers} x {layers} "
            f"layers, n = {count:,}, as a share of a run without: features of a "
            f"{of_model.layers - 1}-layer GPT-2, D = {dim}, graphs and scores",
            100 * added / plain,
            "%",
            seconds,
            timed.runs,
            details=found,
        )
    ]


if __name__ == "__main__":
    main("trust", run)
