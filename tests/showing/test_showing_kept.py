"""The controls of a model whose graphs are kept: of what the cache has, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kept_graphs import features, keep_model
from reference_files import write_numbers

from prh_eval.features.words import shared_bags
from prh_eval.harness.token_bags import TokenBags, keep_tokens
from prh_eval.pairs.load import load_pairs
from prh_eval.references.build import reference_artifact
from prh_eval.references.registry import load_reference
from prh_eval.showing.kept import from_graphs
from prh_eval.showing.text import text
from prh_eval.store import GraphArtifact

N, K = 16, 3
ROWS = np.random.default_rng(0).normal(size=(2, N, 5))


def build(name: str, graph_k: int = 5) -> GraphArtifact:
    pairs = load_pairs(load_reference(name).pairs)
    return reference_artifact(
        load_reference(name), pairs, protocol="paper", k=graph_k, graph_k=graph_k
    )


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GraphArtifact:
    """A reference whose file names a near relative that is not built, and a model beside it."""
    monkeypatch.chdir(tmp_path)
    write_numbers(tmp_path / "references", "one", ROWS[0], relative="other")
    write_numbers(tmp_path / "references", "other", ROWS[1])
    built = build("one")
    keep_model("m", features(2, N, 3), pairs=built.header["pairs"], tokenizer="t")
    return built


@pytest.mark.usefixtures("one")
def test_without_relative_and_tokens_there_are_no_controls() -> None:
    shown = from_graphs("m", "one", k=K, draws=0)
    assert shown.findings.controls == {}
    assert "in result files only" in text(shown)


@pytest.mark.usefixtures("one")
def test_the_ceiling_is_the_score_of_the_relative() -> None:
    build("other", graph_k=2)  # does not answer for k
    assert from_graphs("m", "one", k=K, draws=0).findings.controls == {}
    build("other")
    found = from_graphs("m", "one", k=K, draws=0)
    ceiling = found.findings.controls["ceiling"]
    assert ceiling.name == "other"
    relative, reference = (
        build(name).graph.indices[0, :, :K].tolist() for name in ("other", "one")
    )
    exact = [len(set(a) & set(b)) / K for a, b in zip(relative, reference, strict=True)]
    assert ceiling.score == pytest.approx(np.mean(exact))
    assert "relative of itself: other" in " ".join(text(found).split())
    # A relative whose file is another's now has no current graphs.
    write_numbers(Path("references"), "other", ROWS[1], similarity="euclidean")
    assert from_graphs("m", "one", k=K, draws=0).findings.controls == {}


def test_shared_tokens_are_of_the_tokens_kept(one: GraphArtifact) -> None:
    bags: TokenBags = [[(i % 4, i % 3, 7)] for i in range(N)]
    keep_tokens({"tokenizer": "t", "pairs": one.header["pairs"]}, bags)
    controls = from_graphs("m", "one", k=K, draws=0).findings.controls
    assert list(controls) == ["shared_tokens"]
    assert controls["shared_tokens"].score == shared_bags(bags, one.graph, K) > 0
