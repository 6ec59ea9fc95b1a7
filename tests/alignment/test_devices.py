"""The same result on an accelerator as on the CPU, where there is one."""

from __future__ import annotations

import pytest
import torch

from prh_eval.alignment.layers import align
from prh_eval.alignment.neighbors import layer_neighbors, neighbor_graph
from prh_eval.alignment.preprocess import PROTOCOLS, preprocess, protocol
from prh_eval.alignment.report import report
from prh_eval.alignment.rows import Rows
from prh_eval.alignment.tiles import SearchPlan

DEVICES = [
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
    pytest.param(
        "mps",
        marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no mps device"),
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    ("name", "n"),
    # Of more than 4,096 items candidates are found in float16.
    [*((name, 300) for name in sorted(PROTOCOLS)), ("unclipped", 5000)],
)
def test_device_changes_nothing(device, similarity, name, n):
    g = torch.Generator().manual_seed(0)
    sides = [[torch.randn(n, dim, generator=g) for dim in (48, 48, 48, 64)] for _ in range(2)]
    for layers in sides:
        layers[1][40:80] = layers[1][3]
    here, there = (
        [
            neighbor_graph(
                preprocess([x.to(place) for x in layers], protocol(name)), 10, similarity=similarity
            )
            for layers in sides
        ]
        for place in ("cpu", device)
    )
    for ours, theirs in zip(here, there, strict=True):
        assert torch.equal(ours.indices, theirs.indices.cpu())
        assert torch.equal(ours.tied, theirs.tied.cpu())
    ours, theirs = align(*here, 10), align(*there, 10)
    assert torch.allclose(ours.grid, theirs.grid, rtol=0, atol=1e-13)
    assert (ours.x_layer, ours.y_layer) == (theirs.x_layer, theirs.y_layer)
    assert ours.stderr == pytest.approx(theirs.stderr, rel=1e-9)
    ours, theirs = report(*here, 10, draws=20), report(*there, 10, draws=20)
    assert torch.allclose(ours.null.values, theirs.null.values.cpu(), rtol=0, atol=1e-13)
    assert torch.allclose(ours.z_grid, theirs.z_grid.cpu(), rtol=0, atol=1e-9)
    assert theirs.interval == pytest.approx(ours.interval, rel=1e-9)
    # A reference from the cache lies on the CPU.
    assert torch.allclose(align(there[0], here[1], 10).grid, ours.grid, rtol=0, atol=1e-13)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("held, loaded", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_ways_of_a_search_change_nothing(dtype, held, loaded, similarity):
    x = torch.randn(3000, 40, generator=torch.Generator().manual_seed(1))
    x[100:160] = x[7]
    found = []
    for device, way in (("cpu", torch.float64), ("cuda", dtype)):
        plan = SearchPlan(
            device,
            3000,
            40,
            10,
            way,
            32,
            700,
            300,
            1 << 30,
            held,
            loaded,
            x.nbytes if loaded else 0,
        )
        rows = Rows(x, unit=similarity == "cosine").on(torch.device(device))
        found.append(layer_neighbors(rows, similarity, plan))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs.cpu())
