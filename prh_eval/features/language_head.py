"""The vocabulary head of a causal language model, run on chosen hidden states only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prh_eval.errors import PrhEvalError
from prh_eval.features.language_body import (
    embedding_rows,
    input_device,
    unwrapped,
    without_cache,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How far apart two computations of the same numbers may be, as a share of the largest one.
_ROUNDING = 0.02


class VocabularyHead:
    """Everything between a model's last hidden state and its logits.

    It is the model's own forward with its body skipped, so that a scale, a soft cap or an adapter
    of the head is in it, whatever the family. To be used in evaluation and inference mode.

    Args:
        model: A causal model of transformers with a vocabulary head; possibly wrapped, as for
            `language_body.body`.
        read: Runs the model's body on token ids, shape (1, tokens); to try the head with.
        tokens: A few token ids to try it with, at least 2.

    Attributes:
        vocabulary: How many logits a token has.

    Raises:
        PrhEvalError: If the model is a sequence-to-sequence one, has no vocabulary head, reads
            what comes after a token, or makes its logits of something else.
    """

    def __init__(
        self,
        model: nn.Module,
        read: Callable[[Tensor], Any],
        tokens: Sequence[int],
    ) -> None:
        from transformers import PreTrainedModel

        self._model = unwrapped(model)
        name = type(self._model).__name__
        needed = "bits per byte need a causal language model with a vocabulary head"
        if self._model.config.is_encoder_decoder:
            raise PrhEvalError(f"{needed}, and {name} is a sequence-to-sequence model")
        if self._model.get_output_embeddings() is None:
            raise PrhEvalError(f"{needed}, and {name} has none")
        self._device, rows = input_device(self._model), embedding_rows(self._model)
        ids = torch.tensor([list(tokens)], device=self._device)

        called: list[tuple[PreTrainedModel, Any]] = []

        def note(module: nn.Module, args: Any, output: Any) -> None:
            assert isinstance(module, PreTrainedModel)
            called.append((module, output))

        handles = [
            module.register_forward_hook(note)
            for module in self._model.modules()
            if isinstance(module, PreTrainedModel) and module is not self._model
        ]
        try:
            wanted = self._logits(ids)[0]
        finally:
            for handle in handles:
                handle.remove()
        if not called:
            raise PrhEvalError(f"{needed} that can be run by itself, and that of {name} cannot")
        # The outermost one, which the model's own forward calls, returns last.
        self._body, output = called[-1]
        self._output = type(output)
        self.vocabulary = wanted.shape[-1]
        half = len(tokens) // 2
        changed = torch.cat([ids[:, :half], (ids[:, half:] + rows // 2) % rows], dim=1)
        with self.last_hidden_states() as found:
            read(ids)
            read(changed)
        hidden, other = (states[0] for states in found)
        if not _close(self(hidden), wanted):
            raise PrhEvalError(
                f"{needed}, and the logits of {name} are not made of its last hidden state alone"
            )
        if not _close(other[:half], hidden[:half]):
            raise PrhEvalError(f"{needed}, and {name} reads what comes after a token")

    @contextmanager
    def last_hidden_states(self) -> Iterator[list[Tensor]]:
        """A list that gets what the head would read, (b, tokens, dim), each time the body runs."""
        found: list[Tensor] = []
        handle = self._body.register_forward_hook(
            lambda module, args, output: found.append(output[0])
        )
        try:
            yield found
        finally:
            handle.remove()

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits, shape (tokens, vocabulary), of last hidden states, shape (tokens, dim)."""
        states = hidden.unsqueeze(0)
        made = (states,) if self._output is tuple else self._output(last_hidden_state=states)
        # Only their number matters: the body does not run.
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=self._device)
        with _returning(self._body, made):
            return self._logits(ids)[0]

    def _logits(self, ids: Tensor) -> Tensor:
        made = self._model(input_ids=ids, **without_cache(self._model))
        logits: Tensor = made[0] if isinstance(made, tuple) else made.logits
        return logits


@contextmanager
def _returning(module: nn.Module, output: Any) -> Iterator[None]:
    """A module that does not run, but returns something ready-made."""
    # Where accelerate put a forward of its own on the instance, it comes back.
    own = vars(module).get("forward")
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    one, other = one.float(), other.float().to(one.device)
    return bool((one - other).abs().max() <= _ROUNDING * other.abs().max())
