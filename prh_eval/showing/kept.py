"""Alignments made anew from the neighbour graphs of a model and of references in the cache."""

from __future__ import annotations

from pathlib import Path

from prh_eval import store
from prh_eval.alignment.preprocess import protocol as named_protocol
from prh_eval.alignment.registry import HEADLINE
from prh_eval.alignment.report import report
from prh_eval.artifacts import (
    Kept,
    choose,
    kept_headers,
    largest,
    models_named,
    protocol_of,
    read_header,
    same_data,
    short_names,
)
from prh_eval.controls import scored_controls
from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.findings import Findings
from prh_eval.harness.token_bags import kept_tokens
from prh_eval.recording import report_record
from prh_eval.references.definition import changes
from prh_eval.references.registry import found_files, load_reference, relative_of
from prh_eval.resources import cache_folder
from prh_eval.showing.read import CACHE, Shown
from prh_eval.store import GraphArtifact, read_artifact

DEFAULT_K = 10


def fitting_references(name: str, protocol: str = "paper") -> list[str]:
    """The names of built references of the same data as one of a model's graphs.

    Args:
        name: The model as it was given to lm-eval, the last part of its path, or the path of a
            file of its graphs.
        protocol: Preprocessing of the graphs, where graphs of several are kept.

    Returns:
        At least one, sorted.

    Raises:
        PrhEvalError: If there is no such model, several models fit, or no reference does.
    """
    named_protocol(protocol)
    models, built = _graphs_of(name), kept_headers("references")
    names = {
        kept.name
        for kept in built
        if protocol_of(kept.header) in (protocol, None)
        and any(same_data(kept.header, model.header) for model in models)
    }
    if not names:
        there = ", ".join(sorted({kept.name for kept in built})) or "none"
        raise PrhEvalError(
            f"no reference is built on the data that {name!r} was run on (built: {there}); "
            "`prh-eval references build NAME` builds one"
        )
    return sorted(names)


def from_graphs(
    name: str,
    reference: str,
    *,
    k: int | None = None,
    protocol: str = "paper",
    draws: int | None = None,
) -> Shown:
    """The alignment of a model in the cache with a reference, from what is kept of both.

    Args:
        name: The model, as `fitting_references` takes it.
        reference: Name of a built reference.
        k: Neighbourhood size; None: 10.
        protocol: Preprocessing of the graphs, where graphs of several are kept.
        draws: Number of permutations, as :func:`prh_eval.alignment.report.report` takes it.

    Raises:
        PrhEvalError: If there is no such model or reference, several fit, the graphs do not
            answer for k, or the reference's file names a relative that there is not.
    """
    named_protocol(protocol)
    _graphs_of(name)
    k = k or DEFAULT_K
    chosen = choose([name, reference], protocol)
    model, other = (read_artifact(kept.path) for kept in chosen)
    for kept, graph in zip(chosen, (model.graph, other.graph), strict=True):
        if not 1 <= k <= graph.k:
            raise PrhEvalError(
                f"k = {k} should be from 1 to {graph.k}, the largest neighbourhood that the graph "
                f"of {kept.name} answers for"
            )
    record = report_record(report(model.graph, other.graph, k, draws=draws))
    about = {
        "metric": HEADLINE,
        "protocol": protocol_of(model.header) or model.header.get("protocol"),
        "pooling": model.header.get("pooling"),
        "pairs": model.header["pairs"],
        "reference": other.header,
        "model": model.header,
        # Those that need neither captions nor the model itself.
        "controls": scored_controls(
            other.graph,
            k,
            tokens=kept_tokens(model.header) if "tokenizer" in model.header else None,
            relative=_relative(other, k),
        ),
    }
    return Shown(Findings.model_validate(record | about), CACHE)


def _relative(reference: GraphArtifact, k: int) -> GraphArtifact | None:
    """Current graphs of the reference's near relative on the same data, if the cache has them."""
    file = found_files().get(reference.header["reference"])
    relative = relative_of(load_reference(file)) if file is not None else None
    if relative is None:
        return None
    fits = largest(
        kept
        for kept in kept_headers("references")
        if kept.name == relative.name
        and protocol_of(kept.header) == protocol_of(reference.header)
        and same_data(kept.header, reference.header)
        and not changes(relative, kept.header)
    )
    found = [each for each in map(read_artifact, (kept.path for kept in fits)) if each.graph.k >= k]
    return found[0] if len(found) == 1 else None


def _graphs_of(name: str) -> list[Kept]:
    if name.endswith(store.SUFFIX):
        path = Path(name).expanduser()
        if not path.is_file():
            raise PrhEvalError(f"there is no file {name!r}")
        return [Kept(path, read_header(path))]
    models = kept_headers("models")
    found = models_named(models, name)
    if not found:
        known = short_names(models)
        there = suggestion(name, known) if known else f"none is in the cache {cache_folder()} yet"
        raise PrhEvalError(
            f"{name!r} is neither a file or folder of results nor a model whose graphs are in the "
            f"cache; {there}"
        )
    return found
