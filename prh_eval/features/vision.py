"""Features of images: an encoder as its reference describes it, and its layers on many images."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from prh_eval.errors import PrhEvalError
from prh_eval.features.ahead import batched, send
from prh_eval.features.loading import check_remote_code
from prh_eval.features.parts import Parts, pieces, shared
from prh_eval.schema import VisionEncoder

_PART = 256  # images that a process loses when it is killed, beside those of one batch
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
            pixels: float32, shape (b, 3, height, width), on the CPU or where it computes.

        Returns:
            One float32 tensor of shape (b, width) where it computes for each layer, in order.

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
    rank: int = 0,
    world_size: int = 1,
    all_gather: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """Read the layers of an image encoder on many images.

    Args:
        model: The encoder.
        images: n images, taken by position, each once, by several threads at a time.
        batch_size: Images at once; halved, down to 1, when memory runs out.
        workers: Threads that decode and prepare images ahead of the encoder; 0 for none beside
            this one; by default one a processor, at most 8.
        device: Where to compute; by default where the model is.
        progress: Whether to show a progress bar, in process 0.
        parts: Where finished pieces of 256 images are kept, and those of an earlier run are found,
            whatever its number of processes.
        rank: This process's number, 0 <= rank < world_size.
        world_size: Number of processes. Each is given all images, runs its share of the pieces and
            returns all features, bit for bit those of one process with the same batches.
        all_gather: Concatenates equal-shaped tensors of all processes along the first dimension;
            needed where ``world_size`` > 1.

    Returns:
        One float32 tensor of shape (n, width) on the CPU for each layer, in order; the same
        whether or not a part of it was found in ``parts``.

    Raises:
        PrhEvalError: If an image cannot be read, the encoder does not have what its reference asks
            for, or one image does not fit into memory.
        ValueError: If ``all_gather`` is missing.
    """
    if device is not None:
        model.to(device)
    workers = min(8, os.cpu_count() or 1) if workers is None else workers

    def run(missing: list[range]) -> Generator[list[Tensor], None, None]:
        positions = [position for piece in missing for position in piece]
        with closing(_prepared(model, images, positions, workers, _AHEAD * batch_size)) as prepared:
            yield from batched(
                lambda batch: model.read(send(_of_one_shape(batch), model.device)),
                prepared,
                map(len, missing),
                batch_size,
                device=model.device,
                what=lambda pixels: "one image of {} x {} pixels".format(*pixels.shape[1:]),
                instead="use another device",
            )

    return shared(
        run,
        pieces(len(images), _PART),
        description="images",
        unit="image",
        progress=progress,
        parts=parts,
        rank=rank,
        world_size=world_size,
        all_gather=all_gather,
    )


def _of_one_shape(batch: list[Tensor]) -> list[Tensor]:
    shapes = {tuple(pixels.shape) for pixels in batch}
    if len(shapes) > 1:
        one, other, *_ = sorted(shapes)
        raise PrhEvalError(
            f"the encoder's own processor gives images of different shapes, {one} and {other}; "
            "'preprocessing' should be explicit, with one size for all"
        )
    return batch


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
