"""The candidates for the nearest neighbours of some items, gathered from tile after tile."""

from __future__ import annotations

import torch
from torch import Tensor

from prh_eval.alignment.filters import output_error
from prh_eval.alignment.ordering import (
    group_maxima,
    kth_largest,
    largest,
    quotients,
    reaching,
    stable_order,
)

# Neighbours are looked at in groups, by their largest value: in small ones as long as more than so
# many of a tile are near an item, on average, then in large ones. So many do for a first floor.
_SMALL, _LARGE = 8, 32
_NEAR = 2
_GROUPS = 64
# Found values a row, on average, that wait before they are sorted in, and in how many parts.
_WAITING = 8
_PARTS = 16
# Found values of a row, in those that are kept, beyond which they are sorted before.
_LONG = 4


class Candidates:
    """Of some items the largest values that were seen, among which the k nearest are.

    Values may be off by ``error``, and are then rounded to their type. So the k-th largest true
    value is at least L = T - output_error(T) - error, with T the k-th largest that was seen, and
    what was seen below L - margin - error is not wanted: its true value is below L - margin. Where
    more are wanted than can be kept, what is dropped is known to be no larger than the last kept.

    Args:
        k: How many of the largest true values are wanted.
        keep: How many values are kept at most, at least k.
        error: float64, shape (items,): how far a value may be off.
        margin: How much below the k-th largest a true value may be and still be wanted.
        dtype: Type of the values.
        near: How many values that are near enough are looked at together.
        at_once: Whether all neighbours come at once, so that nothing has to wait for others.
    """

    def __init__(
        self,
        k: int,
        keep: int,
        error: Tensor,
        margin: float,
        dtype: torch.dtype,
        near: int,
        *,
        at_once: bool = False,
    ) -> None:
        self._near = near
        self._at_once = at_once
        self._k = k
        self._error = error
        self._margin = margin
        self._dtype = dtype
        self._values = error.new_full((len(error), keep), -torch.inf, dtype=torch.float32)
        self._indices = error.new_full((len(error), keep), -1, dtype=torch.int32)
        self._started = self._settled = False
        self._many = True
        self._wanted = error.new_full((len(error),), -torch.inf)
        # The last that is kept where there may have been more; what is dropped is no larger.
        self._least = error.new_full((len(error),), -torch.inf, dtype=torch.float32)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._count = 0

    def add(self, values: Tensor, offset: int, *, items_first: bool = True) -> None:
        """Look at the values of more neighbours.

        Args:
            values: Shape (items, neighbours), or (neighbours, items); -inf for an item itself.
            offset: Number of the first of these neighbours.
            items_first: Which of the two shapes.
        """
        if not self._started:
            self._start(values, int(items_first))
        floor = self._floor()
        if self._many and items_first and values.device.type == "cpu":
            self._look_at_all(values, floor, offset)
        else:
            self._look_at_groups(values, floor, offset, int(items_first))
        if not self._at_once:
            # As others are looked at before these are again.
            self._make_room()

    def _look_at_groups(self, values: Tensor, floor: Tensor, offset: int, axis: int) -> None:
        """Look at the members of groups whose largest value reaches the floor."""
        count = values.shape[axis]
        size = min(_SMALL if self._many else _LARGE, max(count // _GROUPS, 1))
        grouped, most = _groups(values, axis, size)
        whole, stride = size * most.shape[axis], most.shape[axis]
        reached = reaching(most if axis else most.T.contiguous(), floor)
        self._many = len(reached) > _NEAR * len(floor)
        # Where everything ties all groups do, which is more than memory was planned for.
        for some in torch.split(reached, max(1, self._near // size)):
            self._make_room()
            item = quotients(some, stride)
            group = some - item * stride
            near = grouped[item, :, group] if axis else grouped[:, group, item].T
            found = reaching(near, floor.index_select(0, item))
            hit = quotients(found, size)
            index = (found - hit * size) * stride + group.index_select(0, hit) + offset
            value = near.reshape(-1).index_select(0, found)
            self._wait(item.index_select(0, hit), index, value)
        if whole < count:
            rest = values.narrow(axis, whole, count - whole)
            self._look_at_groups(rest, floor, offset + whole, axis)

    def _look_at_all(self, values: Tensor, floor: Tensor, offset: int) -> None:
        """Look at all values of some neighbours, which a CPU does faster than at many groups."""
        reached, count = reaching(values, floor), values.shape[1]
        self._many = len(reached) > _NEAR * len(floor)
        for some in torch.split(reached, self._near):
            self._make_room()
            item = quotients(some, count)
            value = values.reshape(-1).index_select(0, some)
            self._wait(item, some - item * count + offset, value)

    def _wait(self, item: Tensor, index: Tensor, value: Tensor) -> None:
        """Have some found values sorted in later."""
        self._waiting.append((item, index.to(torch.int32), value.float()))
        self._count += len(item)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """What was gathered.

        Returns:
            int32, shape (items, kept): numbers of the neighbours, without order; bool, the same
            shape: which of them are wanted, at least k of every item that has so many; and float64,
            shape (items,): a bound that the true values of all others are not above.
        """
        self._settle(last=True)
        wanted = (self._values >= self._floor()[:, None]) & (self._indices >= 0)
        least = self._least.double()
        dropped = least + output_error(least, self._dtype) + self._error
        bound = self._wanted + self._error
        bound = torch.where(least.isinf(), bound, bound.maximum(dropped))
        return self._indices, wanted, bound

    def _start(self, values: Tensor, axis: int) -> None:
        """A first floor: k groups whose largest values are at least this hold k such values."""
        self._started = True
        most = values
        while (size := most.shape[axis] // max(_GROUPS, 2 * self._k)) > 1:
            most = _groups(most, axis, min(size, _LARGE))[1]
        if most.shape[axis] >= self._k:
            self._raise(kth_largest((most if axis else most.T).contiguous(), self._k))

    def _raise(self, kth: Tensor) -> None:
        """A new T."""
        kth = kth.double()
        wanted = kth - output_error(kth, self._dtype) - 2 * self._error - self._margin
        self._wanted = torch.where(kth.isinf(), self._wanted, self._wanted.maximum(wanted))

    def _floor(self) -> Tensor:
        """What a seen value must at least be. Rounding keeps order, so the floor is rounded too."""
        floor = torch.maximum(self._wanted.float(), self._least).to(self._dtype)
        # An item itself is at -inf, and never wanted.
        return floor.clamp(min=torch.finfo(self._dtype).min).float()

    def _make_room(self) -> None:
        if len(self._waiting) == _PARTS or self._count > _WAITING * len(self._values):
            self._settle()

    def _settle(self, *, last: bool = False) -> None:
        """Sort in what waits; the last of it may stay as it is if that is not too long."""
        if not self._waiting:
            return
        # One part is in the order of the items.
        ordered = len(self._waiting) == 1
        parts = zip(*self._waiting, strict=True)
        item, index, value = self._waiting[0] if ordered else map(torch.cat, parts)
        self._waiting, self._count = [], 0
        keep = self._values.shape[1]
        count = torch.bincount(item, minlength=len(self._values))
        longest = int(count.max())
        whole = longest <= _LONG * keep
        if not whole:
            order = value.argsort(descending=True)
            item, index, value = item[order], index[order], value[order]
        if not (ordered and whole):
            order = stable_order(item, len(count))
            item, index, value = item[order], index[order], value[order]
        first = (count.cumsum(0) - count).index_select(0, item)
        place = torch.arange(len(item), device=item.device) - first
        if not whole:
            kept = place < keep
            item, index, value, place = item[kept], index[kept], value[kept], place[kept]
            longest = keep
        held = keep if self._settled else 0
        stays = last and whole and held + longest <= 2 * keep
        width = held + (longest if stays else max(longest, keep - held))
        values = self._values.new_full((len(count), width), -torch.inf)
        indices = self._indices.new_full((len(count), width), -1)
        values[:, :held], indices[:, :held] = self._values[:, :held], self._indices[:, :held]
        at = item * width + held + place
        values.view(-1).index_copy_(0, at, value)
        indices.view(-1).index_copy_(0, at, index)
        if stays:
            self._values, self._indices = values, indices
            return
        self._values, chosen = largest(values, keep)
        self._indices = indices.gather(1, chosen)
        self._least = self._values[:, -1]
        self._settled = True
        self._raise(self._values[:, self._k - 1])


def _groups(values: Tensor, axis: int, size: int) -> tuple[Tensor, Tensor]:
    """Values in groups of a size, along a dimension before it, and the largest of each group.

    Members of a group are a stride apart, so that their maximum is one of whole rows.
    """
    stride = values.shape[axis] // size
    grouped = torch.unflatten(values.narrow(axis, 0, size * stride), axis, (size, stride))
    return grouped, group_maxima(grouped, axis)
