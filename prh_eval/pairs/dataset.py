"""Paired data as the program sees it: n items in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from prh_eval.pairs.images import Images
from prh_eval.store import fingerprint


@dataclass(frozen=True)
class PairedDataset:
    """n items in a fixed order, each with captions and what they are about.

    Attributes:
        name: For messages.
        ids: Each item's own name; row numbers where the data name no items.
        captions: The captions of each item that are read: the chosen one, or all of them.
        all_captions: Every caption of each item.
        source: Where the items come from, in JSON values.
        images: The images, decoded one at a time when they are asked for; None without images.
        targets: What stands in an image's place (sRGB colours as ``#rrggbb``); None with images.
        rows: Where the items stand among all that the data have, and how many these are; None for
            all of them.
    """

    name: str
    ids: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    all_captions: tuple[tuple[str, ...], ...]
    source: dict[str, Any]
    images: Images | None = None
    targets: tuple[str, ...] | None = None
    rows: tuple[tuple[int, ...], int] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids and the captions that are read, in order."""
        return fingerprint([self.ids, self.captions])

    @cached_property
    def items_fingerprint(self) -> str:
        """SHA-256 over ids, every caption and targets: the items, whichever caption is read."""
        return fingerprint([self.ids, self.all_captions, self.targets])

    @property
    def commit(self) -> str | None:
        """The hub commit that the items come from, where it is known."""
        commit: str | None = self.source.get("commit")
        return commit

    def select(self, positions: Sequence[int]) -> PairedDataset:
        """The items at these positions, in this order."""
        chosen = list(positions)
        rows, whole = self.rows or (tuple(range(len(self))), len(self))
        return replace(
            self,
            ids=_take(self.ids, chosen),
            captions=_take(self.captions, chosen),
            all_captions=_take(self.all_captions, chosen),
            images=None if self.images is None else self.images.select(chosen),
            targets=None if self.targets is None else _take(self.targets, chosen),
            rows=(_take(rows, chosen), whole),
        )


def _take(values: tuple[Any, ...], positions: Sequence[int]) -> tuple[Any, ...]:
    return tuple(values[position] for position in positions)
