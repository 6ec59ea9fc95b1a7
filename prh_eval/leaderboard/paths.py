"""Whether a name is a place on somebody's machine, and what of it can be shown."""

from __future__ import annotations

import re

# An absolute path, of Unix or Windows, or one from a home or a parent folder.
_PATH = re.compile(r"^(/|\\|[A-Za-z]:[\\/]|~|\.\.?[\\/])")
_SEPARATOR = re.compile(r"[\\/]")


def is_path(name: str) -> bool:
    """Whether a model's name is a place on somebody's machine."""
    return bool(_PATH.match(name))


def is_folder(name: str) -> bool:
    """Whether a model's name is a folder rather than a hub id, which has at most one slash."""
    return is_path(name) or name.count("/") > 1


def is_whole_path(text: str) -> bool:
    """Whether a text is a path and nothing else."""
    return is_path(text) and "\n" not in text and bool(_SEPARATOR.search(text[1:]))


def parts(path: str) -> list[str]:
    """The folders of a path and what is in them, at least one."""
    return [part for part in _SEPARATOR.split(path) if part not in ("", ".", "..", "~")] or [path]


def last_part(path: str) -> str:
    """A path's last part."""
    return parts(path)[-1]
