"""A tiny encoder on a small data set, and what of it was encoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_hub import make_dinov2, make_image_captions, write_reference

from prh_eval.references import build


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder and a small data set."""
    folder = tmp_path_factory.mktemp("hub")
    make_dinov2(folder / "encoder")
    make_image_captions(folder / "data", n=16)
    return folder


@pytest.fixture
def yaml_file(hub: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes tmp_path/tiny.yaml with changes."""

    def write(**changes: Any) -> Path:
        return write_reference(tmp_path / "tiny.yaml", hub / "encoder", hub / "data", **changes)

    return write


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The references that were encoded, in order."""
    encoded: list[str] = []
    encode = build.encode

    def counted(reference: Any, *arguments: Any, **options: Any) -> Any:
        encoded.append(reference.name)
        return encode(reference, *arguments, **options)

    monkeypatch.setattr(build, "encode", counted)
    return encoded
