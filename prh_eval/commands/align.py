"""``prh-eval align``: from the features in two files to their alignment, at any size."""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prh_eval.commands.arguments import check_device, folder, not_negative, positive, size
from prh_eval.errors import PrhEvalError

if TYPE_CHECKING:
    import torch

    from prh_eval.aligning import Side
    from prh_eval.alignment.report import Report


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``align``."""
    parser = commands.add_parser(
        "align",
        help="the alignment of two models from their features in files, up to millions of items",
        description="Scores every pair of layers and takes the best. X and Y are files of "
        "features, a row an item, in the same order: .safetensors, .npy, .npz or .pt with tensors "
        "(items, width), one a layer, or (items, layers, width); or files of graphs that prh_eval "
        "made. The neighbour graphs of each are kept, so that a run that is stopped goes on at the "
        "layer it reached, and X with another Y is made once. torchrun and accelerate launch share "
        "the work among GPUs and machines. How to run a million items: docs/large-n.md.",
    )
    parser.add_argument("x", metavar="X", help="the model")
    parser.add_argument("y", metavar="Y", help="what it is compared with")
    parser.add_argument("--k", type=positive, default=10, help="neighbourhood size; default: 10")
    parser.add_argument(
        "--graph-k",
        type=positive,
        metavar="K",
        help="largest neighbourhood that the kept graphs will answer for; default: that of --k",
    )
    parser.add_argument(
        "--draws",
        type=not_negative,
        help="random re-pairings of the items that tell what chance can do; default: 1000, or none "
        "where there are more than 20,000 items",
    )
    parser.add_argument(
        "--protocol",
        default="paper",
        help="preprocessing: paper, paper_loose or unclipped; default: paper",
    )
    for option, of in (("--similarity", "both"), ("--x-similarity", "X"), ("--y-similarity", "Y")):
        parser.add_argument(
            option,
            choices=("cosine", "euclidean"),
            help=f"how the neighbours of {of} are ranked; default: "
            + ("cosine" if of == "both" else "that of --similarity"),
        )
    for side in ("x", "y"):
        parser.add_argument(
            f"--{side}-names",
            nargs="+",
            metavar="NAME",
            help=f"tensors of {side.upper()} in the order of the layers; default: all, numbers in "
            "the names in numerical order",
        )
    parser.add_argument(
        "--work",
        type=folder,
        metavar="FOLDER",
        help="where graphs are kept; default: aligned/ in PRH_EVAL_CACHE or the user's cache",
    )
    parser.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help="what a search may take on its device, as 20GB; default: half of what is free on "
        "a GPU, 4GiB on a CPU",
    )
    parser.add_argument("--device", help="as cuda:1 or cpu; default: the first GPU, else the CPU")
    parser.add_argument("--json", action="store_true", help="for machines, in place of the table")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="also write the result to this file, as JSON"
    )
    parser.set_defaults(command=_align)


def _align(arguments: argparse.Namespace) -> int:
    from prh_eval.aligning import Source, align_files
    from prh_eval.processes import processes

    output: Path | None = arguments.output
    both = arguments.similarity
    check_device(arguments.device)
    with processes(arguments.device) as group:
        if output is not None and group.first:
            _check_output(output, arguments.x, arguments.y)
        if arguments.work is not None and group.first:
            _make_folder(arguments.work)
        aligned = align_files(
            Source(arguments.x, arguments.x_names, arguments.x_similarity or both, "--x-names"),
            Source(arguments.y, arguments.y_names, arguments.y_similarity or both, "--y-names"),
            k=arguments.k,
            graph_k=arguments.graph_k,
            draws=arguments.draws,
            protocol=arguments.protocol,
            memory_bytes=arguments.memory,
            folder=arguments.work,
            processes=group,
            progress=True,
        )
        if aligned is not None:
            text = json.dumps(as_json(*aligned, group.device), indent=2, ensure_ascii=False)
            # Neither place may lose the result where the other fails.
            try:
                if output is not None:
                    _write(output, text + "\n")
            finally:
                print(text if arguments.json else table(*aligned))
    return 0


def as_json(result: Report, x: Side, y: Side, device: torch.device) -> dict[str, Any]:
    """The whole result in JSON values, with the device of process 0; layers count from 0."""
    import torch

    from prh_eval import __version__
    from prh_eval.alignment.graph import GRAPH_VERSION
    from prh_eval.recording import report_record

    sides = {}
    for name, side in (("x", x), ("y", y)):
        sides[name] = {
            "file": side.file,
            "names": side.names,
            "dtypes": side.dtypes,
            "widths": side.widths,
            "features": side.features,
            "layers": side.artifact.graph.layers,
            "protocol": side.protocol,
            "similarity": side.similarity,
            "graph_k": side.artifact.graph.k,
        }
    return {
        "metric": "mutual_knn",
        **report_record(result),
        "device": str(device),
        **sides,
        "versions": {
            "prh_eval": __version__,
            "torch": torch.__version__,
            "graphs": GRAPH_VERSION,
        },
    }


def table(result: Report, x: Side, y: Side) -> str:
    """The result for people: the scores, chance, and for each layer of X the best layer of Y."""
    from tabulate import tabulate

    alignment, crossed = result.alignment, result.cross_fitted
    digits = _digits(alignment.stderr)
    scores: list[list[object]] = [
        [name, _score(score, stderr), *layers]
        for name, score, stderr, layers in (
            (
                "best pair of layers",
                alignment.score,
                alignment.stderr,
                (alignment.x_layer, alignment.y_layer),
            ),
            *(
                [("pair chosen on the other half of the items", crossed.score, crossed.stderr, ())]
                if crossed
                else []
            ),
            *(
                (
                    f"{which} layer of X",
                    chosen.score,
                    chosen.stderr,
                    (chosen.x_layer, chosen.y_layer),
                )
                for which, chosen in (("last", result.last), ("first", result.embedding))
            ),
        )
    ]
    scores.append(["by chance, any pair", f"{alignment.chance:.3g}"])
    columns: list[str] = ["", "score ± standard error", "layer of X", "layer of Y"]
    best: list[list[object]] = [
        [layer, int(row.argmax()), f"{float(row.max()):.{digits}f}"]
        for layer, row in enumerate(alignment.grid)
    ]
    low, high = result.interval
    crossed = result.cross_fitted
    around = (
        f" (around the score less {crossed.flattery:.{digits}f}, by which choosing the pair "
        "flatters it)"
        if crossed and crossed.flattery
        else ""
    )
    return "\n".join(
        [
            *(f"{name}: {_described(side)}" for name, side in (("X", x), ("Y", y))),
            f"n = {alignment.n:,} items, k = {alignment.k} nearest neighbours; layers count from 0",
            "",
            tabulate(scores, columns, disable_numparse=True),
            "",
            f"95 % interval of the best pair: {low:.{digits}f} to {high:.{digits}f}{around}",
            f"z = {result.z:.1f} standard deviations above chance",
            _null(result, digits),
            *filter(None, [result.hub_warning]),
            "\nEach layer of X with the layer of Y that is best for it:\n",
            tabulate(best, ["layer of X", "layer of Y", "score"], disable_numparse=True),
        ]
    )


def _null(result: Report, digits: int) -> str:
    """What random re-pairings say of the best of all layer pairs."""
    null = result.null
    if null is None:
        return "What chance can do with the best of all layer pairs was not drawn (--draws)."
    found = null.calibrated
    if null.alpha * (len(null.values) + 1) < 1 - 1e-9:
        return (
            f"{len(null.values)} random re-pairings are too few for a test at {null.alpha:.0%}; "
            f"p = {found.p:.3g}"
        )
    return (
        f"Of {len(null.values):,} random re-pairings the best layer pair's score is above "
        f"{found.threshold:.{digits}f} in at most {null.alpha:.0%}; p = {found.p:.3g}, calibrated "
        f"score {found.score:.{digits}f}"
    )


def _described(side: Side) -> str:
    layers = side.artifact.graph.layers
    rule = f", protocol {side.protocol}" if side.protocol else ""
    return f"{side.file} ({layers} layer{'' if layers == 1 else 's'}, {side.similarity}{rule})"


def _score(score: float, stderr: float) -> str:
    digits = _digits(stderr)
    return f"{score:.{digits}f} ± {stderr:.{digits}f}"


def _digits(stderr: float) -> int:
    """Decimals that show two figures of a standard error, from 3 to 8."""
    return min(max(3, 1 - math.floor(math.log10(stderr))), 8) if stderr > 0 else 3


def _check_output(output: Path, *inputs: str) -> None:
    """Before hours of work: a place that cannot be written, or must not be."""
    for path in map(Path, inputs):
        if output.exists() and path.expanduser().exists() and output.samefile(path.expanduser()):
            raise PrhEvalError(f"--output {output} is the input {path}; it should be another file")
    parent = (output.resolve() if output.is_symlink() else output).parent
    if output.is_dir() or not parent.is_dir():
        kind = "is a folder" if output.is_dir() else f"is in {parent}, which is no folder"
        raise PrhEvalError(f"--output {output} {kind}; it should be a file in a folder")
    place = output if _in_place(output) else parent
    if not os.access(place, os.W_OK):
        raise PrhEvalError(f"--output {output} cannot be written: {place} is not writable")


def _make_folder(work: Path) -> None:
    """Before hours of work that could not be kept."""
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrhEvalError(
            f"--work {work} is no folder and cannot become one ({error.strerror or error}); it "
            "should be a folder that can be written"
        ) from error


def _in_place(output: Path) -> bool:
    """Whether it is a device or a pipe, which no file may replace."""
    return output.exists() and not output.is_file()


def _write(output: Path, text: str) -> None:
    from prh_eval.store import replacing

    try:
        if _in_place(output):
            output.write_text(text, encoding="utf-8")
        else:
            with replacing(output.resolve()) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PrhEvalError(
            f"--output {output} cannot be written: {error.strerror or error}; the same command "
            "makes the result again from the graphs that were kept"
        ) from error
