"""How a neighbour search is cut into tiles, and what memory and how many operations it takes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from prh_eval.alignment.filters import columns, fastest_dtype
from prh_eval.errors import PrhEvalError

logger = logging.getLogger(__name__)

# What the search of a layer may take where nothing is said; on a CUDA device half of what is free.
_MEMORY_BYTES = 4 << 30
# Candidates beyond k, or half as many again; an item that needs more is searched for exactly.
_SPARE = 22
# Items on a side of a tile: on the CPU what stays in the caches, elsewhere what hides launches: as
# many as kernels can address the values of with 32 bits.
_SIDES = {"cpu": 2048, "cuda": 23_168}
_LEAST_SIDE = 256
# Where memory runs out in spite of the plan, tiles are halved down to this.
_SMALLEST_SIDE = 16
# Up to how many items a filter saves nothing over ranking all similarities in float64.
_EXACT_ITEMS = {"cpu": 256, "cuda": 4096}
# Nor up to so many times the square of the candidates an item: each of them costs as much as the
# similarities of hundreds of items.
_EXACT_CANDIDATES = 0.12
# Nor where products are cheap: up to so many items, of at most so many dimensions.
_EXACT_NARROW = 16384
_NARROW = 32
# Similarities, or values, of layers of few items that are searched together, so that calls cost
# less of it.
_TOGETHER = {"cpu": 1 << 23, "cuda": 1 << 26}
# Values of rows that are made at a time: on the CPU what stays in the caches of a core.
_BLOCK_VALUES = {"cpu": 3 << 17, "cuda": 1 << 24}
# Values of either side of pairs whose exact similarities are computed at a time.
_PAIR_VALUES = {"cpu": 1 << 20, "cuda": 1 << 27}
# Values of a tile near enough to be looked at one by one that are looked at together.
_NEAR_VALUES = {"cpu": 1 << 19, "cuda": 1 << 26}
# Similarities that are ranked in float64 at a time, unless a row has more.
_RANKED_VALUES = {"cpu": 1 << 20, "cuda": 1 << 26}
# Powers of 2, in bytes, that all of these are in proportion to: from where memory is scarce (still
# smaller pieces leave gaps in what the C library holds) to where they are as above.
_PIECES = {"cpu": (26, 29), "cuda": (26, 36)}
# What a tile takes from the system, in units of what is in use at once: gaps that the C library's
# allocator leaves between what is freed and what is made were seen to add up to half.
_GAPS = {"cpu": 1.75, "cuda": 1.0}


@dataclass(frozen=True)
class SearchPlan:
    """The search of one layer for the k nearest neighbours of n items, or of a few together.

    Attributes:
        device: Type of the device, ``"cpu"`` or ``"cuda"``.
        n: Number of items.
        dim: Number of dimensions.
        k: Neighbourhood size.
        dtype: Type in which candidates are found; float64 where all similarities are ranked.
        keep: Candidates an item.
        side: Items on either side of a tile.
        block: Rows that are made float64 at a time.
        memory_bytes: What the search may take.
        held: Whether the whole layer is held: in float64 where all similarities are ranked, and
            in float32 where candidates are.
        loaded: Whether the layer is moved, as it is stored, to where it is searched.
        loading_bytes: What that takes; 0 where it is there already.
        processes: How many processes share the items.
        layers: How many layers are searched together, as one tile.
        pieces: What the sizes of pieces of work are in proportion to, in bytes.
    """

    device: str
    n: int
    dim: int
    k: int
    dtype: torch.dtype
    keep: int
    side: int
    block: int
    memory_bytes: int
    held: bool = False
    loaded: bool = False
    loading_bytes: int = 0
    processes: int = 1
    layers: int = 1
    pieces: int = 1 << 36

    @property
    def resident_bytes(self) -> int:
        """What is held all along: the layer in low precision, candidates and neighbours."""
        items = self.layers * self.n
        share = -(-items // self.processes)
        # Neighbours with their ties, of a tile and joined.
        size = 2 * 5 * items * (self.k + 1) + self._kept_bytes
        if self.dtype == torch.float64:
            return size
        if self.held:
            size += (4 * self.dim + 16) * items
        # The copy, and what is sent and received where there are others.
        copies = 1 if self.processes == 1 else 3
        size += copies * share * columns(self.dim, self.dtype) * self.dtype.itemsize
        # Statistics and bounds; candidates, and found values that wait to be sorted in.
        return size + share * (100 + 8 * self.keep + 16 * 16)

    @property
    def _kept_bytes(self) -> int:
        """What is held to the end: the layer where it was moved to, or in float64."""
        size = self.layers * self.loading_bytes if self.loaded else 0
        if self.held and self.dtype == torch.float64:
            size += 8 * self.dim * self.layers * self.n
        return size

    @property
    def tied_bytes(self) -> int:
        """What is left for neighbours while items are ranked, candidates being done with."""
        ranking = self._making_bytes + self._ranking_bytes
        return self.memory_bytes - self._kept_bytes - math.ceil(_GAPS[self.device] * ranking)

    @property
    def tile_bytes(self) -> int:
        """What one tile takes at most, its candidates and their exact similarities included."""
        return math.ceil(_GAPS[self.device] * self._live_bytes)

    @property
    def _live_bytes(self) -> int:
        making = self._making_bytes
        if self.dtype == torch.float64:
            return making + self._ranking_bytes
        values = self.side * min(self.side, self.n)
        product = values * 4 + 2 * self.side * columns(self.dim, self.dtype) * 4
        # The first tile has the most to sort: groups that reach the floor, and their members.
        sorting = self.side * (self.keep + 16) * 180
        near = min(self.near, values)
        # On a CPU all values may be looked at rather than groups: a position of each that ties.
        sorting += max(96 * near, 32 * near + 8 * values * (self.device == "cpu")) + 2 * values
        # The last that was gathered may be kept beside, as much again.
        ranking = 2 * self.side * self.keep * 120
        rows = 8 * self.side * self.dim
        pairs = 3 * 8 * max(self.pairs, 2 * self.keep) * self.dim
        # A second pass in float32 may find the first one's memory in pieces that are too small.
        return making + max(product + 2 * sorting, ranking + rows + pairs, self._ranking_bytes)

    @property
    def _making_bytes(self) -> int:
        return 6 * 8 * self.block * self.dim

    @property
    def near(self) -> int:
        """Values of a tile that are looked at one by one together, at most."""
        return min(_NEAR_VALUES[self.device], self.pieces // (8 * 128))

    @property
    def ranked(self) -> int:
        """Items whose similarities to all others are ranked in float64 together."""
        values = min(_RANKED_VALUES[self.device], self.pieces // (8 * 64))
        rows = max(1, min(self.layers * self.n, values // self.n))
        # Whole layers, where that many are.
        return rows if rows < self.n else rows - rows % self.n

    @property
    def _ranking_bytes(self) -> int:
        # Similarities, their ranking, and groups of ties where all are looked at.
        similarities = 64 * self.ranked * self.n
        rows = 0 if self.held else self.side
        return similarities + 3 * 8 * (self.ranked + rows) * self.dim

    @property
    def peak_bytes(self) -> int:
        """What the search takes at most, beyond what the features are stored in."""
        return self.resident_bytes + self.tile_bytes

    @property
    def pairs(self) -> int:
        """Pairs whose exact similarities are computed together, unless one item has more."""
        values = min(_PAIR_VALUES[self.device], self.pieces // (8 * 24))
        return values // self.dim

    @property
    def operations(self) -> int:
        """Floating-point operations of a layer's matrix product: two a dimension and pair of items.

        Every pair is multiplied once where one process has all items, and twice where processes
        share them.
        """
        pairs = self.n * (self.n + self.side) // 2 if self.processes == 1 else self.n**2
        return 2 * pairs * columns(self.dim, self.dtype)


def plan_search(
    n: int,
    dim: int,
    k: int,
    *,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    processes: int = 1,
    loading_bytes: int = 0,
) -> SearchPlan:
    """Cut the search of one layer so that it fits into memory.

    The result of the search depends on none of it.

    Args:
        n: Number of items.
        dim: Number of dimensions.
        k: Neighbourhood size, 1 <= k <= n - 1.
        memory_bytes: What the search may take, beyond what the features are stored in; None for
            4 GiB, or half of what is free on a CUDA device.
        device: Where to search. It need not be there if ``memory_bytes`` is given.
        processes: How many processes share the items.
        loading_bytes: Size of the features if they are stored on another device; 0 if not.

    Raises:
        PrhEvalError: If the memory is too small for the smallest tile; the sentence says how much
            is needed.
    """
    device = torch.device(device)
    if memory_bytes is None:
        memory_bytes = _free_bytes(device) // 2 if device.type == "cuda" else _MEMORY_BYTES
    first = replace(
        _first(n, dim, k, device, processes),
        memory_bytes=memory_bytes,
        loading_bytes=loading_bytes,
    )
    least, most = _PIECES[first.device]
    fits = max(least, min(most, memory_bytes.bit_length() - 1))
    for exponent in range(fits, least - 1, -1):
        for plan in _smaller_and_smaller(_in_pieces(first, 1 << exponent)):
            if plan.peak_bytes <= memory_bytes:
                return plan
    needed = _megabytes(least_memory(n, dim, k, device, processes))
    raise PrhEvalError(
        f"the {k} nearest neighbours of {n} items in {dim} dimensions take at least {needed} of "
        f"memory, where {memory_bytes:,} bytes are allowed; a larger memory should be set"
    )


def least_memory(
    n: int, dim: int, k: int, device: torch.device | str = "cpu", processes: int = 1
) -> int:
    """The memory, in bytes, below which :func:`plan_search` refuses the same search."""
    first = _first(n, dim, k, torch.device(device), processes)
    plans = _smaller_and_smaller(_in_pieces(first, 1 << _PIECES[first.device][0]))
    return min(plan.peak_bytes for plan in plans)


def _first(n: int, dim: int, k: int, device: torch.device, processes: int) -> SearchPlan:
    """The search in the largest tiles, of what is stored where it is searched."""
    kind = device.type if device.type in _SIDES else "cpu"
    keep = min(k + max(_SPARE, k // 2), n - 1)
    exact = (
        n <= max(_EXACT_ITEMS[kind], _EXACT_CANDIDATES * keep**2)
        or (dim <= _NARROW and n <= _EXACT_NARROW)
        or fastest_dtype(device) == torch.float64
    )
    return SearchPlan(
        device=kind,
        n=n,
        dim=dim,
        k=k,
        dtype=torch.float64 if exact else fastest_dtype(device),
        keep=keep,
        side=min(_SIDES[kind], -(-n // processes)),
        block=1,
        memory_bytes=0,
        processes=processes,
    )


def _in_pieces(plan: SearchPlan, pieces: int) -> SearchPlan:
    """The same search with its work in pieces for so many bytes."""
    values = min(_BLOCK_VALUES[plan.device], pieces // (8 * 64))
    block = min(max(1, values // plan.dim), -(-plan.n // plan.processes))
    return replace(plan, pieces=pieces, block=block)


def _smaller_and_smaller(largest: SearchPlan) -> Iterator[SearchPlan]:
    """The same search in ever less memory."""
    # The whole layer in float64, or where it is needed, saves more than large tiles do.
    for held, loaded in ((True, False), (False, largest.loading_bytes > 0), (False, False)):
        if held and largest.processes > 1:
            continue
        side = largest.side
        while side == largest.side or side >= _LEAST_SIDE:
            yield replace(largest, side=side, held=held, loaded=loaded)
            side //= 2


def together(plan: SearchPlan, layers: int) -> SearchPlan:
    """The plan for as many layers as pay to be searched together.

    Args:
        plan: Of one layer.
        layers: How many there are that can be.
    """
    if plan.processes > 1 or plan.side < plan.n:
        return plan
    most = max(1, _TOGETHER[plan.device] // (plan.n * max(plan.n, plan.dim)))
    # As many each time, rather than few in the end.
    count = math.ceil(layers / math.ceil(layers / most))
    block = plan.block
    if plan.device == "cuda":
        # Rows of whole layers are made at a time; a CPU has those of one in its caches.
        block = max(plan.n, _BLOCK_VALUES["cuda"] // plan.dim // plan.n * plan.n)
    for several in range(count, 1, -1):
        joined = replace(
            plan, layers=several, side=several * plan.n, block=min(block, several * plan.n)
        )
        if joined.peak_bytes <= plan.memory_bytes:
            return joined
    return plan


def smaller(plan: SearchPlan, error: Exception | None = None) -> SearchPlan:
    """The plan to go on with where memory ran out: tiles of half the side.

    Args:
        plan: What was too much.
        error: What was raised; None where that was in another process.

    Raises:
        Exception: The error, where tiles cannot be smaller.
    """
    if plan.side <= _SMALLEST_SIDE or plan.layers > 1:
        raise error or MemoryError(f"tiles of {plan.side} items do not fit into memory")
    half = replace(plan, side=plan.side // 2)
    logger.warning("out of memory: tiles of %d items now", half.side)
    return half


def is_memory(error: Exception) -> bool:
    """Whether what was raised says that memory ran out."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or bool(should_reduce_batch_size(error))


@contextmanager
def told_of_memory(device: torch.device, work: str, instead: str) -> Iterator[None]:
    """A sentence where memory runs out.

    Args:
        device: Whose.
        work: What takes it.
        instead: What would help.

    Raises:
        PrhEvalError: In place of the error that says so.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_memory(error):
            raise
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PrhEvalError(f"memory ran out on {device} in {work} ({words}); {instead}") from error


def _free_bytes(device: torch.device) -> int:
    """What is free on a CUDA device, with what torch keeps for itself and gives to whoever asks."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + kept)


def _megabytes(size: int) -> str:
    return f"{math.ceil(size / 1e6):,} MB"
