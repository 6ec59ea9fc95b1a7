"""Features that are made piece by piece, by several processes, kept on disk until whole."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import accumulate
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from prh_eval.store import replacing

logger = logging.getLogger(__name__)

_SUFFIX = ".part.safetensors"
_WHOLE = ".whole"


class Parts:
    """Rows of layer features in a folder of their own, one file a part.

    The folder should be named after everything that makes the features, and be used by one build
    at a time, which holds its lock; the processes of a build write different parts.

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

    def write_whole(self, name: str, layer: Tensor) -> Path | None:
        """Write a layer of all rows to a file, unless another process of this run does so.

        Args:
            name: Of the file, in this run alone.
            layer: Shape (n, width), on the CPU.

        Returns:
            The file, which is whole once every process has come back from here; None where the
            folder cannot be written or the disk is full.
        """
        path = self._folder / f"{name}{_WHOLE}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError), path.open("xb") as file:
                file.write(layer.contiguous().numpy().data)
        except OSError:
            return None
        return path

    def clear_whole(self) -> None:
        """Remove the files of whole layers; what is mapped from them stays."""
        for file in self._folder.glob(f"*{_WHOLE}"):
            with suppress(OSError):
                file.unlink()

    def clear(self) -> None:
        """Remove all parts, what killed writes have left, and the folder if nothing else is in it.

        What cannot be removed is left: it is read again at worst.
        """
        for pattern in (f"*{_SUFFIX}", f".*{_SUFFIX}.*.tmp", f"*{_WHOLE}"):
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


def pieces(count: int, rows: int) -> list[range]:
    """Rows 0 to ``count`` - 1 in pieces of ``rows``, the last of which may be shorter."""
    return [range(start, min(start + rows, count)) for start in range(0, count, rows)]


def shared(
    run: Callable[[list[range]], Generator[list[Tensor], None, None]],
    pieces: Sequence[range],
    *,
    description: str,
    unit: str,
    progress: bool = True,
    parts: Parts | None = None,
    rank: int = 0,
    world_size: int = 1,
    all_gather: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """Make features piece by piece, some here and some in other processes, and put them together.

    Process r makes the pieces r, r + world_size, and so on, but for those that it finds on disk. So
    where pieces depend on neither the processes nor the batches, a run that was stopped goes on
    whatever the number of either is now.

    Args:
        run: From pieces to their features: batch by batch, in order, one tensor (rows, width_l) a
            layer on the CPU, no batch with rows on both sides of a piece.
        pieces: The rows 0 to n - 1 in their order, the same in every process.
        description: What the progress bar is called.
        unit: What a row is, for the progress bar.
        progress: Whether to show a progress bar, in process 0.
        parts: Where finished pieces are kept, and those of an earlier run are found; processes may
            use one folder together.
        rank: This process's number, 0 <= rank < world_size.
        world_size: Number of processes.
        all_gather: Concatenates equal-shaped tensors of all processes along the first dimension in
            the order of their ranks; needed where ``world_size`` > 1.

    Returns:
        One float32 tensor (n, width_l) a layer on the CPU, the same in every process; of several
        processes with a folder of parts, mapped from files there that they share. Beside them
        there is room for one batch, and while processes exchange, for two layers.

    Raises:
        ValueError: If ``all_gather`` is missing.
    """
    if world_size > 1 and all_gather is None:
        raise ValueError(f"all_gather is needed for {world_size} processes")
    places = [_places(pieces[r::world_size]) for r in range(world_size)]
    most = max(sum(map(len, place)) for place in places)
    layers: list[Tensor] = []

    def keep(at: int, rows: list[Tensor]) -> int:
        if not layers:
            layers.extend(torch.zeros(most, layer.shape[1]) for layer in rows)
        for layer, own in zip(layers, rows, strict=True):
            layer[at : at + len(own)] = own
        return len(rows[0])

    missing, found = [], 0
    for piece, at in places[rank].items():
        part = parts.read(piece.start) if parts else None
        if part is not None and all(len(layer) == len(piece) for layer in part):
            found += keep(at, part)
        else:
            missing.append(piece)
    with (
        tqdm(
            total=found + sum(map(len, missing)),
            initial=found,
            desc=description,
            unit=unit,
            disable=not progress or rank != 0,
        ) as bar,
        # Checksums and files are made beside the model's work.
        ThreadPoolExecutor(1, thread_name_prefix="prh_eval-parts") as writer,
        closing(run(missing)) as batches,
    ):
        writing: Future[None] | None = None
        for piece in missing:
            start = at = places[rank][piece]
            while at < start + len(piece):
                rows = keep(at, next(batches))
                at += rows
                bar.update(rows)
            if writing is not None:
                writing.result()
            if parts is not None:
                writing = writer.submit(
                    parts.write, piece.start, [layer[start:at] for layer in layers]
                )
        if writing is not None:
            writing.result()
    if all_gather is None:
        return layers
    return _gathered(layers, places, most, all_gather, parts)


def _places(share: Sequence[range]) -> dict[range, int]:
    """Where each piece of a process begins among its own rows."""
    starts = accumulate(map(len, share), initial=0)
    return dict(zip(share, starts, strict=False))


def _gathered(
    layers: list[Tensor],
    places: list[dict[range, int]],
    most: int,
    all_gather: Callable[[Tensor], Tensor],
    parts: Parts | None,
) -> list[Tensor]:
    """The rows of all processes in their order, from those of each, ``most`` of them a layer."""
    # A process without a piece has not seen how many layers there are, nor their widths.
    count = int(all_gather(torch.tensor([len(layers)])).max())
    own = torch.tensor([layer.shape[1] for layer in layers] or [0] * count)
    widths = all_gather(own).reshape(-1, count).amax(dim=0).tolist()
    layers = layers or [torch.zeros(most, width) for width in widths]
    row = torch.empty(sum(sum(map(len, place)) for place in places), dtype=torch.int64)
    for rank, place in enumerate(places):
        for piece, at in place.items():
            row[piece.start : piece.stop] = rank * most + at + torch.arange(len(piece))
    if parts is not None:
        parts.clear_whole()  # what a killed run has left
    run = int(all_gather(torch.tensor([secrets.randbits(62)]))[0])
    whole: list[Tensor] = []
    while layers:
        # One layer at a time, each given up once it is copied, to hold the features once.
        layer = all_gather(layers.pop(0))[row]
        path = parts.write_whole(f"{run:016x}-{len(whole):06d}", layer) if parts else None
        # Where one process has no file, none maps one; after this all files are whole.
        if parts is not None and bool(all_gather(torch.tensor([path is None])).any()):
            # All have mapped the layers before. The disk is not filled up layer by layer.
            parts.clear_whole()
            parts = None
        whole.append(layer if parts is None or path is None else _mapped(path, layer))
    if parts is not None:
        all_gather(torch.zeros(1))
        # All have mapped the last one, and what is mapped stays: a kill leaves nothing.
        parts.clear_whole()
    return whole


def _mapped(path: Path, layer: Tensor) -> Tensor:
    """The same layer out of a file, in memory that the processes of a machine share."""
    try:
        values = torch.from_file(str(path), shared=False, size=layer.numel(), dtype=layer.dtype)
    except RuntimeError:  # a file system that cannot map files
        return layer
    return values.view(layer.shape)
