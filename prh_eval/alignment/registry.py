"""The registry of metrics: what a person may name, and what each one compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from prh_eval.alignment.chance import chance_level
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.kernels import (
    cknna_grid,
    debiased_cka_grid,
    linear_cka_grid,
    rbf_cka_grid,
)
from prh_eval.alignment.metrics import item_overlap, overlap
from prh_eval.alignment.neighbor_metrics import (
    cycle_knn,
    cycle_knn_items,
    edit_distance_knn,
    edit_distance_knn_items,
    lcs_knn,
    lcs_knn_items,
)
from prh_eval.alignment.predictivity import linear_predictivity_grid
from prh_eval.alignment.procrustes import procrustes_grid
from prh_eval.alignment.similarity_analysis import rsa_grid
from prh_eval.alignment.svcca import svcca_grid
from prh_eval.alignment.triplets import triplets_grid
from prh_eval.errors import PrhEvalError, suggestion

# The metric that is reported in full: with its error, its null, its controls and curves.
HEADLINE = "mutual_knn"

Needs = Literal["graphs", "features"]


@dataclass(frozen=True)
class Metric:
    """A named measure of how well two models agree; the larger, the better, unless it says not.

    Attributes:
        name: What a person writes.
        needs: What it compares: neighbour graphs, or features.
        grid: Scores of every layer pair at once: (x, y, k) to float64 (layers_x, layers_y). Of
            graphs, x and y are one each of all layers; of features, lists of one float tensor
            (n, dim_l) a layer, clipped and normalised.
        source: Where it is defined.
        items: Scores of each item for graphs of a single layer: (x, y, k) to float64 (n,); their
            mean is the score. None where a score is no mean over items.
        prefix: How the keys of its results begin.
        higher_is_better: Whether a larger score is more agreement.
        cosine: Whether it goes by the cosine similarity of features, so that it cannot compare
            values for which Euclidean distances count.
        chance: The expected score of two layers of n items whose items are re-paired at random:
            (n, k) to a float; None where that depends on the layers.
    """

    name: str
    needs: Needs
    # Callables of graphs or of features, as ``needs`` says.
    grid: Callable[[Any, Any, int], Tensor]
    source: str
    items: Callable[[NeighborGraph, NeighborGraph, int], Tensor] | None = None
    prefix: str = ""
    higher_is_better: bool = True
    cosine: bool = False
    chance: Callable[[int, int], float] | None = None

    def __post_init__(self) -> None:
        if not self.prefix:
            object.__setattr__(self, "prefix", self.name)


_HUH = "Huh et al. (2024), The Platonic Representation Hypothesis, arXiv 2405.07987, appendix"

METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            HEADLINE,
            "graphs",
            overlap,
            f"{_HUH} A",
            items=item_overlap,
            prefix="mnn",
            chance=chance_level,
        ),
        Metric("cycle_knn", "graphs", cycle_knn, _HUH, items=cycle_knn_items),
        Metric("lcs_knn", "graphs", lcs_knn, _HUH, items=lcs_knn_items),
        Metric(
            "edit_distance_knn", "graphs", edit_distance_knn, _HUH, items=edit_distance_knn_items
        ),
        Metric("cknna", "features", cknna_grid, _HUH, cosine=True),
        Metric("cka", "features", linear_cka_grid, "Kornblith et al. (2019), arXiv 1905.00414"),
        Metric("cka_rbf", "features", rbf_cka_grid, "Kornblith et al. (2019), arXiv 1905.00414"),
        Metric(
            "debiased_cka",
            "features",
            debiased_cka_grid,
            "Nguyen et al. (2021), arXiv 2010.15327; Song et al. (2012), JMLR 13",
            chance=lambda n, k: 0.0,
        ),
        Metric("svcca", "features", svcca_grid, "Raghu et al. (2017), SVCCA, arXiv 1706.05806"),
        Metric(
            "procrustes",
            "features",
            procrustes_grid,
            "Schönemann (1966), Psychometrika 31; Ding et al. (2021), arXiv 2108.01661",
        ),
        Metric(
            "rsa",
            "features",
            rsa_grid,
            "Kriegeskorte, Mur and Bandettini (2008), Frontiers in Systems Neuroscience 2:4",
            cosine=True,
            chance=lambda n, k: 0.0,
        ),
        Metric(
            "linear_predictivity",
            "features",
            linear_predictivity_grid,
            "Yamins et al. (2014), PNAS 111; Schrimpf et al. (2018), bioRxiv 407007",
        ),
        Metric(
            "triplets",
            "features",
            triplets_grid,
            "Schultz and Joachims (2003), NeurIPS 16; van der Maaten and Weinberger (2012), MLSP",
            cosine=True,
            chance=lambda n, k: 0.5,
        ),
    )
}


def metric(name: str, needs: Needs | None = None) -> Metric:
    """The metric of that name.

    Args:
        name: What a person wrote.
        needs: What there is to be compared; None if that does not matter.

    Raises:
        PrhEvalError: If there is none, or it compares something else.
    """
    if name not in METRICS:
        raise PrhEvalError(f"there is no metric {name!r}; {suggestion(name, METRICS)}")
    found = METRICS[name]
    if needs and found.needs != needs:
        fitting = ", ".join(each.name for each in METRICS.values() if each.needs == needs)
        there = {"graphs": "neighbour graphs", "features": "features"}
        raise PrhEvalError(
            f"the metric {name!r} compares {there[found.needs]} and there are {there[needs]} here; "
            f"it should be one of {fitting}"
        )
    return found


def check_similarity(name: str, similarity: str) -> None:
    """Refuse a metric that cannot compare values of this similarity.

    Args:
        name: Name of a metric.
        similarity: How a reference's neighbours are ranked: cosine, or euclidean.

    Raises:
        PrhEvalError: If there is no such metric, or it goes by cosine similarity where Euclidean
            distances count.
    """
    if metric(name).cosine and similarity == "euclidean":
        fitting = ", ".join(each.name for each in METRICS.values() if not each.cosine)
        raise PrhEvalError(
            f"the metric {name!r} goes by cosine similarity, and the reference says 'similarity: "
            f"euclidean'; the metric should be one of {fitting}"
        )
