"""How far the loss rises without a layer, a sub-layer or an expert: measured, one at a time, by forward passes alone.

To close a whole layer is far from a small change, so first-order scores rank layers badly: they measure a slope at the
open gate. This measures the rise itself (the perplexity criterion of Shortened LLaMA, arXiv 2402.02834).

What runs before a closed unit is the same as without it closed: a batch goes through the layers once, and for each unit
only what comes behind it runs again, half of the layers on average. One hidden state is kept besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibration import LayerRunner, measuring, shown
from ..calibration.engine import split_samples
from ..calibration.layer_stream import WaitingBatch
from ..core import UsageError, sum_over_ranks, tracked
from ..data import Calibration
from ..masks import ATTENTION, EXPERT, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, MLP, SUB_LAYERS
from ..modeling import ShearingMixin
from .criterion import Scores, criterion

NUM_SAMPLES = 16
"""Of the calibration text: enough to rank layers (examples/docs/criteria.md)."""
NUM_SAMPLES_OF_PARTS = 32
"""The same for sub-layers and experts, whose rises are smaller."""


@dataclass(frozen=True)
class Without:
    """One unit that is closed.

    Attributes:
        layer: where.
        gates: in place of those in use; None: the whole layer, which then hands on what it is given.
    """

    layer: int
    gates: dict[str, Tensor] | None = None


@criterion(ranks=(LAYER,), comparable_across_layers=True, scores_the_cut=True)
def loss_rise(model: ShearingMixin, calibration: Calibration, *, num_samples: int = NUM_SAMPLES) -> Scores:
    """Mean loss per token without each layer minus that with all, from about L / 2 forward passes, L layers.

    Args:
        num_samples: the first of the calibration text, which are read; 0: all. Few are enough: layers differ by far more
            than samples do.

    Returns:
        float32 [layers], nats per token. 0 for a layer that is closed, slightly negative where a layer hurts.

    Raises:
        ValueError: no tokens to predict, or a loss that is not finite.
    """
    closed = [Without(layer) for layer in range(model.masks.source.num_hidden_layers)]
    return {LAYER: _rises(model, calibration, closed, num_samples, "layer")}


@criterion(ranks=SUB_LAYERS, comparable_across_layers=True)
def sub_layer_rise(
    model: ShearingMixin, calibration: Calibration, *, num_samples: int = NUM_SAMPLES_OF_PARTS
) -> Scores:
    """Mean loss per token without the attention, or the MLP, of each layer minus that with all.

    Costs about L forward passes, L layers.

    Args:
        num_samples: as in ``loss_rise``.

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
            closed.append(Without(layer, {kind: gate}))
    attention, mlp = _rises(model, calibration, closed, num_samples, "sub-layer").chunk(2)
    return {ATTENTION: attention, MLP: mlp}


@criterion(ranks=(EXPERT,), comparable_across_layers=True)
def expert_rise(model: ShearingMixin, calibration: Calibration, *, num_samples: int = NUM_SAMPLES_OF_PARTS) -> Scores:
    """Mean loss per token without each expert, its tokens routed to others, minus that with all.

    Costs about ``num_hidden_layers * num_experts / 2`` forward passes.

    Args:
        num_samples: as in ``loss_rise``.

    Returns:
        float32 [layers, experts], nats per token. 0 for an expert that is closed.

    Raises:
        ValueError: the model has no experts; or as in ``loss_rise``.
    """
    if EXPERT not in model.masks.kinds:
        raise UsageError(f"`model` must be a mixture of experts, but a {model.family.model_type} has none.")
    now, closed = _gate_in_use(model, EXPERT), []
    for layer, expert in torch.ones_like(now).nonzero().tolist():
        gate = now.clone()
        gate[layer, expert] = 0
        closed.append(Without(layer, {EXPERT: gate}))
    return {EXPERT: _rises(model, calibration, closed, num_samples, "expert").view(now.shape)}


def _gate_in_use(model: ShearingMixin, kind: str) -> Tensor:
    ones = torch.ones(model.masks.kinds[kind].mask_shape, device=model.device)
    return model.gates_in_use.get(kind, ones)


@torch.no_grad()
def _rises(
    model: ShearingMixin, calibration: Calibration, closed: Sequence[Without], num_samples: int, what: str
) -> Tensor:
    """Mean loss per token without each of ``closed`` minus that under the gates in use.

    Args:
        closed: units. Of those in layers that are closed already, the rise is 0.
        num_samples: that are read; 0: all.
        what: the units, for messages.

    Returns:
        float32 [units], nats per token.
    """
    layers = _gate_in_use(model, LAYER).nonzero().flatten().tolist()  # a closed one hands on what it is given
    numbers = {layer: [number for number, unit in enumerate(closed) if unit.layer == layer] for layer in layers}
    measured = [number for found in numbers.values() for number in found]
    rises = torch.zeros(len(closed), dtype=torch.float64, device=model.device)
    totals = torch.zeros(2, dtype=torch.float64, device=model.device)  # loss with all units, tokens
    with measuring(model):
        runner = LayerRunner(model)
        for batch in shown(split_samples(calibration.batches, num_samples)[0], model.device):
            waiting = runner.in_front_of_layers(batch)
            losses = torch.zeros_like(rises)
            progress = tracked(layers, f"Loss without each {what}", unit="layer")
            for place, layer in enumerate(progress):
                for number in numbers[layer]:
                    losses[number] = _loss_without(closed[number], model, runner, waiting, layers[place + 1 :])
                waiting.hidden = runner.run(layer, waiting.hidden, waiting)
            whole = runner.summed_loss(waiting.hidden, waiting)
            totals += torch.stack([whole.double(), torch.full_like(whole, batch.num_predicted).double()])
            rises[measured] += losses[measured] - whole
    sum_over_ranks(rises, totals)
    if totals[1] == 0:
        raise UsageError(
            f"`batches` predicts no token: the loss rise of {what}s needs at least one calibration batch that does."
        )
    if not bool(torch.isfinite(rises).all() & torch.isfinite(totals).all()):
        raise UsageError(
            f"The loss without a {what}, or with all, is not finite on the calibration text: check the checkpoint and its"
            " dtype (float16 often overflows; bfloat16 or float32 does not)."
        )
    return (rises / totals[1]).float()


def _loss_without(
    unit: Without, model: ShearingMixin, runner: LayerRunner, waiting: WaitingBatch, behind: Sequence[int]
) -> Tensor:
    """Summed loss of a batch that waits in front of the unit's layer; ``behind``: the layers after it."""
    hidden = waiting.hidden
    if unit.gates is not None:
        gates = model.layer_keywords(model.gates_in_use | unit.gates)
        hidden = runner.run(unit.layer, hidden, waiting, gates)
    for layer in behind:
        hidden = runner.run(layer, hidden, waiting)
    return runner.summed_loss(hidden, waiting)
