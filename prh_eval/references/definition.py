"""What of a reference's file decides its graphs, and whether kept graphs were made from that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prh_eval.alignment.graph import GRAPH_VERSION
from prh_eval.alignment.preprocess import protocol as named_protocol
from prh_eval.hub import is_folder
from prh_eval.schema import (
    FeaturesReference,
    LanguageReference,
    Reference,
    ValuesReference,
    VisionReference,
)


def definition(reference: Reference, protocol: str) -> dict[str, Any]:
    """All of a reference's file that decides its graphs, in JSON values, the items apart.

    Folders of this machine are left out: what is in them is looked at instead.
    """
    euclidean = reference.similarity == "euclidean"
    decisive: dict[str, Any] = {
        "kind": reference.kind,
        "similarity": reference.similarity,
        "protocol": None if euclidean else named_protocol(protocol).name,
    }
    if isinstance(reference, VisionReference):
        decisive["pairs"] = reference.pairs.model_dump(
            mode="json", exclude={"caption_column", "id_column"}
        )
        if reference.pairs.kind != "embedded":
            _drop_folder(decisive["pairs"])
    if isinstance(reference, VisionReference | LanguageReference):
        decisive["encoder"] = reference.encoder.model_dump(
            mode="json", exclude={"trust_remote_code"}
        )
        _drop_folder(decisive["encoder"])
    if isinstance(reference, FeaturesReference):
        decisive["features"] = {"names": reference.features.names}
    if isinstance(reference, ValuesReference):
        values = reference.values
        decisive["values"] = values if isinstance(values, str) else {"columns": values.columns}
    return decisive


def differences(then: Any, now: Any, at: str = "") -> list[str]:
    """The dotted keys at which two nested dicts differ."""
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return [] if then == now else [at or "everything"]
    prefix = f"{at}." if at else ""
    return [
        difference
        for key in sorted({*then, *now})
        for difference in differences(then.get(key), now.get(key), f"{prefix}{key}")
    ]


def _drop_folder(section: dict[str, Any]) -> None:
    if section.get("kind") in ("imagefolder", "table") or is_folder(section["path"]):
        section["path"] = None


def changes(reference: Reference, header: Mapping[str, Any]) -> list[str]:
    """The keys in which a reference's file is not what its kept graphs were made from.

    Files beside it, of images, weights or features, are not looked at.

    Args:
        reference: The file as it is now.
        header: Of graphs of the reference of that name.
    """
    then = header["made_from"]
    now = {
        "graph_version": GRAPH_VERSION,
        **definition(reference, then.get("protocol") or "paper"),
    }
    return differences({key: value for key, value in then.items() if key in now}, now)
