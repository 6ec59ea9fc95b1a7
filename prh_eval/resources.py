"""Where files lie: those that come with the package, and those that it keeps."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The folder ``tasks`` or ``references`` that came with this installation.

    A wheel carries it as ``prh_eval/resources_<name>``; a checkout (editable install) has it at
    the top level.
    """
    packaged = _PACKAGE / f"resources_{name}"
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def cache_folder() -> Path:
    """Where artifacts are kept: ``$PRH_EVAL_CACHE``, else the user's cache folder."""
    import platformdirs  # the start-up hook imports this module without other packages

    chosen = os.environ.get("PRH_EVAL_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("prh_eval"))
