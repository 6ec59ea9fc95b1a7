"""A reference's near relative: whether its file names a fitting one, and its graphs if they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference_files import write_numbers

from prh_eval.errors import PrhEvalError
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.pairs.load import load_pairs
from prh_eval.references.build import ceiling_artifact, reference_artifact
from prh_eval.references.registry import load_reference, relative_of
from prh_eval.store import GraphArtifact

N = 16


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a reference ``one`` and its near relative ``other``."""
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(2, N, 5))
    write_numbers(tmp_path / "references", "one", rows[0], relative="other")
    write_numbers(tmp_path / "references", "other", rows[1])
    return tmp_path


def pairs() -> PairedDataset:
    return load_pairs(load_reference("one").pairs)


def ceiling(protocol: str = "paper", k: int = 10) -> GraphArtifact | None:
    return ceiling_artifact(load_reference("one"), pairs(), protocol=protocol, k=k)


def test_graphs_that_are_there_are_found_and_none_are_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = reference_artifact(load_reference("other"), pairs(), protocol="paper", graph_k=5, k=5)
    monkeypatch.setattr("prh_eval.references.build.encode", lambda *_: 1 / 0)
    found = ceiling(k=5)
    assert found is not None
    assert found.graph.indices.equal(built.graph.indices)
    assert found.header["reference"] == "other"
    assert ceiling(k=6) is None
    assert ceiling("unclipped", k=5) is None
    fewer = pairs().select(range(N - 1))
    assert ceiling_artifact(load_reference("one"), fewer, protocol="paper", k=5) is None
    # Of one whose file names none there is nothing to find.
    assert ceiling_artifact(load_reference("other"), pairs(), protocol="paper", k=5) is None


def test_a_k_beyond_the_items_is_as_many_as_there_are() -> None:
    reference_artifact(load_reference("other"), pairs(), protocol="paper")
    assert ceiling(k=500) is not None


def test_graphs_that_are_no_longer_current_are_not_taken(working_folder: Path) -> None:
    reference_artifact(load_reference("other"), pairs(), protocol="paper")
    write_numbers(working_folder / "references", "other", np.eye(N))
    assert ceiling() is None


def test_a_file_names_another_reference_on_the_same_pairs(working_folder: Path) -> None:
    folder = working_folder / "references"
    assert relative_of(load_reference("one")) == load_reference("other")
    assert relative_of(load_reference("other")) is None
    write_numbers(folder, "one", np.eye(N), relative="othr")
    with pytest.raises(PrhEvalError) as error:
        ceiling()
    assert str(error.value).startswith(
        "the key 'relative' of one: unknown reference 'othr'; did you mean 'other'?"
    )
    write_numbers(folder, "one", np.eye(N), relative="cielab")
    with pytest.raises(PrhEvalError, match="of one is 'cielab', which is on other pairs; it sho"):
        ceiling()
    path = write_numbers(folder, "one", np.eye(N), relative="one")
    with pytest.raises(PrhEvalError, match="relative should name another reference than this one"):
        load_reference(path)
