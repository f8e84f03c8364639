"""How far the loss rises without the attention, or without the MLP, of each layer: forward passes alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..masks import ATTENTION, INTERMEDIATE, KEY_VALUE_HEAD, MLP
from ..modeling import ShearingMixin

_GATES = {ATTENTION: KEY_VALUE_HEAD, MLP: INTERMEDIATE}


@torch.no_grad()
def sub_layer_loss_rise(model: ShearingMixin, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean loss without each sub-layer, minus the mean loss with all of them; higher = keep.

    Costs ``2 * num_hidden_layers + 1`` forward passes per batch.

    Args:
        model: a masked model, left as it is; the gates in use stay in use.
        batches: inputs with ``input_ids`` and ``labels`` on the model's device, of equal token counts.

    Returns:
        float32 [layers] for ``"attention"`` and ``"mlp"``, nats per token.

    Raises:
        ValueError: no batches.
    """
    kinds, outer, num_layers = model.masks.kinds, model.gates_in_use, model.masks.source.num_hidden_layers
    whole, rises, num_batches = 0.0, {name: torch.zeros(num_layers) for name in _GATES}, 0
    was_training = model.training
    model.eval()
    try:
        for inputs in batches:
            with model.use_gates(outer):
                whole += float(model(**inputs, use_cache=False).loss)
            for name, kind in _GATES.items():
                for layer in range(num_layers):
                    gate = outer.get(kind, torch.ones(kinds[kind].mask_shape, device=model.device)).clone()
                    gate[layer] = 0
                    with model.use_gates(outer | {kind: gate}):
                        rises[name][layer] += float(model(**inputs, use_cache=False).loss)
            num_batches += 1
    finally:
        model.train(was_training)
    if num_batches == 0:
        raise ValueError("`batches` is empty: the loss rise of sub-layers needs at least one calibration batch.")
    return {name: (total - whole) / num_batches for name, total in rises.items()}
