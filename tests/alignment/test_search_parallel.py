"""The neighbours that several processes find together are those that one finds, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from alignment.test_search import KINDS, SIMILARITIES, features, plan, rows
from process_worlds import world

from prh_eval.alignment.neighbors import layer_neighbors, neighbor_graph
from prh_eval.alignment.sharing import gathered_rows
from prh_eval.processes import processes

N, DIM, K = 211, 17, 10
DTYPES = [torch.bfloat16, torch.float32, torch.float64]


def cases():
    for kind in KINDS:
        for similarity in SIMILARITIES:
            for dtype in DTYPES:
                yield f"{kind} {similarity} {dtype}", kind, similarity, dtype


def everyone_searches(folder: Path, rank: int) -> None:
    found = {}
    with processes("cpu") as sharing:
        for name, kind, similarity, dtype in cases():
            how = plan(N, DIM, K, dtype=dtype, held=False, side=30, processes=sharing.world_size)
            layer = rows(features(kind, N, DIM), similarity)
            found[name] = layer_neighbors(layer, similarity, how, sharing)
        graph = neighbor_graph([rows(features("hubs", 300, DIM), "cosine")], 5, sharing=sharing)
        found["graph"] = graph.indices, graph.tied
        share = sharing.rows(N)
        mine = torch.arange(share.start, share.stop)[:, None] * torch.tensor([1, 10])
        found["rows"] = gathered_rows(sharing, mine, N), mine
    torch.save(found, folder / f"found_{rank}.pt")


@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_processes_finds_the_same(size, tmp_path):
    ended = world(everyone_searches, size, tmp_path)
    assert [end.status for end in ended] == [0] * size, ended[0].stderr
    found = [torch.load(tmp_path / f"found_{rank}.pt") for rank in range(size)]
    for name, kind, similarity, dtype in cases():
        how = plan(N, DIM, K, dtype=dtype, side=64)
        alone = layer_neighbors(rows(features(kind, N, DIM), similarity), similarity, how)
        for theirs in found:
            assert all(map(torch.equal, theirs[name], alone)), name
    graph = neighbor_graph([rows(features("hubs", 300, DIM), "cosine")], 5)
    for theirs in found:
        assert torch.equal(theirs["graph"][0], graph.indices)
        assert torch.equal(theirs["graph"][1], graph.tied)
        assert torch.equal(theirs["rows"][0], torch.arange(N)[:, None] * torch.tensor([1, 10]))


def a_small_process(folder: Path, rank: int) -> None:
    """Process 1 has room for small tiles only."""
    from prh_eval.alignment.products import Products

    between = Products.between

    def small(products, left, right):
        if rank == 1 and len(left) > 20:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return between(products, left, right)

    Products.between = small
    with processes("cpu") as sharing:
        how = plan(N, DIM, K, held=False, side=64, processes=sharing.world_size)
        layer = rows(features("clusters", N, DIM), "cosine")
        found = layer_neighbors(layer, "cosine", how, sharing)
    torch.save(found, folder / f"found_{rank}.pt")


def test_all_take_smaller_tiles_where_one_has_no_memory(tmp_path):
    ended = world(a_small_process, 2, tmp_path)
    assert [end.status for end in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    alone = layer_neighbors(rows(features("clusters", N, DIM), "cosine"), "cosine", plan(N, DIM, K))
    for rank in range(2):
        assert all(map(torch.equal, torch.load(tmp_path / f"found_{rank}.pt"), alone))


def one_fails(folder: Path, rank: int) -> None:
    from prh_eval.alignment.products import Products

    between = Products.between

    def broken(products, left, right):
        if rank == 1 and len(left):
            raise RuntimeError("the device fell over")
        return between(products, left, right)

    Products.between = broken
    with processes("cpu") as sharing:
        how = plan(N, DIM, K, held=False, processes=sharing.world_size)
        layer_neighbors(rows(features("hubs", N, DIM), "cosine"), "cosine", how, sharing)


def test_others_end_with_the_reason_of_one(tmp_path):
    ended = world(one_fails, 2, tmp_path)
    assert all(end.status != 0 for end in ended)
    assert "process 1 of 2 stopped: RuntimeError: the device fell over" in ended[0].stderr
