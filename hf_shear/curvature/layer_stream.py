"""Calibration text on its way through a Llama, one decoder layer at a time.

Between layers nothing is kept but the hidden states in front of the next one: N tokens x d values, on the device or on
the host. The layers' other arguments (rotary embeddings, attention mask, masks of units) are those that the model
itself hands to its first layer; nothing of its forward is written anew here.

Legend: d hidden size, L layers, N tokens of the calibration text in this process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LABEL_NAMES = ("labels",)  # what a forward needs for the loss alone


class _FirstLayer(Exception):
    """Ends a forward in front of its first layer, with what that would have been called with."""

    def __init__(self, hidden: Tensor, arguments: dict[str, Any]):
        self.hidden, self.arguments = hidden, arguments


@dataclass
class WaitingBatch:
    """One batch in front of a layer.

    Attributes:
        hidden: [samples, length, d].
        arguments: of a layer's forward, besides the hidden states.
        labels: [samples, length], or None.
        counted: bool [samples, length], False at padding; None: every token counts.
    """

    hidden: Tensor
    arguments: dict[str, Any]
    labels: Tensor | None
    counted: Tensor | None

    def to(self, device: torch.device | str) -> WaitingBatch:
        """The same on ``device``."""
        return WaitingBatch(
            _moved(self.hidden, device),
            _moved(self.arguments, device),
            _moved(self.labels, device),
            _moved(self.counted, device),
        )

    def tokens_of(self, values: Tensor) -> Tensor:
        """[tokens, n] of values [samples, length, n], without padding."""
        return values.flatten(0, -2) if self.counted is None else values[self.counted]

    @property
    def num_tokens(self) -> int:
        """Tokens that count."""
        return self.hidden.shape[:2].numel() if self.counted is None else int(self.counted.sum())


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return tuple(_moved(item, device) for item in value) if isinstance(value, tuple) else value


class LayerStream:
    """The batches of a calibration text, waiting in front of layer ``position`` of a model.

    Args:
        model: a Llama, stock or masked, in the mode and under the gates that forwards shall run in.
        batches: keyword arguments of its forward, on any device.
        store: where hidden states wait; None: the model's device.

    Raises:
        ValueError: no batches, or layers that are called with different arguments.
    """

    def __init__(self, model: nn.Module, batches: Iterable[dict[str, Tensor]], store: torch.device | str | None = None):
        kinds = set(getattr(model.config, "layer_types", None) or ())
        if len(kinds) > 1:
            raise ValueError(
                f"The layers of the model are of several types ({', '.join(sorted(kinds))}), which are called with"
                " different attention masks: streaming layer by layer needs layers of one type."
            )
        self.model, self.layers = model, model.model.layers
        self.device = model.device
        self.store = torch.device(store) if store is not None else self.device
        self.position = 0
        self._waiting = [self._in_front_of_layers(batch).to(self.store) for batch in batches]
        if not self._waiting:
            raise ValueError("`batches` is empty: calibration needs at least one batch of text.")
        self.num_tokens = sum(batch.num_tokens for batch in self._waiting)

    @torch.no_grad()
    def _in_front_of_layers(self, batch: dict[str, Tensor]) -> WaitingBatch:
        def stop(layer, args, kwargs):
            raise _FirstLayer(args[0], kwargs)

        inputs = {name: tensor.to(self.device) for name, tensor in batch.items() if name not in LABEL_NAMES}
        handle = self.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.model(**inputs, use_cache=False)
        except _FirstLayer as reached:
            hidden, arguments = reached.hidden, reached.arguments
        finally:
            handle.remove()
        attention_mask = inputs.get("attention_mask")
        counted = attention_mask.bool() if attention_mask is not None and attention_mask.dim() == 2 else None
        if counted is not None and bool(counted.all()):
            counted = None
        return WaitingBatch(hidden, arguments, batch.get("labels"), counted)

    def run(self, index: int, hidden: Tensor, batch: WaitingBatch) -> Tensor:
        """Layer ``index`` on hidden states."""
        return self.layers[index](hidden, **batch.arguments)

    def __iter__(self) -> Iterator[WaitingBatch]:
        """The batches on the model's device. Whoever iterates sets ``hidden`` of each to what ``advance`` shall keep."""
        for number, waiting in enumerate(self._waiting):
            batch = waiting.to(self.device)
            before = batch.hidden
            yield batch
            if batch.hidden is not before:
                self._waiting[number].hidden = batch.hidden.detach().to(self.store)
