"""The scores of the reference implementation, on features that its recipe regenerates."""

from __future__ import annotations

import pytest
import torch
from alignment.oracles import GOLDEN, golden_sides

from prh_eval.alignment.layers import align
from prh_eval.alignment.metrics import overlap
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import preprocess, protocol

CLIPS = {
    "exact joint 0.95 quantile of |x| over the whole (n, layers, dim) tensor": "paper",
    "mean over samples of each sample's 0.95 quantile of |x| over all its layers": "paper_loose",
}
SEARCHES = [
    (case, result)
    for case in GOLDEN["layer_search"]
    for result in case["results"]
    if result["metric"] == "mutual_knn"
]


def test_the_golden_file_holds_what_these_tests_read():
    assert len(GOLDEN["pairs"]) == 3
    assert [CLIPS[result["clip"]] for _, result in SEARCHES] == ["paper", "paper_loose"] * 2


@pytest.mark.parametrize("case", GOLDEN["pairs"], ids=lambda case: f"n{case['n']}")
def test_pairs(case):
    x, y = (
        neighbor_graph(preprocess(side, protocol("unclipped")), 25) for side in golden_sides(case)
    )
    for k in (5, 10, 25):
        # The reference's mean is a float32; the count of shared neighbours behind it is exact.
        golden = round(case["scores"][f"mutual_knn@{k}"] * case["n"] * k)
        assert float(overlap(x, y, k)) * case["n"] * k == pytest.approx(golden, abs=1e-6)


@pytest.mark.parametrize(
    ("case", "result"), SEARCHES, ids=lambda value: str(value.get("seed", value.get("score")))
)
def test_layer_search(case, result):
    name, k = CLIPS[result["clip"]], result["k"]
    x, y = (neighbor_graph(preprocess(side, protocol(name)), k) for side in golden_sides(case))
    alignment = align(x, y, k)
    golden = torch.tensor(result["grid"], dtype=torch.float64)
    # Seven printed digits, the last of them rounded.
    assert float((alignment.grid - golden).abs().max()) <= 0.5e-7 + 1e-12
    assert round(result["score"] * case["n"] * k) == pytest.approx(alignment.score * case["n"] * k)
    assert [alignment.x_layer, alignment.y_layer] == result["best_pair"]
