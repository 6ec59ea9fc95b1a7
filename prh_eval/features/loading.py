"""What all encoders have in common: their name, place and permissions, and numbers of layers."""

from __future__ import annotations

from pathlib import Path

from prh_eval.errors import PrhEvalError
from prh_eval.hub import load_error, local_folder, named
from prh_eval.schema import Encoder, LanguageEncoder, VisionEncoder


def encoder_name(encoder: Encoder) -> str:
    """What messages call an encoder."""
    return named("encoder", encoder.path, encoder.revision)


def encoder_folder(encoder: Encoder) -> Path | None:
    """The local folder that an encoder is in; None for a hub id.

    Raises:
        PrhEvalError: If the folder is not there.
    """
    return local_folder(encoder.path, encoder_name(encoder))


def check_remote_code(encoder: Encoder, allowed: bool) -> None:
    """Refuse an encoder whose file asks for its repository's code where the person did not.

    Args:
        encoder: What a reference's file says.
        allowed: Whether the command line allows such code.

    Raises:
        PrhEvalError: If it asks and may not.
    """
    if encoder.trust_remote_code and not allowed:
        raise PrhEvalError(
            f"{encoder_name(encoder)} is to run code from its repository; if you trust that code, "
            "allow it with --trust_remote_code, otherwise leave 'encoder.trust_remote_code' out of "
            "the file"
        )


def chosen_layers(encoder: VisionEncoder | LanguageEncoder, count: int, what: str) -> list[int]:
    """The layers that an encoder's description names, by number from 0; all if it names none.

    Args:
        encoder: What a reference's file says.
        count: How many layers it has.
        what: What a layer is called, for messages.

    Raises:
        PrhEvalError: If a layer is not there, or named twice.
    """
    if isinstance(encoder.layers, str):
        return list(range(count))
    for number in encoder.layers:
        if not -count <= number < count:
            raise PrhEvalError(
                f"encoder.layers names the {what} {number} and {encoder.path!r} has {count}; "
                f"it should be from 0 to {count - 1}, or from -{count} to -1"
            )
    chosen = [number % count for number in encoder.layers]
    for place, number in enumerate(chosen):
        if number in chosen[:place]:
            raise PrhEvalError(
                f"encoder.layers names the {what} {number} of {encoder.path!r} twice, as "
                f"{number} and {number - count}; each should be there once"
            )
    return chosen


def failed(encoder: Encoder, error: Exception) -> PrhEvalError:
    """The sentence for an encoder that transformers or another library could not load."""
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return PrhEvalError(
            f"{encoder_name(encoder)} needs code from its repository; if you trust that code, set "
            "'encoder.trust_remote_code: true' in the file and pass --trust_remote_code"
        )
    return load_error(encoder_name(encoder), error)
