"""Reading a loaded image encoder where its blocks end, whichever library it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from prh_eval.errors import PrhEvalError
from prh_eval.features.loading import chosen_layers, encoder_name
from prh_eval.features.vision import VisionModel
from prh_eval.schema import VisionEncoder

# Parameters that are tokens beside the patches, as transformers and timm call them.
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_OTHER_TOKENS = ("register_tokens", "reg_token", "distillation_token", "dist_token")

_SAME = 1e-2  # relative; above the rounding of bfloat16, far below what a block does


@dataclass(frozen=True)
class Loaded:
    """What a loader knows about an encoder.

    Attributes:
        module: All of it that is run, in evaluation mode.
        blocks: Its blocks (or stages) in the order of the forward pass; may be left empty where
            only the pooled output is wanted.
        run: Runs it on pixels (b, 3, height, width) and returns its own pooled output, if any.
        prepare: An image to pixels.
        input: What ``prepare`` does, in JSON values.
        commit: The hub commit of its weights, where it is known.
        patch_size: Height and width of a patch; None where blocks do not see one token a patch.
        channels_last: Whether feature maps are (b, height, width, channels) rather than (b,
            channels, height, width); None where that is not known.
    """

    module: nn.Module
    blocks: Sequence[nn.Module]
    run: Callable[[Tensor], Tensor | None]
    prepare: Callable[[Image.Image], Tensor]
    input: dict[str, Any]
    commit: str | None
    patch_size: tuple[int, int] | None
    channels_last: bool | None = None


class BlockModel(VisionModel):
    """An image encoder whose blocks are read by hooks.

    What a library calls hidden states is, from family to family and release to release, before or
    after the final norm. So a block's output is taken where it leaves the block, and the final norm
    is found by what happens: it is the first norm that runs after the last block, and it counts
    only if what goes into it is what came out of the block.

    Raises:
        PrhEvalError: If a layer that is asked for does not exist, or there is no class token.
    """

    def __init__(self, loaded: Loaded, encoder: VisionEncoder) -> None:
        self.commit = loaded.commit
        self.parameters = sum(parameter.numel() for parameter in loaded.module.parameters())
        self.input = loaded.input
        self.loaded = loaded
        self.encoder = encoder
        self.name = encoder_name(encoder)
        self.layers = _chosen(encoder, len(loaded.blocks))
        # The list of a file may leave the last block out, which alone meets the final norm.
        self.after = (
            encoder.norm == "after" and max(self.layers, default=0) >= len(loaded.blocks) - 1
        )
        tokens = {
            last: parameter.numel() // parameter.shape[-1]
            for name, parameter in loaded.module.named_parameters()
            if (last := name.rpartition(".")[2]) in (*_CLASS_TOKENS, *_OTHER_TOKENS)
        }
        if encoder.token == "class" and tokens.keys().isdisjoint(_CLASS_TOKENS):
            raise PrhEvalError(
                f"{self.name} has no class token; 'token' should be 'mean' or 'pooled'"
            )
        self.prefix = sum(tokens.values())
        self.norms = [m for m in loaded.module.modules() if "Norm" in type(m).__name__]
        self.normed: Literal["tokens", "pooled"] | None = None  # known after the first batch

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.loaded.module.parameters()).device

    def to(self, device: torch.device | str) -> None:
        """Move it to another device."""
        self.loaded.module.to(device)

    def prepare(self, image: Image.Image) -> Tensor:
        """One image as its input: float32, shape (3, height, width), on the CPU; thread-safe."""
        return self.loaded.prepare(image)

    def read(self, pixels: Tensor) -> list[Tensor]:
        """The layers of prepared images, as `VisionModel.read` says."""
        seen = _Pass(self, pixels.shape[-2:])
        parameter = next(self.loaded.module.parameters())
        # cuDNN would otherwise round the patch embedding's float32 input to TF32.
        cudnn = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with ExitStack() as hooks, torch.inference_mode(), cudnn:
            seen.watch(hooks)
            try:
                pooled = self.loaded.run(pixels.to(parameter.device, parameter.dtype))
            except (TypeError, ValueError, AssertionError) as error:
                raise PrhEvalError(f"{self.name} cannot take these images: {error}") from error
            rows = [self._pooled(pooled)] if self.encoder.token == "pooled" else seen.layers()
            return [row.float() for row in rows]

    def _pooled(self, output: Tensor | None) -> Tensor:
        """The model's own pooled output, as (b, width); some keep it as a map of one position."""
        if output is None or output[0].numel() != max(output.shape[1:]):
            raise PrhEvalError(
                f"{self.name} has no pooled output of its own; 'token' should be 'class' or 'mean'"
            )
        return output.flatten(1)


class _Pass:
    """What is seen during one forward pass: every layer's rows, and what the final norm did."""

    def __init__(self, model: BlockModel, size: torch.Size) -> None:
        self._model = model
        self._size = size
        self._entered: Tensor | None = None
        self._blocks: list[Tensor] = []
        self._last: Tensor | None = None
        self._norm: tuple[Tensor, Tensor] | None = None

    def watch(self, hooks: ExitStack) -> None:
        """Hook the blocks and the norms until ``hooks`` is closed."""
        blocks = self._model.loaded.blocks
        for number, block in enumerate(blocks):
            if number == 0:
                handle = block.register_forward_pre_hook(self._enter, with_kwargs=True)
                hooks.callback(handle.remove)
            hooks.callback(block.register_forward_hook(self._leave).remove)
        if self._model.after:
            for norm in self._model.norms:
                hooks.callback(norm.register_forward_hook(self._normed).remove)

    def layers(self) -> list[Tensor]:
        """The chosen layers' rows, each (b, width).

        Raises:
            PrhEvalError: If the blocks did not run once each, or the last one was to be read after
                a final norm and the model has none that fits.
        """
        model = self._model
        count = len(model.loaded.blocks)
        if len(self._blocks) != count:
            raise PrhEvalError(
                f"{model.name} runs its {count} blocks {len(self._blocks)} times in "
                "all, so that its layers cannot be read; 'token' should be 'pooled'"
            )
        if model.after:
            self._blocks[-1] = self._after()
        if model.encoder.layers == "embedding_and_blocks":
            assert self._entered is not None
            self._blocks.insert(0, self._entered)
        return [self._blocks[number] for number in model.layers]

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._model.encoder.layers == "embedding_and_blocks":
            self._entered = self._rows(self._tokens(next(iter((*args, *kwargs.values())))))

    def _leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._last = self._tokens(output[0] if isinstance(output, tuple) else output)
        self._blocks.append(self._rows(self._last))

    def _normed(self, norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self._norm is None and len(self._blocks) == len(self._model.loaded.blocks):
            self._norm = (args[0], output)

    def _after(self) -> Tensor:
        """The last block's rows behind the final norm."""
        model = self._model
        if self._norm is not None and self._last is not None:
            given, made = (
                x[:, None] if x.ndim == 2 else self._tokens(x, count=False) for x in self._norm
            )
            # Comparing waits for the device, so once for all batches.
            model.normed = model.normed or self._normed_what(given, self._last)
            if model.normed == "tokens":
                return self._rows(made[:, -self._last.shape[1] :])
            if model.normed == "pooled":
                return _own(made[:, 0])
        raise PrhEvalError(
            f"{model.name} has no final norm for 'token: {model.encoder.token}'; 'norm' should be "
            "'before'"
        )

    def _normed_what(self, given: Tensor, last: Tensor) -> Literal["tokens", "pooled"] | None:
        """What of the last block goes into the first norm behind it."""
        n = last.shape[1]
        # Some models put their pooled token before those of the last block.
        if given.shape[1] >= n and _same(given[:, -n:], last):
            return "tokens"
        # Others have a norm only for what they pool: the class token, or the mean.
        if given.shape[1] == 1 and _same(given[:, 0], self._blocks[-1]):
            return "pooled"
        return None

    def _tokens(self, state: Any, count: bool = True) -> Tensor:
        """A hidden state as (b, tokens, width), the tokens counted."""
        model = self._model
        last = model.loaded.channels_last
        dimensions = (3,) if last is None else (3, 4)
        if not isinstance(state, Tensor) or state.ndim not in dimensions:
            shape = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise PrhEvalError(
                f"{model.name} gives no hidden states of shape (images, tokens, "
                f"width) or feature maps, but {shape}; 'token' should be 'pooled'"
            )
        tokens: Tensor = state
        expected: int | None = None
        if tokens.ndim == 4:
            tokens = tokens.flatten(1, 2) if last else tokens.flatten(2).transpose(1, 2)
            expected = tokens.shape[1]
        elif (patch := model.loaded.patch_size) is not None:
            expected = (self._size[0] // patch[0]) * (self._size[1] // patch[1])
        if count and expected is not None and tokens.shape[1] != expected + model.prefix:
            raise PrhEvalError(
                f"{model.name} has blocks of {tokens.shape[1]} tokens where "
                f"{expected} patches and {model.prefix} others were expected, so that they cannot "
                "be told apart; 'token' should be 'pooled'"
            )
        return tokens

    def _rows(self, tokens: Tensor) -> Tensor:
        """(b, tokens, width) to (b, width)."""
        if self._model.encoder.token == "class":
            return _own(tokens[:, 0])
        return tokens[:, self._model.prefix :].float().mean(dim=1)


def _chosen(encoder: VisionEncoder, count: int) -> list[int]:
    """Positions of the chosen layers among all that are read."""
    if encoder.token == "pooled":
        return []
    if encoder.layers == "embedding_and_blocks":
        return list(range(count + 1))
    return chosen_layers(encoder, count, "block")


def _own(rows: Tensor) -> Tensor:
    """float32 in memory of its own: a view would keep a whole hidden state for each block."""
    return rows.to(torch.float32, copy=True)


def _same(a: Tensor, b: Tensor) -> bool:
    a, b = a.float(), b.float()
    return a.shape == b.shape and bool((a - b).norm() <= _SAME * b.norm())
