"""The search through candidates: proofs, tiles and precisions, against brute force in float64."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from alignment.oracles import dense, nearness, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from prh_eval.alignment import filters, frames, neighbors, search
from prh_eval.alignment.candidates import Candidates
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.neighbors import layer_neighbors, neighbor_graph
from prh_eval.alignment.products import Products
from prh_eval.alignment.rows import Rows
from prh_eval.alignment.sharing import ALONE
from prh_eval.alignment.tiles import SearchPlan, least_memory, plan_search
from prh_eval.errors import PrhEvalError

SIMILARITIES = ["cosine", "euclidean"]
PRECISIONS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def features(kind: str, n: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Float32 features that are hard in one way or another."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=g)
    if kind == "cone":  # nearly collinear
        x = x * 1e-3 + torch.randn(dim, generator=g)
    elif kind == "clusters":
        centres = torch.randn(max(2, n // 40), dim, generator=g)
        x = centres[torch.randint(len(centres), (n,), generator=g)] + 0.01 * x
    elif kind == "duplicates":
        x[torch.randperm(n, generator=g)[: n // 2]] = x[torch.randint(n, (n // 2,), generator=g)]
    elif kind == "hubs":  # a few items near the middle are everyone's neighbours
        x[: max(1, n // 50)] *= 0.1
        x += 0.5
    elif kind == "outliers":
        x[:2] *= 1e4
        x[:, 0] += 100
    elif kind == "coarse":  # similarities on a grid: ties everywhere
        x = (2 * x).round()
    elif kind == "constant":
        x = x[:1].expand(n, dim).clone()
    elif (
        kind == "speck"
    ):  # a row whose length float32 cannot divide by, where not all are seen at first
        x[n // 2 + 1] *= 1e-38
    return x


KINDS = [
    "isotropic", "cone", "clusters", "duplicates", "hubs", "outliers", "coarse", "constant",
    "speck",
]  # fmt: skip


def plan(n: int, dim: int, k: int, **changes) -> SearchPlan:
    sizes = {
        "dtype": torch.bfloat16,
        "keep": min(k + 22, n - 1),
        "side": 64,
        "block": 50,
        "memory_bytes": 1 << 30,
        "held": True,
    }
    return SearchPlan("cpu", n, dim, k, **{**sizes, **changes})


def rows(x: torch.Tensor, similarity: str) -> Rows:
    return Rows(x, unit=similarity == "cosine")


def found(x: torch.Tensor, similarity: str, how: SearchPlan) -> NeighborGraph:
    indices, tied = layer_neighbors(rows(x, similarity), similarity, how)
    return NeighborGraph(indices[None], tied[None], how.k)


def scale(x: torch.Tensor, similarity: str) -> float:
    if similarity == "cosine":
        return 1.0
    x = x.double()
    return float((x - x.mean(dim=0)).square().sum(dim=1).max())


def brute(x: torch.Tensor, similarity: str, k: int) -> np.ndarray:
    """Weights by ranking everything; of distances half their squares are compared."""
    similarities = nearness(x.double().numpy(), similarity)
    if similarity == "euclidean":
        similarities = similarities / 2
    return weights(similarities, k, 1e-12 * scale(x, similarity))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_every_precision_finds_what_brute_force_finds(kind, similarity, dtype):
    x = features(kind, 300, 24)
    got = found(x, similarity, plan(300, 24, 10, dtype=dtype))
    for k in (1, 7, 10):
        np.testing.assert_array_equal(dense(got, k)[0], brute(x, similarity, k))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_change_no_bit(kind, similarity):
    x = features(kind, 257, 19, seed=1)
    whole = found(x, similarity, plan(257, 19, 10, side=257, block=257))
    for side, block, held in [(50, 1, False), (128, 300, True), (64, 7, False), (65, 64, True)]:
        other = found(x, similarity, plan(257, 19, 10, side=side, block=block, held=held))
        assert torch.equal(other.indices, whole.indices)
        assert torch.equal(other.tied, whole.tied)


def test_threads_change_no_bit():
    x = features("clusters", 700, 33)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(neighbor_graph([rows(x, "cosine")], 10))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(other.indices, results[0].indices) for other in results)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", ["cone", "clusters"])
def test_torch_settings_change_no_bit(kind, similarity):
    x = features(kind, 400, 24)
    how = plan(400, 24, 10, dtype=torch.float32)
    before = found(x, similarity, how)
    try:
        torch.set_float32_matmul_precision("medium")
        assert plan_search(10**5, 24, 10).dtype != torch.float32
        coarse = found(x, similarity, plan(400, 24, 10))
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.autocast("cpu", torch.bfloat16):
        cast = found(x.requires_grad_(), similarity, how)
    for after in (coarse, cast):
        assert torch.equal(after.indices, before.indices)
        assert not after.indices.requires_grad


@st.composite
def drawn(draw):
    n = draw(st.integers(30, 120))
    kind = draw(st.sampled_from(KINDS))
    x = features(kind, n, draw(st.integers(1, 40)), draw(st.integers(0, 10**6)))
    x = x * 2.0 ** draw(st.integers(-60, 60))
    # Beyond the range of float32 and of its squares.
    return x.double() * 10.0 ** draw(st.sampled_from([0, 0, 0, -100, -60, -40, 40, 100]))


@settings(deadline=None, max_examples=60)
@given(drawn(), st.data())
def test_drawn_features_and_sizes(x, data):
    n, dim = x.shape
    similarity = data.draw(st.sampled_from(SIMILARITIES))
    k = data.draw(st.integers(1, n - 1))
    how = plan(
        n,
        dim,
        k,
        dtype=data.draw(st.sampled_from(PRECISIONS)),
        keep=data.draw(st.integers(k, n - 1)),
        side=data.draw(st.integers(n // 5, n)),
        block=data.draw(st.integers(n // 9, n)),
        held=data.draw(st.booleans()),
    )
    np.testing.assert_array_equal(dense(found(x, similarity, how), k)[0], brute(x, similarity, k))


# ---------------------------------------------------------------- the proof


def unproven(monkeypatch: pytest.MonkeyPatch, x: torch.Tensor, similarity: str, how) -> int:
    """How many items had to be compared with all others."""
    counts = []
    ranked = neighbors._ranked

    def counting(layer, plan, items):
        counts.append(len(items))
        return ranked(layer, plan, items)

    monkeypatch.setattr(neighbors, "_ranked", counting)
    found(x, similarity, how)
    return sum(counts)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", PRECISIONS[:-1])
@pytest.mark.parametrize("kind", ["isotropic", "cone", "hubs"])
def test_most_items_are_proven(monkeypatch, kind, dtype, similarity):
    x = features(kind, 600, 64)
    assert unproven(monkeypatch, x, similarity, plan(600, 64, 10, dtype=dtype)) < 6


def test_more_ties_than_candidates_are_searched_for_exactly(monkeypatch):
    x = features("isotropic", 300, 16)
    x[100:150] = x[0]
    how = plan(300, 16, 10)
    # The copies, and whoever has them among its nearest.
    assert 51 <= unproven(monkeypatch, x, "cosine", how) < 300
    np.testing.assert_array_equal(dense(found(x, "cosine", how), 10)[0], brute(x, "cosine", 10))


@pytest.mark.parametrize(("memory", "passes"), [(1 << 30, 2), (1, 1)])
def test_a_better_filter_is_tried_where_it_fits(monkeypatch, memory, passes):
    x = features("isotropic", 300, 24)
    x[7] *= 1e3
    real, dtypes = search._filtered, []

    def counting(layer, plan, *rest):
        dtypes.append(plan.dtype)
        return real(layer, plan, *rest)

    monkeypatch.setattr(search, "_filtered", counting)
    how = plan(300, 24, 10, memory_bytes=memory)
    got = found(x, "euclidean", how)
    np.testing.assert_array_equal(dense(got, 10)[0], brute(x, "euclidean", 10))
    assert dtypes == [torch.bfloat16, torch.float32][:passes]


@pytest.mark.parametrize("dtype", PRECISIONS[:-1])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "constant"])
def test_products_are_within_their_bounds(kind, similarity, dtype):
    """The bound itself, entry by entry, against products in float64."""
    n, dim = 150, 40
    x = features(kind, n, dim, seed=3)
    layer = frames.frame(rows(x, similarity).held(n), similarity, 37, ALONE)
    matrix = torch.empty(n, filters.columns(dim, dtype), dtype=dtype)
    stats = filters.copied(layer, slice(0, n), 37, matrix)
    product = filters.turn(matrix, dim) @ matrix.T
    error = filters.bounds(stats, stats.amax(dim=1), matrix.shape[1])
    d, b = layer.centred(slice(0, n))
    exact = (d @ d.T + b[:, None] + b) * layer.factor**2
    off = (product.double() - exact).abs() - filters.output_error(product.double(), dtype)
    assert (off <= error[:, None]).all()
    # A bound that is far from what happens would leave nothing to gain.
    norms = stats[1].max() ** 2 + stats[3].max()
    assert error.max() < {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 4e-3}[
        dtype
    ] * float(norms)


@pytest.mark.parametrize("dtype", PRECISIONS[:-1])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("spread", [1e-3, 1e-5, 1e-7])
def test_near_ties_below_the_precision(monkeypatch, dtype, similarity, spread):
    """A ring of items whose distances to the middle differ by less than the products can tell."""
    g = torch.Generator().manual_seed(0)
    n, dim, k = 400, 16, 10
    x = torch.randn(n, dim, generator=g, dtype=torch.float64)
    x /= x.norm(dim=1, keepdim=True)
    middle = x[0].clone()
    around = torch.randn(120, dim, generator=g, dtype=torch.float64)
    around -= (around @ middle)[:, None] * middle
    around /= around.norm(dim=1, keepdim=True)
    # In an order that has nothing to do with their distance.
    lengths = 0.3 * (1 + spread * torch.randperm(120, generator=g).double() / 120)
    x[1:121] = middle * (1 - lengths[:, None] ** 2).sqrt() + around * lengths[:, None]
    how = plan(n, dim, k, dtype=dtype)
    got = found(x, similarity, how)
    np.testing.assert_array_equal(dense(got, k)[0], brute(x, similarity, k))
    nearest = set((lengths.argsort()[:k] + 1).tolist())
    assert set(got.indices[0, 0, :k].tolist()) == nearest


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_candidates_hold_all_that_is_wanted(data):
    """Against the definition, for values with any error that the bound allows."""
    n, k = data.draw(st.integers(2, 200)), data.draw(st.integers(1, 12))
    k = min(k, n)
    keep = data.draw(st.integers(k, n))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    count = data.draw(st.integers(1, 9))
    true = torch.randn(count, n, generator=g, dtype=torch.float64)
    # As drawn, with ties, or nothing but ties.
    true = true / data.draw(st.sampled_from([1e-3, 0.25, 1e9]))
    true = true.round() * 0.25
    error = torch.rand(count, generator=g, dtype=torch.float64) * data.draw(
        st.sampled_from([0.0, 1e-6, 0.1])
    )
    dtype = data.draw(st.sampled_from(PRECISIONS[:-1]))
    wrong = true + (2 * torch.rand(count, n, generator=g) - 1) * error[:, None]
    seen = wrong.float().to(dtype)
    allowed = error + 1e-6 * (1 + true.abs().max())  # of rounding to float32
    near = data.draw(st.sampled_from([1, 50, 10**6]))
    candidates = Candidates(k, keep, allowed, 1e-9, dtype, near)
    start = 0
    while start < n:
        stop = min(n, start + data.draw(st.integers(1, n)))
        if data.draw(st.booleans()):
            candidates.add(seen[:, start:stop], start)
        else:
            candidates.add(seen[:, start:stop].T.contiguous(), start, items_first=False)
        start = stop
    indices, wanted, bound = candidates.result()
    for i in range(count):
        kept = indices[i][wanted[i]].tolist()
        assert len(set(kept)) == len(kept) >= k
        others = [j for j in range(n) if j not in kept]
        assert all(true[i, j] <= bound[i] for j in others)
        if keep == n:
            best = true[i].sort(descending=True).values[k - 1]
            assert all(j in kept for j in range(n) if true[i, j] >= best)


# ---------------------------------------------------------------- memory


def test_out_of_memory_halves_the_tile_and_goes_on(monkeypatch, caplog):
    x = features("isotropic", 300, 24)
    between = Products.between

    def small(products, left, right):
        if len(left) > 20:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return between(products, left, right)

    monkeypatch.setattr(Products, "between", small)
    got = found(x, "cosine", plan(300, 24, 10))
    np.testing.assert_array_equal(dense(got, 10)[0], brute(x, "cosine", 10))
    assert [record.message for record in caplog.records] == [
        "out of memory: tiles of 32 items now",
        "out of memory: tiles of 16 items now",
    ]


@pytest.mark.parametrize("place", ["rescored", "_copy", "Candidates"])
def test_out_of_memory_elsewhere_begins_again(monkeypatch, caplog, place):
    x = features("isotropic", 300, 24)
    real, calls = getattr(search, place), []

    def once(*given, **options):
        calls.append(place)
        if len(calls) == 2:
            raise MemoryError
        return real(*given, **options)

    monkeypatch.setattr(search, place, once)
    if place == "_copy":
        calls.append(place)
    got = found(x, "cosine", plan(300, 24, 10))
    np.testing.assert_array_equal(dense(got, 10)[0], brute(x, "cosine", 10))
    assert [record.message for record in caplog.records] == ["out of memory: tiles of 32 items now"]


def test_smaller_tiles_come_to_an_end(monkeypatch):
    def nothing_fits(products, left, right):
        if len(left):
            raise MemoryError
        return left @ right.T

    monkeypatch.setattr(Products, "between", nothing_fits)
    with pytest.raises(MemoryError):
        found(features("isotropic", 300, 24), "cosine", plan(300, 24, 10))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_what_is_given_stays_as_it_is(similarity):
    x = features("hubs", 300, 24).double()
    x /= x.norm(dim=1, keepdim=True)
    before = x.clone()
    for layer in (x, Rows(x, made=True), x.T.contiguous().T):
        neighbor_graph([layer], 10, similarity=similarity)
        layer_neighbors(Rows(x, made=True), similarity, plan(300, 24, 10))
        assert torch.equal(x, before)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
# Of 300 items every fifth is seen at first.
@pytest.mark.parametrize("item", [215, 217])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_value_that_is_not_finite_is_named(similarity, item, value):
    x = features("isotropic", 300, 24)
    x[item, 3] = value
    with pytest.raises(ValueError, match=f"item {item} is not"):
        layer_neighbors(rows(x, similarity), similarity, plan(300, 24, 10))


def looks(monkeypatch) -> list[str]:
    """How layers are measured from now on: by a glimpse, with care."""
    taken = []

    def watched(how):
        make = getattr(neighbors, how)

        def measured(*args, **options):
            taken.append(how)
            return make(*args, **options)

        monkeypatch.setattr(neighbors, how, measured)

    watched("glimpse")
    watched("frame")
    return taken


@pytest.mark.parametrize("item", [215, 217])
@pytest.mark.parametrize(("length", "wrong"), [(0, False), (2, True), (1 + 1e-4, True)])
def test_rows_that_were_not_seen_must_be_of_length_1(monkeypatch, item, length, wrong):
    """Or 0, which is equally similar to everything."""
    x = torch.nn.functional.normalize(features("hubs", 300, 24), dim=1)
    x[item] *= length
    taken, how = looks(monkeypatch), plan(300, 24, 10)
    if wrong:
        with pytest.raises(ValueError, match="rows of length 1"):
            layer_neighbors(Rows(x), "cosine", how)
    else:
        indices, tied = layer_neighbors(Rows(x), "cosine", how)
        got = NeighborGraph(indices[None], tied[None], 10)
        np.testing.assert_array_equal(dense(got, 10)[0], brute(x, "cosine", 10))
    assert taken == ["glimpse", "frame"]


@pytest.mark.parametrize("dtype", PRECISIONS[:-1])
@pytest.mark.parametrize("unit", [True, False])
def test_a_glimpse_need_not_be_like_the_rest(monkeypatch, unit, dtype):
    """What is seen at first points one way, all else another."""
    x = features("cone", 300, 24)
    x[1::5] *= -1
    x[2::5] = features("isotropic", 60, 24)
    x = x if unit else torch.nn.functional.normalize(x, dim=1)
    taken = looks(monkeypatch)
    indices, tied = layer_neighbors(Rows(x, unit=unit), "cosine", plan(300, 24, 10, dtype=dtype))
    got = NeighborGraph(indices[None], tied[None], 10)
    if unit:
        expected = brute(x, "cosine", 10)
    else:
        # As they are stored, which is not quite of length 1.
        expected = weights(x.double().numpy() @ x.double().numpy().T, 10, 1e-12)
    np.testing.assert_array_equal(dense(got, 10)[0], expected)
    # Of rows to be made nothing can be told from a mean so long that float32 loses digits to it.
    assert taken == ["glimpse"] + ["frame"] * unit


@pytest.mark.parametrize("magnitude", [1e-160, 1e160])
def test_distances_beyond_float64_are_refused(magnitude):
    x = features("isotropic", 300, 24).double() * magnitude
    with pytest.raises(ValueError, match="squared distances float64 can hold"):
        neighbor_graph([x], 10, similarity="euclidean")


@pytest.mark.parametrize("k", [10, 100])
@pytest.mark.parametrize("kind", ["isotropic", "clusters"])
def test_plans_of_their_own_making(kind, k):
    """What plan_search chooses for these sizes, whatever that is."""
    x = features(kind, 1100, 40)
    got = neighbor_graph([rows(x, "cosine")], k)
    np.testing.assert_array_equal(dense(got, k)[0], brute(x, "cosine", k))


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(products, left, right):
        if len(left):
            raise RuntimeError("a bug")
        return left @ right.T

    monkeypatch.setattr(Products, "between", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        found(features("isotropic", 300, 24), "cosine", plan(300, 24, 10))


def needed(n: int, dim: int, k: int, memory: int, **changes: Any) -> int:
    """The megabytes that a refusal asks for."""
    with pytest.raises(PrhEvalError, match=rf"{n} items in {dim} dimensions take at least") as e:
        plan_search(n, dim, k, memory_bytes=memory, **changes)
    return int(str(e.value).split("at least ")[1].split(" MB")[0].replace(",", ""))


def test_too_little_memory_says_how_much_is_needed():
    with pytest.raises(PrhEvalError, match=r"5000 items in 64 dimensions take at least (\S+) MB"):
        neighbor_graph([torch.randn(5000, 64)], 10, similarity="euclidean", memory_bytes=1 << 20)
    enough = needed(5000, 64, 10, 1 << 20) * 10**6
    neighbor_graph([torch.randn(5000, 64)], 10, similarity="euclidean", memory_bytes=enough)


@given(
    st.integers(300, 10**6),
    st.integers(1, 8192),
    st.integers(1, 150),
    st.sampled_from(["cpu", "cuda"]),
    st.integers(1, 8),
    st.floats(0, 1),
    st.floats(1, 20),
)
def test_what_is_needed_is_enough_and_less_is_not(n, dim, k, device, processes, less, more):
    where = {"device": device, "processes": processes}
    enough = needed(n, dim, k, 1, **where) * 10**6
    least = least_memory(n, dim, k, **where)
    assert enough - 10**6 < least <= enough
    # Whatever is asked for, the same is needed; and never more than what does.
    assert needed(n, dim, k, int(less * (least - 1)), **where) * 10**6 == enough
    for memory in (least, enough, int(more * enough)):
        assert plan_search(n, dim, k, memory_bytes=memory, **where).peak_bytes <= memory


@pytest.mark.parametrize("memory", [30, 60, 100, 1000, 10000])
@pytest.mark.parametrize("n", [1024, 5000, 60_000])
def test_plans_stay_within_memory(memory, n):
    try:
        how = plan_search(n, 100, 10, memory_bytes=memory * 10**6)
    except PrhEvalError:
        assert memory < 200
    else:
        assert how.peak_bytes <= memory * 10**6


def test_half_of_what_a_gpu_has_free_is_taken(monkeypatch):
    """What torch keeps of freed memory is free to the search as well."""
    sizes = {"mem_get_info": (2 << 30, 80 << 30), "memory_reserved": 70 << 30}
    sizes["memory_allocated"] = 30 << 30
    for name, size in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, size=size: size)
    how = plan_search(100_000, 64, 10, device="cuda")
    assert how.memory_bytes == (2 + 70 - 30) << 29
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 70 << 30)
    with pytest.raises(PrhEvalError, match="where 0 bytes are allowed"):
        plan_search(100_000, 64, 10, device="cuda")


@pytest.mark.parametrize("dtype", PRECISIONS[:-1])
def test_what_waits_is_sorted_in_before_others_are_looked_at(monkeypatch, dtype):
    """Else it would add up over all sides of the tiles."""
    x = features("isotropic", 700, 20)
    x[7] *= 1e3  # so that nearly nothing is told apart
    real, looked_at = Candidates.add, set()

    def add(self, *args, **options):
        real(self, *args, **options)
        assert self._count <= 8 * len(self._values)
        looked_at.add(id(self))

    monkeypatch.setattr(Candidates, "add", add)
    got = found(x, "euclidean", plan(700, 20, 10, dtype=dtype))
    np.testing.assert_array_equal(dense(got, 10)[0], brute(x, "euclidean", 10))
    assert len(looked_at) >= 11


# The second would hold the rows of ties alone, but not with what is ranked beside them.
@pytest.mark.parametrize("memory", [4 << 20, 11 << 20])
def test_ties_that_would_fill_memory_are_one_sentence(memory):
    x = torch.zeros(1000, 4)
    how = plan(1000, 4, 10, memory_bytes=memory)
    with pytest.raises(PrhEvalError, match=r"an item has 999 neighbours that tie for its 10"):
        found(x, "euclidean", how)


def test_one_layer_of_ties_does_not_fill_memory_with_the_others():
    layers = [torch.randn(1000, 4) for _ in range(6)]
    layers[2] = torch.zeros(1000, 4)
    with pytest.raises(PrhEvalError, match=r"tie for its 10 nearest, and 6000 rows so long"):
        neighbor_graph(layers, 10, similarity="euclidean", memory_bytes=50 << 20)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("memory", [70, 400])
@pytest.mark.parametrize(
    ("similarity", "k", "made"),
    [
        ("cosine", 10, "randn(n, dim)"),
        ("euclidean", 10, "randn(n, dim)"),
        ("cosine", 40, "randn(n, dim)"),
        # A distant item, so that nothing is proven; and many that repeat.
        ("euclidean", 10, "randn(n, dim) * torch.where(torch.arange(n) == 7, 1e3, 1.0)[:, None]"),
        ("cosine", 10, "randn(n // 30, dim).repeat(30, 1)"),
    ],
)
def test_the_memory_of_a_search_is_what_the_plan_says(similarity, k, made, memory):
    """The peak as the system measures it, in a process of its own."""
    program = f"""
import torch
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.products import Products
from prh_eval.alignment.rows import Rows
from prh_eval.alignment.tiles import plan_search

def resident(name):
    status = open("/proc/self/status").read()
    return int(status.split(name + ":")[1].split()[0]) * 1024

def search(n):
    unit = "{similarity}" == "cosine"
    layer = Rows(x[:n], unit=unit)
    neighbor_graph([layer], {k}, similarity="{similarity}", memory_bytes=memory)

torch.set_num_threads(1)
n, dim, memory = 12_000, 64, {memory} * 10**6
x = torch.{made}
search(1000)  # loads libraries
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
search(n)
print(resident("VmHWM") - before, plan_search(n, dim, {k}, memory_bytes=memory).peak_bytes)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    used, planned = map(int, run.stdout.split())
    assert used <= planned <= memory * 10**6
