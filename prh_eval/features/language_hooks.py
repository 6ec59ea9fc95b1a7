"""Hidden states pooled by hooks where a model makes them, so that no stack of them exists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# From hidden states (captions, tokens, dim) to one row a caption.
_Pool = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """Where a tensor passes: into or out of a module, at one of its calls in a forward pass.

    Attributes:
        module: The module.
        call: Which of its calls, from 0; some families run one block many times.
        output: Whether the tensor comes out of it.
        place: Which of the tensors that go in, or come out, from 0.
    """

    module: nn.Module
    call: int
    output: bool
    place: int


@contextmanager
def watching(modules: Iterable[nn.Module], see: Callable[[Site, Tensor], None]) -> Iterator[None]:
    """Call a function with every tensor that modules are handed or return; one forward pass long.

    Args:
        modules: Each counts its own calls.
        see: Called while the pass runs, before anything can change the tensor in place.
    """
    entered: Counter[nn.Module] = Counter()
    left: Counter[nn.Module] = Counter()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for place, tensor in enumerate(_tensors([*args, *kwargs.values()])):
            see(Site(module, entered[module], False, place), tensor)
        entered[module] += 1

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for place, tensor in enumerate(_tensors(output)):
            see(Site(module, left[module], True, place), tensor)
        left[module] += 1

    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(values: Any) -> list[Tensor]:
    """The tensors among a module's arguments or outputs; what they hold further down is left."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        return []
    return [value for value in values if isinstance(value, Tensor)]


def find_sites(
    part: nn.Module,
    stacked: Callable[[], Sequence[Tensor]],
    forward: Callable[[], Any],
    pool: _Pool,
    shape: torch.Size,
) -> list[Site] | None:
    """Where a model's hidden states pass, as it is seen to stack them in a small batch.

    A site is taken for a hidden state's if it is the same memory, and held the same values when it
    passed; all sites together are then tried in a pass without a stack.

    Args:
        part: The model.
        stacked: Runs it over a small batch and returns the stack of hidden states.
        forward: Runs it over the same batch without a stack.
        pool: As for `pooled_at`.
        shape: (captions, tokens) of the batch.

    Returns:
        A site for each hidden state in their order, or ``None`` where one is found nowhere.
    """
    # What memory and values each had: the tensors themselves would hold all that the pass makes.
    seen: list[tuple[Site, tuple[Any, ...], Tensor]] = []

    def note(site: Site, tensor: Tensor) -> None:
        if tensor.ndim == 3 and tensor.shape[:2] == shape and tensor.is_floating_point():
            seen.append((site, _memory(tensor), pool(tensor)))

    with watching(part.modules(), note):
        states = stacked()
    wanted = [pool(state) for state in states]
    sites = []
    for state, rows in zip(states, wanted, strict=True):
        same = [
            site for site, memory, then in seen if memory == _memory(state) and _equal(then, rows)
        ]
        if not same:
            return None
        sites.append(same[0])
    got = pooled_at(sites, forward, pool)
    return sites if got is not None and all(map(_equal, got, wanted)) else None


def pooled_at(
    sites: Sequence[Site], forward: Callable[[], Any], pool: _Pool
) -> list[Tensor] | None:
    """Run a model and pool what passes at some sites, each as it passes.

    Args:
        sites: As `find_sites` gave them.
        forward: Runs the model.
        pool: From hidden states, shape (b, tokens, dim), to one row a caption.

    Returns:
        What ``pool`` made at each site, in their order; ``None`` if one was not passed.
    """
    wanted = set(sites)
    found: dict[Site, Tensor] = {}

    def take(site: Site, tensor: Tensor) -> None:
        if site in wanted:
            found[site] = pool(tensor)

    with watching(dict.fromkeys(site.module for site in sites), take):
        forward()
    return [found[site] for site in sites] if len(found) == len(wanted) else None


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors share that are the same numbers in the same place."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _equal(one: Tensor, other: Tensor) -> bool:
    # Bit for bit, NaN included.
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
