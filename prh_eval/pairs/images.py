"""The images of paired data, decoded one at a time when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute  # type: ignore[import-untyped]
from PIL import Image, UnidentifiedImageError

from prh_eval.errors import PrhEvalError

_FEATURE = datasets.Image()
_UNDECODED = datasets.Image(decode=False)


class UnreadableImageError(PrhEvalError):
    """An image that is not there or cannot be decoded.

    Args:
        data: The paired data's name.
        item: The item's name.
        file: The image file, where there is one.
        reason: What is wrong with it.
    """

    def __init__(self, data: str, item: str, file: str | None, reason: str) -> None:
        at = f" ({file})" if file else ""
        super().__init__(f"{data}: the image of item {item}{at} cannot be read: {reason}")
        self.item = item
        self.file = file
        self.reason = reason


class Images(Sequence[Image.Image]):
    """Images that are opened and decoded when they are asked for, as RGB; threads may share it.

    Decoding is that of datasets' Image feature (Pillow, turned upright by the EXIF orientation).

    Args:
        rows: A data set with one column, of images: their files' bytes or paths.
        ids: Each row's name, for error messages.
        name: The data set's name, for error messages.
    """

    def __init__(self, rows: datasets.Dataset, ids: Sequence[str], name: str) -> None:
        self._column = rows.column_names[0]
        self._rows = rows.cast_column(self._column, _UNDECODED)
        self._ids = tuple(ids)
        self._name = name

    @classmethod
    def in_files(cls, files: Sequence[str | None], ids: Sequence[str], name: str) -> Images:
        """Images in files, which need not be there before they are asked for.

        Args:
            files: Absolute paths; None where an item has no image.
            ids: Each item's name, for error messages.
            name: The data set's name, for error messages.
        """
        features = datasets.Features({"image": _UNDECODED})
        return cls(datasets.Dataset.from_dict({"image": list(files)}, features), ids, name)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, position: int) -> Image.Image:  # type: ignore[override]
        stored = self._stored(position)
        try:
            if stored is None:
                raise ValueError("it has none")
            image: Image.Image = _FEATURE.decode_example(stored)
            return image.convert("RGB")
        # Pillow raises many types (OSError, SyntaxError, DecompressionBombError, ...) on bad files.
        except Exception as error:
            file = stored["path"] if stored else None
            raise UnreadableImageError(
                self._name, self._ids[position], file, _reason(error)
            ) from error

    def select(self, positions: Sequence[int]) -> Images:
        """The images at these positions, in this order."""
        ids = [self._ids[position] for position in positions]
        return Images(self._rows.select(positions), ids, self._name)

    def content(self, position: int) -> bytes | None:
        """An image file as it is stored, undecoded; None where the item has no image.

        Raises:
            OSError: If the file is not there or cannot be read.
        """
        stored = self._stored(position)
        if stored is None:
            return None
        inside: bytes | None = stored["bytes"]
        return Path(stored["path"]).read_bytes() if inside is None else inside

    @cached_property
    def files(self) -> tuple[str | None, ...]:
        """The file that each image is in; None where the data set itself holds it."""
        stored = self._rows.with_format("arrow")[:][self._column]
        inside = pyarrow.compute.struct_field(stored, "bytes").is_valid().to_pylist()
        paths = pyarrow.compute.struct_field(stored, "path").to_pylist()
        return tuple(None if held else path for held, path in zip(inside, paths, strict=True))

    @cached_property
    def fingerprint(self) -> str | None:
        """SHA-256 over the image files as they are stored; None if one of them is not there."""
        digest = hashlib.sha256()
        for position in range(len(self)):
            try:
                content = self.content(position)
            except OSError:
                return None
            digest.update(hashlib.sha256(content or b"").digest())
        return digest.hexdigest()

    def _stored(self, position: int) -> dict[str, Any] | None:
        """``{"bytes": ..., "path": ...}``, one of them or both; None where there is no image."""
        stored: dict[str, Any] | None = self._rows[position][self._column]
        return stored if stored and (stored["bytes"] is not None or stored["path"]) else None


def _reason(error: Exception) -> str:
    """What is wrong with an image; its name stands in the sentence already."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image that Pillow can read"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0].rstrip(".")
