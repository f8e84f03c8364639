"""How far the loss rises without the attention, or without the MLP, of each layer: forward passes alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..masks import ATTENTION, INTERMEDIATE, KEY_VALUE_HEAD, MLP
from ..modeling import ShearingMixin
from .measuring import measuring, sample_losses
from .over_ranks import sum_over_ranks

_GATES = {ATTENTION: KEY_VALUE_HEAD, MLP: INTERMEDIATE}


@torch.no_grad()
def sub_layer_loss_rise(model: ShearingMixin, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean loss without each sub-layer, minus the mean loss with all of them; higher = keep.

    Costs ``2 * num_hidden_layers + 1`` forward passes per batch.

    Args:
        model: a masked model, left as it is; the gates in use stay in use.
        batches: inputs with ``input_ids`` and ``labels``.

    Returns:
        float32 [layers] for ``"attention"`` and ``"mlp"``, nats per token.

    Raises:
        ValueError: no tokens to predict, or a loss that is not finite.
    """
    outer, device = model.gates_in_use, model.device
    variants = [outer]
    for kind in _GATES.values():
        for layer in range(model.masks.source.num_hidden_layers):
            gate = outer.get(kind, torch.ones(model.masks.kinds[kind].mask_shape, device=device)).clone()
            gate[layer] = 0
            variants.append(outer | {kind: gate})
    totals = torch.zeros(len(variants), dtype=torch.float64, device=device)
    num_tokens = torch.zeros((), dtype=torch.float64, device=device)
    with measuring(model):
        for batch in batches:
            for index, gates in enumerate(variants):
                with model.use_gates(gates):
                    losses, counts = sample_losses(model, batch)
                totals[index] += losses.sum()
            num_tokens += counts.sum()
    sum_over_ranks(totals, num_tokens)
    if num_tokens == 0:
        raise ValueError(
            "`batches` is empty or predicts no token: the loss rise of sub-layers needs at least one calibration batch."
        )
    if not bool(torch.isfinite(totals).all()):
        raise ValueError("The loss without a sub-layer, or with all, is not finite on the calibration text.")
    attention, mlp = ((totals[1:] - totals[0]) / num_tokens).float().chunk(2)
    return {ATTENTION: attention, MLP: mlp}
