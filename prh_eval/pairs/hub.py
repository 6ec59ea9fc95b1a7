"""Paired data of the Hugging Face hub, or of a local folder in the hub's layout."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

import datasets
from huggingface_hub import constants, file_download

from prh_eval.errors import PrhEvalError, suggestion
from prh_eval.hub import load_error, local_folder, named
from prh_eval.pairs.captions import caption_columns, captions_of
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.pairs.images import Images
from prh_eval.schema import HubPairs

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


def read_hub(spec: HubPairs) -> PairedDataset:
    """Read the captions of a data set; images stay undecoded.

    Raises:
        PrhEvalError: If the data cannot be reached, or a column is missing or holds something else.
    """
    name = named("data set", spec.path, spec.revision)
    folder = local_folder(spec.path, name)
    path = str(folder or spec.path)
    try:
        rows = datasets.load_dataset(
            path, name=spec.subset, revision=spec.revision, split=spec.split
        )
    # Any failure here comes from the person's path, revision or network, whatever its class.
    except Exception as error:
        raise load_error(name, error) from error
    commit = _commit(rows)
    if folder is None:
        _check_revision(spec, commit)
    ids = tuple(map(str, range(len(rows))))
    texts = {
        column: _column(rows, column, "caption_column", name)[:][column]
        for column in caption_columns(spec.caption_column)
    }
    captions = captions_of(texts, ids, name)
    images = None
    if spec.image_column is not None:
        column = _column(rows, spec.image_column, "image_column", name)
        feature = column.features[spec.image_column]
        if not isinstance(feature, datasets.Image):
            raise PrhEvalError(
                f"{name}: the column {spec.image_column!r} holds {feature}; 'image_column' should "
                "name a column of images"
            )
        images = Images(column, ids, name)
    return PairedDataset(
        name=name,
        ids=ids,
        captions=captions,
        all_captions=captions,
        source={**spec.model_dump(mode="json"), "commit": commit},
        images=images,
    )


def _column(rows: datasets.Dataset, column: str, key: str, name: str) -> datasets.Dataset:
    if column not in rows.column_names:
        raise PrhEvalError(
            f"{name} has no column {column!r} ('{key}'); {suggestion(column, rows.column_names)}"
        )
    return rows.select_columns([column])


def _commit(rows: datasets.Dataset) -> str | None:
    """The hub commit: datasets names the cache folder of a prepared hub data set after it."""
    folders = Counter(Path(file["filename"]).parent.name for file in rows.cache_files)
    commits = [folder for folder in folders if _COMMIT.fullmatch(folder)]
    return commits[0] if len(commits) == 1 else None


def _check_revision(spec: HubPairs, commit: str | None) -> None:
    """Refuse data of another revision.

    Where datasets cannot reach the hub, it takes the latest copy in its cache, whatever revision
    that copy is of. The hub cache remembers which commit the revision meant.
    """
    if spec.revision is None:
        return
    wanted = spec.revision if _COMMIT.fullmatch(spec.revision) else _known_commit(spec)
    if commit is None or wanted is None:
        logger.warning(
            "%s: cannot tell whether the cached copy is of revision %r", spec.path, spec.revision
        )
    elif commit != wanted:
        raise PrhEvalError(
            f"the hub could not be reached, and the cached copy of {spec.path!r} is of commit "
            f"{commit[:12]}, not of revision {spec.revision!r} ({wanted[:12]}); load it once with "
            "a network"
        )


def _known_commit(spec: HubPairs) -> str | None:
    folder = file_download.repo_folder_name(repo_id=spec.path, repo_type="dataset")
    file = Path(constants.HF_HUB_CACHE) / folder / "refs" / str(spec.revision)
    return file.read_text(encoding="ascii").strip() if file.is_file() else None
