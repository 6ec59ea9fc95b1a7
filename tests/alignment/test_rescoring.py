"""Similarities in float32 and their bounds, and the order that they settle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alignment.oracles import dense
from alignment.test_search import KINDS, SIMILARITIES, brute, features, found, plan
from hypothesis import given, settings
from hypothesis import strategies as st

from prh_eval.alignment import filters, frames, rescoring
from prh_eval.alignment.frames import Frame, Single
from prh_eval.alignment.neighbors import layer_neighbors
from prh_eval.alignment.ranking import nearest, unsettled
from prh_eval.alignment.rows import SINGLE_ERROR, Rows
from prh_eval.alignment.sharing import ALONE


def measured(rows: Rows, similarity: str) -> tuple[Frame, Single, torch.Tensor]:
    """A layer, in float32, and how far that may be off."""
    layer = frames.frame(rows, similarity, 37, ALONE)
    single = Single.empty(layer)
    shape = len(rows), filters.columns(rows.dim, torch.bfloat16)
    matrix = torch.empty(shape, dtype=torch.bfloat16)
    stats = filters.copied(layer, slice(0, len(rows)), 50, matrix, single)
    return layer, single, filters.single_bounds(stats, stats.amax(dim=1), layer)


@pytest.mark.parametrize("dim", [1, 200])
@pytest.mark.parametrize("limit", [None, 0.7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "constant"])
def test_products_in_float32_are_within_their_bounds(kind, similarity, dtype, limit, dim):
    """The bound itself, entry by entry, against products in float64; more than one part wide."""
    n = 120
    rows = Rows(features(kind, n, dim, seed=3).to(dtype), limit, unit=similarity == "cosine")
    layer, single, error = measured(rows, similarity)
    products = sum((part @ part.T).double() for part in single.parts) / layer.factor**2
    off = products + single.offsets[:, None] + single.offsets
    x = rows[slice(0, n)]
    if similarity == "cosine":
        exact = x @ x.T - layer.mean.square().sum()
    else:
        d = x - layer.mean
        exact = -(d[:, None] - d[None]).square().sum(dim=2) / 2
    off = (off - exact).abs()
    assert (off <= error[:, None] + 1e-14 * layer.scale).all()
    # A bound far from what happens would leave everything to float64.
    assert error.max() < 1e-4 * max(1.0, layer.scale)


@pytest.mark.parametrize("limit", [None, 0.7])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("dim", [3, 150])
def test_rows_made_in_float32_are_within_their_bounds(dim, unit, limit):
    """Of items that point nearly the same way, where it is the making that loses digits."""
    g = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(dim, generator=g), dim=0)
    x = 0.05 * torch.randn(500, dim, generator=g) / dim**0.5 + direction
    if not unit:
        # Rows of length 1 to within float32, one value each.
        x, limit = torch.nn.functional.one_hot(torch.arange(500) % dim).float(), None
    rows = Rows(x, limit, unit)
    layer = frames.frame(rows, "cosine", 500, ALONE)
    assert layer.quick
    b = torch.empty(500, dtype=torch.float64)
    parts = list(layer.singles(slice(0, 500), b))
    exact, exact_b = layer.centred(slice(0, 500))
    single = torch.cat(parts, dim=1).double()
    length = single.norm(dim=1)
    lost = layer.single_error(length)
    assert ((single - exact * layer.factor).norm(dim=1) <= lost).all()
    off = (b - exact_b).abs() * layer.factor**2
    assert (off <= layer.offset_error(lost)).all()


@pytest.mark.parametrize("magnitude", [1e-44, 1e-38, 1e-30, 1.0, 1e30, 1e37, 3e38])
def test_lengths_at_the_ends_of_float32(magnitude):
    """Where float32 cannot hold a length or its reciprocal, nothing changes."""
    x = features("isotropic", 300, 24)
    x = (x / x.abs().max() * magnitude).float()
    x[5] = 0
    single, exact = (
        Rows(x, unit=True).single(slice(0, 300)).double(),
        Rows(x, unit=True)[slice(0, 300)],
    )
    if torch.isfinite(single).all():
        assert ((single - exact).norm(dim=1) <= SINGLE_ERROR).all()
    got = found(x, "cosine", plan(300, 24, 10))
    np.testing.assert_array_equal(dense(got, 10)[0], brute(x, "cosine", 10))


@pytest.mark.parametrize("magnitude", [1e-300, 1e-155, 1e155, 1e300])
def test_lengths_at_the_ends_of_float64(magnitude):
    """Squares are beyond its range; the direction is that of rows of length 1."""
    x = features("isotropic", 300, 3).double()
    x /= x.abs().max()
    assert torch.equal(
        found(x * magnitude, "cosine", plan(300, 3, 10)).indices,
        found(x, "cosine", plan(300, 3, 10)).indices,
    )
    lengths = Rows(x * magnitude, unit=True)[slice(0, 300)].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-15)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("limit", [0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_clipped_rows_by_either_way(similarity, limit, dtype):
    x = features("clusters", 300, 24).to(dtype)
    rows = Rows(x, limit, unit=similarity == "cosine")
    ways = [
        layer_neighbors(rows, similarity, plan(300, 24, 10, dtype=kind, held=held))
        for kind in (torch.float64, torch.bfloat16)
        for held in (True, False)
    ]
    for indices, tied in ways[1:]:
        assert torch.equal(indices, ways[0][0])
        assert torch.equal(tied, ways[0][1])


def test_few_similarities_are_computed_in_float64(monkeypatch):
    real, pairs = rescoring._exact, []

    def counting(layer, plan, items, names, wanted):
        pairs.append(int(wanted.sum()))
        return real(layer, plan, items, names, wanted)

    monkeypatch.setattr(rescoring, "_exact", counting)
    found(features("isotropic", 600, 64), "cosine", plan(600, 64, 10))
    assert sum(pairs) < 600
    pairs.clear()
    found(features("duplicates", 600, 64), "cosine", plan(600, 64, 10))
    assert sum(pairs) >= 300


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_what_is_settled_is_right_whatever_the_error(data):
    n, k = data.draw(st.integers(2, 60)), data.draw(st.integers(1, 12))
    k = min(k, n)
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    count = data.draw(st.integers(1, 9))
    true = torch.randn(count, n, generator=g, dtype=torch.float64)
    if data.draw(st.booleans()):
        true = (4 * true).round() / 4
    # Some are no candidates, but never so many that fewer than k are left.
    true[torch.rand(count, n, generator=g) < 0.2] = -torch.inf
    true[:, :k] = true[:, :k].nan_to_num(neginf=-9.0)
    error = torch.rand(count, generator=g, dtype=torch.float64) * data.draw(
        st.sampled_from([0.0, 1e-6, 0.05, 1.0])
    )
    seen = true + (2 * torch.rand(count, n, generator=g) - 1) * error[:, None]
    names = torch.stack([torch.randperm(n, generator=g) for _ in range(count)]).int()
    tolerance = data.draw(st.sampled_from([0.0, 1e-9, 0.1]))
    indices, kth, some, of_some = unsettled(seen, k, tolerance + 2 * error, names)
    assert of_some.any(dim=1).all()
    unsure = torch.zeros_like(seen, dtype=torch.bool)
    unsure[some] = of_some
    assert not unsure[true == -torch.inf].any()
    assert ((kth - true.sort(descending=True).values[:, k - 1]).abs() <= error).all()
    best, tied, _ = nearest(true, k, tolerance, names)
    settled = ~unsure.any(dim=1)
    assert torch.equal(indices[settled], best[settled, :k])
    assert not tied[settled].any()
    assert (best[settled, k:] == -1).all()
    # With the unsure replaced by the truth, the rest may stay as it was seen.
    again = nearest(torch.where(unsure, true, seen), k, tolerance, names)
    assert torch.equal(again[0], best)
    assert torch.equal(again[1], tied)


def test_a_layer_that_is_not_held_is_compared_in_float64_alone(monkeypatch):
    monkeypatch.setattr(rescoring, "_close", None)
    x = features("hubs", 300, 24)
    got = found(x, "cosine", plan(300, 24, 10, held=False))
    np.testing.assert_array_equal(dense(got, 10)[0], brute(x, "cosine", 10))
