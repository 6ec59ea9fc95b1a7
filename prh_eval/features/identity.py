"""Telling models apart by what they compute with, not by what they are called."""

from __future__ import annotations

import itertools
import json
from typing import Any

import torch
from torch import Tensor, nn

from prh_eval.store import fingerprint

_SAMPLES = 256  # elements of each tensor that enter with their position


def weights_fingerprint(model: nn.Module) -> str | None:
    """A fingerprint of a model's weights that is the same on every device.

    Every parameter and buffer enters with its name, shape, dtype, the exact integer sum of its
    bit patterns, and 256 evenly spaced elements (so that a shuffled tensor differs). One pass
    over the weights, no copy of them.

    Args:
        model: Any module; adapters and quantised weights count as they are.

    Returns:
        A SHA-256 in hexadecimal, or None where weights cannot be read: they are offloaded, or of
        a tensor class that does not show its bits.
    """
    parts: list[Any] = []
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.device.type == "meta":
            return None
        try:
            digest = _digest(tensor.detach())
        except (NotImplementedError, RuntimeError, TypeError):
            return None
        parts.append([name, list(tensor.shape), str(tensor.dtype), *digest])
    return fingerprint(parts)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A fingerprint of what a tokenizer does to text.

    Args:
        tokenizer: A Hugging Face tokenizer, fast or slow.

    Returns:
        A SHA-256 in hexadecimal.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = tokenizer.get_vocab()
    else:
        rules = json.loads(backend.to_str())
        # How earlier calls padded and cut stays behind in it; we do either by ourselves.
        rules["padding"] = rules["truncation"] = None
    return fingerprint([type(tokenizer).__name__, tokenizer.special_tokens_map, rules])


def _digest(tensor: Tensor) -> tuple[int, list[int]]:
    """The sum of a tensor's bit patterns and a sample of them, as Python integers."""
    flat = tensor.contiguous().view(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    size = flat.element_size()
    as_integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    bits = flat.view(as_integers)
    step = max(1, bits.numel() // _SAMPLES)
    return int(bits.sum(dtype=torch.int64)), bits[::step].tolist()
