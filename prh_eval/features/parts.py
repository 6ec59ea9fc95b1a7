"""Features that are made piece by piece, kept on disk until whole: a killed build resumes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from prh_eval.store import replacing

logger = logging.getLogger(__name__)

_SUFFIX = ".part.safetensors"

# Rows that a killed build loses at most, unless a batch is larger: a file each would cost more.
_ROWS = 64

_T = TypeVar("_T")


class Parts:
    """Rows of layer features in a folder of their own, one file a part.

    The folder should be named after everything that makes the features, and be used by one
    builder at a time, which holds its lock.

    Args:
        folder: Where the parts are; made with the first of them.

    Attributes:
        commit: The hub commit of the encoder, once it is loaded and if it is known: a part that
            another one made reads as absent.
    """

    def __init__(self, folder: Path) -> None:
        self.commit: str | None = None
        self._folder = folder
        self._writable = True

    def read(self, start: int) -> list[Tensor] | None:
        """The part that begins at a row.

        Args:
            start: Its first row, from 0.

        Returns:
            One float32 tensor (rows, width_l) a layer; None if it is absent, cut short or damaged.
        """
        try:
            with safetensors.safe_open(self._path(start), framework="pt") as file:
                stated = (file.metadata() or {}).get("sha256")
                names = sorted(file.keys())
                layers = [file.get_tensor(name) for name in names]
        # A cut file is one of several errors, none of which is worth more than making it again.
        except Exception:
            return None
        return layers if stated == self._checksum(layers) else None

    def write(self, start: int, layers: Sequence[Tensor]) -> None:
        """Keep a part; it is there whole or not at all, even if the process is killed.

        The first failure (a full disk, a folder that cannot be written) is one warning, and no
        further part is written.

        Args:
            start: Its first row, from 0.
            layers: One float32 tensor (rows, width_l) a layer, all of the same number of rows.
        """
        if not self._writable:
            return
        layers = [layer.contiguous() for layer in layers]
        # Sorted by name, the layers come back in their order.
        named = {f"{number:06d}": layer for number, layer in enumerate(layers)}
        data = safetensors.torch.save(named, {"sha256": self._checksum(layers)})
        path = self._path(start)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            self._writable = False
            logger.warning(
                "cannot write to %s (%s): the build goes on, but if it is stopped, it will start "
                "again from its last part",
                self._folder,
                error.strerror or error,
            )

    def clear(self) -> None:
        """Remove all parts, what killed writes have left, and the folder if nothing else is in it.

        What cannot be removed is left: it is read again at worst.
        """
        for pattern in (f"*{_SUFFIX}", f".*{_SUFFIX}.*.tmp"):
            for file in self._folder.glob(pattern):
                with suppress(OSError):
                    file.unlink()
        with suppress(OSError):
            self._folder.rmdir()

    def _checksum(self, layers: Sequence[Tensor]) -> str:
        """SHA-256 over the commit and the layers' types, shapes and values."""
        digest = hashlib.sha256(str(self.commit).encode())
        for layer in layers:
            digest.update(f"{layer.dtype} {list(layer.shape)}\n".encode("ascii"))
            digest.update(layer.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _path(self, start: int) -> Path:
        return self._folder / f"{start:09d}{_SUFFIX}"


def resumed(
    run: Callable[[Sequence[_T]], list[Tensor]],
    items: Sequence[_T],
    batch_size: int,
    parts: Parts | None,
) -> Iterator[list[Tensor]]:
    """Run over items batch by batch, but for the parts that are kept; keep what is run.

    Args:
        run: From a batch of items to one float32 tensor (items, width_l) a layer, on the CPU.
        items: n items.
        batch_size: Items a batch, at least 1.
        parts: Where finished parts are; None to keep nothing.

    Yields:
        The features of the next items, of all n in the end: a part that is read is yielded whole,
        whatever its size, and otherwise each batch as soon as it is run.
    """
    rows = batch_size * -(-_ROWS // batch_size)
    start = 0
    while start < len(items):
        part = parts.read(start) if parts else None
        if part is not None and start + len(part[0]) <= len(items):
            yield part
            start += len(part[0])
            continue
        stop = min(start + rows, len(items))
        batches = []
        for first in range(start, stop, batch_size):
            batches.append(run(items[first : first + batch_size]))
            yield batches[-1]
        if parts:
            parts.write(start, [torch.cat(layer) for layer in zip(*batches, strict=True)])
        start = stop
