"""Statistics of a model's linear layers, one decoder layer after another: nothing is held of layers that are done.

``stream_inputs`` needs forward passes only, one through every layer. ``stream_curvature`` adds gradients: for each window
of ``layers_per_pass`` layers, the batches run from the window on to the loss and back again. Weights are frozen, so that
gradients of activations alone are computed, and only down to the window.

A layer's weights may be changed once ``stream_inputs`` yielded its statistics: the layers behind it still read what the
model computed before the change.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core import IGNORED_LABEL, UsageError, check_ranges
from .evaluating import evaluating
from .factors import check_finite
from .layer_stream import LayerStream, WaitingBatch
from .moments import GradientMoments, InputMoments

OUTPUT_PROJECTIONS = ("self_attn.o_proj", "mlp.down_proj")  # whose columns are heads and neurons


class ShortCalibrationWarning(UserWarning):
    """The calibration text has fewer tokens than a linear layer has inputs."""


class Accumulator(Protocol):
    """What sums up the inputs of one linear layer."""

    def add(self, inputs: Tensor) -> None:
        """Count inputs [tokens, C]."""

    def all_reduce(self) -> None:
        """Sum over the ranks."""


@dataclass
class LayerCurvature:
    """A and G of the linear layers of one decoder layer.

    Attributes:
        inputs, gradients: by name within the layer, such as "mlp.down_proj".
    """

    inputs: dict[str, InputMoments] = field(default_factory=dict)
    gradients: dict[str, GradientMoments] = field(default_factory=dict)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """As ``evaluating``, and weights without gradients."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _hooks(handles: Iterable) -> Iterator[None]:
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def _watch_inputs(module: nn.Module, accumulator: Accumulator, batch: WaitingBatch):
    return module.register_forward_pre_hook(lambda _, args: accumulator.add(batch.tokens_of(args[0])))


@torch.no_grad()
def stream_inputs(
    model: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    names: Iterable[str] = OUTPUT_PROJECTIONS,
    make: Callable[[nn.Linear], Accumulator] | None = None,
    store: torch.device | str | None = None,
    inverted: bool = True,
) -> Iterator[tuple[int, dict[str, Accumulator]]]:
    """Statistics of the inputs of linear layers, from forward passes alone.

    Args:
        model: of a supported family, stock or masked. It runs in evaluation mode and with the gates in use (all open,
            where none are), which must stay in use until the last layer.
        batches: as its forward takes them; ``labels`` are not needed. Tokens of padding (``attention_mask`` 0) and
            with ignored labels do not count.
        names: of linear layers within a decoder layer.
        make: an empty accumulator for a linear layer. Default: ``InputMoments`` in float32, for A.
        store: where hidden states wait between layers, such as "cpu". Default: the model's device.
        inverted: whether A is going to be inverted, so that a text too short for that is worth a warning.

    Yields:
        (index of the decoder layer, accumulators by name), summed over the ranks.

    Raises:
        ValueError: no batches.
    """
    names, is_moments = tuple(names), make is None
    make = make or _empty_moments
    with evaluating(model):
        stream = LayerStream(model, batches, store)
        if is_moments and inverted:
            warn_if_short(model, names, stream.num_tokens)
        for index, layer in enumerate(stream.layers):
            found = {name: make(layer.get_submodule(name)) for name in names}
            for batch in stream:
                watched = [_watch_inputs(layer.get_submodule(name), found[name], batch) for name in names]
                with _hooks(watched):
                    batch.hidden = stream.run(index, batch.hidden, batch)
            _all_reduce(found.values())
            yield index, found


def _all_reduce(accumulators: Iterable[Accumulator]) -> None:
    # A function of its own: a loop's variable would keep the last one from being freed by whoever consumes the stream.
    for accumulator in accumulators:
        accumulator.all_reduce()


def _empty_moments(module: nn.Linear) -> InputMoments:
    return InputMoments.zeros(module.in_features, module.weight.device)


def warn_if_short(model: nn.Module, names: Iterable[str], num_tokens: int) -> None:
    """Warn if there are fewer tokens than inputs of a linear layer.

    A is then singular, and only its damping makes it invertible.
    """
    sizes = {name: model.model.layers[0].get_submodule(name).in_features for name in names}
    name = max(sizes, key=sizes.get)
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
    model: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    names: Iterable[str] = OUTPUT_PROJECTIONS,
    layers_per_pass: int | None = None,
    activation_checkpointing: bool = False,
    store: torch.device | str | None = None,
    inverted: bool = True,
) -> Iterator[tuple[int, LayerCurvature]]:
    """A and G of linear layers, from forward and backward passes.

    Args:
        model, names, store, inverted: as in ``stream_inputs``.
        batches: with ``labels``.
        layers_per_pass: layers whose A and G are held at once. Fewer need less memory and more passes: with p of L,
            the layers run (1 + L / p) / 2 times as often as in one pass. Default: all.
        activation_checkpointing: keep one hidden state per layer for the backward pass, and run each layer again.

    Yields:
        (index of the decoder layer, its A and G), summed over the ranks.

    Raises:
        ValueError: no batches, a batch without labels, a loss that is not finite.
    """
    names, num_layers = tuple(names), len(model.model.layers)
    size = num_layers if layers_per_pass is None else layers_per_pass
    check_ranges({"layers_per_pass": layers_per_pass})
    with frozen(model):
        stream = LayerStream(model, batches, store)
        if inverted:
            warn_if_short(model, names, stream.num_tokens)
        for start in range(0, num_layers, size):
            window = range(start, min(start + size, num_layers))
            found = _window_curvature(stream, names, window, activation_checkpointing)
            for index in window:
                yield index, found.pop(index)


def _window_curvature(
    stream: LayerStream, names: tuple[str, ...], window: range, activation_checkpointing: bool
) -> dict[int, LayerCurvature]:
    found = {}
    for index in window:
        modules = {name: stream.layers[index].get_submodule(name) for name in names}
        found[index] = LayerCurvature(
            {name: _empty_moments(module) for name, module in modules.items()},
            {
                name: GradientMoments.zeros(module.out_features, module.weight.device)
                for name, module in modules.items()
            },
        )
    num_predicted = 0
    for number, batch in enumerate(stream):
        if "labels" not in batch.inputs:
            raise UsageError("A calibration batch has no `labels`, which gradients need.")
        num_predicted += int((batch.inputs["labels"][:, 1:] != IGNORED_LABEL).sum())
        batch.hidden = _forward_backward(stream, batch, found, activation_checkpointing, number)
    for curvature in found.values():
        for moments in curvature.gradients.values():
            moments.num_predicted = num_predicted
        _all_reduce((*curvature.inputs.values(), *curvature.gradients.values()))
        if any(moments.num_predicted == 0 for moments in curvature.gradients.values()):
            raise UsageError(f"All `labels` of the calibration text are {IGNORED_LABEL}: no token is predicted.")
    return found


def _forward_backward(
    stream: LayerStream,
    batch: WaitingBatch,
    found: dict[int, LayerCurvature],
    activation_checkpointing: bool,
    number: int,
) -> Tensor:
    """Run a batch from the first layer of the window to the loss and back; returns it in front of the next window."""
    recording = True  # a checkpointed layer runs again in the backward pass, and its hooks with it

    def inputs_hook(moments: InputMoments, module, args):
        if recording:
            moments.add(batch.tokens_of(args[0]))

    def outputs_hook(moments: GradientMoments, module, args, output):
        if recording:
            output.register_hook(moments.add)

    handles = []
    for index, curvature in found.items():
        for name, moments in curvature.inputs.items():
            module = stream.layers[index].get_submodule(name)
            handles.append(module.register_forward_pre_hook(partial(inputs_hook, moments)))
            handles.append(module.register_forward_hook(partial(outputs_hook, curvature.gradients[name])))
    with _hooks(handles), torch.enable_grad():
        first = hidden = batch.hidden.detach().requires_grad_()
        for index in range(min(found), len(stream.layers)):
            if activation_checkpointing:
                hidden = checkpoint(partial(stream.run, index), hidden, batch, use_reentrant=False)
            else:
                hidden = stream.run(index, hidden, batch)
            if index == max(found):
                following = hidden.detach()
        loss = stream.summed_loss(hidden, batch)
        if not bool(torch.isfinite(loss)):
            check_finite(loss, f"The loss of calibration batch {number}")
        recording = False
        torch.autograd.grad(loss, first)
    return following
