"""All layer pairs of two models at n = 1,024, against the textbook way of scoring them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from benchmarks.common import Figure, Peak, Setting, main, speedup, synthetic_features
from benchmarks.timing import Timed, by_turns
from prh_eval.alignment.graph import GRAPH_K, NeighborGraph
from prh_eval.alignment.metrics import overlap
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import PROTOCOLS, preprocess

K = 10
# Pairs of the textbook way that are timed where there are more; all cost the same.
SAMPLED = 48


def textbook(x: Tensor, y: Tensor, k: int) -> float:
    """One layer pair's score from rows of length 1, (n, dim) a side.

    Both similarities, a full sort of each, and two masks of n x n.
    """
    masks = []
    for rows in (x, y):
        similarity = rows @ rows.T
        similarity.fill_diagonal_(-torch.inf)
        nearest = similarity.argsort(dim=1, descending=True)[:, :k]
        mask = torch.zeros(similarity.shape, dtype=torch.bool, device=x.device)
        masks.append(mask.scatter_(1, nearest, True))
    return float((masks[0] & masks[1]).sum(dim=1).double().mean()) / k


def textbook_rows(layers: list[Tensor]) -> list[Tensor]:
    """The paper's preprocessing with the quantile from a full sort of all magnitudes."""
    ranked = torch.cat([layer.flatten() for layer in layers]).abs().sort().values
    limit = float(ranked[int(0.95 * len(ranked))])
    return [torch.nn.functional.normalize(x.clamp(-limit, limit), dim=1) for x in layers]


def run(setting: Setting, peak: Peak) -> list[Figure]:
    """Small and large grids from unit rows, and the large one as the task makes it."""
    n, dim = (64, 16) if setting.tiny else (1024, 768)
    grids = [(3, 2), (4, 3)] if setting.tiny else [(13, 12), (33, 40)]
    figures = []
    for layers_x, layers_y in grids:
        x, y = (
            synthetic_features(n, dim, "clustered", seed=s, device=setting.device, layers=layers)
            for s, layers in enumerate((layers_x, layers_y))
        )
        figures += _grid(setting, peak, x, y)
    return [*figures, _as_the_task(setting, x, y)]


def _pairs(x: list[Tensor], y: list[Tensor]) -> list[tuple[int, int]]:
    """Layer pairs to time the textbook way on, spread evenly."""
    pairs = list(itertools.product(range(len(x)), range(len(y))))
    return pairs[:: max(1, len(pairs) // SAMPLED)]


def _grid(setting: Setting, peak: Peak, x: list[Tensor], y: list[Tensor]) -> list[Figure]:
    (n, dim), layers = x[0].shape, len(x) + len(y)
    pairs = _pairs(x, y)

    def search() -> tuple[NeighborGraph, NeighborGraph]:
        return neighbor_graph(x, K), neighbor_graph(y, K)

    graphs = search()
    timed = by_turns(
        {
            "textbook": lambda: [textbook(x[i], y[j], K) for i, j in pairs],
            "ours": lambda: overlap(*search(), K),
            "neighbours": search,
            "overlap": lambda: overlap(*graphs, K),
        },
        setting.clock,
    )
    timed.seconds["textbook"] *= len(x) * len(y) / len(pairs)
    size = f"{len(x)} x {len(y)}"
    return [
        speedup(
            f"scoring {size}",
            f"{size} layers, n = {n:,}, k = {K}, against the textbook way",
            timed,
            plain="textbook",
            of_peak={"float32": 2 * n * n * dim * layers / timed.seconds["ours"] / peak["float32"]},
            details=_sample(timed, x, y, pairs),
        ),
        Figure(
            f"overlap {size}",
            f"overlap of {len(x) * len(y):,} layer pairs, n = {n:,}, share of the neighbour search",
            100 * timed.seconds["overlap"] / timed.seconds["neighbours"],
            "%",
            {name: timed.seconds[name] for name in ("overlap", "neighbours")},
            {name: timed.runs[name] for name in ("overlap", "neighbours")},
        ),
    ]


def _as_the_task(setting: Setting, x: list[Tensor], y: list[Tensor]) -> Figure:
    """Raw features to scores: clipped, with graphs that reach further than this k."""
    graph_k = 3 * K // 2 if setting.tiny else GRAPH_K
    pairs = _pairs(x, y)
    x, y = ([3 * layer for layer in layers] for layers in (x, y))
    paper = PROTOCOLS["paper"]

    def ours() -> Tensor:
        graph_x, graph_y = (neighbor_graph(preprocess(side, paper), graph_k) for side in (x, y))
        return overlap(graph_x.trimmed(K), graph_y.trimmed(K), K)

    rows: list[list[Tensor]] = []

    def plain_rows() -> None:
        rows[:] = [textbook_rows(side) for side in (x, y)]

    timed = by_turns(
        {
            "textbook preprocessing": plain_rows,
            "textbook": lambda: [textbook(rows[0][i], rows[1][j], K) for i, j in pairs],
            "ours": ours,
        },
        setting.clock,
    )
    timed.seconds["textbook"] *= len(x) * len(y) / len(pairs)
    timed.seconds["textbook"] += timed.seconds["textbook preprocessing"]
    size = f"{len(x)} x {len(y)}"
    return speedup(
        f"scoring {size} as the task",
        f"{size} layers as the task scores them: clipped, graphs of {graph_k} neighbours kept",
        timed,
        plain="textbook",
        details=_sample(timed, x, y, pairs),
    )


def _sample(
    timed: Timed, x: list[Tensor], y: list[Tensor], pairs: list[tuple[int, int]]
) -> dict[str, float]:
    """How much of the textbook way was run, and how far its scores are from ours."""
    scores = timed.results["ours"].cpu()
    differences = [
        abs(score - float(scores[pair]))
        for pair, score in zip(pairs, timed.results["textbook"], strict=True)
    ]
    return {
        "layer_pairs": len(x) * len(y),
        "layer_pairs_timed_the_textbook_way": len(pairs),
        "largest_difference_of_scores": max(differences),
    }


if __name__ == "__main__":
    main("scoring", run)
