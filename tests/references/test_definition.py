"""What of a reference's file decides its graphs, and what does not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from prh_eval.references import definition as room
from prh_eval.references.definition import changes, definition
from prh_eval.schema import REFERENCE

COMMON = {"name": "x", "description": "d", "licence": "l", "citation": "c"}
HUB = {"kind": "hub", "path": "owner/data", "revision": "r"}
ENCODER = {"path": "owner/model", "revision": "r"}
KINDS: dict[str, dict[str, Any]] = {
    "vision": {"encoder": {**ENCODER, "token": "class", "preprocessing": "processor"}},
    "language": {"encoder": {**ENCODER, "pooling": "mean"}},
    "features": {"features": {"path": "/a/f.npz", "names": ["a", "b"]}},
    "values": {"values": {"path": "/a/v.csv", "columns": ["a", "b"]}},
}


def content(kind: str) -> dict[str, Any]:
    return copy.deepcopy({**COMMON, "kind": kind, "pairs": HUB, **KINDS[kind]})


def changed(kind: str, key: str, value: Any, protocol: str = "paper") -> list[str]:
    """The keys that are told to differ once a key of the file has another value."""
    before = content(kind)
    after = copy.deepcopy(before)
    *sections, last = key.split(".")
    section = after
    for name in sections:
        section = section[name]
    section[last] = value
    then = {
        "graph_version": room.GRAPH_VERSION,
        "items": "of the data",
        **definition(REFERENCE.validate_python(before), protocol),
    }
    return changes(REFERENCE.validate_python(after), {"made_from": then})


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("vision", "encoder.path", "owner/other"),
        ("vision", "encoder.revision", "s"),
        ("vision", "encoder.token", "mean"),
        ("vision", "encoder.layers", [0]),
        ("vision", "encoder.norm", "after"),
        ("vision", "encoder.dtype", "float16"),
        ("vision", "encoder.loader", "timm"),
        ("vision", "pairs.path", "owner/other"),
        ("vision", "pairs.revision", "s"),
        ("vision", "pairs.split", "test"),
        ("vision", "pairs.subset", "s"),
        ("vision", "pairs.image_column", "picture"),
        ("language", "encoder.path", "owner/other"),
        ("language", "encoder.prompt", "query: "),
        ("language", "encoder.pooling", "last"),
        ("language", "encoder.max_length", 5),
        ("features", "features.names", ["b", "a"]),
        ("values", "values.columns", ["b"]),
    ],
)
def test_what_decides(kind: str, key: str, value: Any) -> None:
    assert changed(kind, key, value) == [key]


@pytest.mark.parametrize("kind", ["vision", "language", "features"])
def test_similarity_decides_and_with_it_whether_there_is_a_protocol(kind: str) -> None:
    assert changed(kind, "similarity", "euclidean") == ["protocol", "similarity"]


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        *((kind, "description", "other words") for kind in KINDS),
        *((kind, "parameters", 5) for kind in KINDS),
        *((kind, "version", 2) for kind in KINDS),
        *((kind, "metric", "cka") for kind in KINDS),
        *((kind, "relative", "y") for kind in KINDS),
        # The items' own fingerprint tells these.
        *((kind, "pairs.caption_column", "words") for kind in KINDS),
        ("language", "pairs.split", "test"),
        ("features", "pairs.image_column", None),
        # A permission, not a setting; the code itself is of the revision.
        ("vision", "encoder.trust_remote_code", True),
        ("language", "encoder.trust_remote_code", True),
        # What is in these files is looked at instead.
        ("features", "features.path", "/b/f.npz"),
        ("values", "values.path", "/b/v.csv"),
    ],
)
def test_what_does_not_decide(kind: str, key: str, value: Any) -> None:
    assert changed(kind, key, value) == []


def test_folders_of_this_machine_do_not_decide(tmp_path: Path) -> None:
    for kind in ("vision", "language"):
        before, after = content(kind), content(kind)
        before["encoder"]["path"], after["encoder"]["path"] = "/here/model", "/there/model"
        before["pairs"] = {"kind": "imagefolder", "path": "/here/data"}
        after["pairs"] = {"kind": "imagefolder", "path": "/there/data"}
        one, other = (REFERENCE.validate_python(each) for each in (before, after))
        assert definition(one, "paper") == definition(other, "paper")


def test_items_that_are_named_decide_by_their_own_fingerprint() -> None:
    before, after = content("vision"), content("vision")
    before["pairs"] = {"kind": "table", "path": "/a/t.csv", "image_column": "file"}
    after["pairs"] = {**before["pairs"], "id_column": "name"}
    one, other = (REFERENCE.validate_python(each) for each in (before, after))
    assert definition(one, "paper") == definition(other, "paper")


def test_graphs_of_another_version_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = REFERENCE.validate_python(content("features"))
    then = {"graph_version": room.GRAPH_VERSION, **definition(reference, "unclipped")}
    assert changes(reference, {"made_from": then}) == []
    monkeypatch.setattr(room, "GRAPH_VERSION", room.GRAPH_VERSION + 1)
    assert changes(reference, {"made_from": then}) == ["graph_version"]
