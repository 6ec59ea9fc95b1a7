"""``prh-eval plan``: what an alignment of many items will take, before it is begun."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prh_eval.commands.arguments import count, positive, size
from prh_eval.errors import PrhEvalError

if TYPE_CHECKING:
    from prh_eval.costs import ModelCosts

# Indices are int32.
_MOST_ITEMS = 2**31 - 1
_TOKENS = 20.0
_TYPES = ("float16", "bfloat16", "float32", "float64")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``plan``."""
    parser = commands.add_parser(
        "plan",
        help="what align will take at any size: bytes, operations and, estimated, hours",
        description="The cost model of prh-eval align; it needs no GPU. The formulas are in "
        "docs/large-n.md. Times are estimated from the peak rates of the device's data sheet and "
        "the share of them that --efficiency assumes.",
    )
    parser.add_argument("--items", type=count, required=True, metavar="N", help="as 1e6")
    parser.add_argument("--layers", type=positive, required=True, metavar="L", help="of the model")
    parser.add_argument("--dim", type=positive, required=True, metavar="D", help="width of a layer")
    parser.add_argument(
        "--other-layers", type=positive, metavar="L", help="of what it is compared with"
    )
    parser.add_argument("--other-dim", type=positive, metavar="D", help="its width")
    parser.add_argument("--k", type=positive, default=10, help="neighbourhood size; default: 10")
    parser.add_argument(
        "--device", default="h200", help="h200, h100, a100, l40s, rtx4090 or cpu; default: h200"
    )
    parser.add_argument("--gpus", type=positive, default=1, help="how many; default: 1")
    parser.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help="what a search may take on each, as 20GB; default: half of a GPU's, 4GiB on a CPU",
    )
    parser.add_argument(
        "--stored", choices=_TYPES, default="float16", help="type in the files; default: float16"
    )
    parser.add_argument(
        "--efficiency",
        type=_share,
        metavar="SHARE",
        help="share of the peak rates to assume, from 0 to 1; default: 0.5",
    )
    parser.add_argument(
        "--parameters",
        type=_number,
        metavar="P",
        help="of the model, as 7e9: also what its features cost",
    )
    parser.add_argument(
        "--tokens",
        type=_number,
        metavar="T",
        help=f"of an item, where --parameters is given; default: {_TOKENS:g}",
    )
    parser.add_argument("--json", action="store_true", help="for machines, in place of the table")
    parser.set_defaults(command=_plan)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} should be a number above 0, as 7e9")
    return number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a share, above 0 and at most 1")
    return share


def _plan(arguments: argparse.Namespace) -> int:
    from prh_eval.costs import (
        EFFICIENCY,
        device,
        encoding_operations,
        model_costs,
        reporting_bytes,
        reporting_seconds,
    )

    n, k, gpus = arguments.items, arguments.k, arguments.gpus
    if n > _MOST_ITEMS:
        raise PrhEvalError(
            f"--items is more than the {_MOST_ITEMS:,} items that a graph can number"
        )
    if gpus > n:
        raise PrhEvalError(f"--gpus {gpus} is more than the {n} items; each needs one at least")
    if arguments.tokens is not None and arguments.parameters is None:
        raise PrhEvalError("--tokens is of the features' cost, which needs --parameters too")
    if k >= n:
        raise PrhEvalError(
            f"k = {k} nearest neighbours cannot be found among {n} items; --k must be below --items"
        )
    if (arguments.other_layers is None) != (arguments.other_dim is None):
        raise PrhEvalError("--other-layers and --other-dim must be given together")
    if arguments.device == "cpu" and gpus > 1:
        raise PrhEvalError("--gpus counts GPUs; of a CPU there is one")
    place = device(arguments.device)
    efficiency = arguments.efficiency or EFFICIENCY
    memory = arguments.memory or place.memory_bytes
    shapes = [(arguments.layers, arguments.dim)]
    if arguments.other_layers is not None:
        shapes.append((arguments.other_layers, arguments.other_dim))
    sides = [
        model_costs(
            n,
            layers,
            dim,
            k,
            place,
            processes=gpus,
            memory_bytes=memory,
            stored=arguments.stored,
            efficiency=efficiency,
        )
        for layers, dim in shapes
    ]
    content: dict[str, Any] = {
        "items": n,
        "k": k,
        "device": place.label,
        "gpus": gpus,
        "peak_flops": place.flops,
        "efficiency": efficiency,
        "memory_bytes": memory,
        "stored": arguments.stored,
        "models": [_model(side) for side in sides],
    }
    seconds = sum(side.seconds for side in sides)
    if len(sides) == 2:
        counts = sides[0].layers, sides[1].layers
        content["reporting_seconds"] = reporting_seconds(n, *counts, k)
        content["reporting_bytes"] = reporting_bytes(n, k)
        seconds += content["reporting_seconds"]
    if arguments.parameters is not None:
        tokens = arguments.tokens or _TOKENS
        operations = encoding_operations(arguments.parameters, n, tokens)
        content["encoding"] = {
            "parameters": arguments.parameters,
            "tokens": tokens,
            "operations": operations,
            "seconds": operations / (gpus * place.flops * efficiency),
        }
    content["seconds"] = seconds
    content["hours"] = seconds / 3600
    print(json.dumps(content, indent=2) if arguments.json else table(content))
    return 0


def _model(costs: ModelCosts) -> dict[str, Any]:
    """The costs of one model in JSON values; bytes, operations and seconds."""
    search = costs.search
    return {
        "layers": costs.layers,
        "dim": costs.dim,
        "feature_bytes": costs.feature_bytes,
        "kept_bytes": costs.kept_bytes,
        "graph_bytes": costs.graph_bytes,
        "writing_bytes": costs.writing_bytes,
        "layer": {
            "filter": str(search.dtype).removeprefix("torch."),
            "tile_items": search.side,
            "resident_bytes": search.resident_bytes,
            "tile_bytes": search.tile_bytes,
            "peak_bytes": search.peak_bytes,
            "operations": search.operations,
            "received_bytes": costs.received_bytes,
            "seconds": costs.search_seconds,
        },
        "operations": costs.operations,
        "reading_seconds": costs.reading_seconds,
        "search_seconds": costs.layers * costs.search_seconds,
    }


def table(content: Mapping[str, Any]) -> str:
    """The plan for people."""
    from tabulate import tabulate

    models, gpus = content["models"], content["gpus"]
    each = "each device" if gpus > 1 else "the device"
    rows: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        (f"features on disk ({content['stored']})", lambda of: _bytes(of["feature_bytes"])),
        ("graphs on disk, for a while twice", lambda of: _bytes(of["kept_bytes"])),
        ("graphs in memory", lambda of: _bytes(of["graph_bytes"])),
        ("memory while they are written", lambda of: _bytes(of["writing_bytes"])),
        (f"memory of {each}, in all", lambda of: _bytes(of["layer"]["peak_bytes"])),
        ("of which by a tile", lambda of: _bytes(of["layer"]["tile_bytes"])),
        ("items on a side of a tile", lambda of: f"{of['layer']['tile_items']:,}"),
        ("matrix product in", lambda of: of["layer"]["filter"]),
        ("operations of a layer", lambda of: _operations(of["layer"]["operations"])),
        *(
            [("a device receives of a layer", lambda of: _bytes(of["layer"]["received_bytes"]))]
            if gpus > 1
            else []
        ),
        ("operations of all layers", lambda of: _operations(of["operations"])),
        ("reading, estimated", lambda of: _time(of["reading_seconds"])),
        ("search of a layer, estimated", lambda of: _time(of["layer"]["seconds"])),
        ("search of all, estimated", lambda of: _time(of["search_seconds"])),
    ]
    heads = [
        f"{of['layers']} layer{'' if of['layers'] == 1 else 's'} x {of['dim']:,}" for of in models
    ]
    count = f"{gpus} x " if gpus > 1 else ""
    rates = f"{content['efficiency']:.0%} of {content['peak_flops'] / 1e12:.4g} TFLOP/s"
    lines = [
        f"{content['items']:,} items, k = {content['k']}, on {count}{content['device']}",
        "",
        tabulate(
            [[what, *(form(of) for of in models)] for what, form in rows],
            ["", *heads],
            disable_numparse=True,
            colalign=("left", *("right" for _ in models)),
        ),
        "",
    ]
    if "reporting_seconds" in content:
        pairs = models[0]["layers"] * models[1]["layers"]
        lines.append(
            f"Scores of all {pairs:,} layer pairs, their chance and errors, estimated: "
            f"{_time(content['reporting_seconds'])}, in {_bytes(content['reporting_bytes'])} "
            "beside both graphs"
        )
    lines.append(
        f"In all, estimated: {_hours(content['hours'])} hours ({_time(content['seconds'])})"
    )
    if "encoding" in content:
        encoding = content["encoding"]
        lines.append(
            f"Features before that, of a model of {encoding['parameters']:.3g} parameters and "
            f"{encoding['tokens']:g} tokens an item: {_operations(encoding['operations'])}, "
            f"estimated: {_time(encoding['seconds'])}"
        )
    lines.append(
        f"Estimated: products at {rates} a device, all else on one core; disks, copies to the "
        "device and random re-pairings (--draws) are not counted"
    )
    return "\n".join(lines)


def _bytes(count: float) -> str:
    return _scaled(count, 1000.0, ("B", "kB", "MB", "GB", "TB", "PB"))


def _operations(count: float) -> str:
    prefixes = ("", "k", "M", "G", "T", "P", "E", "Z")
    return _scaled(count, 1000.0, [f"{prefix}FLOP" for prefix in prefixes])


def _scaled(value: float, step: float, units: Sequence[str]) -> str:
    """Three figures and the unit that suits."""
    power = 0
    while power < len(units) - 1 and value >= step:
        value, power = value / step, power + 1
    digits = 3 if value < 1 else max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{digits}f} {units[power]}"


def _hours(hours: float) -> str:
    return f"{hours:.3g}" if hours < 100 else f"{hours:,.0f}"


def _time(seconds: float) -> str:
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
