"""Exact neighbours of one large layer, against faiss IndexFlatIP and a product with topk."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Figure, Peak, Setting, main, synthetic_features
from benchmarks.timing import added_memory, by_turns, in_fresh_process
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.tiles import plan_search

K = 10
# Bytes of similarities that the plain product makes at once.
PLAIN_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
# The smaller of the memory settings that are tried.
SMALL_MEMORY = {"cpu": 3 << 27, "cuda": 5 << 30}
# Rows whose neighbours are found again in float64.
CHECKED = 256
# Similarities of unit rows that differ by less are one to float32.
NEAR_TIE = 2e-6

Sizes = list[tuple[int, int]]


def product_and_topk(x: Tensor, k: int) -> Tensor:
    """Neighbours (n, k) by the plain way in float32: a block of rows at a time."""
    n = len(x)
    block = max(1, PLAIN_BYTES[x.device.type] // (4 * n))
    found = []
    for start in range(0, n, block):
        similarity = x[start : start + block] @ x.T
        similarity.diagonal(start).fill_(-torch.inf)
        found.append(similarity.topk(k, dim=1).indices)
    return torch.cat(found)


def flat_index(faiss: Any, x: Tensor, k: int) -> Tensor:
    """Neighbours (n, k) by faiss's exact search."""
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x.numpy())
    _, found = index.search(x.numpy(), k + 1)
    others = torch.from_numpy(found)
    own = others == torch.arange(len(x))[:, None]
    # A duplicate may push an item off its own list; the last of the others gives way then.
    own[~own.any(dim=1), k] = True
    return others[~own].view(-1, k)


def ours(
    x: Tensor, k: int, *, memory_bytes: int | None = None, device: torch.device | None = None
) -> Tensor:
    """Neighbours (n, k) by this package."""
    graph = neighbor_graph([x], k, memory_bytes=memory_bytes, device=device)
    return graph.indices[0, :, :k].long()


def exact(x: Tensor, rows: Tensor, k: int) -> Tensor:
    """Neighbours (rows, k) by brute force in float64, a few rows at a time."""
    found = []
    for some in torch.split(rows, 16):
        similarity = torch.cat(
            [x[some].double() @ part.double().T for part in torch.split(x, 1 << 16)], dim=1
        )
        similarity[torch.arange(len(some), device=x.device), some] = -torch.inf
        found.append(similarity.topk(k, dim=1).indices)
    return torch.cat(found)


def disagreement(x: Tensor, mine: Tensor, theirs: Tensor) -> dict[str, float]:
    """How many rows' neighbour sets differ, and how much that matters.

    Args:
        x: Rows of length 1, (n, dim).
        mine: int64 (n, k).
        theirs: int64 (n, k).

    Returns:
        Rows whose sets differ; those of them where the farthest neighbours' similarities differ,
        in float64, by more than rounding in float32 explains; and the largest such difference.
    """
    rows = (mine.sort(dim=1).values != theirs.sort(dim=1).values).any(dim=1).nonzero().squeeze(1)
    largest, beyond = 0.0, 0
    for some in torch.split(rows, 1024) if len(rows) else ():
        farthest = [
            torch.einsum("rd,rkd->rk", x[some].double(), x[found[some]].double()).amin(dim=1)
            for found in (mine, theirs)
        ]
        gap = (farthest[0] - farthest[1]).abs()
        largest = max(largest, float(gap.max()))
        beyond += int((gap > NEAR_TIE).sum())
    return {"rows": len(rows), "beyond_near_ties": beyond, "largest_gap": largest}


def memory(n: int, dim: int, memory_bytes: int | None, device: str) -> int:
    """Bytes that the search of one layer adds to the features that it is given."""
    torch_device = torch.device(device)
    # What libraries take when they are first used is theirs.
    ours(synthetic_features(2048, dim, "isotropic", seed=0, device=torch_device)[0], K)
    (x,) = synthetic_features(n, dim, "isotropic", seed=0, device=torch_device)
    return added_memory(lambda: ours(x, K, memory_bytes=memory_bytes), torch_device)


def run(setting: Setting, peak: Peak) -> list[Figure]:
    """Several sizes of two kinds of features, and the memory of the largest."""
    figures = []
    for n, dim in sizes(setting):
        for kind in ("isotropic", "clustered"):
            figures.append(_search(setting, peak, n, dim, kind))
    n, dim = sizes(setting)[-1]
    return [
        *figures,
        _memory(setting, n, dim, "", None),
        _memory(setting, n, dim, " small", SMALL_MEMORY[setting.device.type]),
    ]


def _memory(setting: Setting, n: int, dim: int, name: str, memory_bytes: int | None) -> Figure:
    plan = plan_search(n, dim, K, memory_bytes=memory_bytes, device=setting.device)
    added = in_fresh_process(memory, n, dim, memory_bytes, str(setting.device))
    mib = {
        "allowed": plan.memory_bytes / 2**20,
        "planned": plan.peak_bytes / 2**20,
        "features": 4 * n * dim / 2**20,
    }
    return Figure(
        f"memory n = {n}{name}",
        f"peak memory of the search beyond the features, n = {n:,}, D = {dim}, k = {K}, where "
        f"{mib['allowed']:,.0f} MiB are allowed and {mib['planned']:,.0f} MiB planned",
        added / 2**20,
        "MiB",
        details={"mib": mib},
    )


def sizes(setting: Setting) -> Sizes:
    """Items and dimensions, the largest last."""
    if setting.tiny:
        return [(400, 16)]
    if setting.device.type == "cuda":
        return [(65_536, 1024), (262_144, 1024), (1_000_000, 1024)]
    return [(4_096, 768), (16_384, 768), (65_536, 768)]


def _search(setting: Setting, peak: Peak, n: int, dim: int, kind: str) -> Figure:
    (x,) = synthetic_features(n, dim, kind, seed=1, device=setting.device)
    ways = {"ours": functools.partial(ours, x, K)}
    on_gpu = setting.device.type == "cuda"
    faiss = None if on_gpu else _faiss()
    if faiss:
        faiss.omp_set_num_threads(setting.threads)
        ways["faiss"] = functools.partial(flat_index, faiss, x, K)
    if on_gpu:
        ways["ours from CPU memory"] = functools.partial(ours, x.cpu(), K, device=setting.device)
    # On a CPU the plain way is slower than faiss, and tells nothing new where it takes a minute.
    if not faiss or n < 50_000:
        ways["product and topk"] = functools.partial(product_and_topk, x, K)
    timed = by_turns(ways, setting.clock)
    found = timed.results
    rows = torch.arange(n, device=x.device)[:: max(1, n // CHECKED)]
    plain = "faiss" if faiss else "product and topk"
    operations = 2 * n * n * dim / timed.seconds["ours"]
    half = "float16" if on_gpu else "bfloat16"
    details: dict[str, Any] = {
        f"rows_unlike_{name}": disagreement(x, found["ours"], found[name])
        for name in ways
        if name != "ours"
    }
    unlike = exact(x, rows, K).sort(dim=1).values != found["ours"][rows].sort(dim=1).values
    details["rows_checked_in_float64"] = len(rows)
    details["rows_unlike_float64"] = int(unlike.any(dim=1).sum())
    if not faiss and not on_gpu:
        details["note"] = "faiss-cpu is not installed, so that there is nothing of it to compare."
    details["ratio"] = timed.seconds[plain] / timed.seconds["ours"]
    return Figure(
        f"neighbours n = {n} {kind}",
        f"exact neighbours, n = {n:,}, D = {dim}, k = {K}, {kind}, against {plain}",
        timed.seconds["ours"] if on_gpu else details["ratio"],
        "s" if on_gpu else "x",
        timed.seconds,
        timed.runs,
        {name: operations / peak[name] for name in ("float32", half)},
        details,
    )


def _faiss() -> ModuleType | None:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        return None


if __name__ == "__main__":
    main("neighbours", run, threads=None)
