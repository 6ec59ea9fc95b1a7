"""Paired data: items that each have a caption and an image or a target value."""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import datasets
from huggingface_hub import constants, file_download
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.hub import is_folder, load_error, missing_folder
from prh_eval.store import fingerprint

logger = logging.getLogger(__name__)

_DATA = Path(__file__).parent / "data"
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubPairs(BaseModel):
    """A data set of the Hugging Face hub, or a local folder in the same layout."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["hub"]
    path: str = Field(min_length=1, description="hub id, or a local folder in the hub's layout")
    revision: str | None = Field(None, description="branch, tag or commit; null is the default")
    split: str = Field("train", description="split, as datasets.load_dataset takes it")
    caption_column: str = Field("text", description="column of strings, or of lists of strings")
    image_column: str | None = Field("image", description="column of images; null: there is none")

    def lm_eval_fields(self) -> dict[str, Any]:
        """What lm-eval's own task fields say of this data, for its result files."""
        revision = {"revision": self.revision} if self.revision else {}
        return {"dataset_path": self.path, "test_split": self.split, "dataset_kwargs": revision}


class EmbeddedPairs(BaseModel):
    """Data that the package carries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["embedded"]
    name: Literal["xkcd_colors"] = Field(
        description="xkcd_colors: the 949 names of the xkcd colour survey with their sRGB colours"
    )

    def lm_eval_fields(self) -> dict[str, Any]:
        """What lm-eval's own task fields say of this data, for its result files."""
        return {"dataset_path": f"prh_eval/{self.name}", "test_split": "train"}


PairsSpec = Annotated[HubPairs | EmbeddedPairs, Field(discriminator="kind")]


class Images(Sequence[Image.Image]):
    """Images that are decoded when they are asked for, as RGB.

    Decoding is that of datasets' Image feature (Pillow, turned upright by the EXIF orientation).

    Args:
        rows: A data set with one column, of images.
        ids: Each row's name, for error messages.
        name: The data set's name, for error messages.
    """

    def __init__(self, rows: datasets.Dataset, ids: Sequence[str], name: str) -> None:
        self._rows = rows
        self._column = rows.column_names[0]
        self._ids = tuple(ids)
        self._name = name

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, position: int) -> Image.Image:  # type: ignore[override]
        position = range(len(self))[position]
        try:
            image = self._rows[position][self._column]
            if image is None:
                raise ValueError("the item has none")
            rgb: Image.Image = image.convert("RGB")
        # Pillow raises many types (OSError, SyntaxError, DecompressionBombError, ...) on bad files.
        except Exception as error:
            raise PrhEvalError(
                f"{self._name}: the image of item {self._ids[position]} cannot be read: {error}"
            ) from error
        return rgb

    def select(self, positions: Sequence[int]) -> Images:
        """The images at these positions, in this order."""
        ids = [self._ids[position] for position in positions]
        return Images(self._rows.select(positions), ids, self._name)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the image files as they are stored; nothing is decoded."""
        digest = hashlib.sha256()
        stored = self._rows.cast_column(self._column, datasets.Image(decode=False))
        for row in stored:
            value = row[self._column] or {}
            content = value.get("bytes")
            if content is None and value.get("path"):
                content = Path(value["path"]).read_bytes()
            digest.update(hashlib.sha256(content or b"").digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class PairedDataset:
    """n items in a fixed order, each with a caption and what the caption is about.

    Attributes:
        name: For messages.
        ids: Each item's own name, unique; row numbers for a hub data set.
        captions: The chosen caption of each item; never empty.
        all_captions: Every caption of each item.
        source: Where the items come from, in JSON values.
        images: The images, decoded one at a time when they are asked for; None without images.
        targets: What stands in an image's place (sRGB colours as ``#rrggbb``); None with images.
    """

    name: str
    ids: tuple[str, ...]
    captions: tuple[str, ...]
    all_captions: tuple[tuple[str, ...], ...]
    source: dict[str, Any]
    images: Images | None = None
    targets: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids and chosen captions, in order."""
        return fingerprint([self.ids, self.captions])

    @cached_property
    def items_fingerprint(self) -> str:
        """SHA-256 over ids, every caption and targets: the items, whichever caption is chosen."""
        return fingerprint([self.ids, self.all_captions, self.targets])

    @property
    def commit(self) -> str | None:
        """The hub commit that the items come from, where it is known."""
        commit: str | None = self.source.get("commit")
        return commit

    def select(self, positions: Sequence[int]) -> PairedDataset:
        """The items at these positions, in this order."""
        chosen = list(positions)
        return replace(
            self,
            ids=_take(self.ids, chosen),
            captions=_take(self.captions, chosen),
            all_captions=_take(self.all_captions, chosen),
            images=None if self.images is None else self.images.select(chosen),
            targets=None if self.targets is None else _take(self.targets, chosen),
        )


def load_pairs(spec: HubPairs | EmbeddedPairs, caption: int = 0) -> PairedDataset:
    """Load paired data; images stay undecoded.

    Args:
        spec: Where it comes from.
        caption: Which caption to take where an item has several, from 0.

    Returns:
        The items.

    Raises:
        PrhEvalError: If the data cannot be reached, lacks a column, or an item has no such
            caption or an empty one.
    """
    if isinstance(spec, EmbeddedPairs):
        return _load_colors(spec, caption)
    return _load_hub(spec, caption)


def _load_colors(spec: EmbeddedPairs, caption: int) -> PairedDataset:
    with (_DATA / "xkcd_colors.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    captions = tuple((row["name"],) for row in rows)
    ids = tuple(str(position) for position in range(len(rows)))
    return PairedDataset(
        name=spec.name,
        ids=ids,
        captions=_choose(captions, caption, spec.name),
        all_captions=captions,
        source={**spec.model_dump(), "caption": caption},
        targets=tuple(row["hex"] for row in rows),
    )


def _load_hub(spec: HubPairs, caption: int) -> PairedDataset:
    at = f" (revision {spec.revision!r})" if spec.revision else ""
    name = f"the data set {spec.path!r}{at}"
    local = is_folder(spec.path)
    path = str(Path(spec.path).expanduser()) if local else spec.path
    if local and not Path(path).is_dir():
        raise missing_folder(name, spec.path)
    try:
        rows = datasets.load_dataset(path, revision=spec.revision, split=spec.split)
    # Any failure here comes from the person's path, revision or network, whatever its class.
    except Exception as error:
        raise load_error(name, error) from error
    commit = _commit(rows)
    if not local:
        _check_revision(spec, commit)
    texts = _column(rows, spec.caption_column, "caption_column", name)
    all_captions = tuple(
        _captions(value, position, spec.caption_column, name)
        for position, value in enumerate(texts[:][spec.caption_column])
    )
    ids = tuple(str(position) for position in range(len(rows)))
    images = None
    if spec.image_column is not None:
        column = _column(rows, spec.image_column, "image_column", name)
        feature = column.features[spec.image_column]
        if not isinstance(feature, datasets.Image):
            raise PrhEvalError(
                f"{name}: the column {spec.image_column!r} holds {feature}; 'image_column' should "
                "name a column of images"
            )
        images = Images(column, ids, name)
    return PairedDataset(
        name=name,
        ids=ids,
        captions=_choose(all_captions, caption, name),
        all_captions=all_captions,
        source={**spec.model_dump(), "commit": commit, "caption": caption},
        images=images,
    )


def _column(rows: datasets.Dataset, column: str, key: str, name: str) -> datasets.Dataset:
    if column not in rows.column_names:
        raise PrhEvalError(
            f"{name} has no column {column!r} ('{key}'); {suggestion(column, rows.column_names)}"
        )
    return rows.select_columns([column])


def _captions(value: Any, position: int, column: str, name: str) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise PrhEvalError(
            f"{name}: item {position} has {value!r} in the column {column!r}; 'caption_column' "
            "should name a column of strings or lists of strings"
        )
    return tuple(text or "" for text in texts)


def _choose(all_captions: tuple[tuple[str, ...], ...], caption: int, name: str) -> tuple[str, ...]:
    """The caption of this number of every item."""
    for position, texts in enumerate(all_captions):
        if not 0 <= caption < len(texts):
            raise PrhEvalError(
                f"{name}: item {position} has {len(texts)} captions, so there is no caption "
                f"{caption} (they count from 0)"
            )
    chosen = tuple(texts[caption] for texts in all_captions)
    empty = [position for position, text in enumerate(chosen) if not text.strip()]
    if empty:
        raise PrhEvalError(
            f"{name}: item {empty[0]} has an empty caption ({len(empty)} such items of "
            f"{len(chosen)}); an empty text has no representation"
        )
    return chosen


def _commit(rows: datasets.Dataset) -> str | None:
    """The hub commit: datasets names the cache folder of a prepared hub data set after it."""
    folders = Counter(Path(file["filename"]).parent.name for file in rows.cache_files)
    commits = [folder for folder in folders if _COMMIT.fullmatch(folder)]
    return commits[0] if len(commits) == 1 else None


def _check_revision(spec: HubPairs, commit: str | None) -> None:
    """Refuse data of another revision.

    Where datasets cannot reach the hub, it takes the latest copy in its cache, whatever revision
    that copy is of. The hub cache remembers which commit the revision meant.
    """
    if spec.revision is None:
        return
    wanted = spec.revision if _COMMIT.fullmatch(spec.revision) else _known_commit(spec)
    if commit is None or wanted is None:
        logger.warning(
            "%s: cannot tell whether the cached copy is of revision %r", spec.path, spec.revision
        )
    elif commit != wanted:
        raise PrhEvalError(
            f"the hub could not be reached, and the cached copy of {spec.path!r} is of commit "
            f"{commit[:12]}, not of revision {spec.revision!r} ({wanted[:12]}); load it once with "
            "a network"
        )


def _known_commit(spec: HubPairs) -> str | None:
    folder = file_download.repo_folder_name(repo_id=spec.path, repo_type="dataset")
    file = Path(constants.HF_HUB_CACHE) / folder / "refs" / str(spec.revision)
    return file.read_text(encoding="ascii").strip() if file.is_file() else None


def _take(values: tuple[Any, ...], positions: Sequence[int]) -> tuple[Any, ...]:
    return tuple(values[position] for position in positions)
