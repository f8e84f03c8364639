"""How far the loss rises without the attention, or without the MLP, of each layer: forward passes alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..masks import ATTENTION, INTERMEDIATE, KEY_VALUE_HEAD, MLP
from ..modeling import ShearingMixin
from .loss_rises import loss_rises

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
    outer, closed = model.gates_in_use, []
    for kind in _GATES.values():
        for layer in range(model.masks.source.num_hidden_layers):
            gate = outer.get(kind, torch.ones(model.masks.kinds[kind].mask_shape, device=model.device)).clone()
            gate[layer] = 0
            closed.append({kind: gate})
    attention, mlp = loss_rises(model, batches, closed, "sub-layer").chunk(2)
    return {ATTENTION: attention, MLP: mlp}
