"""Features of images: an encoder as its reference describes it, and its layers on many images."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from prh_eval.errors import PrhEvalError
from prh_eval.features.loading import check_remote_code
from prh_eval.features.memory import halved
from prh_eval.schema import VisionEncoder

if TYPE_CHECKING:
    from prh_eval.features.parts import Parts

logger = logging.getLogger(__name__)

_PART = 256  # images that a killed run loses at most
_AHEAD = 2  # batches that are prepared before they are due


class VisionModel(ABC):
    """An image encoder as a reference's file describes it: an image in, one row a layer out.

    Attributes:
        commit: The hub commit of its weights, where it is known.
        parameters: Number of its parameters; of the vision part where there are others.
        input: How an image becomes its input, in full, in JSON values.
    """

    commit: str | None
    parameters: int
    input: dict[str, Any]

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @abstractmethod
    def to(self, device: torch.device | str) -> None:
        """Move it to another device."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> Tensor:
        """One image as its input: float32, shape (3, height, width), on the CPU; thread-safe."""

    @abstractmethod
    def read(self, pixels: Tensor) -> list[Tensor]:
        """The layers of prepared images.

        Args:
            pixels: float32, shape (b, 3, height, width).

        Returns:
            One float32 tensor of shape (b, width) on the CPU for each layer, in order.

        Raises:
            PrhEvalError: If it cannot take images of this size, or does not have what its
                reference asks for.
        """


def load_vision_model(encoder: VisionEncoder, *, trust_remote_code: bool = False) -> VisionModel:
    """Load an image encoder.

    Args:
        encoder: What a reference's file says about it.
        trust_remote_code: Whether the person at the command line allows code from the encoder's
            repository; it is run only if the file asks for it too.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        PrhEvalError: If it cannot be found, reached or read, asks for code that is not allowed,
            or does not have the layers, token or preprocessing that the file asks for.
    """
    # Their libraries take seconds to import, and a cached reference needs none of them.
    if encoder.loader == "timm":
        from prh_eval.features.vision_timm import load_timm

        return load_timm(encoder)
    from prh_eval.features.vision_transformers import load_transformers

    check_remote_code(encoder, trust_remote_code)
    return load_transformers(encoder)


def vision_features(
    model: VisionModel,
    images: Sequence[Image.Image],
    *,
    batch_size: int = 8,
    workers: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    parts: Parts | None = None,
) -> list[Tensor]:
    """Read the layers of an image encoder on many images.

    Args:
        model: The encoder.
        images: n images, taken by position, each once, by several threads at a time.
        batch_size: Images at once; halved, down to 1, when memory runs out.
        workers: Threads that decode and prepare images ahead of the encoder; 0 for none beside
            this one; by default one a processor, at most 8.
        device: Where to compute; by default where the model is.
        progress: Whether to show a progress bar.
        parts: Where finished pieces of 256 images are kept, and those of an earlier run are found.

    Returns:
        One float32 tensor of shape (n, width) on the CPU for each layer, in order; the same
        whether or not a part of it was found in ``parts``.

    Raises:
        PrhEvalError: If an image cannot be read, the encoder does not have what its reference asks
            for, or one image does not fit into memory.
    """
    if device is not None:
        model.to(device)
    found: dict[int, list[Tensor]] = {}
    missing: list[range] = []
    for start in range(0, len(images), _PART):
        rows = range(start, min(start + _PART, len(images)))
        part = None if parts is None else parts.read(start)
        if part is not None and all(len(layer) == len(rows) for layer in part):
            found[start] = part
        else:
            missing.append(rows)
    positions = [position for rows in missing for position in rows]
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    prepared = _prepared(model, images, positions, workers, _AHEAD * batch_size)
    total, done = len(images), len(images) - len(positions)
    with tqdm(total=total, initial=done, desc="images", unit="image", disable=not progress) as bar:
        try:
            for rows in missing:
                found[rows.start], batch_size = _read(
                    model, islice(prepared, len(rows)), batch_size, bar
                )
                if parts is not None:
                    parts.write(rows.start, found[rows.start])
        finally:
            prepared.close()
    pieces = [found[start] for start in sorted(found)]
    return [torch.cat(layer) for layer in zip(*pieces, strict=True)]


def _read(
    model: VisionModel, prepared: Iterator[Tensor], batch_size: int, bar: tqdm[Any]
) -> tuple[list[Tensor], int]:
    """The layers of prepared images, and the batch size that fitted into memory."""
    from accelerate.utils.memory import clear_device_cache

    batches: list[list[Tensor]] = []
    waiting: list[Tensor] = []
    while True:
        waiting += islice(prepared, max(0, batch_size - len(waiting)))
        if not waiting:
            return [torch.cat(layer) for layer in zip(*batches, strict=True)], batch_size
        batch = waiting[:batch_size]
        try:
            batches.append(model.read(_stack(batch)))
        except (RuntimeError, MemoryError) as error:
            height, width = batch[0].shape[1:]
            what = f"one image of {height} x {width} pixels"
            batch_size = halved(batch_size, error, model.device, what, "use another device")
        else:
            del waiting[: len(batch)]
            bar.update(len(batch))
            continue
        clear_device_cache(garbage_collection=True)


def _stack(batch: list[Tensor]) -> Tensor:
    shapes = {tuple(pixels.shape) for pixels in batch}
    if len(shapes) > 1:
        one, other, *_ = sorted(shapes)
        raise PrhEvalError(
            f"the encoder's own processor gives images of different shapes, {one} and {other}; "
            "'preprocessing' should be explicit, with one size for all"
        )
    return torch.stack(batch)


def _prepared(
    model: VisionModel,
    images: Sequence[Image.Image],
    positions: Sequence[int],
    workers: int,
    ahead: int,
) -> Generator[Tensor, None, None]:
    """The images at these positions as the model's input, in order, prepared ahead by threads."""

    def one(position: int) -> Tensor:
        return model.prepare(images[position])

    if workers == 0:
        yield from map(one, positions)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prh_eval-images")
    queue: deque[Future[Tensor]] = deque()
    try:
        for position in positions:
            queue.append(pool.submit(one, position))
            if len(queue) > workers + ahead:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
