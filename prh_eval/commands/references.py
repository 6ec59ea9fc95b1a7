"""``prh-eval references``: what there is, what is wrong with it, building it, moving it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prh_eval.commands.arguments import caption, check_device, not_negative, positive, size
from prh_eval.errors import PrhEvalError

if TYPE_CHECKING:
    from prh_eval.pairs.dataset import PairedDataset
    from prh_eval.schema import Reference
    from prh_eval.store import GraphArtifact

EXIT_FOUND_MISTAKES = 1


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``references`` and its subcommands."""
    parser = commands.add_parser(
        "references", help="list, show, check, build, export and import reference encoders"
    )
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    listing = actions.add_parser("list", help="every reference that is found, and what is built")
    listing.add_argument("--json", action="store_true", help="for machines")
    listing.set_defaults(command=_list)

    show = actions.add_parser("show", help="all about one reference")
    show.add_argument("reference", metavar="REFERENCE", help="name, or path of a YAML file")
    show.add_argument("--json", action="store_true", help="for machines")
    show.set_defaults(command=_show)

    check = actions.add_parser("check", help="say what is wrong with reference files")
    check.add_argument(
        "references", nargs="*", metavar="REFERENCE", help="names or YAML files; by default all"
    )
    check.add_argument(
        "--load",
        action="store_true",
        help="also load the data and the encoder and run it on two items",
    )
    _add_device(check)
    check.set_defaults(command=_check)

    build = actions.add_parser("build", help="make a reference's neighbour graphs and keep them")
    build.add_argument("references", nargs="+", metavar="REFERENCE", help="names or YAML files")
    _add_which(build)
    _add_device(build)
    build.add_argument("--batch-size", type=positive, default=8, help="default: 8")
    build.add_argument(
        "--workers",
        type=not_negative,
        help="threads that decode images; default: a core each, at most 8",
    )
    build.add_argument(
        "--k", type=positive, default=100, help="largest neighbourhood kept; default: 100"
    )
    build.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help="what a search for neighbours may take on its device, as 20GB; default: half of what "
        "is free on a GPU, 4GiB on a CPU",
    )
    build.add_argument("--rebuild", action="store_true", help="build even what is current")
    build.add_argument(
        "--features", type=Path, metavar="FILE", help="also keep the features (.safetensors)"
    )
    build.set_defaults(command=_build)

    export = actions.add_parser("export", help="copy built graphs to a file, to share them")
    export.add_argument("references", nargs="+", metavar="REFERENCE", help="names or YAML files")
    export.add_argument(
        "--output", type=Path, default=Path(), help="a file or folder; default: this folder"
    )
    _add_which(export)
    export.set_defaults(command=_export)

    importer = actions.add_parser("import", help="verify exported graphs and put them in the cache")
    importer.add_argument("files", nargs="+", type=Path, metavar="FILE")
    importer.set_defaults(command=_import)

    schema = actions.add_parser("schema", help="JSON Schema of a reference's YAML, for editors")
    schema.set_defaults(command=_schema)


def _add_which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--protocol", default="paper", help="preprocessing; default: paper")
    parser.add_argument(
        "--caption",
        type=caption,
        default=0,
        help="which caption a language reference reads, or mean; default: 0",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="as cuda:1 or cpu; default: the first GPU, else the CPU")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run code from the encoder's repository where the file asks for it",
    )


# ---------------------------------------------------------------- commands


def _list(arguments: argparse.Namespace) -> int:
    from tabulate import tabulate

    from prh_eval.references.registry import valid_references

    built = _built()
    rows = []
    for path, reference in valid_references().items():
        rows.append(
            {
                "name": reference.name,
                "kind": reference.kind,
                "what it is": reference.description,
                "data": _data(reference),
                "built": ", ".join(
                    _state(reference, each) for each in built.get(reference.name, [])
                ),
                "file": str(path),
            }
        )
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    shown = [{key: value for key, value in row.items() if key != "file"} for row in rows]
    print(tabulate(shown, headers="keys", disable_numparse=True))
    print(
        f"\n{len(rows)} references; each is the task prh_align_<name>. "
        "`prh-eval references show NAME` says more of one."
    )
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from tabulate import tabulate

    from prh_eval.references.registry import found_files, load_reference

    given = arguments.reference
    reference = load_reference(given)
    file = Path(given) if given.endswith(".yaml") else found_files()[given]
    graphs = _built().get(reference.name, [])
    if arguments.json:
        content = reference.model_dump(mode="json")
        print(json.dumps({"file": str(file), "reference": content, "graphs": graphs}, indent=2))
        return 0
    print(f"{reference.name}: {reference.description}\n")
    rows = [("file", str(file)), ("task", f"prh_align_{reference.name}")]
    rows += _flat(reference.model_dump(mode="json", exclude={"name", "description"}))
    print(tabulate(rows, tablefmt="plain", disable_numparse=True))
    if not graphs:
        print(f"\nNot built here yet: `prh-eval references build {reference.name}`")
    for header in graphs:
        print(f"\nBuilt ({_state(reference, header)}): {header['file']}")
        told: dict[str, Any] = {key: header.get(key, {}) for key in ("pairs", "facts", "versions")}
        print(tabulate(_flat(told), tablefmt="plain", disable_numparse=True))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from prh_eval.references.registry import found_files, load_reference, relative_of

    broken = 0
    for given in arguments.references or list(found_files()):
        try:
            reference = load_reference(given)
            relative_of(reference)
            found = _try(reference, arguments) if arguments.load else "valid"
            print(f"ok       {reference.name}: {found}", flush=True)
        except PrhEvalError as error:
            broken += 1
            print(f"mistake  {given}: {error}", flush=True)
    return EXIT_FOUND_MISTAKES if broken else 0


def _try(reference: Reference, arguments: argparse.Namespace) -> str:
    """Load what a reference needs, run it on two items, and say what came out."""
    from prh_eval.references.encode import encode

    pairs = _pairs(reference)
    few = reference.kind in ("vision", "language")
    encoded = encode(
        reference,
        pairs.select(range(min(2, len(pairs)))) if few else pairs,
        device=arguments.device,
        batch_size=2,
        workers=0,
        progress=False,
        trust_remote_code=arguments.trust_remote_code,
    )
    widths = sorted({layer.shape[1] for layer in encoded.layers})
    across = f"width {widths[0]}" if len(widths) == 1 else f"widths {widths[0]} to {widths[-1]}"
    parameters = encoded.facts.get("parameters")
    size = f", {parameters:,} parameters" if parameters else ""
    return f"{len(pairs)} items, {_layers(len(encoded.layers))} of {across}{size}"


def _build(arguments: argparse.Namespace) -> int:
    from prh_eval.alignment.registry import metric
    from prh_eval.processes import processes
    from prh_eval.references.build import reference_features, shared_reference_artifact
    from prh_eval.references.registry import load_reference, relative_of

    if arguments.features is not None:
        if len(arguments.references) > 1:
            raise PrhEvalError("--features names one file, so one reference should be named")
        if arguments.features.suffix != ".safetensors":
            raise PrhEvalError(f"--features {arguments.features} should end in .safetensors")
    references = [load_reference(given) for given in arguments.references]
    for reference in references:
        relative_of(reference)
    check_device(arguments.device)
    with processes(arguments.device) as group:
        for reference in references:
            pairs = _pairs(reference, arguments.caption)
            keep_features = metric(reference.metric).needs == "features"
            artifact = shared_reference_artifact(
                reference,
                pairs,
                protocol=arguments.protocol,
                processes=group,
                k=arguments.k,
                graph_k=arguments.k,
                batch_size=arguments.batch_size,
                workers=arguments.workers,
                trust_remote_code=arguments.trust_remote_code,
                rebuild=arguments.rebuild,
                features=arguments.features,
                keep_features=keep_features,
                memory_bytes=arguments.memory,
            )
            if keep_features and group.first:
                # They are made here only where nothing but the graphs was kept before.
                reference_features(
                    reference,
                    pairs,
                    device=arguments.device,
                    batch_size=arguments.batch_size,
                    workers=arguments.workers,
                    trust_remote_code=arguments.trust_remote_code,
                )
            if artifact is not None:
                print(f"{reference.name}: {_kept(artifact)}")
        if group.first:
            for reference in references:
                _tell_of_relative(reference, arguments)
    return 0


def _tell_of_relative(reference: Reference, arguments: argparse.Namespace) -> None:
    """Say how the near relative of a built reference is built, where it is not."""
    from prh_eval.alignment.registry import HEADLINE
    from prh_eval.references.build import ceiling_artifact

    if reference.metric != HEADLINE or reference.relative is None:
        return
    pairs = _pairs(reference, arguments.caption)
    found = ceiling_artifact(reference, pairs, protocol=arguments.protocol, k=1)
    if found is not None:
        return
    command = f"prh-eval references build {reference.relative}"
    if arguments.protocol != "paper":
        command += f" --protocol {arguments.protocol}"
    if arguments.caption:
        command += f" --caption {arguments.caption}"
    print(
        f"{reference.name}: how well its near relative {reference.relative} agrees with it is a "
        f"ceiling for scores; `{command}` builds that"
    )


def _kept(artifact: GraphArtifact) -> str:
    from prh_eval.references.build import artifact_path

    path, graph = artifact_path(artifact.header), artifact.graph
    kept = f"{path} ({path.stat().st_size / 1e6:.1f} MB)" if path.exists() else "not kept"
    return f"{_layers(graph.layers)}, {graph.n} items, neighbours up to k = {graph.k}: {kept}"


def _export(arguments: argparse.Namespace) -> int:
    from prh_eval.references.registry import load_reference
    from prh_eval.references.transfer import export_artifact

    if len(arguments.references) > 1 and arguments.output.suffix:
        raise PrhEvalError(
            f"--output {arguments.output} is one file, so one reference should be named; a folder "
            "takes several"
        )
    for given in arguments.references:
        reference = load_reference(given)
        written = export_artifact(
            reference,
            _pairs(reference, arguments.caption),
            protocol=arguments.protocol,
            output=arguments.output,
        )
        print(written)
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from prh_eval.references.transfer import import_artifact

    for file in arguments.files:
        print(import_artifact(file))
    return 0


def _schema(_: argparse.Namespace) -> int:
    from prh_eval.schema import REFERENCE

    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **REFERENCE.json_schema()}
    json.dump(schema, sys.stdout, indent=2)
    print()
    return 0


# ---------------------------------------------------------------- what they share


def _pairs(reference: Reference, caption: int | Literal["mean"] = 0) -> PairedDataset:
    from prh_eval.pairs.load import load_pairs

    return load_pairs(reference.pairs, caption=caption)


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"


def _data(reference: Reference) -> str:
    pairs = reference.pairs
    return pairs.name if pairs.kind == "embedded" else pairs.path


def _built() -> dict[str, list[dict[str, Any]]]:
    """The headers of all references' graphs in the cache, by name, each with its file."""
    from prh_eval.artifacts import kept_headers

    found: dict[str, list[dict[str, Any]]] = {}
    for path, header in kept_headers("references"):
        found.setdefault(header["reference"], []).append({**header, "file": str(path)})
    return found


def _state(reference: Reference, header: dict[str, Any]) -> str:
    """On how many items graphs were built, and whether the file has changed since."""
    from prh_eval.references.definition import changes

    changed = changes(reference, header)
    old = f", before {', '.join(changed)} changed" if changed else ""
    return f"n = {header['pairs']['n']}{old}"


def _flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys and values; what is not set is left out."""
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif value is not None and value != "":
            rows.append(
                (prefix + key, json.dumps(value) if isinstance(value, list) else str(value))
            )
    return rows
