"""Batches through a model whose device never waits: sent ahead of it, brought back behind it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from prh_eval.features.memory import halved

_T = TypeVar("_T")


def batched(
    run: Callable[[list[_T]], list[Tensor]],
    items: Iterator[_T],
    lengths: Iterable[int],
    batch_size: int,
    *,
    device: torch.device | str,
    what: Callable[[_T], str],
    instead: str,
    fitting: Callable[[int, _T], int] = lambda batch_size, first: batch_size,
) -> Iterator[list[Tensor]]:
    """Run items in batches, each launched before the results of the one before it are waited for.

    While a device computes a batch, this process brings the next one and hands on the one before;
    so neither waits for the other where the device computes in the background, as a GPU does.

    Args:
        run: From a batch to one tensor (items, width_l) a layer, on any one device.
        items: What to run, in order; at least as many as ``lengths`` add up to.
        lengths: No batch holds items on both sides of a piece; these are the pieces' lengths.
        batch_size: Items at once; halved, down to 1, when memory runs out.
        device: Where ``run`` computes, for messages.
        what: What one item is, for messages.
        instead: What to do where not even one fits into memory.
        fitting: From the batch size and the first item of a batch to how many it has at most.

    Yields:
        The layers of each batch in turn, on the CPU.

    Raises:
        PrhEvalError: If one item does not fit into memory.
    """
    from accelerate.utils.memory import clear_device_cache

    waiting: list[_T] = []
    behind: Callable[[], list[Tensor]] | None = None
    for left in lengths:
        while left:
            waiting += islice(items, 0 if waiting else 1)
            size = min(fitting(batch_size, waiting[0]), left)
            waiting += islice(items, max(0, size - len(waiting)))
            batch = waiting[:size]
            try:
                launched = fetch(run(batch))
            except (RuntimeError, MemoryError) as error:
                most = min(batch_size, len(batch))
                batch_size = halved(most, error, device, what(batch[0]), instead)
            else:
                del waiting[: len(batch)]
                left -= len(batch)
                if behind is not None:
                    yield behind()
                behind = launched
                continue
            clear_device_cache(garbage_collection=True)
    if behind is not None:
        yield behind()


def send(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Stack tensors on the CPU and start their copy to a GPU, if that is where they are to be.

    The copy runs beside what the GPU computes, out of pinned memory; what is computed with the
    result on the GPU's current stream waits for it.

    Args:
        tensors: b tensors on the CPU of one shape and type.
        device: Where the result is if it is a CUDA device; otherwise the result is on the CPU.

    Returns:
        Shape (b, *shape).
    """
    if device.type != "cuda":
        return torch.stack(list(tensors))
    first = tensors[0]
    pinned = torch.empty((len(tensors), *first.shape), dtype=first.dtype, pin_memory=True)
    torch.stack(list(tensors), out=pinned)
    copying, computing = _copies(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        sent = pinned.to(device, non_blocking=True)
    computing.wait_stream(copying)
    # Its memory belongs to the stream that copies, which must not use it again too early.
    sent.record_stream(computing)
    return sent


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device; a CUDA device gets it when it comes to it, and nobody waits."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def overlapped(
    run: Callable[[_T], list[Tensor]], batches: Iterable[_T], device: torch.device
) -> Iterator[list[Tensor]]:
    """Run batches, each launched before the results of the one before it are waited for.

    Args:
        run: From a batch to one tensor (items, width_l) a layer, on any devices.
        batches: What it is called with.
        device: Where its work begins. On a CPU nothing is launched ahead, which holds the results
            of one batch less.

    Yields:
        The layers of each batch in turn, on the CPU.
    """
    if device.type == "cpu":
        yield from (fetch(run(batch))() for batch in batches)
        return
    behind: Callable[[], list[Tensor]] | None = None
    for batch in batches:
        launched = fetch(run(batch))
        if behind is not None:
            yield behind()
        behind = launched
    if behind is not None:
        yield behind()


def fetch(layers: list[Tensor]) -> Callable[[], list[Tensor]]:
    """Start the copy of a batch's layers to the CPU: one for each device, and nobody waits for it.

    Args:
        layers: Tensors (b, width_l) of one type; a model may be spread over devices.

    Returns:
        What waits for the copies and gives the layers on the CPU.
    """
    numbers: dict[torch.device, list[int]] = {}
    for number, layer in enumerate(layers):
        numbers.setdefault(layer.device, []).append(number)
    copies = {
        device: _fetched([layers[number] for number in some]) for device, some in numbers.items()
    }

    def wait() -> list[Tensor]:
        found = {
            number: layer
            for device, some in numbers.items()
            for number, layer in zip(some, copies[device](), strict=True)
        }
        return [found[number] for number in range(len(found))]

    return wait


def _fetched(layers: list[Tensor]) -> Callable[[], list[Tensor]]:
    """The same for layers on one device."""
    device = layers[0].device
    if device.type != "cuda":
        return lambda: [layer.cpu() for layer in layers]
    # Such a copy to the CPU ends in pinned memory.
    joined = torch.cat(layers, dim=1).to("cpu", non_blocking=True)
    copied = torch.cuda.current_stream(device).record_event()
    widths = [layer.shape[1] for layer in layers]

    def wait() -> list[Tensor]:
        copied.synchronize()
        return list(torch.split(joined, widths, dim=1))

    return wait


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The stream of copies to a GPU, beside its stream of computations."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
