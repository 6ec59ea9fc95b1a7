"""Types and checks of command-line arguments that several subcommands take."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Literal

from prh_eval.errors import PrhEvalError


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a number from 1")
    return int(text)


def count(text: str) -> int:
    """A whole number from 1, which may be written as 1e6."""
    try:
        number = int(text) if text.isdecimal() else float(text)
    except ValueError:
        number = 0
    if not 1 <= number < float("inf") or number != int(number):
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number from 1, as 1e6")
    return int(number)


def not_negative(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} should be a number from 0")
    return int(text)


_UNITS = {"": 1, **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)}


def size(text: str) -> int:
    """A number of bytes, as ``2GB``, ``1.5 GiB`` or ``2e9``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d{1,2})?) ?([a-z]*)", text.strip().lower())
    if found is None or found[2].upper() not in _UNITS or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} should be a number of bytes, as 2GB or 512MiB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def folder(text: str) -> Path:
    """A folder, there or not; an empty name would be the current one."""
    if not text:
        raise argparse.ArgumentTypeError("'' should be the name of a folder")
    return Path(text)


def caption(text: str) -> int | Literal["mean"]:
    """Which caption of an item: its number, from 0, or ``mean``."""
    if text == "mean":
        return "mean"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} should be a number from 0, or mean")
    return int(text)


def check_device(given: str | None) -> None:
    """Refuse a device that cannot be used here; none is set up, as each process has its own.

    Args:
        given: As a person wrote it; None where nobody did.

    Raises:
        PrhEvalError: If torch does not know it, or this machine does not have it.
    """
    if given is None:
        return
    import torch

    why = ""
    try:
        device = torch.device(given)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        why = "it should be cpu, cuda or cuda and a number, as cuda:1"
    elif device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        why = f"this machine has {count} CUDA devices that this torch can use"
    if why:
        raise PrhEvalError(f"the device {given!r} cannot be used here: {why}")
