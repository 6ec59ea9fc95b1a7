"""Layers of few items that are searched together, against each alone and brute force."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from alignment.oracles import dense
from alignment.test_search import KINDS, PRECISIONS, brute, features, plan
from hypothesis import given, settings
from hypothesis import strategies as st

from prh_eval.alignment import neighbors, tiles
from prh_eval.alignment.neighbors import layer_neighbors, neighbor_graph
from prh_eval.alignment.products import Products
from prh_eval.alignment.rows import Rows
from prh_eval.alignment.tiles import plan_search, together


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_together_and_alone_are_the_same_bit_for_bit(data):
    n, dim = data.draw(st.integers(12, 90)), data.draw(st.integers(1, 40))
    count, k = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 10))
    kinds = st.lists(st.sampled_from(KINDS), min_size=count, max_size=count)
    stored = data.draw(st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
    layers = [
        Rows(features(kind, n, dim, seed).to(stored), data.draw(st.none()), unit=True)
        for seed, kind in enumerate(data.draw(kinds))
    ]
    alone = plan(
        n,
        dim,
        k,
        dtype=data.draw(st.sampled_from(PRECISIONS)),
        side=n,
        block=data.draw(st.integers(1, 3 * n)),
        held=data.draw(st.booleans()),
        keep=min(k + 4, n - 1),
    )
    several = replace(alone, layers=count, side=count * n)
    found = layer_neighbors(Rows.joined(layers), "cosine", several)
    for place, layer in enumerate(layers):
        own = slice(place * n, (place + 1) * n)
        for ours, theirs in zip(found, layer_neighbors(layer, "cosine", alone), strict=True):
            width = theirs.shape[1]
            assert torch.equal(ours[own, :width], theirs)
            # What is wider in another layer is padding here.
            assert ((ours[own, width:] == -1) | (ours[own, width:] == False)).all()  # noqa: E712


@pytest.mark.parametrize("k", [10, 100])
def test_layers_of_all_kinds_are_those_of_brute_force(monkeypatch, k):
    monkeypatch.setitem(tiles._TOGETHER, "cpu", 3 * 300**2)
    layers = [features(kind, 300, 24, seed) for seed, kind in enumerate(KINDS)]
    # Another width, and another type, between those that can be joined.
    layers.insert(3, features("isotropic", 300, 25))
    layers.insert(6, features("clusters", 300, 24).double())
    done = []
    graph = neighbor_graph([Rows(x, unit=True) for x in layers], k, progress=done.append)
    assert done == list(range(1, len(layers) + 1))
    for layer, x in enumerate(layers):
        np.testing.assert_array_equal(dense(graph, k)[layer], brute(x, "cosine", k))


def how_many(monkeypatch) -> list[int]:
    """Layers of each search that is made from now on."""
    counts, real = [], neighbors.layer_neighbors

    def counted(rows, similarity, how, sharing):
        counts.append(rows.layers)
        return real(rows, similarity, how, sharing)

    monkeypatch.setattr(neighbors, "layer_neighbors", counted)
    return counts


def test_as_many_as_fit_are_joined(monkeypatch):
    counts, most = how_many(monkeypatch), 11
    monkeypatch.setitem(tiles._TOGETHER, "cpu", most * 300**2)
    layers = [Rows(features("isotropic", 300, 40, seed), unit=True) for seed in range(25)]
    neighbor_graph(layers, 10)
    assert counts == [9, 8, 8]
    counts.clear()
    alone = plan_search(300, 40, 10).peak_bytes
    neighbor_graph(layers, 10, memory_bytes=2 * alone)
    assert max(counts) < most and sum(counts) == 25
    counts.clear()
    neighbor_graph([layer.stored for layer in layers], 10, similarity="euclidean")
    assert counts == [1] * 25
    counts.clear()
    # Of so many dimensions that rows take more than similarities do.
    wide = [Rows(features("isotropic", 300, 600, seed), unit=True) for seed in range(6)]
    neighbor_graph(wide, 10)
    assert counts == [3, 3]


@given(st.integers(12, 700), st.integers(1, 800), st.integers(1, 40), st.integers(60, 300))
def test_plans_for_several_stay_within_memory(n, dim, layers, megabytes):
    how = together(plan_search(n, dim, 10, memory_bytes=megabytes * 10**6), layers)
    assert 1 <= how.layers <= layers
    assert how.peak_bytes <= megabytes * 10**6
    assert how.side == how.layers * n if how.layers > 1 else how.side <= n


def test_out_of_memory_searches_one_at_a_time(monkeypatch, caplog):
    layers = [Rows(features("clusters", 300, 40, seed), unit=True) for seed in range(5)]
    wanted = neighbor_graph(layers, 10)
    within = Products.within

    def small(products, rows, n, turned):
        if len(rows) > n:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return within(products, rows, n, turned)

    monkeypatch.setattr(Products, "within", small)
    counts = how_many(monkeypatch)
    got = neighbor_graph(layers, 10)
    assert torch.equal(got.indices, wanted.indices)
    assert counts == [5, 1, 1, 1, 1, 1]
    assert [record.message for record in caplog.records] == [
        "out of memory: layers one at a time now"
    ]


def test_a_value_that_is_not_finite_is_named_in_its_layer():
    layers = [features("isotropic", 300, 40, seed) for seed in range(3)]
    layers = [layer / layer.norm(dim=1, keepdim=True) for layer in layers]
    layers[1][217, 3] = torch.nan
    with pytest.raises(ValueError, match="item 217 is not"):
        neighbor_graph(layers, 10)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("k", [10, 100])
def test_the_memory_of_several_layers_is_what_the_plan_says(k):
    """The peak as the system measures it, in a process of its own."""
    program = f"""
import torch
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.rows import Rows
from prh_eval.alignment.tiles import plan_search, together

def resident(name):
    status = open("/proc/self/status").read()
    return int(status.split(name + ":")[1].split()[0]) * 1024

torch.set_num_threads(1)
n, dim, memory = 300, 2048, 150 * 10**6
layers = [Rows(torch.randn(n, dim), unit=True) for _ in range(11)]
neighbor_graph([Rows(layers[0].stored[:, :40], unit=True)], {k})  # loads libraries
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
neighbor_graph(layers, {k}, memory_bytes=memory)
plan = together(plan_search(n, dim, {k}, memory_bytes=memory), 11)
print(resident("VmHWM") - before, plan.peak_bytes, plan.layers)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    used, planned, layers = map(int, run.stdout.split())
    assert used <= planned <= 150 * 10**6
    assert 1 < layers < 11
