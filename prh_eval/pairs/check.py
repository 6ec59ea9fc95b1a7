"""What is wrong with paired data, all of it at once, and what is worth knowing about them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Any, NamedTuple

from tqdm import tqdm

from prh_eval.pairs.dataset import PairedDataset
from prh_eval.pairs.images import Images, UnreadableImageError
from prh_eval.pairs.load import listed_twice, repeated

K = 10  # neighbours, unless a task says otherwise
FEWEST = K + 2  # with fewer items every item is everybody's neighbour
_EXAMPLES = 3

Items = tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """Whole numbers in short: the least, their mean and the most."""

    least: int
    mean: float
    most: int


@dataclass(frozen=True)
class BadImage:
    """An item whose image cannot be had."""

    item: str
    file: str | None
    reason: str


@dataclass(frozen=True)
class SharedCaption:
    """A caption that several items have."""

    caption: str
    items: Items


@dataclass(frozen=True)
class PairsReport:
    """What was found in paired data.

    Attributes:
        name: Of the data.
        items: How many.
        captions: Captions per item; None without items.
        words: Words per caption that is not empty, between white space; None without any.
        no_caption: Items without a caption.
        empty_caption: Items with an empty caption.
        repeated_ids: Ids that several items have.
        listed_twice: Groups of items with the same image file and the same captions.
        shared_captions: Captions that several items have.
        images: Images that were decoded; None if there are none or they were not looked at.
        bad_images: Images that are missing or cannot be decoded.
        same_images: Groups of items whose image files are equal, byte for byte.
        same_items: Groups of items with equal captions and equal images or target values.
        smallest_image: Width and height in pixels of the image with the fewest pixels.
        largest_image: Width and height in pixels of the image with the most pixels.
    """

    name: str
    items: int
    captions: Range | None
    words: Range | None
    no_caption: Items
    empty_caption: Items
    repeated_ids: Items
    listed_twice: tuple[Items, ...]
    shared_captions: tuple[SharedCaption, ...]
    images: int | None
    bad_images: tuple[BadImage, ...]
    same_images: tuple[Items, ...]
    same_items: tuple[Items, ...]
    smallest_image: tuple[int, int] | None
    largest_image: tuple[int, int] | None

    @property
    def problems(self) -> list[str]:
        """What would stop a run, a sentence each; images stand on lines of their own."""
        found = []
        if self.items < FEWEST:
            found.append(
                f"{_count(self.items, 'item') if self.items else 'no items'}: "
                f"{K} nearest neighbours need at least {FEWEST}"
            )
        for items, has, have in (
            (self.no_caption, "has no caption", "have no caption"),
            (self.empty_caption, "has an empty caption", "have an empty caption"),
        ):
            if items:
                verb = has if len(items) == 1 else have
                found.append(f"{_count(len(items), 'item')} {verb}: {_examples(items)}")
        if self.repeated_ids:
            ids = _count(len(self.repeated_ids), "id")
            found.append(f"{ids} of several items: {_examples(self.repeated_ids)}")
        if self.listed_twice:
            rows = _examples([" = ".join(group) for group in self.listed_twice])
            found.append(f"the same image file with the same captions several times: {rows}")
        if self.bad_images:
            images = _count(len(self.bad_images), "image")
            lines = [
                f"item {image.item}{f' ({image.file})' if image.file else ''}: {image.reason}"
                for image in self.bad_images
            ]
            found.append("\n".join([f"{images} cannot be read:", _examples(lines, "\n")]))
        return found

    @property
    def notes(self) -> list[str]:
        """What is worth knowing and stops nothing, a sentence each."""
        found = []
        if self.shared_captions:
            sharing = {item for shared in self.shared_captions for item in shared.items}
            examples = [
                f"{shorten(shared.caption, 50, placeholder=' ...')!r} ({_examples(shared.items)})"
                for shared in self.shared_captions
            ]
            found.append(
                f"{len(sharing)} items share a caption with another: {_examples(examples)}"
            )
        for groups, what in (
            (self.same_images, "have the image of another, byte for byte"),
            (self.same_items, "are another item once more, caption and all"),
        ):
            if groups:
                examples = [" = ".join(group) for group in groups]
                found.append(f"{sum(map(len, groups))} items {what}: {_examples(examples)}")
        return found

    @property
    def usable(self) -> bool:
        """Whether nothing was found that would stop a run."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """Everything in JSON values, the sentences included."""
        sentences = {"problems": self.problems, "notes": self.notes}
        return {"usable": self.usable, **asdict(self), **sentences}


def check_pairs(pairs: PairedDataset, progress: bool = True, images: bool = True) -> PairsReport:
    """Look at every caption and every image, and stop at no mistake.

    Args:
        pairs: As :func:`prh_eval.pairs.load.read_pairs` reads them; all captions are looked at.
        progress: Whether to show a progress bar.
        images: Whether to decode the images.

    Returns:
        What was found.
    """
    texts = pairs.all_captions
    bad: list[BadImage] = []
    seen: list[_Seen | None] = []
    if pairs.images is not None and images:
        for found in _look_at_all(pairs.images, progress):
            bad.extend([found] if isinstance(found, BadImage) else [])
            seen.append(found if isinstance(found, _Seen) else None)
    decoded = [image for image in seen if image is not None]
    contents = [image and image.sha256 for image in seen]
    # What the captions stand for; without it, equal captions make no equal items.
    stands_for: Sequence[str | None] = contents or pairs.targets or [None] * len(pairs)
    by_area = sorted((image.size for image in decoded), key=lambda size: size[0] * size[1])

    def groups(places: list[tuple[int, ...]]) -> tuple[Items, ...]:
        return tuple(tuple(pairs.ids[place] for place in group) for group in places)

    return PairsReport(
        name=pairs.name,
        items=len(pairs),
        captions=_range([len(each) for each in texts]),
        words=_range([len(text.split()) for each in texts for text in each if text.strip()]),
        no_caption=tuple(item for item, each in zip(pairs.ids, texts, strict=True) if not each),
        empty_caption=tuple(
            item
            for item, each in zip(pairs.ids, texts, strict=True)
            if not all(text.strip() for text in each)
        ),
        repeated_ids=tuple(pairs.ids[first] for first, *_ in repeated(pairs.ids)),
        listed_twice=groups(listed_twice(pairs)),
        shared_captions=_shared(pairs),
        images=len(decoded) if seen else None,
        bad_images=tuple(bad),
        same_images=groups(repeated(contents)),
        same_items=groups(
            repeated(known and (known, each) for known, each in zip(stands_for, texts, strict=True))
        ),
        smallest_image=by_area[0] if by_area else None,
        largest_image=by_area[-1] if by_area else None,
    )


class _Seen(NamedTuple):
    size: tuple[int, int]
    sha256: str


def _look_at_all(images: Images, progress: bool) -> list[_Seen | BadImage]:
    def look(position: int) -> _Seen | BadImage:
        try:
            size = images[position].size
        except UnreadableImageError as error:
            return BadImage(error.item, error.file, error.reason)
        return _Seen(size, hashlib.sha256(images.content(position) or b"").hexdigest())

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        looked = pool.map(look, range(len(images)))
        bar = tqdm(looked, "images", len(images), unit="image", disable=not progress)
        return list(bar)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for no other image


def _shared(pairs: PairedDataset) -> tuple[SharedCaption, ...]:
    """Captions of more than one item, in the order in which they first come."""
    places: dict[str, dict[int, None]] = {}
    for place, texts in enumerate(pairs.all_captions):
        for text in filter(str.strip, texts):
            places.setdefault(text, {})[place] = None
    return tuple(
        SharedCaption(text, tuple(pairs.ids[place] for place in found))
        for text, found in places.items()
        if len(found) > 1
    )


def _range(numbers: Sequence[int]) -> Range | None:
    if not numbers:
        return None
    return Range(min(numbers), sum(numbers) / len(numbers), max(numbers))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _examples(everything: Sequence[str], between: str = ", ") -> str:
    more = len(everything) - _EXAMPLES
    rest = [f"and {more:,} more"] if more > 0 else []
    return between.join([*everything[:_EXAMPLES], *rest])
