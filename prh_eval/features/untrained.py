"""Controls of the same architecture: a model with weights drawn anew, or with shuffled ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from prh_eval.errors import PrhEvalError
from prh_eval.features.language_body import unwrapped
from prh_eval.store import fingerprint


def reinitialized(model: nn.Module, seed: int = 0) -> nn.Module:
    """A model of the same class and configuration whose weights were never trained.

    They are drawn as transformers draws them before training (``PreTrainedModel._init_weights``),
    on the CPU whatever the device, so that a seed means the same weights everywhere. PyTorch's
    global generators are left as they were.

    Args:
        model: A transformers model; neither changed nor kept.
        seed: What the weights are drawn from.

    Returns:
        A further model, of the same dtypes and on the same devices, in evaluation mode.

    Raises:
        PrhEvalError: As for :func:`refuse`; or if the configuration does not make a model of the
            same tensors, or a device has no memory for a second model.
    """
    with _room():
        return _placed(_drawn(model, seed), model)


def shuffled(model: nn.Module, seed: int = 0) -> nn.Module:
    """A model of the same tensors, the values of each of them in an order drawn at random.

    Each tensor keeps its values, and so its mean, spread and outliers, and loses what it computes.
    Tensors that are tied stay so. Buffers, which are not trained by gradients, stay as they are.

    Args:
        model: A transformers model; neither changed nor kept.
        seed: What the orders are drawn from.

    Returns:
        A further model, of the same dtypes and on the same devices, in evaluation mode.

    Raises:
        PrhEvalError: As for :func:`reinitialized`.
    """
    generator = torch.Generator().manual_seed(seed)
    with _room(), torch.no_grad():
        twin = _placed(_drawn(model, seed), model)
        for own, trained in zip(twin.parameters(), model.parameters(), strict=True):
            order = torch.randperm(trained.numel(), generator=generator)
            values = trained.flatten().index_select(0, order.to(trained.device))
            own.copy_(values.view_as(trained))
        for name, buffer in model.named_buffers():
            owner, _, leaf = name.rpartition(".")
            twin.get_submodule(owner)._buffers[leaf] = buffer.clone()
        return twin


CONTROLS: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "reinitialized": reinitialized,
    "shuffled": shuffled,
}
"""What a model is compared with where its control is "untrained", by name."""


def refuse(model: nn.Module) -> None:
    """Raise where a model has no such controls.

    Raises:
        PrhEvalError: If it is not a transformers model, or one with adapters, quantised, offloaded
            or sharded weights.
    """
    inner: Any = unwrapped(model)
    quantized = getattr(inner.config, "quantization_config", None) is not None
    if quantized or getattr(inner, "is_quantized", False):
        _refuse("quantised weights", "load the model unquantised (dtype=bfloat16)")
    if inner is not model or getattr(inner, "_hf_peft_config_loaded", False):
        _refuse("an adapter or wrapper", "score the base model, or one the adapter is merged into")
    weights = list(inner.parameters())
    offloaded = any(weight.device.type == "meta" for weight in weights)
    if offloaded or _OFFLOADED & set(map(str, _device_map(inner).values())):
        _refuse("offloaded weights", "load the model without offloading")
    if any(type(weight.data) is not torch.Tensor for weight in weights):
        _refuse("sharded or packed weights", "load the model whole")


# Where a device map puts what it takes from there when it is needed.
_OFFLOADED = {"cpu", "disk"}


def architecture(model: nn.Module) -> str:
    """A fingerprint of all that decides what :func:`reinitialized` makes of a seed.

    It is of the class and the configuration, without what this says of files and versions.

    Args:
        model: A transformers model.

    Returns:
        A SHA-256 in hexadecimal.
    """
    original: Any = model
    config = json.loads(original.config.to_json_string(use_diff=False))
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    return fingerprint([name, str(original.dtype), _without_files(config)])


def _without_files(config: Any) -> Any:
    if isinstance(config, dict):
        return {k: _without_files(v) for k, v in config.items() if k not in _FILES}
    return [_without_files(v) for v in config] if isinstance(config, list) else config


# Of a configuration: where it was read from, by which version, and the dtype of its file.
_FILES = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


def _refuse(what: str, remedy: str) -> None:
    raise PrhEvalError(
        f"there is no untrained control of a model with {what}: {remedy}, or leave out the control"
    )


def _device_map(model: nn.Module) -> dict[str, Any]:
    """Where parts of the model lie, if they were sent to several devices."""
    places: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    return places if len(set(map(str, places.values()))) > 1 else {}


def _drawn(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture on the CPU, its weights drawn anew."""
    refuse(model)
    original: Any = model
    # Not torch.manual_seed, which would seed the generators of all devices.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        # The class itself, so that nothing is downloaded where its code came from elsewhere.
        twin: nn.Module = type(original)._from_config(
            copy.deepcopy(original.config), dtype=original.dtype
        )
    if _shapes(twin) != _shapes(model):
        raise PrhEvalError(
            f"there is no untrained control of this {type(model).__name__}: its configuration "
            "makes a model of other tensors than it has; leave out the control"
        )
    for own, trained in zip(twin.parameters(), model.parameters(), strict=True):
        own.data = own.data.to(trained.dtype)
    return twin.eval()


def _shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, weight.shape) for name, weight in model.named_parameters()]


def _placed(twin: nn.Module, model: nn.Module) -> nn.Module:
    """The twin, part by part where the model is."""
    places = _device_map(model)
    if not places:
        return twin.to(next(model.parameters()).device)
    from accelerate import dispatch_model

    skip = getattr(model, "_skip_keys_device_placement", None)
    dispatched: nn.Module = dispatch_model(twin, device_map=places, skip_keys=skip)
    return dispatched


@contextmanager
def _room() -> Iterator[None]:
    """One sentence where a device has no memory for a second model."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise PrhEvalError(
            "the untrained control is a second model, for which the device has no memory: spread "
            "the model over more devices (parallelize=True), or leave out the control"
        ) from error
