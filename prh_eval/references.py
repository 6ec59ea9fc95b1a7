"""References: what a language model is aligned with, one YAML file each, and their graphs."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictStr, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from torch import Tensor

from prh_eval import __version__, resources, store
from prh_eval.alignment.graph import GRAPH_VERSION
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.alignment.preprocess import preprocess, validate_features
from prh_eval.alignment.preprocess import protocol as named_protocol
from prh_eval.colors import cielab
from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.features.vision import (
    DType,
    Norm,
    Preprocessing,
    Token,
    load_vision_model,
    vision_features,
)
from prh_eval.hub import folder_fingerprint
from prh_eval.pairs import PairedDataset, PairsSpec
from prh_eval.store import ArtifactError, GraphArtifact, fingerprint

logger = logging.getLogger(__name__)

_VERSIONED = ("torch", "transformers", "datasets", "pillow")


class Encoder(BaseModel):
    """An image encoder, how its layers are read and how its input is prepared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: StrictStr = Field(min_length=1, description="hub id, or a local folder")
    revision: StrictStr | None = Field(None, description="branch, tag or commit")
    loader: Literal["transformers"] = Field("transformers", description="library that loads it")
    dtype: DType = Field("float32", description="what it computes in; features are float32")
    layers: Literal["blocks"] = Field("blocks", description="blocks: the output of every block")
    token: Token = Field(description="class: the class token; mean: the mean of the patch tokens")
    norm: Norm = Field("before", description="whether the last block is read before the final norm")
    preprocessing: Preprocessing


class _Common(BaseModel):
    """What all kinds of reference have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: StrictStr = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="the file's name without .yaml"
    )
    description: StrictStr = Field(description="one line")
    pairs: PairsSpec = Field(description="the paired data it is used on")
    licence: StrictStr = Field(description="licence of the encoder or values (SPDX where there is)")
    citation: StrictStr = Field(description="whom to cite")
    family: StrictStr | None = Field(None, description="which encoders it is a sibling of")
    parameters: int | None = Field(None, gt=0, description="number of parameters")


class VisionReference(_Common):
    """An image encoder on the images of paired data."""

    kind: Literal["vision"]
    encoder: Encoder
    similarity: Literal["cosine"] = Field("cosine", description="how neighbours are ranked")


class ValuesReference(_Common):
    """Known values of each item, compared as they are: neither clipped nor normalised."""

    kind: Literal["values"]
    values: Literal["cielab"] = Field(description="cielab: CIELAB (D65) of the items' colours")
    similarity: Literal["euclidean"] = Field("euclidean", description="how neighbours are ranked")


Reference = VisionReference | ValuesReference

_SCHEMA: TypeAdapter[Reference] = TypeAdapter(Annotated[Reference, Field(discriminator="kind")])


def reference_names() -> list[str]:
    """The names of all references that come with the package, sorted."""
    return sorted(path.stem for path in resources.folder("references").glob("*.yaml"))


def load_reference(name_or_path: str | Path) -> Reference:
    """Read and validate a reference.

    Args:
        name_or_path: A name from :func:`reference_names`, or a path that ends in ``.yaml``. Paths
            within the file that start with ``./`` or ``../`` are relative to it.

    Returns:
        The reference; a :class:`VisionReference` or a :class:`ValuesReference`.

    Raises:
        PrhEvalError: If there is no such reference, or the file has a mistake; the sentence says
            where and what would be right.
    """
    given = str(name_or_path)
    if given.endswith((".yaml", ".yml")):
        path = Path(given).expanduser()
        if not path.is_file():
            raise PrhEvalError(f"there is no reference file {given!r}")
    else:
        names = reference_names()
        if given not in names:
            raise PrhEvalError(f"unknown reference {given!r}; {suggestion(given, names)}")
        path = resources.folder("references") / f"{given}.yaml"
    content = {"name": path.stem, **_read_yaml(path)}
    for section in ("pairs", "encoder"):
        _resolve(content.get(section), path.parent)
    try:
        reference = _SCHEMA.validate_python(content)
    except ValidationError as error:
        raise PrhEvalError(f"{path}: {_mistake(error)}") from None
    if reference.name != path.stem:
        raise PrhEvalError(
            f"{path}: the key 'name' is {reference.name!r}; it should be left out or be the file's "
            f"name, {path.stem!r}"
        )
    return reference


def reference_artifact(
    reference: Reference,
    pairs: PairedDataset,
    *,
    protocol: str,
    graph_k: int = 100,
    device: torch.device | str | None = None,
    batch_size: int = 8,
    progress: bool = True,
) -> GraphArtifact:
    """The neighbour graphs of a reference on paired data: from the cache, or built and kept there.

    A cached artifact needs the captions only: no images and no encoder. It is built anew, and the
    reason logged, if it is missing, cut short, edited, or anything that made it has changed.
    Among several processes one builds and the others wait.

    Args:
        reference: What to build.
        pairs: The items.
        protocol: Name of the preprocessing protocol; reference values are taken as they are.
        graph_k: Largest neighbourhood size to answer for; at most n - 1 are kept.
        device: Where the encoder computes; by default the first GPU, else the CPU.
        batch_size: Images at once; halved when memory runs out.
        progress: Whether to show a progress bar.

    Returns:
        The graphs of all layers, with a header of everything that made them: ``made_from`` and
        ``evidence`` decide whether it is current, ``versions`` are recorded only.

    Raises:
        PrhEvalError: If the encoder cannot be loaded, an image cannot be read, or the pairs have
            no images or target values.
    """
    k = min(graph_k, len(pairs) - 1)
    header = _header(reference, pairs, protocol, k)
    # What a run chooses is in the file's name; what makes a file stale is in its header.
    chosen = fingerprint([pairs.items_fingerprint, header["made_from"]["protocol"], k])[:16]
    path = store.cache_folder() / "references" / f"{reference.name}-{chosen}{store.SUFFIX}"
    artifact, reason = _cached(path, header)
    if artifact is not None:
        return artifact
    with ExitStack() as stack:
        try:
            stack.enter_context(store.locked(path))
        except OSError as error:
            store.warn_unwritable(path, error)
        else:
            # Another process may have built it while this one waited.
            artifact, reason = _cached(path, header)
            if artifact is not None:
                return artifact
        logger.info("building the reference %s: %s", reference.name, reason)
        started = time.monotonic()
        features: Sequence[Tensor]
        if isinstance(reference, VisionReference):
            features, commit = _encode(reference, pairs, device, batch_size, progress)
            header["evidence"]["encoder"] = header["evidence"]["encoder"] or commit
        else:
            features = _values(reference, pairs)
        validate_features(features, k=1, name=f"the features of the reference {reference.name}")
        if isinstance(reference, VisionReference):
            features = preprocess(features, named_protocol(protocol))
        graph = neighbor_graph(features, k, similarity=reference.similarity)
        artifact = GraphArtifact(graph, header)
        if store.save_artifact(path, artifact):
            seconds = time.monotonic() - started
            logger.info("built the reference %s in %.0f s: %s", reference.name, seconds, path)
    return artifact


def _encode(
    reference: VisionReference,
    pairs: PairedDataset,
    device: torch.device | str | None,
    batch_size: int,
    progress: bool,
) -> tuple[list[Tensor], str | None]:
    """One tensor (n, width) for each block, and the encoder's commit where the hub named one."""
    if pairs.images is None:
        raise PrhEvalError(
            f"the reference {reference.name} needs images and {pairs.name} has none; "
            "'pairs.image_column' should name a column of images"
        )
    encoder = reference.encoder
    model = load_vision_model(encoder.path, revision=encoder.revision, dtype=encoder.dtype)
    features = vision_features(
        model,
        pairs.images,
        preprocessing=encoder.preprocessing,
        token=encoder.token,
        norm=encoder.norm,
        batch_size=batch_size,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        progress=progress,
    )
    return features, getattr(model.config, "_commit_hash", None)


def _values(reference: ValuesReference, pairs: PairedDataset) -> list[Tensor]:
    """One tensor (n, width): a single layer."""
    if pairs.targets is None:
        raise PrhEvalError(
            f"the reference {reference.name} needs items with colours and {pairs.name} has none; "
            "'pairs' should be {kind: embedded, name: xkcd_colors}"
        )
    return [cielab(pairs.targets)]


def _header(reference: Reference, pairs: PairedDataset, protocol: str, k: int) -> dict[str, Any]:
    """Everything that makes the reference's graphs on these pairs, in JSON values."""
    made_from: dict[str, Any] = {
        "graph_version": GRAPH_VERSION,
        "items": pairs.items_fingerprint,
        "n": len(pairs),
        "k": k,
        "similarity": reference.similarity,
    }
    evidence: dict[str, Any] = {}
    if isinstance(reference, VisionReference):
        made_from["encoder"] = reference.encoder.model_dump(mode="json")
        made_from["protocol"] = named_protocol(protocol).name
        made_from["pairs"] = reference.pairs.model_dump(mode="json", exclude={"caption_column"})
        # A commit names the images and a revision the weights; folders have to be looked at.
        images = pairs.images.fingerprint if pairs.images and not pairs.commit else None
        weights = folder_fingerprint(reference.encoder.path)
        evidence = {"commit": pairs.commit, "images": images, "encoder": weights}
    else:
        made_from["values"] = reference.values
        made_from["protocol"] = None
    return {
        "reference": reference.name,
        "kind": reference.kind,
        "made_from": made_from,
        "evidence": evidence,
        "versions": {"prh_eval": __version__, **{name: version(name) for name in _VERSIONED}},
    }


def _cached(path: Path, header: Mapping[str, Any]) -> tuple[GraphArtifact | None, str]:
    """The cached artifact, if it is whole and current; otherwise why it is not."""
    if not path.exists():
        return None, "it is not in the cache yet"
    try:
        artifact = store.read_artifact(path)
    except ArtifactError as error:
        return None, str(error)
    changed = _differences(artifact.header.get("made_from"), header["made_from"])
    for name, now in header["evidence"].items():
        then = artifact.header.get("evidence", {}).get(name)
        # Offline, or where only captions are at hand, one of the two is not known.
        if None not in (then, now) and then != now:
            changed.append(name)
    if changed:
        return None, f"changed since it was built: {', '.join(changed)}"
    return artifact, ""


def _differences(then: Any, now: Any, at: str = "") -> list[str]:
    """The dotted keys at which two nested dicts differ."""
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return [] if then == now else [at or "everything"]
    prefix = f"{at}." if at else ""
    return [
        difference
        for key in sorted({*then, *now})
        for difference in _differences(then.get(key), now.get(key), f"{prefix}{key}")
    ]


class _Loader(yaml.SafeLoader):
    """The safe loader, without its silent preference for the last of two equal keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands there twice",
                    problem_mark=node.value[position][0].start_mark,
                )
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise PrhEvalError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise PrhEvalError(f"{path}{line}: this is not YAML that can be read: {problem}") from None
    if not isinstance(content, dict):
        raise PrhEvalError(f"{path} should hold keys and values, as 'kind: vision'")
    return content


def _resolve(section: Any, folder: Path) -> None:
    """Make a path that starts with ./ or ../ relative to the file that says it."""
    if isinstance(section, dict) and isinstance(section.get("path"), str):
        path = section["path"]
        if path.startswith(("./", "../")):
            section["path"] = str((folder / path).resolve())


def _mistake(error: ValidationError) -> str:
    """One sentence about the first mistake in a file."""
    # A mistyped key is unknown and its right name is missing: the former says what to mend.
    details = sorted(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    count = f" (the first of {len(details)} mistakes)" if len(details) > 1 else ""
    return _sentence(details[0]) + count


def _sentence(mistake: ErrorDetails) -> str:
    key, model, kinds = _place(mistake["loc"])
    given = mistake["input"]
    match mistake["type"]:
        case "missing":
            return f"the key {key!r} is missing"
        case "extra_forbidden":
            name = key.rpartition(".")[2]
            return f"unknown key {key!r}; {suggestion(name, model.model_fields)}"
        case "union_tag_not_found":
            return f"the key {_kind_key(key)!r} is missing; it should be one of {', '.join(kinds)}"
        case "union_tag_invalid":
            tag = mistake["ctx"]["tag"]
            return f"the key {_kind_key(key)!r} is {tag!r}; {suggestion(tag, kinds)}"
        case "literal_error":
            valid = re.findall(r"'([^']+)'", mistake["ctx"]["expected"])
            return f"the key {key!r} is {given!r}; {suggestion(str(given), valid)}"
    message = mistake["msg"].removeprefix("Value error, ")
    return f"the key {key!r} is {given!r}; {message[:1].lower()}{message[1:]}"


def _kind_key(key: str) -> str:
    return f"{key}.kind" if key else "kind"


def _place(location: Sequence[str | int]) -> tuple[str, type[BaseModel], list[str]]:
    """Where pydantic found a mistake: the dotted key, the model it is in, the kinds it may be.

    Pydantic's location also holds the kind by which it chose a model; a file has no such key.
    """
    keys: list[str] = []
    model: type[BaseModel] = _Common
    choices: dict[str, type[BaseModel]] = {_kind(each): each for each in get_args(Reference)}
    for part in location:
        if part in choices:
            model, choices = choices[str(part)], {}
            continue
        keys.append(str(part))
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        models = [
            each
            for each in get_args(annotation) or (annotation,)
            if isinstance(each, type) and issubclass(each, BaseModel)
        ]
        if len(models) == 1:
            model, choices = models[0], {}
        else:
            choices = {_kind(each): each for each in models}
    return ".".join(keys), model, list(choices)


def _kind(model: type[BaseModel]) -> str:
    kind: str = get_args(model.model_fields["kind"].annotation)[0]
    return kind
