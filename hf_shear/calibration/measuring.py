"""Forwards for measurements: the model is found afterwards as it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ..core import IGNORED_LABEL, UsageError, counted_tokens, sum_over_ranks
from ..modeling import ShearingMixin
from .evaluating import evaluating

Watcher = Callable[[Tensor, Tensor], None]


@contextmanager
def measuring(model: ShearingMixin, handles: Iterable[RemovableHandle] = ()) -> Iterator[None]:
    """As ``evaluating``; ``handles`` are removed at the end."""
    try:
        with evaluating(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def requiring_gradients(model: nn.Module, required: bool) -> Iterator[None]:
    """All parameters of ``model`` require gradients within, or none does; then again those that did."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(required)
        yield
    finally:
        for parameter, value in before:
            parameter.requires_grad_(value)


@torch.no_grad()
def watch(
    model: ShearingMixin,
    batches: Iterable[dict[str, Tensor]],
    inputs: dict[nn.Module, Watcher] | None = None,
    outputs: dict[nn.Module, Watcher] | None = None,
    pairs: dict[nn.Module, Callable[[Tensor, Tensor, Tensor], None]] | None = None,
) -> None:
    """One forward per batch, in which watchers see what modules read and write.

    Args:
        inputs, outputs: by module, called with its first input or its output [samples, length, C] and which tokens
            count, bool [samples, length].
        pairs: as these, called with both.

    Raises:
        ValueError: no token counts.
    """
    counted: list[Tensor] = []  # of the batch in the forward

    def first(output):
        return output if isinstance(output, Tensor) else output[0]

    handles = [
        module.register_forward_pre_hook(lambda _, args, see=see: see(args[0], counted[0]))
        for module, see in (inputs or {}).items()
    ]
    handles += [
        module.register_forward_hook(lambda _, args, output, see=see: see(first(output), counted[0]))
        for module, see in (outputs or {}).items()
    ]
    handles += [
        module.register_forward_hook(lambda _, args, output, see=see: see(args[0], first(output), counted[0]))
        for module, see in (pairs or {}).items()
    ]
    num_counted = torch.zeros((), dtype=torch.int64, device=model.device)
    with measuring(model, handles):
        for batch in batches:
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            counted[:] = [counted_tokens(batch)]
            num_counted += counted[0].sum()
            # The head is not needed: one position's logits are the fewest that a model computes.
            del batch["labels"]
            model(**batch, use_cache=False, logits_to_keep=1)
    sum_over_ranks(num_counted)
    if num_counted == 0:
        raise UsageError("No token of the calibration text counts: its labels are all ignored, or it is all padding.")


def sample_losses(model: ShearingMixin, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of each sample's token losses, nats, and its number of predicted tokens: float32 [samples] both."""
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    return losses.view(labels.shape).sum(dim=1), (labels != IGNORED_LABEL).sum(dim=1).float()
