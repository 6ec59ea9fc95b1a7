"""Types of command-line arguments that several subcommands take."""

from __future__ import annotations

import argparse
from typing import Literal


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a number from 1")
    return int(text)


def not_negative(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} should be a number from 0")
    return int(text)


def caption(text: str) -> int | Literal["mean"]:
    """Which caption of an item: its number, from 0, or ``mean``."""
    if text == "mean":
        return "mean"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} should be a number from 0, or mean")
    return int(text)
