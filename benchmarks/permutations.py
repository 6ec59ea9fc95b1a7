"""The null of the best layer pair: 1,000 re-pairings of all pairs, against equality of indices."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.common import Figure, Peak, Setting, main, synthetic_features
from benchmarks.timing import by_turns
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.permutation import permutation_null

K = 10
SEED = 7
# Draws of the plain way that are timed; all cost the same.
SAMPLED = 5


def plain_null(x: Tensor, y: Tensor, draws: int, seed: int) -> Tensor:
    """Maxima (draws,) over layer pairs by comparing neighbours (layers, n, k) with neighbours."""
    _, n, k = x.shape
    generator = torch.Generator().manual_seed(seed)
    maxima = []
    for _ in range(draws):
        order = torch.randperm(n, generator=generator).to(x.device)
        moved = order.argsort()[y[:, order]]
        best = torch.stack(
            [torch.stack([(a[:, :, None] == b[:, None, :]).sum() for b in moved]).max() for a in x]
        ).max()
        maxima.append(best)
    return torch.stack(maxima).double() / (n * k)


def run(setting: Setting, peak: Peak) -> list[Figure]:
    """Layers that have most neighbours in common, as those of one model, and layers that do not."""
    n, dim = (64, 16) if setting.tiny else (1024, 256)
    layers_x, layers_y = (4, 3) if setting.tiny else (33, 40)
    figures = []
    for alike in (True, False):
        x, y = (
            _graph(n, dim, layers, alike, seed, setting.device)
            for seed, layers in enumerate((layers_x, layers_y))
        )
        figures.append(_null(setting, peak, x, y, alike))
    return figures


def _graph(
    n: int, dim: int, layers: int, alike: bool, seed: int, device: torch.device
) -> NeighborGraph:
    features = synthetic_features(n, dim, "isotropic", seed=seed, device=device, layers=layers)
    if alike:
        features = [torch.nn.functional.normalize(features[0] + 0.25 * x, dim=1) for x in features]
    return neighbor_graph(features, K)


def _null(setting: Setting, peak: Peak, x: NeighborGraph, y: NeighborGraph, alike: bool) -> Figure:
    draws = 20 if setting.tiny else 1000
    neighbours_x, neighbours_y = (graph.indices[..., :K].long() for graph in (x, y))
    timed = by_turns(
        {
            "equality": lambda: plain_null(neighbours_x, neighbours_y, SAMPLED, SEED),
            "ours": lambda: permutation_null(x, y, K, draws=draws, seed=SEED),
        },
        setting.clock,
    )
    timed.seconds["equality"] *= draws / SAMPLED
    # Every distinct edge of one side has to be looked at once a draw, at 4 bytes.
    edges = torch.arange(x.n, device=setting.device)[:, None] * x.n + neighbours_x
    distinct = len(torch.unique(edges))
    took = timed.seconds["ours"]
    kind = "alike" if alike else "unlike"
    difference = timed.results["ours"][:SAMPLED] - timed.results["equality"]
    return Figure(
        f"permutations {kind}",
        f"{draws:,} permutations of the maximum over {x.layers * y.layers:,} layer pairs that are "
        f"{kind}, n = {x.n:,}, k = {K}",
        took,
        "s",
        timed.seconds,
        timed.runs,
        {"copy_bytes": 4 * distinct * draws / took / peak["copy_bytes"]},
        {
            "ratio": timed.seconds["equality"] / took,
            "draws": draws,
            "draws_timed_by_equality": SAMPLED,
            "distinct_edges_of_x": distinct,
            "largest_difference_of_maxima": float(difference.abs().max()),
        },
    )


if __name__ == "__main__":
    main("permutations", run)
