"""What to do when a batch does not fit into memory: half of it, as long as there is half."""

from __future__ import annotations

import logging
import math

import torch

from prh_eval.alignment.tiles import is_memory
from prh_eval.errors import PrhEvalError

logger = logging.getLogger(__name__)


def halved(
    batch_size: int, error: Exception, device: torch.device | str, what: str, instead: str
) -> int:
    """The batch size to go on with after an error.

    To be called where the error is caught. The memory itself is freed once the handler is left,
    since the traceback holds on to it.

    Args:
        batch_size: What was too much.
        error: What was raised.
        device: Where.
        what: What a batch of 1 is, for the message.
        instead: What to do where not even that fits.

    Raises:
        PrhEvalError: If the batch was of 1.
        Exception: The error itself, if it is of something else.
    """
    if not is_memory(error):
        raise error
    if batch_size == 1:
        raise PrhEvalError(f"{what} does not fit into the memory of {device}; {instead}") from error
    smaller = math.ceil(batch_size / 2)
    logger.warning("out of memory on %s: batches of %d now", device, smaller)
    return smaller
