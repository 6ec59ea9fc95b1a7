"""What all tests share: no network, no clock, a cache folder of their own, one thread."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before anything imports a hub client.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torchvision_operators
from hypothesis import settings

torchvision_operators.declare()

# Drawn inputs are judged by what comes out, never by the time it takes.
settings.register_profile("prh_eval", deadline=None)
settings.load_profile("prh_eval")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh cache folder, so that no test sees what another one built, and no references more."""
    monkeypatch.delenv("PRH_EVAL_REFERENCES", raising=False)
    folder = tmp_path / "cache"
    monkeypatch.setenv("PRH_EVAL_CACHE", str(folder))
    return folder
