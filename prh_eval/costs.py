"""What an alignment of many items will cost: bytes, operations and, estimated, hours.

Rates of devices are those of their data sheets: matrix products of float16 or bfloat16 with float32
sums, without sparsity; NVIDIA H200, H100 and A100 Tensor Core GPU data sheets (SXM, A100 of 80 GB),
L40S data sheet, and for the RTX 4090 the Ada GPU architecture whitepaper, appendix A. Links are one
direction of NVLink, or of PCIe where there is none.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from prh_eval.alignment.tiles import SearchPlan, plan_search
from prh_eval.errors import PrhEvalError, suggestion

EFFICIENCY = 0.5
"""Share of a peak rate that an estimate assumes, of operations and of links alike."""

MEMORY_SHARE = 0.5
"""Share of a GPU's memory that a search may take where nothing else is said."""

# Measured on one core of an AMD EPYC (Zen 4), of 6 layers of 20,000 items in 1,024
# dimensions out of a mapped file, in nanoseconds a value of float16, bfloat16 and float32:
# features_fingerprint 1.2, 1.2, 2.3; validate_features 0.1; joint_quantile 1.8, 1.7, 2.7. The
# protocol paper_loose has mean_item_quantile in its place: 4.4, 4.5, 5.8.
READING_NANOSECONDS = 1.5
"""Of a stored byte on one core: its fingerprint, its check and its looks for the clipping."""

# Measured on one core of an AMD EPYC (Zen 4) with graphs of neighbours that layers share in part
# and k = 10, in nanoseconds a neighbour of an item, of all layers together: 6 x 6 layers of a
# million items 3,700, 20 x 20 of 300,000 7,900, 25 x 41 of a million 14,500, of 20,000 12,900.
# With k = 100 it is twice that (12 x 12 of 20,000: 11,000).
REPORTING_NANOSECONDS = 180.0
"""Of a neighbour of an item in a layer of either model on one core: scores, chance and halves."""

CHOSEN_NANOSECONDS = 1900.0
"""Of a neighbour of an item in the chosen pair of layers: its errors, curves and hubs."""

# Of a neighbour of an item: a layer's edges, of which there are a few copies at a time, and whether
# each is in a half.
_EDGE_BYTES = 65

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
"""Of a value, by the type in which features are stored."""

# An index and whether it is tied, as a graph is held in memory.
_NEIGHBOUR_BYTES = 5
# Up to this many items an index is kept in 16 bits, beyond in 32.
_SHORT_ITEMS = 1 << 16


@dataclass(frozen=True)
class Device:
    """What a device can do.

    Attributes:
        name: What a person calls it.
        label: Its full name.
        kind: ``"cuda"`` or ``"cpu"``.
        flops: Floating-point operations a second of the filter's matrix product, at most.
        memory_bytes: What a search may take on it where nothing else is said.
        link: Bytes a second that it can receive from another one of its machine.
    """

    name: str
    label: str
    kind: str
    flops: float
    memory_bytes: int
    link: float


def _gpu(name: str, label: str, teraflops: float, gigabytes: int, link: float) -> Device:
    memory = int(MEMORY_SHARE * gigabytes * 10**9)
    return Device(name, label, "cuda", teraflops * 1e12, memory, link * 1e9)


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _gpu("h200", "NVIDIA H200 SXM", 989, 141, 450),
        _gpu("h100", "NVIDIA H100 SXM", 989, 80, 450),
        _gpu("a100", "NVIDIA A100 SXM 80 GB", 312, 80, 300),
        _gpu("l40s", "NVIDIA L40S", 362, 48, 32),
        _gpu("rtx4090", "NVIDIA GeForce RTX 4090", 165, 24, 32),
    )
}


def device(name: str) -> Device:
    """The device of that name; ``cpu`` is this machine's, and measured for about a second.

    Raises:
        PrhEvalError: If there is none.
    """
    if name == "cpu":
        threads = torch.get_num_threads()
        label = f"this machine's CPU, {threads} thread{'' if threads == 1 else 's'}"
        return Device(name, label, "cpu", _measured_flops(), 4 << 30, float("inf"))
    if name not in DEVICES:
        raise PrhEvalError(
            f"there is no device {name!r} in the cost model; {suggestion(name, [*DEVICES, 'cpu'])}"
        )
    return DEVICES[name]


def _measured_flops(side: int = 2048, seconds: float = 1.0) -> float:
    """Operations a second of the matrix product that finds candidates on this machine's CPU."""
    dtype = plan_search(side, side, 1).dtype
    x = torch.ones(side, side, dtype=dtype)
    shortest, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < seconds or shortest == float("inf"):
        started = time.perf_counter()
        x @ x
        shortest = min(shortest, time.perf_counter() - started)
    return 2 * side**3 / shortest


@dataclass(frozen=True)
class ModelCosts:
    """What the graphs of one model take.

    Attributes:
        layers: Number of layers.
        dim: Width of a layer.
        feature_bytes: Of the features of all layers on disk.
        kept_bytes: Of the graphs of all layers on disk, where few neighbours tie.
        graph_bytes: Of the same in memory, in process 0.
        writing_bytes: Memory that process 0 needs while it writes them, with themselves.
        search: The search of one layer.
        operations: Floating-point operations of the search of all layers, in all processes.
        received_bytes: What each process receives from the others for one layer.
        reading_seconds: Estimated: fingerprint, check and clipping of all values, on one core.
        search_seconds: Estimated: the search of one layer.
    """

    layers: int
    dim: int
    feature_bytes: int
    kept_bytes: int
    graph_bytes: int
    writing_bytes: int
    search: SearchPlan
    operations: int
    received_bytes: int
    reading_seconds: float
    search_seconds: float

    @property
    def seconds(self) -> float:
        """Estimated: all layers."""
        return self.reading_seconds + self.layers * self.search_seconds


def model_costs(
    items: int,
    layers: int,
    dim: int,
    k: int,
    device: Device,
    *,
    processes: int = 1,
    memory_bytes: int | None = None,
    stored: str = "float16",
    efficiency: float = EFFICIENCY,
) -> ModelCosts:
    """What the neighbour graphs of one model cost.

    Args:
        items: n, the number of items.
        layers: Number of layers.
        dim: Width of a layer.
        k: Neighbourhood size, 1 <= k <= n - 1.
        device: Where neighbours are searched.
        processes: How many such devices share the work.
        memory_bytes: What a search may take on each; None: that of the device.
        stored: Type of the values on disk, of :data:`BYTES`.
        efficiency: Share of the peak rates that is assumed, in (0, 1].

    Raises:
        PrhEvalError: If the memory is too small.
    """
    memory = device.memory_bytes if memory_bytes is None else memory_bytes
    search = plan_search(
        items,
        dim,
        k,
        memory_bytes=memory,
        device=device.kind,
        processes=processes,
        # To a GPU the features come from the memory of its machine.
        loading_bytes=items * dim * BYTES[stored] if device.kind == "cuda" else 0,
    )
    received = 0
    if processes > 1:
        received = (items - items // processes) * dim * search.dtype.itemsize
    computing = search.operations / (processes * device.flops * efficiency)
    # What is received travels while others' items are worked on.
    seconds = max(computing, received / (device.link * efficiency))
    values = items * layers * dim
    index = 2 if items <= _SHORT_ITEMS else 4
    return ModelCosts(
        layers,
        dim,
        values * BYTES[stored],
        items * layers * (k + 1) * index,
        items * layers * k * _NEIGHBOUR_BYTES,
        # Beside the graph: the rows' lengths; of a layer the neighbours, which of them are present,
        # and where 32 bits are not needed, the neighbours again in 16.
        items * (layers * (k * _NEIGHBOUR_BYTES + index) + k * (_NEIGHBOUR_BYTES + index % 4)),
        search,
        layers * search.operations,
        received,
        values * BYTES[stored] * READING_NANOSECONDS * 1e-9,
        seconds,
    )


def reporting_seconds(items: int, layers: int, other_layers: int, k: int) -> float:
    """Estimated: the scores and all that is said of them, without random re-pairings, on one core.

    Layers are looked at up to 64 at a time, so that the number of pairs of them hardly matters.
    """
    of_layers = (layers + other_layers) * REPORTING_NANOSECONDS
    return items * k * (of_layers + CHOSEN_NANOSECONDS) * 1e-9


def reporting_bytes(items: int, k: int) -> int:
    """Memory that process 0 needs for it beside both graphs, without random re-pairings."""
    return items * k * _EDGE_BYTES


def encoding_operations(parameters: float, items: int, tokens: float) -> float:
    """Floating-point operations of the features: two a parameter and token.

    The forward pass of Kaplan et al. (2020, arXiv 2001.08361, section 2.1), without attention.
    """
    return 2 * parameters * items * tokens
