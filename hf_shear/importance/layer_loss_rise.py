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
from .micro_batches import micro_batches


@torch.no_grad()
def layer_loss_rise(
    model: ShearingMixin, batches: Iterable[dict[str, Tensor]], micro_batch_size: int | None = None
) -> Tensor:
    """Mean loss without each layer, minus the mean loss with all of them; higher = keep.

    Costs ``num_hidden_layers + 1`` forward passes per batch and no memory beyond one.

    Args:
        model: a masked model; its weights, masks, gradients and mode are left as they are.
        batches: inputs with ``input_ids`` and ``labels``, [batch, length]; of equal token counts, so that the mean over
            batches is the mean over tokens. Few are enough: layers differ by far more than batches do.
        micro_batch_size: samples per forward. Default: a batch at once.

    Returns:
        float32 [layers], nats per token: scores for the kind ``"layer"``. Slightly negative where a layer hurts.

    Raises:
        ValueError: no batches, or a loss that is not finite.
    """
    num_layers, device, was_training = model.masks.kinds[LAYER].num_units, model.device, model.training
    # Row 0 keeps every layer, row 1 + i closes layer i.
    gates = torch.cat([torch.ones(1, num_layers), 1 - torch.eye(num_layers)]).to(device)
    total, num_batches = torch.zeros(num_layers + 1, device=device), 0
    model.eval()
    try:
        for batch in batches:
            for share, part in micro_batches(batch, micro_batch_size):
                inputs = {name: tensor.to(device) for name, tensor in part.items()}
                for index, row in enumerate(gates):
                    with model.use_gates({LAYER: row}):
                        total[index] += share * model(**inputs, use_cache=False).loss.float()
            num_batches += 1
    finally:
        model.train(was_training)
    if num_batches == 0:
        raise ValueError("`batches` is empty: the loss rise of layers needs at least one calibration batch.")
    if not bool(torch.isfinite(total).all()):
        raise ValueError(
            "The loss without one layer, or with all of them, is not finite on the calibration text: check the"
            " checkpoint and its dtype (float16 often overflows; bfloat16 or float32 does not)."
        )
    return (total[1:] - total[0]) / num_batches
