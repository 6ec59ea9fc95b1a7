"""A tiny language model over the colour names, shared by the tests of the harness."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tiny_models import save_model

import prh_eval

COLORS_CSV = Path(prh_eval.__file__).parent / "data" / "xkcd_colors.csv"


@pytest.fixture(scope="session")
def colors() -> dict[str, str]:
    """The survey's names and hex values, in the file's order."""
    with COLORS_CSV.open(encoding="utf-8", newline="") as file:
        return {row["name"]: row["hex"] for row in csv.DictReader(file)}


@pytest.fixture(scope="session")
def model_folder(colors: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved GPT-NeoX of two layers."""
    return save_model(tmp_path_factory.mktemp("model"), colors)
