"""Where the files that come with the package lie, in a wheel and in a checkout alike."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The folder ``tasks`` or ``references`` that came with this installation.

    A wheel carries it as ``prh_eval/resources_<name>``; a checkout (editable install) has it at
    the top level.
    """
    packaged = _PACKAGE / f"resources_{name}"
    return packaged if packaged.is_dir() else _PACKAGE.parent / name
