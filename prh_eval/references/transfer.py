"""Artifacts of references from one machine to another."""

from __future__ import annotations

import shutil
from pathlib import Path

from prh_eval import store
from prh_eval.errors import PrhEvalError
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.references.build import artifact_path, current_artifact
from prh_eval.references.definition import changes
from prh_eval.references.registry import load_reference, reference_names
from prh_eval.schema import Reference


def export_artifact(
    reference: Reference, pairs: PairedDataset, *, protocol: str, output: Path
) -> Path:
    """Copy the current graphs of a reference out of the cache.

    Args:
        reference: Whose graphs.
        pairs: The items they are of.
        protocol: Name of the preprocessing protocol.
        output: A file, or a folder in which it is named after the reference.

    Returns:
        The file that was written.

    Raises:
        PrhEvalError: If there are no current graphs, or the file cannot be written.
    """
    source, _ = current_artifact(reference, pairs, protocol=protocol)
    if output.is_dir() or not output.suffix:
        output = output / f"{reference.name}{store.SUFFIX}"
    if output.suffix != store.SUFFIX:
        raise PrhEvalError(f"the file {output} should end in {store.SUFFIX}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with store.replacing(output) as temporary:
            shutil.copyfile(source, temporary)
    except OSError as error:
        raise PrhEvalError(f"{output} cannot be written: {error.strerror or error}") from error
    return output


def import_artifact(path: Path) -> Path:
    """Verify an exported file and put it into the cache.

    Args:
        path: What :func:`export_artifact` wrote, here or on another machine.

    Returns:
        Where it is kept now.

    Raises:
        PrhEvalError: If the file is damaged or no reference's graphs, if no reference of its name
            is known here, or if it was built from another definition than the one here.
    """
    artifact = store.read_artifact(path)
    header = artifact.header
    name, made_from = header.get("reference"), header.get("made_from")
    if not (isinstance(name, str) and isinstance(made_from, dict)):
        raise PrhEvalError(f"{path} holds the graphs of no reference but of {header.get('model')}")
    if name not in reference_names():
        raise PrhEvalError(
            f"{path} holds the graphs of the reference {name!r}, which is not known here; put its "
            f"{name}.yaml into ./references/ first"
        )
    changed = changes(load_reference(name), header)
    if changed:
        raise PrhEvalError(
            f"{path} was built from another definition of {name!r} than the one here; they differ "
            f"in {', '.join(changed)}"
        )
    target = artifact_path(header)
    try:
        store.write_artifact(target, artifact)
    except OSError as error:
        raise PrhEvalError(
            f"cannot write to the cache folder {target.parent}: {error.strerror or error}; "
            "PRH_EVAL_CACHE can name another folder"
        ) from error
    return target
