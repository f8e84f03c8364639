"""How far the loss rises without each expert of a mixture, its tokens routed to others: forward passes alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..core import UsageError
from ..masks import EXPERT
from ..modeling import ShearingMixin
from .loss_rises import loss_rises


def expert_loss_rise(model: ShearingMixin, batches: Iterable[dict[str, Tensor]]) -> Tensor:
    """Mean loss without each expert, minus the mean loss with all of them; higher = keep.

    Costs ``num_hidden_layers * num_experts + 1`` forward passes per batch.

    Args:
        model: a masked mixture of experts, left as it is. Its gates in use stay in use; an expert that is closed in them
            has no rise.
        batches: inputs with ``input_ids`` and ``labels``.

    Returns:
        float32 [layers, experts], nats per token: scores for the kind ``"expert"``.

    Raises:
        ValueError: the model has no experts, no tokens to predict, or a loss that is not finite.
    """
    if EXPERT not in model.masks.kinds:
        raise UsageError(f"`model` must be a mixture of experts, but a {model.family.model_type} has none.")
    shape = model.masks.kinds[EXPERT].mask_shape
    now = model.gates_in_use.get(EXPERT, torch.ones(shape, device=model.device))
    closed = (1 - torch.eye(now.numel(), device=now.device)).view(-1, *shape) * now
    return loss_rises(model, batches, [{EXPERT: gate} for gate in closed], "expert").view(shape)
