"""Calibration text on its way through a model, one decoder layer at a time.

Between layers only the hidden states in front of the next one are kept: N tokens x d values, on the device or on the
host. Everything around the layers is the model's own forward, run with layers that hand on what they are given: the
layers' arguments (rotary embeddings, attention masks, gates) are those that it calls them with, the loss is its own.

Legend: d hidden size, L layers, N tokens of the calibration text in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core import UsageError, count_over_ranks, counted_tokens


class _BehindLayers(Exception):
    """Ends a forward behind its last layer."""


@dataclass
class WaitingBatch:
    """One batch in front of a layer.

    Attributes:
        hidden: [samples, length, d].
        arguments: of each layer's forward besides the hidden states, positional and named.
        inputs: of the model's forward.
        counted: bool [samples, length], False at padding and where labels are ignored; None: every token counts.
    """

    hidden: Tensor
    arguments: list[tuple[tuple, dict[str, Any]]]
    inputs: dict[str, Tensor]
    counted: Tensor | None

    def to(self, device: torch.device) -> WaitingBatch:
        """The same on ``device``; tensors that layers share stay shared."""
        known: dict[int, Tensor] = {}
        return replace(self, **{name: _moved(value, device, known) for name, value in vars(self).items()})

    def tokens_of(self, values: Tensor) -> Tensor:
        """[tokens, n] of values [samples, length, n], without padding."""
        return values.flatten(0, -2) if self.counted is None else values[self.counted]

    @property
    def num_tokens(self) -> int:
        """Tokens that count."""
        return self.hidden.shape[:2].numel() if self.counted is None else int(self.counted.sum())


def _moved(value: Any, device: torch.device, known: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if id(value) not in known:
            known[id(value)] = value.to(device)
        return known[id(value)]
    if isinstance(value, dict):
        return {key: _moved(item, device, known) for key, item in value.items()}
    return type(value)(_moved(item, device, known) for item in value) if type(value) in (list, tuple) else value


@contextmanager
def _layers_replaced(layers: Iterable[nn.Module], make: Callable[[int], Callable]) -> Iterator[None]:
    """Give each layer the forward ``make(index)``."""
    layers = list(layers)
    own = [vars(layer).get("forward") for layer in layers]  # such as one that moves inputs between devices
    try:
        for index, layer in enumerate(layers):
            layer.forward = make(index)
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


class LayerStream:
    """The batches of a calibration text, all waiting in front of the same layer of a model.

    Args:
        model: of a supported family, stock or masked, in the mode and under the gates that forwards shall run in.
        batches: keyword arguments of its forward, on any device.
        store: where hidden states wait; None: the model's device.

    Raises:
        ValueError: no batches, or no token that counts.

    Attributes:
        num_tokens: that count, over all ranks.
    """

    def __init__(self, model: nn.Module, batches: Iterable[dict[str, Tensor]], store: torch.device | str | None = None):
        self.model, self.layers, self.device = model, model.model.layers, model.device
        self.store = self.device if store is None else torch.device(store)
        self._waiting = [self._in_front_of_layers(batch).to(self.store) for batch in batches]
        if not self._waiting:
            raise UsageError("`batches` is empty: calibration needs at least one batch of text.")
        self.num_tokens = count_over_ranks(sum(batch.num_tokens for batch in self._waiting), self.device)
        if self.num_tokens == 0:
            raise UsageError(
                "No token of the calibration text counts: all are padding, or have labels that are ignored."
            )

    @torch.no_grad()
    def _in_front_of_layers(self, batch: dict[str, Tensor]) -> WaitingBatch:
        found, arguments = [], []

        def note(index):
            def forward(hidden_states, *args, **kwargs):
                found.append(hidden_states)
                arguments.append((args, kwargs))
                return hidden_states

            return forward

        def stop(module, args):
            raise _BehindLayers

        inputs = {name: tensor.to(self.device) for name, tensor in batch.items()}
        handle = self.model.model.norm.register_forward_pre_hook(stop)
        try:
            with _layers_replaced(self.layers, note):
                self.model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False)
        except _BehindLayers:
            pass
        finally:
            handle.remove()
        counted = counted_tokens(inputs)
        return WaitingBatch(found[0], arguments, inputs, None if bool(counted.all()) else counted)

    def run(self, index: int, hidden: Tensor, batch: WaitingBatch) -> Tensor:
        """Layer ``index`` on hidden states."""
        args, kwargs = batch.arguments[index]
        return self.layers[index](hidden, *args, **kwargs)

    def summed_loss(self, hidden: Tensor, batch: WaitingBatch) -> Tensor:
        """Sum of the negative log-likelihoods of the predicted tokens, nats, from the last layer's output on."""

        def hand_on(index):
            last = index == len(self.layers) - 1
            return lambda hidden_states, *args, **kwargs: hidden if last else hidden_states

        with _layers_replaced(self.layers, hand_on):
            return self.model(**batch.inputs, use_cache=False, num_items_in_batch=1).loss

    def __iter__(self) -> Iterator[WaitingBatch]:
        """The batches on the model's device. What is set as ``hidden`` of each waits in its place from then on."""
        for waiting in self._waiting:
            batch = waiting.to(self.device)
            before = batch.hidden
            yield batch
            if batch.hidden is not before:
                waiting.hidden = batch.hidden.detach().to(self.store)
