"""Calibration text on its way through a model, one decoder layer at a time, and the moments that are seen there.

Between layers only the hidden states in front of the next one are kept: N tokens x d values, on the device or on the
host. Everything around the layers is the model's own forward, run with layers that hand on what they are given: the
layers' arguments (rotary embeddings, attention masks, gates) are those that it calls them with, the loss is its own.

``stream_inputs`` needs forward passes only, one through every layer. ``stream_curvature`` adds gradients: for each window
of ``layers_per_pass`` layers, the batches run from the window on to the loss and back again. Weights are frozen, so that
gradients of activations alone are computed, and only down to the window. Nothing is held of layers that are done.

A layer's weights may be changed once ``stream_inputs`` yielded its statistics: the layers behind it still read what the
model computed before the change.

Legend: d hidden size, L layers, N tokens of the calibration text in this process.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ..core import IGNORED_LABEL, UsageError, check_ranges, count_over_ranks, tracked
from ..shapes import OUTPUT_PROJECTIONS
from .engine import Batch, Watcher, Watchers, into, measuring, shown, split_samples, watching
from .factors import check_finite
from .moments import Moments


class ShortCalibrationWarning(UserWarning):
    """The calibration text has fewer tokens than a linear layer has inputs."""


InputsByModule = dict[tuple[int, str], Moments]
"""A of linear layers by (index of the decoder layer, name within it), handed from what collected it to what needs it."""


MOST_CHOOSING = 512
"""Tokens of a calibration text, of each process and at equal distances, that choose the damping of a module."""
PLENTY = 16
"""Tokens for each input from which on the least damping is right for what a module alone lost (model_cards/tried.md)."""


def is_plenty(num_tokens: int, num_inputs: int) -> bool:
    """Whether a calibration text, of all processes, chooses no damping for what a module with so many inputs lost."""
    return num_tokens >= PLENTY * num_inputs


class _BehindLayers(Exception):
    """Ends a forward behind its last layer."""


@dataclass
class WaitingBatch(Batch):
    """One batch in front of a layer.

    Attributes:
        hidden: [samples, length, d].
        arguments: of each layer's forward besides the hidden states, positional and named.
    """

    hidden: Tensor
    arguments: list[tuple[tuple, dict[str, Any]]]

    def to(self, device: torch.device) -> WaitingBatch:
        """The same on ``device``; tensors that layers share stay shared."""
        known: dict[int, Tensor] = {}
        return replace(self, **{name: _moved(value, device, known) for name, value in vars(self).items()})


def _moved(value: Any, device: torch.device, known: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if id(value) not in known:
            known[id(value)] = value.to(device)
        return known[id(value)]
    if isinstance(value, dict):
        return {key: _moved(item, device, known) for key, item in value.items()}
    return type(value)(_moved(item, device, known) for item in value) if type(value) in (list, tuple) else value


@contextmanager
def forwards_replaced(layers: Iterable[nn.Module], make: Callable[[int], Callable]) -> Iterator[None]:
    """Give each module the forward ``make(index)``."""
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


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a model of a supported family."""
    layers = model.get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    return layers


def linear_of(layer: nn.Module, name: str) -> nn.Linear:
    """A linear layer by its name within a decoder layer."""
    module = layer.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


class LayerRunner:
    """The layers of a model one by one, between what it does before the first and behind the last.

    Args:
        model: of a supported family, stock or masked, in the mode and under the gates that forwards shall run in.
    """

    def __init__(self, model: PreTrainedModel):
        self.model, self.layers, self.device = model, decoder_layers(model), model.device

    @torch.no_grad()
    def in_front_of_layers(self, batch: Batch) -> WaitingBatch:
        """The batch, embedded."""
        found: list[Tensor] = []
        arguments: list[tuple[tuple, dict]] = []

        def note(index):
            def forward(hidden_states, *args, **kwargs):
                found.append(hidden_states)
                arguments.append((args, kwargs))
                return hidden_states

            return forward

        def stop(values, batch):
            raise _BehindLayers

        try:
            with forwards_replaced(self.layers, note), watching(batch, {self.model.get_submodule("model.norm"): stop}):
                self.model(**batch.without_labels, use_cache=False)
        except _BehindLayers:
            pass
        return WaitingBatch(**vars(batch), hidden=found[0], arguments=arguments)

    def run(self, index: int, hidden: Tensor, batch: WaitingBatch, keywords: dict[str, Any] | None = None) -> Tensor:
        """Layer ``index`` on hidden states, ``keywords`` in place of those that it had in front of the layers."""
        args, kwargs = batch.arguments[index]
        return self.layers[index](hidden, *args, **kwargs | (keywords or {}))

    def through(self, layers: Iterable[int], hidden: Tensor, batch: WaitingBatch) -> Tensor:
        """``layers`` one after another on hidden states."""
        for index in layers:
            hidden = self.run(index, hidden, batch)
        return hidden

    def summed_loss(self, hidden: Tensor, batch: WaitingBatch) -> Tensor:
        """Sum of the negative log-likelihoods of the predicted tokens, nats, from the last layer's output on."""

        def hand_on(index):
            last = index == len(self.layers) - 1
            return lambda hidden_states, *args, **kwargs: hidden if last else hidden_states

        with forwards_replaced(self.layers, hand_on):
            return self.model(**batch.inputs, use_cache=False, num_items_in_batch=1).loss


class LayerStream(LayerRunner):
    """The batches of a calibration text, all waiting in front of the same layer of a model.

    Args:
        model: as in ``LayerRunner``.
        batches: keyword arguments of its forward, on any device.
        store: where hidden states wait; None: the model's device.

    Raises:
        ValueError: no token counts.

    Attributes:
        num_tokens: that count, over all ranks.
        choosing_every: the distance of tokens of this process that choose a damping.
    """

    def __init__(
        self, model: PreTrainedModel, batches: Iterable[dict[str, Tensor]], store: torch.device | str | None = None
    ):
        super().__init__(model)
        self.store = self.device if store is None else torch.device(store)
        self._waiting = [self.in_front_of_layers(batch).to(self.store) for batch in shown(batches, self.device)]
        own = sum(batch.num_tokens for batch in self._waiting)
        self.num_tokens = count_over_ranks(own, self.device)
        self.choosing_every = max(math.ceil(own / MOST_CHOOSING), 1)

    @property
    def num_batches(self) -> int:
        """Of this process."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[WaitingBatch]:
        """The batches on the model's device. What is set as ``hidden`` of each waits in its place from then on."""
        for waiting in self._waiting:
            batch = waiting.to(self.device)
            before = batch.hidden
            yield batch
            if batch.hidden is not before:
                waiting.hidden = batch.hidden.detach().to(self.store)


@dataclass
class LayerCurvature:
    """A and G of the linear layers of one decoder layer.

    Attributes:
        inputs, gradients: by name within the layer, such as "mlp.down_proj".
    """

    inputs: dict[str, Moments] = field(default_factory=dict)
    gradients: dict[str, Moments] = field(default_factory=dict)


@torch.no_grad()
def stream_inputs(
    model: PreTrainedModel,
    batches: Iterable[dict[str, Tensor]],
    names: Iterable[str] = OUTPUT_PROJECTIONS,
    store: torch.device | str | None = None,
    inverted: bool = True,
    shared: InputsByModule | None = None,
    holds_out: bool = False,
) -> Iterator[tuple[int, dict[str, Moments]]]:
    """A of linear layers, from forward passes alone.

    Args:
        model: of a supported family, stock or masked. It runs in evaluation mode and with the gates in use (all open,
            where none are), which must stay in use until the last layer.
        batches: as its forward takes them; ``labels`` are not needed. Tokens of padding (``attention_mask`` 0) and
            with ignored labels do not count.
        names: of linear layers within a decoder layer.
        store: where hidden states wait between layers, such as "cpu". Default: the model's device.
        inverted: whether A is going to be inverted, so that a text too short for that is worth a warning.
        shared: A of these layers that an earlier pass over the same text, model and gates has left there: it is taken
            from there, and no forward runs. An empty one is filled; None: nothing is kept.
        holds_out: whether to keep the inputs at the tokens that choose a damping. What is shared always has them.

    Yields:
        (index of the decoder layer, moments by name), summed over the ranks.

    Raises:
        ValueError: no token counts.
    """
    names = tuple(names)
    if shared:
        for index in tracked(range(len(decoder_layers(model))), "Compensation", unit="layer"):
            yield index, {name: shared.pop((index, name)) for name in names}
        return
    with measuring(model):
        stream = LayerStream(model, batches, store)
        if inverted:
            warn_if_short(model, names, stream.num_tokens)
        for index in tracked(range(len(stream.layers)), "Activations of layers", unit="layer"):
            found = _layer_inputs(stream, index, names, holds_out or shared is not None)
            _keep(shared, index, found)
            yield index, found


def _layer_inputs(stream: LayerStream, index: int, names: tuple[str, ...], holds_out: bool) -> dict[str, Moments]:
    # A function of its own, as below: its variables would keep moments from being freed by whoever consumes the stream.
    modules = {name: linear_of(stream.layers[index], name) for name in names}
    found = {name: _no_inputs(stream, module, holds_out) for name, module in modules.items()}
    watchers: dict[nn.Module, Watcher] = {module: into(found[name]) for name, module in modules.items()}
    for batch in stream:
        with watching(batch, watchers):
            batch.hidden = stream.run(index, batch.hidden, batch)
    for moments in found.values():
        moments.over_ranks()
    return found


def _no_inputs(stream: LayerStream, module: nn.Linear, holds_out: bool) -> Moments:
    chooses = holds_out and not is_plenty(stream.num_tokens, module.in_features)
    keep_every = stream.choosing_every if chooses else 0
    return Moments.zeros(module.in_features, module.weight.device, keep_every=keep_every)


def _keep(shared: InputsByModule | None, index: int, found: dict[str, Moments]) -> None:
    if shared is not None:
        shared.update({(index, name): moments for name, moments in found.items()})


def warn_if_short(model: PreTrainedModel, names: Iterable[str], num_tokens: int) -> None:
    """Warn if there are fewer tokens than inputs of a linear layer.

    A is then singular, and only its damping makes it invertible.
    """
    sizes = {name: linear_of(decoder_layers(model)[0], name).in_features for name in names}
    name = max(sizes, key=lambda name: sizes[name])
    if num_tokens < sizes[name]:
        warnings.warn(
            f"The calibration text has {num_tokens} tokens, fewer than the {sizes[name]} inputs of {name}: the second"
            " moment of the inputs is singular, and only damping makes it invertible. Give at least"
            f" {sizes[name]} tokens, better several times as many; to silence this,"
            " warnings.simplefilter('ignore', hf_shear.calibration.ShortCalibrationWarning).",
            ShortCalibrationWarning,
            stacklevel=3,
        )


def stream_curvature(
    model: PreTrainedModel,
    batches: Iterable[dict[str, Tensor]],
    names: Iterable[str] = OUTPUT_PROJECTIONS,
    layers_per_pass: int | None = None,
    activation_checkpointing: bool = False,
    store: torch.device | str | None = None,
    inverted: bool = True,
    shared: InputsByModule | None = None,
    gradient_samples: int = 0,
) -> Iterator[tuple[int, LayerCurvature]]:
    """A and G of linear layers, from forward and backward passes.

    Args:
        model, names, store, inverted: as in ``stream_inputs``.
        batches: with ``labels``.
        layers_per_pass: layers whose A and G are held at once. Fewer need less memory and more passes: with p of L,
            the layers run (1 + L / p) / 2 times as often as in one pass. Default: all.
        activation_checkpointing: keep one hidden state per layer for the backward pass, and run each layer again.
        shared: is filled with A of all layers; None: nothing is kept.
        gradient_samples: the first of each process, which G is of; the others go forward for A alone. 0: all.

    Yields:
        (index of the decoder layer, its A and G), summed over the ranks.

    Raises:
        ValueError: no token counts or is predicted, a batch without labels, a loss that is not finite.
    """
    names, num_layers = tuple(names), len(decoder_layers(model))
    size = num_layers if layers_per_pass is None else layers_per_pass
    check_ranges({"layers_per_pass": layers_per_pass})
    with measuring(model, weights_require_grad=False):
        first, rest = split_samples(batches, gradient_samples)
        stream = LayerStream(model, [*first, *rest], store)
        if inverted:
            warn_if_short(model, names, stream.num_tokens)
        for start in range(0, num_layers, size):
            window = range(start, min(start + size, num_layers))
            found = _window_curvature(stream, names, window, activation_checkpointing, len(first), shared is not None)
            for index in window:
                _keep(shared, index, found[index].inputs)
                yield index, found.pop(index)


def _window_curvature(
    stream: LayerStream,
    names: tuple[str, ...],
    window: range,
    activation_checkpointing: bool,
    num_backward: int,
    holds_out: bool,
) -> dict[int, LayerCurvature]:
    found, inputs, gradients = {}, {}, {}
    for index in window:
        found[index] = LayerCurvature()
        for name in names:
            module = linear_of(stream.layers[index], name)
            device = module.weight.device
            found[index].inputs[name] = moments = _no_inputs(stream, module, holds_out)
            inputs[module] = into(moments)
            found[index].gradients[name] = moments = Moments.zeros(module.out_features, device, mean=False)
            gradients[module] = partial(_add_gradients, moments)
    for number, batch in enumerate(tracked(stream, "Curvature", stream.num_batches)):
        if number >= num_backward:
            with watching(batch, inputs):
                batch.hidden = stream.through(window, batch.hidden, batch)
            continue
        if "labels" not in batch.inputs:
            raise UsageError("A calibration batch has no `labels`, which gradients need.")
        _forward_backward(stream, batch, window, inputs, gradients, activation_checkpointing, number)
    for curvature in found.values():
        for moments in (*curvature.inputs.values(), *curvature.gradients.values()):
            moments.over_ranks()
            if moments.count == 0:
                raise UsageError(
                    f"All `labels` of the samples that gradients are read of are {IGNORED_LABEL}: no token is predicted."
                )
    return found


def _add_gradients(moments: Moments, gradients: Tensor, batch: Batch) -> None:
    moments.add(gradients, batch.num_predicted)


@torch.enable_grad()
def _forward_backward(
    stream: LayerStream,
    batch: WaitingBatch,
    window: range,
    inputs: Watchers,
    gradients: Watchers,
    activation_checkpointing: bool,
    number: int,
) -> None:
    """Run a batch from the first layer of the window to the loss and back, and leave it in front of the next window."""

    def run(layers: range, hidden: Tensor) -> Tensor:
        for index in layers:
            if activation_checkpointing:
                hidden = checkpoint(partial(stream.run, index), hidden, batch, use_reentrant=False)
            else:
                hidden = stream.run(index, hidden, batch)
        return hidden

    first = batch.hidden.detach().requires_grad_()
    with watching(batch, inputs, gradients=gradients):  # not in the backward pass, where checkpointed layers run again
        hidden = run(window, first)
    following = hidden.detach()
    loss = stream.summed_loss(run(range(window.stop, len(stream.layers)), hidden), batch)
    if not bool(torch.isfinite(loss)):
        check_finite(loss, f"The loss of calibration batch {number}")
    torch.autograd.grad(loss, first)
    batch.hidden = following
