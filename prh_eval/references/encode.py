"""From a reference and paired data to the layer features of every item, whatever its kind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prh_eval.colors import cielab
from prh_eval.errors import PrhEvalError
from prh_eval.features.captions import mean_over_items
from prh_eval.features.files import file_features
from prh_eval.features.parts import Parts
from prh_eval.features.sentences import sentence_features
from prh_eval.features.values import table_values
from prh_eval.features.vision import load_vision_model, vision_features
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.schema import LanguageReference, Reference, ValuesReference, VisionReference

if TYPE_CHECKING:
    from prh_eval.processes import Processes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """What a reference makes of paired data.

    Attributes:
        layers: One floating-point tensor (n, width_l) on the CPU for each layer.
        facts: What is known only once it is made, in JSON values: ``layers`` (their number),
            ``widths``; of an encoder also ``commit`` (where the hub named one), ``parameters``
            and ``input`` (how an item becomes its input, in full); of a language model also
            ``truncated_captions``.
    """

    layers: list[Tensor]
    facts: dict[str, Any]


def encode(
    reference: Reference,
    pairs: PairedDataset,
    *,
    device: torch.device | str | None = None,
    batch_size: int = 8,
    workers: int | None = None,
    progress: bool = True,
    trust_remote_code: bool = False,
    parts: Parts | None = None,
    processes: Processes | None = None,
) -> Encoded:
    """Make the layer features of a reference on paired data.

    An item with several captions has the mean of their features.

    Args:
        reference: What to use.
        pairs: The n items.
        device: Where an encoder computes; by default the device of this one of several processes,
            else the first GPU, else the CPU.
        batch_size: Images or captions at once; halved when memory runs out.
        workers: How many threads decode images; None for the default.
        progress: Whether to show a progress bar.
        trust_remote_code: Whether the command line allows code from an encoder's repository, which
            is run only if the reference asks for it too.
        parts: Where an encoder's finished parts are kept, and read if they are there.
        processes: The processes that share an encoder's work: each calls this with the same
            arguments and gets all layers, bit for bit those of one process.

    Raises:
        PrhEvalError: If the pairs have no images or colours where they are needed, an encoder
            cannot be loaded or cannot take the items, or a file does not fit the items.
    """
    place = _device(processes.device if processes and device is None else device)
    sharing: dict[str, Any] = {}
    if processes is not None and processes.world_size > 1:
        sharing = {
            "rank": processes.rank,
            "world_size": processes.world_size,
            "all_gather": processes.all_gather,
        }
    facts: dict[str, Any] = {}
    if isinstance(reference, VisionReference):
        if pairs.images is None:
            raise PrhEvalError(
                f"the reference {reference.name} needs images and {pairs.name} has none; "
                "'pairs.image_column' should name a column of images"
            )
        model = load_vision_model(reference.encoder, trust_remote_code=trust_remote_code)
        if parts is not None:
            parts.commit = model.commit
        layers = vision_features(
            model,
            pairs.images,
            batch_size=batch_size,
            workers=workers,
            device=place,
            progress=progress,
            parts=parts,
            **sharing,
        )
        facts = {"commit": model.commit, "parameters": model.parameters, "input": model.input}
    elif isinstance(reference, LanguageReference):
        made = sentence_features(
            reference.encoder,
            [caption for captions in pairs.captions for caption in captions],
            device=place,
            batch_size=batch_size,
            progress=progress,
            trust_remote_code=trust_remote_code,
            parts=parts,
            **sharing,
        )
        layers = mean_over_items(made.layers, [len(captions) for captions in pairs.captions])
        facts = made.facts
    elif isinstance(reference, ValuesReference):
        layers = _values(reference, pairs)
    else:
        layers = _chosen(partial(file_features, reference.features), pairs)
    if processes is None or processes.rank == 0:
        _compare_parameters(reference, facts.get("parameters"))
    widths = [layer.shape[1] for layer in layers]
    return Encoded(layers, {**facts, "layers": len(layers), "widths": widths})


def _device(given: torch.device | str | None) -> torch.device:
    """The device that was asked for; by default the first GPU, else the CPU."""
    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=given).device
    except (RuntimeError, AssertionError) as error:
        raise PrhEvalError(
            f"the device {str(given)!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from error


def _values(reference: ValuesReference, pairs: PairedDataset) -> list[Tensor]:
    """One tensor (n, width): a single layer."""
    if not isinstance(reference.values, str):
        return _chosen(partial(table_values, reference.values), pairs)
    if pairs.targets is None:
        raise PrhEvalError(
            f"the reference {reference.name} needs items with colours and {pairs.name} has none; "
            "'pairs' should be {kind: embedded, name: xkcd_colors}"
        )
    return [cielab(pairs.targets)]


def _chosen(read: Callable[[int], list[Tensor]], pairs: PairedDataset) -> list[Tensor]:
    """The rows of these items, of a file that has one for each item of the data."""
    if pairs.rows is None:
        return read(len(pairs))
    rows, whole = pairs.rows
    return [layer[list(rows)] for layer in read(whole)]


def _compare_parameters(reference: Reference, actual: int | None) -> None:
    """Warn where a file states another size than its encoder has."""
    stated = reference.parameters
    if stated and actual and abs(stated - actual) > 0.1 * actual:
        logger.warning(
            "the reference %s states %d parameters and its encoder has %d; 'parameters' should say "
            "the latter",
            reference.name,
            stated,
            actual,
        )
