"""How far the loss rises when units are closed, one variant after another: forward passes alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..calibration import measuring, micro_batches, sample_losses
from ..core import UsageError, sum_over_ranks
from ..modeling import ShearingMixin


@torch.no_grad()
def loss_rises(
    model: ShearingMixin,
    batches: Iterable[dict[str, Tensor]],
    closed: Sequence[dict[str, Tensor]],
    what: str,
    micro_batch_size: int | None = None,
) -> Tensor:
    """Mean loss per token under each of ``closed``, minus that under the gates in use; a forward pass for each, and one.

    Args:
        model: a masked model, left as it is.
        batches: inputs with ``input_ids`` and ``labels``.
        closed: gates that take the place of those in use.
        what: the units that they close, for messages.
        micro_batch_size: samples per forward. Default: a batch at once.

    Returns:
        float32 [variants], nats per token.

    Raises:
        ValueError: no tokens to predict, or a loss that is not finite.
    """
    outer = model.gates_in_use
    variants = [outer, *(outer | gates for gates in closed)]
    totals = torch.zeros(len(variants), dtype=torch.float64, device=model.device)
    num_tokens = torch.zeros((), dtype=torch.float64, device=model.device)
    with measuring(model):
        for batch in batches:
            for _, part in micro_batches(batch, micro_batch_size):
                for index, gates in enumerate(variants):
                    with model.use_gates(gates):
                        losses, counts = sample_losses(model, part)
                    totals[index] += losses.sum()
                num_tokens += counts.sum()
    sum_over_ranks(totals, num_tokens)
    if num_tokens == 0:
        raise UsageError(
            f"`batches` is empty or predicts no token: the loss rise of {what}s needs at least one calibration batch."
        )
    if not bool(torch.isfinite(totals).all()):
        raise UsageError(
            f"The loss without a {what}, or with all, is not finite on the calibration text: check the checkpoint and its"
            " dtype (float16 often overflows; bfloat16 or float32 does not)."
        )
    return ((totals[1:] - totals[0]) / num_tokens).float()
