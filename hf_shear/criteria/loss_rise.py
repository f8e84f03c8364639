"""How far the loss rises without a layer, a sub-layer or an expert: measured, one at a time, by forward passes alone.

To close a whole layer is far from a small change, so first-order scores rank layers badly: they measure a slope at the
open gate. This measures the rise itself (the perplexity criterion of Shortened LLaMA, arXiv 2402.02834).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..calibration import measuring, sample_losses
from ..core import UsageError, sum_over_ranks
from ..data import Calibration
from ..masks import ATTENTION, EXPERT, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, MLP, SUB_LAYERS
from ..modeling import ShearingMixin
from .criterion import Scores, criterion

Gates = dict[str, Tensor]


@criterion(ranks=(LAYER,), comparable_across_layers=True)
def loss_rise(model: ShearingMixin, calibration: Calibration) -> Scores:
    """Mean loss per token without each layer minus that with all; ``num_hidden_layers + 1`` forward passes per batch.

    Few batches are enough: layers differ by far more than batches do.

    Returns:
        float32 [layers], nats per token. 0 for a layer that is closed, slightly negative where a layer hurts.

    Raises:
        ValueError: no tokens to predict, or a loss that is not finite.
    """
    return {LAYER: _rises(model, calibration, _without_each(model, LAYER), "layer")}


@criterion(ranks=SUB_LAYERS, comparable_across_layers=True)
def sub_layer_rise(model: ShearingMixin, calibration: Calibration) -> Scores:
    """Mean loss per token without the attention, or the MLP, of each layer minus that with all.

    Costs ``2 * num_hidden_layers + 1`` forward passes per batch.

    Returns:
        float32 [layers] for ``"attention"`` and ``"mlp"``, nats per token.

    Raises:
        ValueError: as in ``loss_rise``.
    """
    closed = []
    for kind in (KEY_VALUE_HEAD, INTERMEDIATE):  # without them an attention, or an MLP, adds nothing
        for layer in range(model.masks.source.num_hidden_layers):
            gate = _gate_in_use(model, kind).clone()
            gate[layer] = 0
            closed.append({kind: gate})
    attention, mlp = _rises(model, calibration, closed, "sub-layer").chunk(2)
    return {ATTENTION: attention, MLP: mlp}


@criterion(ranks=(EXPERT,), comparable_across_layers=True)
def expert_rise(model: ShearingMixin, calibration: Calibration) -> Scores:
    """Mean loss per token without each expert, its tokens routed to others, minus that with all.

    Costs ``num_hidden_layers * num_experts + 1`` forward passes per batch.

    Returns:
        float32 [layers, experts], nats per token. 0 for an expert that is closed.

    Raises:
        ValueError: the model has no experts; or as in ``loss_rise``.
    """
    if EXPERT not in model.masks.kinds:
        raise UsageError(f"`model` must be a mixture of experts, but a {model.family.model_type} has none.")
    rises = _rises(model, calibration, _without_each(model, EXPERT), "expert")
    return {EXPERT: rises.view(model.masks.kinds[EXPERT].mask_shape)}


def _gate_in_use(model: ShearingMixin, kind: str) -> Tensor:
    ones = torch.ones(model.masks.kinds[kind].mask_shape, device=model.device)
    return model.gates_in_use.get(kind, ones)


def _without_each(model: ShearingMixin, kind: str) -> list[Gates]:
    """The gates in use of a kind with one unit closed, for each unit."""
    now = _gate_in_use(model, kind)
    closed = (1 - torch.eye(now.numel(), device=now.device)).view(-1, *now.shape) * now
    return [{kind: gate} for gate in closed]


@torch.no_grad()
def _rises(model: ShearingMixin, calibration: Calibration, closed: Sequence[Gates], what: str) -> Tensor:
    """Mean loss per token under each of ``closed`` minus that under the gates in use, whose place they take.

    Args:
        closed: gates, for one forward pass per batch each.
        what: the units that they close, for messages.

    Returns:
        float32 [variants], nats per token.
    """
    outer = model.gates_in_use
    variants = [outer, *(outer | gates for gates in closed)]
    totals = torch.zeros(len(variants), dtype=torch.float64, device=model.device)
    num_tokens = torch.zeros((), dtype=torch.float64, device=model.device)
    with measuring(model):
        for batch in calibration.batches:
            for index, gates in enumerate(variants):
                with model.use_gates(gates):
                    losses, counts = sample_losses(model, batch)
                totals[index] += losses.sum()
            num_tokens += counts.sum()
    sum_over_ranks(totals, num_tokens)
    if num_tokens == 0:
        raise UsageError(
            f"`batches` predicts no token: the loss rise of {what}s needs at least one calibration batch that does."
        )
    if not bool(torch.isfinite(totals).all()):
        raise UsageError(
            f"The loss without a {what}, or with all, is not finite on the calibration text: check the checkpoint and its"
            " dtype (float16 often overflows; bfloat16 or float32 does not)."
        )
    return ((totals[1:] - totals[0]) / num_tokens).float()
