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
from .loss_rises import loss_rises


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
    num_layers = model.masks.kinds[LAYER].num_units
    now = model.gates_in_use.get(LAYER, torch.ones(num_layers, device=model.device))
    closed = (1 - torch.eye(num_layers, device=now.device)) * now
    return loss_rises(model, batches, [{LAYER: gate} for gate in closed], "layer", micro_batch_size)
