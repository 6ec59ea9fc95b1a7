"""Cycle, common-subsequence and edit-distance kNN against their definitions and golden figures."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from alignment.oracles import GOLDEN, dense, golden_sides
from hypothesis import given, settings
from hypothesis import strategies as st

import prh_eval.alignment.neighbor_metrics as module
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.metrics import item_overlap
from prh_eval.alignment.neighbor_metrics import (
    cycle_knn,
    cycle_knn_items,
    edit_distance_knn,
    edit_distance_knn_items,
    lcs_knn,
    lcs_knn_items,
)
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import preprocess, protocol
from prh_eval.errors import PrhEvalError

GRIDS = {"cycle": cycle_knn, "lcs": lcs_knn, "edit": edit_distance_knn}
ITEMS = {"cycle": cycle_knn_items, "lcs": lcs_knn_items, "edit": edit_distance_knn_items}


def graph(layers: list[np.ndarray], k: int) -> NeighborGraph:
    layers = [torch.from_numpy(x) for x in layers]
    return neighbor_graph(preprocess(layers, protocol("unclipped")), k)


def lists(g: NeighborGraph, layer: int, k: int) -> list[list[int]]:
    return g.indices[layer, :, :k].tolist()


def common_subsequence(a: list[int], b: list[int]) -> int:
    """The textbook table, a row at a time."""
    row = [0] * (len(b) + 1)
    for left in a:
        above, row = row, [0]
        for j, right in enumerate(b):
            row.append(above[j] + 1 if left == right else max(above[j + 1], row[j]))
    return row[-1]


def levenshtein(a: list[int], b: list[int]) -> int:
    """The textbook table, a row at a time."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row = row, [i]
        for j, right in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (left != right)))
    return row[-1]


def plain(name: str, a: list[list[int]], b: list[list[int]], k: int) -> np.ndarray:
    """Each item's score where nothing ties, by definition."""
    if name == "cycle":
        return np.array([float(any(i in a[j] for j in there)) for i, there in enumerate(b)])
    if name == "lcs":
        return np.array([common_subsequence(*pair) / k for pair in zip(a, b, strict=True)])
    return np.array([1 - levenshtein(*pair) / k for pair in zip(a, b, strict=True)])


@pytest.mark.parametrize("case", GOLDEN["pairs"], ids=lambda case: f"n{case['n']}")
def test_golden_pairs(case):
    x, y = (
        neighbor_graph(preprocess(side, protocol("unclipped")), 25) for side in golden_sides(case)
    )
    for k in (5, 10, 25):
        golden = {name: case["scores"][f"{name}@{k}"] for name in
                  ("cycle_knn", "lcs_knn", "edit_distance_knn")}  # fmt: skip
        assert float(cycle_knn(x, y, k)) == pytest.approx(golden["cycle_knn"], abs=1e-12)
        # The reference reports a length in items, we a share of k.
        assert float(lcs_knn(x, y, k)) * k == pytest.approx(golden["lcs_knn"], abs=1e-12)
        distance = float(edit_distance_knn(x, y, k))
        assert distance == pytest.approx(golden["edit_distance_knn"], abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(3, 20), st.data())
@settings(max_examples=20)
def test_without_ties_every_pair_is_by_definition(seed, n, data):
    k = data.draw(st.integers(1, n - 1))
    largest = data.draw(st.integers(k, n - 1))
    g = np.random.default_rng(seed)
    shared = g.standard_normal((n, 4))
    noise = data.draw(st.sampled_from([0.0, 0.1, 1.0]))
    sides = [[shared + noise * g.standard_normal((n, 4)) for _ in range(c)] for c in (2, 3)]
    x, y = graph(sides[0], k), graph(sides[1], largest)
    for name, grid in GRIDS.items():
        got = grid(x, y, k)
        assert got.dtype == torch.float64 and got.shape == (2, 3)
        for a, b in itertools.product(range(2), range(3)):
            expected = plain(name, lists(x, a, k), lists(y, b, k), k)
            items = ITEMS[name](x.layer(a), y.layer(b), k)
            np.testing.assert_allclose(items.numpy(), expected, rtol=0, atol=1e-13)
            assert float(got[a, b]) == pytest.approx(expected.mean(), abs=1e-13)


def groups(g: NeighborGraph, k: int) -> list[list[tuple[int, float, float]]]:
    """Each item's neighbours of one layer: their name, weight and mean place, by group."""
    rows = []
    weights = g.weights(k)[0].tolist()
    for names, tied, row in zip(g.indices[0].tolist(), g.tied[0].tolist(), weights, strict=True):
        runs: list[list[int]] = []
        for place, name in enumerate(names):
            if name >= 0 and tied[place]:
                runs[-1].append(place)
            elif name >= 0:
                runs.append([place])
        found = []
        for run in runs:
            within = [place for place in run if place < k]
            found += [(names[p], row[p], sum(within) / len(within)) for p in run if within]
        rows.append(found)
    return rows


def by_all_chains(name: str, x: NeighborGraph, y: NeighborGraph, k: int) -> list[float]:
    """The best of all chains of common neighbours, tried one and all."""
    scores = []
    for mine, theirs in zip(groups(x, k), groups(y, k), strict=True):
        other = {name: (weight, place) for name, weight, place in theirs}
        common = [(w * other[j][0], p, other[j][1]) for j, w, p in mine if j in other]
        best = 0.0
        for size in range(1, len(common) + 1):
            for chain in itertools.combinations(sorted(common, key=lambda c: c[1]), size):
                steps = list(itertools.pairwise(chain))
                if not all(q[1] > p[1] and q[2] > p[2] for p, q in steps):
                    continue
                saved = math.fsum(w for w, _, _ in chain)
                if name == "edit":
                    ends = [(1.0, -1.0, -1.0), *chain, (1.0, float(k), float(k))]
                    gaps = [max(q[1] - p[1], q[2] - p[2]) - 1 for p, q in itertools.pairwise(ends)]
                    saved = k - math.fsum(gaps) - math.fsum(1 - w for w, _, _ in chain)
                best = max(best, saved)
        scores.append(best / k)
    return scores


@given(st.integers(0, 2**32 - 1), st.integers(3, 8), st.data())
@settings(max_examples=20)
def test_ties_are_in_no_order(seed, n, data):
    k = data.draw(st.integers(1, n - 1))
    g = np.random.default_rng(seed)
    # Few values, so that many neighbours tie.
    x, y = (graph([g.integers(-1, 2, (n, 2)).astype(float)], k) for _ in range(2))
    a, b = dense(x, k)[0], dense(y, k)[0]
    np.testing.assert_allclose(
        cycle_knn_items(x, y, k).numpy(), 1 - np.prod(1 - b * a.T, axis=1), rtol=0, atol=1e-12
    )
    for name in ("lcs", "edit"):
        expected = by_all_chains(name, x, y, k)
        np.testing.assert_allclose(ITEMS[name](x, y, k).numpy(), expected, rtol=0, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=12)
def test_order_of_items_and_of_the_scores(seed, ties):
    g = np.random.default_rng(seed)
    n, k = 30, 6
    sides = [g.standard_normal((n, 3)).round(0 if ties else 8) for _ in range(2)]
    order = g.permutation(n)
    x, y = (graph([side], k) for side in sides)
    p, q = (graph([side[order]], k) for side in sides)
    found = {}
    for name, items in ITEMS.items():
        found[name] = items(x, y, k).numpy()
        np.testing.assert_allclose(items(p, q, k).numpy(), found[name][order], rtol=0, atol=1e-12)
        assert found[name].min() >= 0 and found[name].max() <= 1
    # Of each item: an order in common takes neighbours in common, and equal places an order.
    assert (found["edit"] <= found["lcs"] + 1e-12).all()
    assert (found["lcs"] <= item_overlap(x, y, k).numpy() + 1e-12).all()
    for name in ("lcs", "edit"):
        np.testing.assert_allclose(ITEMS[name](y, x, k).numpy(), found[name], rtol=0, atol=1e-12)


def test_a_layer_agrees_with_itself_and_duplicates_with_nothing():
    g = np.random.default_rng(0)
    x = graph([g.standard_normal((40, 5))], 5)
    assert float(lcs_knn(x, x, 5)) == float(edit_distance_knn(x, x, 5)) == 1
    same = graph([np.ones((40, 3))], 5)
    chance = 5 / 39
    assert float(lcs_knn(same, same, 5)) == pytest.approx(chance**2 / 5, abs=1e-13)
    assert float(edit_distance_knn(same, same, 5)) == pytest.approx(chance**2 / 5, abs=1e-13)
    expected = 1 - (1 - chance**2) ** 39
    assert float(cycle_knn(same, same, 5)) == pytest.approx(expected, abs=1e-13)


def test_cycles_by_chance_are_as_documented():
    g = np.random.default_rng(1)
    n, k = 7, 2
    x, y = (graph([g.standard_normal((n, 3))], k) for _ in range(2))
    a, b = lists(x, 0, k), np.array(lists(y, 0, k))
    scores = []
    for pairing in itertools.permutations(range(n)):
        moved = np.empty_like(b)
        moved[list(pairing)] = np.array(pairing)[b]
        scores.append(plain("cycle", a, moved.tolist(), k).mean())
    degrees = np.bincount(np.ravel(a), minlength=n)
    expected = np.mean([1 - math.comb(n - 1 - d, k) / math.comb(n - 1, k) for d in degrees])
    assert np.mean(scores) == pytest.approx(expected, abs=1e-12)


def test_few_items_at_a_time_make_no_difference(monkeypatch):
    g = np.random.default_rng(2)
    sides = [[g.standard_normal((25, 3)).round(d) for d in (0, 8)] for _ in range(2)]
    x, y = (graph(side, 4) for side in sides)
    whole = {name: grid(x, y, 4) for name, grid in GRIDS.items()}
    monkeypatch.setattr(module, "_CHUNK", 1)
    for name, grid in GRIDS.items():
        assert torch.equal(grid(x, y, 4), whole[name])


@pytest.mark.parametrize("name", GRIDS)
def test_what_cannot_be_compared(name):
    g = np.random.default_rng(3)
    x, y = (graph([g.standard_normal((n, 3))] * 2, 3) for n in (8, 9))
    with pytest.raises(PrhEvalError, match="8 and 9 items"):
        GRIDS[name](x, y, 3)
    with pytest.raises(PrhEvalError, match="k = 4 is not among"):
        GRIDS[name](x, x, 4)
    with pytest.raises(ValueError, match="one layer a side"):
        ITEMS[name](x, x, 3)
