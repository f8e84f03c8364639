"""How far the loss rises without each layer: measured, one layer at a time, by forward passes alone.

To close a whole layer is far from a small change, so first-order scores rank layers badly: they measure a slope at the
open gate. This measures the rise itself (the perplexity criterion of Shortened LLaMA, arXiv 2402.02834).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..masks import LAYER
from ..modeling import ShearingMixin
from .measuring import measuring, sample_losses
from .micro_batches import micro_batches
from .over_ranks import sum_over_ranks


@torch.no_grad()
def layer_loss_rise(
    model: ShearingMixin, batches: Iterable[dict[str, Tensor]], micro_batch_size: int | None = None
) -> Tensor:
    """Mean loss per token without each layer, minus that with all of them; higher = keep.

    Costs ``num_hidden_layers + 1`` forward passes per batch and no memory beyond one.

    Args:
        model: a masked model; its weights, masks, gradients and mode are left as they are. Its gates in use apply; a
            layer that is closed in them has no rise.
        batches: inputs with ``input_ids`` and ``labels``, [batch, length]. Few are enough: layers differ by far more
            than batches do.
        micro_batch_size: samples per forward. Default: a batch at once.

    Returns:
        float32 [layers], nats per token: scores for the kind ``"layer"``. Slightly negative where a layer hurts.

    Raises:
        ValueError: no tokens to predict, or a loss that is not finite.
    """
    num_layers, device, outer = model.masks.kinds[LAYER].num_units, model.device, model.gates_in_use
    # Row 0 keeps every layer, row 1 + i closes layer i.
    gates = torch.cat([torch.ones(1, num_layers), 1 - torch.eye(num_layers)]).to(device)
    if LAYER in outer:
        gates = gates * outer[LAYER]
    total = torch.zeros(num_layers + 1, dtype=torch.float64, device=device)
    num_tokens = torch.zeros((), dtype=torch.float64, device=device)
    with measuring(model):
        for batch in batches:
            for _, part in micro_batches(batch, micro_batch_size):
                for index, row in enumerate(gates):
                    with model.use_gates(outer | {LAYER: row}):
                        losses, counts = sample_losses(model, part)
                    total[index] += losses.sum()
                num_tokens += counts.sum()
    sum_over_ranks(total, num_tokens)
    if num_tokens == 0:
        raise ValueError(
            "`batches` is empty or predicts no token: the loss rise of layers needs at least one calibration batch."
        )
    if not bool(torch.isfinite(total).all()):
        raise ValueError(
            "The loss without one layer, or with all of them, is not finite on the calibration text: check the"
            " checkpoint and its dtype (float16 often overflows; bfloat16 or float32 does not)."
        )
    return ((total[1:] - total[0]) / num_tokens).float()
