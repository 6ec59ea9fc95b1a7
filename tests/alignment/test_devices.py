"""The same result on an accelerator as on the CPU, where there is one."""

from __future__ import annotations

import pytest
import torch

from prh_eval.alignment.layers import align
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import PROTOCOLS, preprocess, protocol

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
@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_device_changes_nothing(device, similarity, name):
    g = torch.Generator().manual_seed(0)
    sides = [[torch.randn(300, dim, generator=g) for dim in (48, 64, 32)] for _ in range(2)]
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
    # A reference from the cache lies on the CPU.
    assert torch.allclose(align(there[0], here[1], 10).grid, ours.grid, rtol=0, atol=1e-13)
