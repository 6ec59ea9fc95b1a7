"""What to tell a person when something cannot be had from the model hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from prh_eval.errors import PrhEvalError
from prh_eval.store import content_sha256

_WITHOUT_NETWORK = (
    "without a network use the task prh_align_color, which needs no download, "
    "a reference whose paths are local folders, or a filled hub cache with HF_HUB_OFFLINE=1"
)


def is_folder(path: str) -> bool:
    """Whether a person means a folder on this machine, there or not, rather than a hub id.

    As in datasets and transformers, an existing folder wins over a hub id of the same spelling.
    """
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).is_dir()


def named(what: str, path: str, revision: str | None) -> str:
    """What messages call something of the hub, as ``the encoder 'a/b' (revision 'main')``."""
    at = f" (revision {revision!r})" if revision else ""
    return f"the {what} {path!r}{at}"


def local_folder(path: str, what: str) -> Path | None:
    """The folder on this machine that a person means; None for a hub id.

    Args:
        path: As the person wrote it.
        what: What is in it, for the message.

    Raises:
        PrhEvalError: If the folder is not there.
    """
    if not is_folder(path):
        return None
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise missing_folder(what, path)
    return folder


def load_error(what: str, error: BaseException) -> PrhEvalError:
    """The sentence for a failed load from the hub or from a local folder.

    Args:
        what: What was wanted, as ``"the data set 'minhuh/prh' (revision 'wit_1024')"``.
        error: What datasets or transformers raised.

    Returns:
        The error to raise; it says why, and what works offline where that is the matter.
    """
    causes = list(_chain(error))
    message = " ".join(str(cause) for cause in causes)
    unreachable = _any(
        causes, ConnectionError, LocalEntryNotFoundError, OfflineModeIsEnabled, TimeoutError
    )
    if constants.HF_HUB_OFFLINE and unreachable:
        why = f"it is not in the hub cache and HF_HUB_OFFLINE is set; {_WITHOUT_NETWORK}"
    elif _any(causes, GatedRepoError) or "gated dataset" in message:
        why = "it is gated: ask for access on its hub page, then log in with `hf auth login`"
    elif _any(causes, RevisionNotFoundError) or re.search(r"[Rr]evision .* doesn't exist", message):
        why = "it has no such revision on the hub"
    elif _any(causes, RepositoryNotFoundError) or "doesn't exist on the Hub" in message:
        why = "the hub has nothing of this name, or it is private and you are not logged in"
    elif unreachable:
        why = f"the hub could not be reached; {_WITHOUT_NETWORK}"
    else:
        why = "; ".join(dict.fromkeys(_first_line(cause) for cause in (error, causes[-1])))
    return PrhEvalError(f"{what} could not be loaded: {why}")


def folder_fingerprint(path: str) -> str | None:
    """SHA-256 over the configuration and weights in a local model folder; None if it is not there.

    Args:
        path: As a person wrote it; a hub id gives None.
    """
    folder = Path(path).expanduser()
    if not (is_folder(path) and folder.is_dir()):
        return None
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".bin") and file.is_file():
            digest.update(f"{file.name} {content_sha256(file)}\n".encode())
    return digest.hexdigest()


def cached_commit(path: str, revision: str | None) -> str | None:
    """The commit of a hub model in the hub cache, as it was loaded; None for a local folder.

    Transformers 5 no longer says it.
    """
    if is_folder(path):
        return None
    file = try_to_load_from_cache(path, "config.json", revision=revision)
    return Path(file).parent.name if isinstance(file, str) else None


def missing_folder(what: str, path: str) -> PrhEvalError:
    """The sentence for a folder that is not there."""
    return PrhEvalError(f"{what} could not be loaded: there is no folder {path!r}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def _any(causes: list[BaseException], *types: type[BaseException]) -> bool:
    return any(isinstance(cause, types) for cause in causes)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
