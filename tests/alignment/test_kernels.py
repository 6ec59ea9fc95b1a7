"""CKA and its relatives against definitions, golden figures, and mutual kNN where they part."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from alignment.oracles import GOLDEN, Array, golden_sides, nearness, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform

from prh_eval.alignment import gram
from prh_eval.alignment.kernels import (
    cknna,
    cknna_grid,
    debiased_cka,
    debiased_cka_grid,
    linear_cka,
    linear_cka_grid,
    rbf_cka,
    rbf_cka_grid,
)
from prh_eval.alignment.metrics import overlap
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import preprocess, protocol
from prh_eval.errors import PrhEvalError

CKAS = {"linear": linear_cka, "debiased": debiased_cka, "rbf": rbf_cka}
CKA_GRIDS = {"linear": linear_cka_grid, "debiased": debiased_cka_grid, "rbf": rbf_cka_grid}
# What the reference adds to the denominator of both of its unbiased scores.
EPSILON = 1e-6


def tensors(*arrays: Array) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(x)) for x in arrays]


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def hsic(a: Array, b: Array) -> float:
    """The biased estimator, but for its factor."""
    n = len(a)
    h = np.eye(n) - 1 / n
    return float(np.trace(a @ h @ b @ h))


def unbiased_hsic(a: Array, b: Array) -> float:
    """Song et al. (2012), equation 5."""
    n = len(a)
    a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
    one = np.ones(n)
    total = np.trace(a @ b) + (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
    return float(total - 2 / (n - 2) * (one @ a @ b @ one)) / (n * (n - 3))


def by_distinct_indices(a: Array, b: Array) -> float:
    """Song et al. (2012), equation 4: means over items that are all different."""
    n = len(a)
    pairs = [a[i, j] * b[i, j] for i, j in itertools.permutations(range(n), 2)]
    triples = [a[i, j] * b[i, q] for i, j, q in itertools.permutations(range(n), 3)]
    fours = [a[i, j] * b[q, r] for i, j, q, r in itertools.permutations(range(n), 4)]
    return float(np.mean(pairs) + np.mean(fours) - 2 * np.mean(triples))


def rbf_kernel(x: Array, fraction: float = 1.0, sigma: float | None = None) -> Array:
    distances = np.sort(pdist(x))
    sigma = sigma or fraction * distances[(len(distances) - 1) // 2]
    return np.exp(-(squareform(pdist(x)) ** 2) / (2 * sigma**2))


def cosine(estimator, a: Array, b: Array) -> float:
    return estimator(a, b) / math.sqrt(estimator(a, a) * estimator(b, b))


def plain(name: str, x: Array, y: Array) -> float:
    if name == "rbf":
        return cosine(hsic, rbf_kernel(x), rbf_kernel(y))
    return cosine(hsic if name == "linear" else unbiased_hsic, x @ x.T, y @ y.T)


def mask(x: Array, k: int) -> Array:
    """(n, n) 1 at the k nearest of each row, where nothing ties."""
    nearest = np.argsort(-nearness(x, "cosine"), axis=1)[:, :k]
    return np.eye(len(x))[nearest].sum(axis=1)


def near_parts(x: Array, y: Array, a: Array, b: Array) -> tuple[float, float]:
    """Numerator and denominator of CKNNA by dense masks a and b."""
    kx, ky = x @ x.T, y @ y.T
    own = unbiased_hsic(a * a * kx, a * a * kx), unbiased_hsic(b * b * ky, b * b * ky)
    return unbiased_hsic(a * b * kx, a * b * ky), math.sqrt(max(own[0], 0) * max(own[1], 0))


@pytest.mark.parametrize("case", GOLDEN["pairs"], ids=lambda case: f"n{case['n']}")
def test_golden_pairs(case):
    (x,), (y,) = (preprocess(side, protocol("unclipped")) for side in golden_sides(case))
    scores = case["scores"]
    # The reference's sums are in float32.
    assert linear_cka(x, y) == pytest.approx(scores["cka"], rel=1e-6)
    assert rbf_cka(x, y, sigma=1.0) == pytest.approx(scores["cka_rbf_sigma1"], rel=1e-6)
    p, q = x[:].numpy(), y[:].numpy()
    a, b = p @ p.T, q @ q.T
    length = math.sqrt(unbiased_hsic(a, a) * unbiased_hsic(b, b))
    golden = scores["unbiased_cka"] * (1 + EPSILON / length)
    assert debiased_cka(x, y) == pytest.approx(golden, rel=1e-6)
    for k in (5, 10, 25):
        golden = scores[f"cknna@{k}"] * (1 + EPSILON / near_parts(p, q, mask(p, k), mask(q, k))[1])
        assert cknna(x, y, k) == pytest.approx(golden, rel=1e-6)


@pytest.mark.parametrize("metric", ["cka", "unbiased_cka"])
@pytest.mark.parametrize("case", GOLDEN["layer_search"], ids=lambda case: f"n{case['n']}")
def test_golden_layer_search(case, metric):
    results = [result for result in case["results"] if result["metric"] == metric]
    assert len(results) == 2
    for result in results:
        name = "paper" if result["clip"].startswith("exact") else "paper_loose"
        x, y = (preprocess(side, protocol(name)) for side in golden_sides(case))
        grid = {"cka": linear_cka_grid, "unbiased_cka": debiased_cka_grid}[metric](x, y)
        best = [int(i) for i in np.unravel_index(int(grid.argmax()), grid.shape)]
        assert best == result["best_pair"]
        golden = result["score"]
        if metric == "unbiased_cka":
            p, q = (side[layer][:].numpy() for side, layer in zip((x, y), best, strict=True))
            a, b = p @ p.T, q @ q.T
            golden *= 1 + EPSILON / math.sqrt(unbiased_hsic(a, a) * unbiased_hsic(b, b))
        assert float(grid.max()) == pytest.approx(golden, rel=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(4, 30), st.data())
@settings(max_examples=20)
def test_every_pair_is_by_definition(seed, n, data):
    g = np.random.default_rng(seed)
    # Widths at which items x items matrices are less work, and dimensions x dimensions ones.
    wide = data.draw(st.booleans())
    shift = data.draw(st.sampled_from([0.0, 100.0]))
    z = g.standard_normal((n, 3))
    xs, ys = (
        [z @ g.standard_normal((3, d)) + g.standard_normal((n, d)) + shift for d in dims]
        for dims in (((40, 3), (60, 41, 2)) if wide else ((2, 3), (1, 2, 3)))
    )
    x, y = tensors(*xs), tensors(*ys)
    for name, grid in CKA_GRIDS.items():
        got = grid(x, y)
        assert got.dtype == torch.float64 and got.shape == (2, 3)
        for a, b in itertools.product(range(2), range(3)):
            p, q = xs[a] - xs[a].mean(axis=0), ys[b] - ys[b].mean(axis=0)
            assert float(got[a, b]) == pytest.approx(plain(name, p, q), rel=1e-6, abs=1e-9)
    assert linear_cka(x[0], y[1]) == pytest.approx(float(linear_cka_grid(x, y)[0, 1]), rel=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(4, 6))
@settings(max_examples=10)
def test_debiased_is_the_mean_over_distinct_items(seed, n):
    g = np.random.default_rng(seed)
    p, q = g.standard_normal((n, 3)), g.standard_normal((n, 5))
    expected = cosine(by_distinct_indices, p @ p.T, q @ q.T)
    assert debiased_cka(*tensors(p, q)) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("dims", [(3, 2), (20, 30)], ids=["by dimensions", "by items"])
def test_any_tiles(monkeypatch, dims):
    g = np.random.default_rng(0)
    p, q = (g.standard_normal((23, d)) for d in dims)
    x, y = tensors(p, q)
    monkeypatch.setattr(gram, "_TILE", 5)
    monkeypatch.setattr(gram, "_HELD", 3)
    for name, cka in CKAS.items():
        assert cka(x, y) == pytest.approx(plain(name, p, q), rel=1e-9)


def test_bandwidths():
    g = np.random.default_rng(1)
    p, q = g.standard_normal((20, 4)), g.standard_normal((20, 6))
    x, y = tensors(p, q)
    for options in ({"fraction": 0.4}, {"sigma": 1.7}):
        expected = cosine(hsic, rbf_kernel(p, **options), rbf_kernel(q, **options))
        assert rbf_cka(x, y, **options) == pytest.approx(expected, rel=1e-9)
    assert rbf_cka(x, y, fraction=1e4) == pytest.approx(linear_cka(x, y), rel=1e-5)
    for options in ({"fraction": 0.0}, {"sigma": -1.0}, {"sigma": 0.0}):
        with pytest.raises(ValueError, match="positive"):
            rbf_cka(x, y, **options)


@given(st.integers(0, 2**32 - 1), st.integers(5, 20), st.data())
@settings(max_examples=20)
def test_cknna_is_by_dense_masks(seed, n, data):
    k = data.draw(st.integers(1, n - 1))
    g = np.random.default_rng(seed)
    z = g.standard_normal((n, 3))
    decimals = data.draw(st.sampled_from([0, 8]))
    sides = [
        [unit((z + 0.5 * g.standard_normal((n, 3))).round(decimals) + 0.01) for _ in range(2)]
        for _ in range(2)
    ]
    x, y = (tensors(*side) for side in sides)
    grid = cknna_grid(x, y, k)
    for a, b in itertools.product(range(2), range(2)):
        pair = sides[0][a], sides[1][b]
        above, below = near_parts(*pair, *(weights(nearness(t, "cosine"), k) for t in pair))
        expected = above / below if below > 1e-9 else 0.0
        if below > 1e-9 or below == 0:
            assert float(grid[a, b]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert math.isfinite(float(grid.sum()))


@pytest.mark.parametrize("name", CKAS)
def test_invariances(name):
    g = np.random.default_rng(2)
    z = g.standard_normal((40, 5))
    p, q = (z @ g.standard_normal((5, 8)) + g.standard_normal((40, 8)) for _ in range(2))
    turn = np.linalg.qr(g.standard_normal((8, 8)))[0]
    order = g.permutation(40)
    score = CKAS[name](*tensors(p, q))
    assert 0.05 < score < 0.95
    for a, b in [(3e3 * p @ turn + 5, q), (p, 1e-3 * q @ turn - 2), (p[order], q[order]), (q, p)]:
        assert CKAS[name](*tensors(a, b)) == pytest.approx(score, rel=1e-6)
    assert CKAS[name](*tensors(p, -2 * p @ turn + 1)) == pytest.approx(1, abs=1e-9)
    single = [t.float() for t in tensors(p, q)]
    assert CKAS[name](*single) == pytest.approx(score, rel=1e-5)


def test_invariances_of_cknna():
    g = np.random.default_rng(3)
    z = g.standard_normal((60, 5))
    p, q = (unit(z + 0.5 * g.standard_normal((60, 5))) for _ in range(2))
    turn = np.linalg.qr(g.standard_normal((5, 5)))[0]
    order = g.permutation(60)
    score = cknna(*tensors(p, q), 8)
    assert 0.2 < score < 0.9
    assert cknna(*tensors(p @ turn, q), 8) == pytest.approx(score, rel=1e-9)
    assert cknna(*tensors(p[order], q[order]), 8) == pytest.approx(score, rel=1e-9)
    assert cknna(*tensors(p, p @ turn), 8) == pytest.approx(1, rel=1e-9)


def test_chance_is_as_documented():
    g = np.random.default_rng(4)
    p, q = g.standard_normal((5, 3)), g.standard_normal((5, 40))
    x, y = tensors(p, q)
    pairings = list(itertools.permutations(range(5)))
    means = {
        name: np.mean([CKAS[name](x, y[list(pairing)]) for pairing in pairings])
        for name in ("linear", "debiased")
    }
    assert means["debiased"] == pytest.approx(0, abs=1e-12)
    a, b = ((t - t.mean(axis=0)) @ (t - t.mean(axis=0)).T for t in (p, q))
    expected = np.trace(a) * np.trace(b) / (4 * np.linalg.norm(a) * np.linalg.norm(b))
    assert means["linear"] == pytest.approx(expected, rel=1e-9)


def test_features_without_structure_score_0():
    g = np.random.default_rng(5)
    y = torch.from_numpy(unit(g.standard_normal((30, 4))))
    constant = torch.full((30, 3), 1 / math.sqrt(3), dtype=torch.float64)
    for cka in CKAS.values():
        assert cka(constant, y) == cka(y, constant) == cka(constant, constant) == 0
        assert cka(constant.float(), y) == 0
    assert cknna(constant, y, 5) == cknna(constant, constant, 5) == 0
    # By dimensions too, and where all items but one are equal.
    assert linear_cka(constant[:, :1], y[:, :1]) == debiased_cka(constant[:, :1], y[:, :1]) == 0
    alone = torch.full((30, 40), 0.3, dtype=torch.float64)
    alone[4] = 1e3
    assert debiased_cka(alone, y) == debiased_cka(alone[:, :1], y) == 0
    assert linear_cka(alone, alone) == pytest.approx(1)


def test_what_cannot_be_compared():
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    for cka in (*CKAS.values(), lambda a, b: cknna(a, b, 2)):
        with pytest.raises(PrhEvalError, match="layer 0 of y has 9 items and layer 0 of x has 10"):
            cka(x, x[1:])
        wrong = x.clone()
        wrong[3, 1] = math.nan
        with pytest.raises(PrhEvalError, match="layer 0 of y has values that are NaN"):
            cka(x, wrong)
        with pytest.raises(PrhEvalError, match="1 items, where this metric needs at least"):
            cka(x[:1], x[:1])
    assert linear_cka(x[:2], x[3:5]) == pytest.approx(1)
    for cka in (debiased_cka, lambda a, b: cknna(a, b, 1)):
        with pytest.raises(PrhEvalError, match="3 items, where this metric needs at least 4"):
            cka(x[:3], x[:3])
    repeated = x[:2].repeat(5, 1)
    repeated[:6] = x[0]
    with pytest.raises(PrhEvalError, match="half of the distances between items in layer 1 of y"):
        rbf_cka_grid([x], [x, torch.cat([repeated[:8], repeated[:1], x[9:]])])
    with pytest.raises(PrhEvalError, match="k = 10"):
        cknna(torch.nn.functional.normalize(x), torch.nn.functional.normalize(x), 10)


def mutual(p: Array, q: Array, k: int = 10) -> float:
    x, y = (neighbor_graph([t], k, similarity="euclidean") for t in tensors(p, q))
    return float(overlap(x, y, k))


def test_outliers_lift_cka_and_not_mutual_knn():
    g = np.random.default_rng(6)
    n = 300
    p, q = g.standard_normal((n, 20)), g.standard_normal((n, 30))
    assert debiased_cka(*tensors(p, q)) < 0.02 and mutual(p, q) < 0.05
    # One item of 300 is far from all others on both sides.
    for side in (p, q):
        side[0, 0] += 100
    assert linear_cka(*tensors(p, q)) > 0.9
    # That it is alone is on the diagonal; the next is beside it.
    assert abs(debiased_cka(*tensors(p, q))) < 0.05
    assert mutual(p, q) == pytest.approx(10 / (n - 1), abs=0.015)
    for side in (p, q):
        side[1, 0] += 100
    assert linear_cka(*tensors(p, q)) > 0.9 and debiased_cka(*tensors(p, q)) > 0.9
    assert mutual(p, q) == pytest.approx(10 / (n - 1), abs=0.015)


def test_a_shared_cluster_lifts_cka_and_not_mutual_knn():
    g = np.random.default_rng(7)
    n = 300
    p, q = g.standard_normal((n, 20)), g.standard_normal((n, 30))
    # One direction dominates: a half of the items is away from the other half.
    for side in (p, q):
        side[: n // 2, 0] += 20
    for cka in CKAS.values():
        assert cka(*tensors(p, q)) > 0.9
    # Neighbours are in the same half, and else at random.
    assert mutual(p, q) == pytest.approx(10 / (n / 2 - 1), abs=0.02)


def test_a_shifted_cluster_lowers_cka_and_not_mutual_knn():
    g = np.random.default_rng(8)
    n = 300
    p = g.standard_normal((n, 20))
    p[: n // 5, 0] += 30
    p[n // 5 : 2 * n // 5, 1] += 30
    q = p.copy()
    # One side takes one cluster further away, the other another, each with all that is in it.
    p[: n // 5, 0] += 300
    q[n // 5 : 2 * n // 5, 1] += 300
    assert mutual(p, q) == 1
    assert linear_cka(*tensors(p, q)) < 0.15 and debiased_cka(*tensors(p, q)) < 0.15
