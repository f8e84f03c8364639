"""How calibration text is shown to a model: the state it runs in, its batches, and who looks on.

Whatever measures activations or their gradients comes here, whether forwards run whole or layer by layer
(``layer_stream.py``): the model is found afterwards as it was before, and accumulators are handed only tokens that count.

Legend: B samples, T length, C channels, N tokens that count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import IGNORED_LABEL, UsageError, count_over_ranks, counted_tokens, evaluating, predicted_tokens, tracked
from ..modeling import ShearingMixin


@contextmanager
def measuring(model: nn.Module, weights_require_grad: bool | None = None) -> Iterator[None]:
    """Evaluation mode within; a masked model runs with the gates in use, all open where none are.

    Without that a masked model would run with the gates of its own masks: as what it is going to be cut to.

    Args:
        weights_require_grad: whether all parameters require gradients within, or none does; None: they are left alone.
    """
    before = [] if weights_require_grad is None else [(one, one.requires_grad) for one in model.parameters()]
    gates = model.use_gates(model.gates_in_use) if isinstance(model, ShearingMixin) else nullcontext()
    try:
        for parameter, _ in before:
            parameter.requires_grad_(bool(weights_require_grad))
        with evaluating(model), gates:
            yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@dataclass
class Batch:
    """One batch of calibration text.

    Attributes:
        inputs: of the model's forward, [B, T] each, on its device.
        counted: bool [B, T], False at padding and where labels are ignored.
        num_tokens: N.
        num_predicted: tokens whose loss counts; 0 without labels.
    """

    inputs: dict[str, Tensor]
    counted: Tensor
    num_tokens: int
    num_predicted: int

    def rows(self, values: Tensor) -> Tensor:
        """[N, C] of values [B, T, C] or [B * T, C]: those of tokens that count."""
        flat = values.flatten(0, -2)
        return flat if self.num_tokens == len(flat) else flat[self.counted.flatten()]

    @property
    def without_labels(self) -> dict[str, Tensor]:
        """The inputs of a forward that computes no loss."""
        return {name: tensor for name, tensor in self.inputs.items() if name != "labels"}


def shown(batches: Iterable[dict[str, Tensor]], device: torch.device, what: str | None = None) -> Iterator[Batch]:
    """The batches on ``device``, one after another, with progress if it is said ``what`` is done with them.

    Raises:
        ValueError: at the end, if no token counts on any rank.
    """
    num_tokens = 0
    for batch in batches if what is None else tracked(batches, what):
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        counted = counted_tokens(inputs)
        num_predicted = int(predicted_tokens(inputs["labels"]).sum()) if "labels" in inputs else 0
        shown = Batch(inputs, counted, int(counted.sum()), num_predicted)
        num_tokens += shown.num_tokens
        yield shown
    if count_over_ranks(num_tokens, device) == 0:
        raise UsageError(
            "No token of the calibration text counts: `batches` is empty, its labels are all ignored, or it is all"
            " padding. Give at least one calibration batch of text."
        )


def split_samples(
    batches: Iterable[dict[str, Tensor]], num_samples: int
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Batches of the first samples, 0: of all; and of the others."""
    batches = list(batches)
    if num_samples == 0:
        return batches, []
    first, rest = [], []
    for batch in batches:
        taken, size = min(num_samples, len(batch["input_ids"])), len(batch["input_ids"])
        num_samples -= taken
        for part, found in ((slice(0, taken), first), (slice(taken, size), rest)):
            if part.start < part.stop:
                found.append({name: tensor[part] for name, tensor in batch.items()})
    return first, rest


Watcher = Callable[[Any, Batch], None]  # a tensor, or what a router writes
Watchers = Mapping[nn.Module, Watcher]


@contextmanager
def watching(
    batch: Batch,
    inputs: Watchers | None = None,
    outputs: Watchers | None = None,
    gradients: Watchers | None = None,
    pairs: Mapping[nn.Module, Callable[[Tensor, Tensor, Batch], None]] | None = None,
) -> Iterator[None]:
    """Show what modules read and write in the forwards within.

    Args:
        inputs, outputs: by module, called with its first input, or with its output, and ``batch``.
        gradients: as these, called with the gradient of its output in a later backward pass, which need not be within.
        pairs: as these, called with input and output.
    """
    handles = []
    for module, see in (inputs or {}).items():

        def show_input(_, args, see=see):
            see(args[0], batch)

        handles.append(module.register_forward_pre_hook(show_input))
    for module, see in (outputs or {}).items():

        def show_output(_, args, output, see=see):
            see(output, batch)

        handles.append(module.register_forward_hook(show_output))
    for module, see in (gradients or {}).items():

        def follow(_, args, output, see=see):
            output.register_hook(lambda gradient: see(gradient, batch))

        handles.append(module.register_forward_hook(follow))
    for module, see in (pairs or {}).items():

        def show_both(_, args, output, see=see):
            see(args[0], output, batch)

        handles.append(module.register_forward_hook(show_both))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Accumulator(Protocol):
    """What sums up values over tokens."""

    def add(self, rows: Tensor) -> None:
        """Count rows [N, C]."""


def into(accumulator: Accumulator) -> Watcher:
    """A watcher that hands ``accumulator`` the values of tokens that count."""
    return lambda values, batch: accumulator.add(batch.rows(values))


@torch.no_grad()
def observe(
    model: ShearingMixin,
    batches: Iterable[dict[str, Tensor]],
    inputs: Watchers | None = None,
    outputs: Watchers | None = None,
    pairs: Mapping[nn.Module, Callable[[Tensor, Tensor, Batch], None]] | None = None,
) -> None:
    """One forward per batch, in which watchers see what modules read and write (see ``watching``).

    Raises:
        ValueError: no token counts.
    """
    with measuring(model):
        for batch in shown(batches, model.device, "Reading activations"):
            with watching(batch, inputs, outputs, pairs=pairs):
                # The head is not needed: one position's logits are the fewest that a model computes.
                model(**batch.without_labels, use_cache=False, logits_to_keep=1)


def sample_losses(model: ShearingMixin, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of each sample's token losses, nats, and its number of predicted tokens: float32 [B] both."""
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    predicted = predicted_tokens(labels)
    return losses.view(predicted.shape).sum(dim=1), predicted.sum(dim=1).float()
