"""Batches of token ids through a language model, to pooled hidden states and probabilities."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prh_eval.errors import PrhEvalError
from prh_eval.features.batching import pad
from prh_eval.features.language_body import input_device, without_cache
from prh_eval.features.language_head import VocabularyHead
from prh_eval.features.language_hooks import Site, find_sites, pooled_at
from prh_eval.features.language_loss import Run, nats
from prh_eval.features.language_pooling import Pooling, pool

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)


class Reader:
    """A language model's body, to be in evaluation mode while it reads.

    Args:
        part: What `language_body.body` returned.
        pad_id: Any id that the model knows.
        pooling: Over a caption's tokens.
        autocast_dtype: Run it under `torch.autocast` to this type.
        example: A small batch; hidden states are looked for in it when they are first wanted.

    Attributes:
        device: Where token ids go in.
    """

    def __init__(
        self,
        part: PreTrainedModel,
        *,
        pad_id: int,
        pooling: Pooling,
        autocast_dtype: torch.dtype | None,
        example: Sequence[Run],
    ) -> None:
        self._part = part
        self.device = input_device(part)
        self._pad_id = pad_id
        self._pooling = pooling
        self._autocast_dtype = autocast_dtype
        self._example = example
        # None until they are looked for; empty where they are not to be found.
        self._sites: list[Site] | None = None
        self._head: VocabularyHead | None = None
        self._options = without_cache(part)
        accepted = inspect.signature(part.forward).parameters
        self._takes_mask = "attention_mask" in accepted or any(
            parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()
        )

    @torch.inference_mode()
    def ask(self, model: nn.Module, example: Sequence[int]) -> None:
        """From now on `features` ends with the nats of each run's targets.

        Args:
            model: The model that the body is of.
            example: Tokens to try its head with.

        Raises:
            PrhEvalError: As for `VocabularyHead`.
        """
        # Of one token nothing could be seen.
        tokens = [*example, *example][:8]
        with self._precision():
            self._head = VocabularyHead(
                model, lambda ids: self._forward(ids, torch.ones_like(ids)), tokens
            )

    @torch.inference_mode()
    def features(self, runs: Sequence[Run]) -> list[Tensor]:
        """Pooled hidden states of a batch.

        Args:
            runs: b runs.

        Returns:
            float32, (b, dim_l) a layer, each on its layer's device; after `ask` there is one more,
            (b, 1), as of `nats`.

        Raises:
            PrhEvalError: If the model gives no hidden state for every token.
        """
        if self._sites is None:
            self._sites = self._found_sites()
        batch = self._batch(runs)
        if self._head is None:
            return self._pooled(batch, self._sites)
        with self._head.last_hidden_states() as last:
            pooled = self._pooled(batch, self._sites)
        return [*pooled, self._scored(self._head, last[-1], runs)]

    @torch.inference_mode()
    def nats(self, runs: Sequence[Run]) -> list[Tensor]:
        """The nats of each run's targets, float32, shape (b, 1); to be called after `ask`."""
        assert self._head is not None
        batch = self._batch(runs)
        with self._head.last_hidden_states() as last:
            self._forward(batch.ids, batch.mask)
        return [self._scored(self._head, last[-1], runs)]

    def _pooled(self, batch: _Batch, sites: list[Site]) -> list[Tensor]:
        pooled = None
        if sites:
            pooled = pooled_at(sites, lambda: self._forward(batch.ids, batch.mask), batch.pool)
        return pooled or [batch.pool(hidden) for hidden in self._states(batch)]

    def _found_sites(self) -> list[Site]:
        batch = self._batch(self._example)
        sites = find_sites(
            self._part,
            lambda: self._states(batch),
            lambda: self._forward(batch.ids, batch.mask),
            batch.pool,
            batch.ids.shape,
        )
        if sites is None:
            _log.info(
                "%s passes its hidden states where they cannot be pooled one by one: they are "
                "stacked, which takes more memory",
                type(self._part).__name__,
            )
        return sites or []

    def _batch(self, runs: Sequence[Run]) -> _Batch:
        tokens = [run.tokens for run in runs]
        ids, mask = pad(tokens, self._pad_id, self.device)
        padded = any(len(each) < ids.shape[1] for each in tokens)
        return _Batch(ids, mask, padded, self._pooling)

    def _states(self, batch: _Batch) -> Sequence[Tensor]:
        """The stack of hidden states."""
        name, shape = type(self._part).__name__, tuple(batch.ids.shape)
        output = self._forward(batch.ids, batch.mask, stack=True)
        states: Sequence[Tensor] | None = getattr(output, "hidden_states", None)
        if states is None:
            raise PrhEvalError(
                f"a model of class {name} gives no hidden states: one whose forward honours "
                "output_hidden_states is needed"
            )
        for number, hidden in enumerate(states):
            if hidden.shape[:2] != shape:
                raise PrhEvalError(
                    f"hidden state {number} of {name} has shape {tuple(hidden.shape)}: one vector "
                    f"for each of {shape} (captions, tokens) is needed"
                )
        return states

    def _scored(self, head: VocabularyHead, last: Tensor, runs: Sequence[Run]) -> Tensor:
        with self._precision():
            return nats(head, head.vocabulary, last, runs).unsqueeze(1)

    def _forward(self, ids: Tensor, mask: Tensor, *, stack: bool = False) -> Any:
        options: dict[str, Any] = {"output_hidden_states": stack, **self._options}
        if self._takes_mask:
            options["attention_mask"] = mask
        with self._precision():
            return self._part(input_ids=ids, **options)

    def _precision(self) -> torch.autocast:
        enabled = self._autocast_dtype is not None
        return torch.autocast(self.device.type, self._autocast_dtype, enabled=enabled)


class _Batch:
    """Runs padded on the right, on the device that reads them."""

    def __init__(self, ids: Tensor, mask: Tensor, padded: bool, pooling: Pooling) -> None:
        self.ids = ids
        self.mask = mask
        self._padded = padded
        self._pooling = pooling
        self._masks = {mask.device: mask}

    def pool(self, hidden: Tensor) -> Tensor:
        """One row a run of hidden states, on the device where they are."""
        # A model that is spread over devices leaves its hidden states where they were made.
        if hidden.device not in self._masks:
            self._masks[hidden.device] = self.mask.to(hidden.device)
        mask = self._masks[hidden.device]
        return pool(hidden, mask, self._pooling, padded=self._padded)
