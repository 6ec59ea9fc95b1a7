"""Finding neighbour graphs in the cache, by the names of what they are of and by what they fit."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prh_eval import store
from prh_eval.alignment.graph import GRAPH_VERSION
from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.resources import cache_folder
from prh_eval.store import ArtifactError

logger = logging.getLogger(__name__)

# What makes a model another one, in the order in which a person should be told of it.
MODEL_IDENTITY = (
    *("model", "revision", "commit", "peft", "delta", "dtype", "mixed_precision"),
    *("max_length", "add_bos_token", "model_class", "tokenizer", "weights"),
)
_FINGERPRINTS = ("commit", "tokenizer", "weights")


class Kept(NamedTuple):
    """A file of neighbour graphs and what its header says; the graphs themselves are unread."""

    path: Path
    header: dict[str, Any]

    @property
    def name(self) -> str:
        """The reference's name, or the model's as it was given to lm-eval."""
        return name_of(self.header)


def kept_headers(folder: Literal["references", "models"]) -> list[Kept]:
    """All graphs of one folder of the cache, sorted by file; those that are no use are one warning.

    Only headers are read, so that damage to the graphs themselves shows when they are.

    Args:
        folder: Whose graphs.
    """
    found, broken = [], []
    for path in sorted((cache_folder() / folder).glob(f"*{store.SUFFIX}")):
        try:
            found.append(Kept(path, read_header(path)))
        except ArtifactError as error:
            broken.append(str(error))
    if broken:
        logger.warning(
            "%d of the files in the cache cannot be used: %s", len(broken), "; ".join(broken)
        )
    return found


def read_header(path: Path) -> dict[str, Any]:
    """The header of an artifact; a small part of the file is read.

    Raises:
        ArtifactError: If the file is missing, is no artifact, or is of another version.
    """
    metadata = store.read_metadata(path)
    try:
        header = json.loads(metadata["header"])
        pairs = header["pairs"]
        whole = {"name", "n", "items", "captions"} <= set(pairs) and name_of(header)
        if not (whole and isinstance(header["kind"], str)):
            raise KeyError("pairs")
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} does not say what it is of, or on which data") from error
    version = header.get("made_from", header).get("graph_version", GRAPH_VERSION)
    if version != GRAPH_VERSION:
        raise ArtifactError(
            f"{path} has graphs of version {version}, and this version of prh_eval makes and reads "
            f"version {GRAPH_VERSION}"
        )
    return dict(header)


def name_of(header: Mapping[str, Any]) -> str:
    """The reference's name, or the model's as it was given to lm-eval.

    Raises:
        KeyError: If the header says neither.
    """
    return str(header["reference"] if "reference" in header else header["model"])


def protocol_of(header: Mapping[str, Any]) -> str | None:
    """The preprocessing protocol; None where values are compared as they are."""
    protocol: str | None = header.get("made_from", header).get("protocol")
    return protocol


def captions_of(header: Mapping[str, Any]) -> str | None:
    """Fingerprint of the captions that made the graphs; None where images or values made them."""
    reads = header["kind"] in ("language model", "language")
    return str(header["pairs"]["captions"]) if reads else None


def same_data(x: Mapping[str, Any], y: Mapping[str, Any]) -> bool:
    """Whether two graphs are of the same items and, where both are made of captions, of the same.

    Args:
        x: Header of one.
        y: Header of the other.
    """
    captions = {captions_of(x), captions_of(y)} - {None}
    return x["pairs"]["items"] == y["pairs"]["items"] and len(captions) < 2


def data_of(header: Mapping[str, Any]) -> str:
    """On which data graphs were made, for a sentence; captions only where they matter."""
    pairs, captions = header["pairs"], captions_of(header)
    read = f", captions {captions[:8]}" if captions else ""
    return f"{pairs['name']} ({pairs['n']} items {pairs['items'][:8]}{read})"


def different_data(
    x: str, x_headers: Iterable[Mapping[str, Any]], y: str, y_headers: Iterable[Mapping[str, Any]]
) -> str:
    """The sentence on two that cannot be compared: their names, and the headers of their graphs."""
    return (
        f"{x} and {y} are not of the same data: {x} is on {_list_data(x_headers)} and {y} on "
        f"{_list_data(y_headers)}"
    )


def models_named(models: Iterable[Kept], name: str) -> list[Kept]:
    """The graphs of one model.

    Args:
        models: Graphs of models.
        name: The model as it was given to lm-eval, or the last part of its path.

    Returns:
        Its graphs; none if there are none.

    Raises:
        PrhEvalError: If several models' names end in this one.
    """
    models = list(models)
    whole = [kept for kept in models if kept.name == name]
    if whole:
        return whole
    ends = [kept for kept in models if _last_part(kept.name) == name]
    names = sorted({kept.name for kept in ends})
    if len(names) > 1:
        raise PrhEvalError(
            f"{name!r} is the last part of the names of {len(names)} models, {', '.join(names)}; "
            "one should be named in full"
        )
    return ends


def short_names(kept: Iterable[Kept]) -> set[str]:
    """The shortest names that graphs can be called by: last parts where they tell models apart."""
    names = {each.name for each in kept}
    parts = Counter(map(_last_part, names))
    return {_last_part(name) if parts[_last_part(name)] == 1 else name for name in names}


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def largest(kept: Iterable[Kept]) -> list[Kept]:
    """Of graphs that differ in the neighbourhood sizes they answer for only, the largest."""
    best: dict[tuple[Any, ...], Kept] = {}
    for each in kept:
        header = each.header
        fields = (*MODEL_IDENTITY, "reference", "pooling", "pairs")
        same = (*(str(header.get(field)) for field in fields), protocol_of(header))
        if same not in best or _graph_k(each) > _graph_k(best[same]):
            best[same] = each
    return list(best.values())


def _graph_k(kept: Kept) -> int:
    return int(kept.header.get("graph_k", 0))


# ---------------------------------------------------------------- choosing by name


def choose(names: Sequence[str], protocol: str = "paper") -> list[Kept]:
    """The graphs that several names mean and that can be compared with each other.

    Args:
        names: Each a reference's name, a model's name or the path of an artifact.
        protocol: Which preprocessing, where graphs of several are kept.

    Returns:
        A file of graphs for each name.

    Raises:
        PrhEvalError: If a name has no graphs, no graphs are of the same data, or more than one
            choice is left; the sentence says what there is and what to name instead.
    """
    references, models = kept_headers("references"), kept_headers("models")
    candidates = [_candidates(name, references, models, protocol) for name in names]
    viable = _viable(candidates)
    if not viable:
        raise _no_common_data(names, candidates)
    if len(viable) > 1:
        raise _several_data(names, candidates, viable)
    chosen = [_only(name, fits) for name, fits in zip(names, viable[0], strict=True)]
    for name, kept in zip(names, chosen, strict=True):
        if not name.endswith(store.SUFFIX) and "reference" in kept.header:
            _check_current(name, kept)
    return chosen


def _check_current(given: str, kept: Kept) -> None:
    """Refuse graphs of a reference whose file has changed since; without a file they stand."""
    from prh_eval.references.definition import changes
    from prh_eval.references.registry import found_files, load_reference

    file = Path(given) if given.endswith(".yaml") else found_files().get(kept.name)
    if file is not None and file.is_file():
        changed = changes(load_reference(file), kept.header)
        if changed:
            raise PrhEvalError(
                f"the file of the reference {kept.name!r} has changed since its graphs were built: "
                f"{', '.join(changed)}; `prh-eval references build {kept.name}` builds them anew"
            )


def _candidates(
    name: str, references: Sequence[Kept], models: Sequence[Kept], protocol: str
) -> list[Kept]:
    if name.endswith(store.SUFFIX):
        path = Path(name).expanduser()
        if not path.is_file():
            raise PrhEvalError(f"there is no artifact {name!r}")
        return [Kept(path, read_header(path))]
    plain = Path(name).stem if name.endswith(".yaml") else name
    by_kind = [kept for kept in references if kept.name == plain], models_named(models, name)
    if all(by_kind):
        raise PrhEvalError(
            f"{name!r} is both a reference and a model; one of their files should be named: "
            f"{', '.join(str(kept.path) for group in by_kind for kept in group)}"
        )
    found = [*by_kind[0], *by_kind[1]]
    fits = [kept for kept in found if protocol_of(kept.header) in (protocol, None)]
    if not fits:
        raise _nothing_of(plain, found, [*references, *models], protocol)
    return fits


def _nothing_of(
    name: str, of_others: Sequence[Kept], kept: Sequence[Kept], protocol: str
) -> PrhEvalError:
    others = sorted({str(protocol_of(each.header)) for each in of_others})
    if others:
        return PrhEvalError(
            f"the graphs of {name!r} in the cache are of the protocol {' and '.join(others)}, not "
            f"of {protocol!r}; --protocol should be one of them, or {name!r} be run with it"
        )
    from prh_eval.references.registry import reference_names  # pydantic, for this sentence only

    if name in reference_names():
        return PrhEvalError(
            f"the reference {name!r} has no graphs in the cache yet; "
            f"`prh-eval references build {name}` builds them"
        )
    known = short_names(kept)
    there = suggestion(name, known) if known else "there are none of anything yet"
    return PrhEvalError(f"there are no graphs of {name!r} in the cache {cache_folder()}; {there}")


def _viable(candidates: Sequence[Sequence[Kept]]) -> list[list[list[Kept]]]:
    """For each data that all names have graphs of: each name's graphs of it."""
    every = [kept.header for group in candidates for kept in group]
    data = {(header["pairs"]["items"], captions_of(header)) for header in every}
    found: dict[tuple[Path, ...], list[list[Kept]]] = {}
    for items, captions in sorted(data, key=str):
        fits = [
            [
                kept
                for kept in group
                if kept.header["pairs"]["items"] == items
                and captions_of(kept.header) in (captions, None)
            ]
            for group in candidates
        ]
        if all(fits):
            found[tuple(kept.path for group in fits for kept in group)] = fits
    return list(found.values())


def _no_common_data(names: Sequence[str], candidates: Sequence[Sequence[Kept]]) -> PrhEvalError:
    headers = {
        name: [kept.header for kept in group] for name, group in zip(names, candidates, strict=True)
    }
    for x, y in itertools.combinations(names, 2):
        if not any(same_data(a, b) for a in headers[x] for b in headers[y]):
            return PrhEvalError(different_data(x, headers[x], y, headers[y]))
    on = "; ".join(f"{name} on {_list_data(headers[name])}" for name in names)
    return PrhEvalError(f"there is no data that all of these have graphs of: {on}")


def _list_data(headers: Iterable[Mapping[str, Any]]) -> str:
    return " and ".join(sorted({data_of(header) for header in headers}))


def _several_data(
    names: Sequence[str], candidates: Sequence[Sequence[Kept]], viable: Sequence[list[list[Kept]]]
) -> PrhEvalError:
    # The first name whose graphs tell the choices apart.
    position = next(
        place
        for place in range(len(names))
        if len({tuple(kept.path for kept in fits[place]) for fits in viable}) > 1
    )
    files = "; ".join(
        f"{data_of(kept.header)}: {kept.path}" for kept in largest(candidates[position])
    )
    return PrhEvalError(
        f"these names have graphs of {len(viable)} data in common; in place of {names[position]!r} "
        f"one of its files should be named, which decides for all: {files}"
    )


def _only(name: str, fits: Sequence[Kept]) -> Kept:
    fits = largest(fits)
    if len(fits) == 1:
        return fits[0]
    differing = [
        field
        for field in (*MODEL_IDENTITY, "pooling")
        if len({str(kept.header.get(field)) for kept in fits}) > 1
    ]
    # Fingerprints tell a person nothing that other fields do not, unless only they differ.
    told = [field for field in differing if field not in _FINGERPRINTS] or differing
    files = "; ".join(
        ", ".join(f"{field} {str(kept.header.get(field))[:40]}" for field in told)
        + f": {kept.path}"
        for kept in fits
    )
    raise PrhEvalError(
        f"{name!r} has {len(fits)} graphs that fit; in its place one of their files should be "
        f"named: {files}"
    )
