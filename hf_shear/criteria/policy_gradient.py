"""Masks learned by policy gradient, from forward passes alone (Bypass back-propagation, arXiv 2406.10576).

Each unit is kept with a probability s of its own. Masks m are drawn from them, the loss L of the masked model is
measured, and s moves along the estimate (L - baseline) * (m - s) / sqrt(s (1 - s)), back onto the probabilities that
sum to the target's number in every row. Nothing is differentiated, so a model that fits only in inference will do.
"""

from __future__ import annotations

from itertools import cycle, islice

import torch
from torch import Tensor

from ..calibration import measuring, sample_losses
from ..core import UsageError, sum_over_ranks, tracked
from ..data import Calibration
from ..masks import ALL_UNIT_KINDS, UnitKind
from ..modeling import ShearingMixin
from .criterion import Scores, criterion

LOWEST_PROBABILITY = 0.02  # of an open unit: at 0 or 1 nothing would be learned of it any more
_BISECTIONS = 50


@criterion(ranks=ALL_UNIT_KINDS, needs_target_shape=True)
@torch.no_grad()
def policy_gradient(
    model: ShearingMixin,
    calibration: Calibration,
    *,
    steps: int = 200,
    masks_per_step: int = 4,
    step_size: float = 0.05,
) -> Scores:
    """Probabilities that each unit is kept, learned towards the target of ``model``.

    All kinds that the target prunes are drawn together. Costs ``steps * masks_per_step`` forward passes.

    Args:
        steps: updates of the probabilities, one calibration batch each.
        masks_per_step: draws whose losses on the same batch are compared; their mean is the baseline.
        step_size: eta, for losses in units of their deviation over a step's draws.

    Returns:
        float32 [*rows, units] for all kinds; 1 for kinds that lose nothing, 0 for units closed in the gates in use.

    Raises:
        ValueError: a batch predicts no token, or a loss is not finite.
    """
    outer, device = model.gates_in_use, model.device
    kinds = {kind.name: kind for kind in model.masks.kinds.values()}
    found = {name: torch.ones(kind.mask_shape, device=device) for name, kind in kinds.items()}
    open_units = {name: (outer[name] != 0).to(device) for name in outer}
    learned = {kind.name: _start(kind, open_units.get(kind.name), found[kind.name]) for kind in model.masks.constrained}
    generator = torch.Generator().manual_seed(calibration.seed)
    with measuring(model):
        for batch in tracked(islice(cycle(calibration.batches), steps), "Policy gradient", steps, unit="step"):
            draws, losses = [], []
            for _ in range(masks_per_step):
                draw = {name: _draw(keep, generator) for name, keep in learned.items()}
                draws.append(draw)
                losses.append(_loss(model, batch, outer | draw))
            advantage = torch.stack(losses)
            advantage = advantage - advantage.mean()
            deviation = advantage.square().mean().sqrt()
            if deviation == 0:  # all draws alike
                continue
            for name, keep in learned.items():
                slopes = sum(a * (draw[name] - keep) for a, draw in zip(advantage / deviation, draws, strict=True))
                slopes = slopes / (keep * (1 - keep)).clamp(min=1e-12).sqrt() / (len(draws) - 1)
                learned[name] = project(keep - step_size * slopes, kinds[name].num_kept, open_units.get(name))
    return {name: learned.get(name, tensor * open_units.get(name, 1)) for name, tensor in found.items()}


def _start(kind: UnitKind, open_now: Tensor | None, ones: Tensor) -> Tensor:
    return project(ones * kind.num_kept / kind.num_units, kind.num_kept, open_now)


def _draw(keep: Tensor, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(keep.shape, generator=generator).to(keep.device)
    return (uniform < keep).float()


def _loss(model: ShearingMixin, batch: dict[str, Tensor], gates: dict[str, Tensor]) -> Tensor:
    with model.use_gates(gates):
        losses, counts = sample_losses(model, batch)
    total, num_tokens = losses.sum(), counts.sum()
    sum_over_ranks(total, num_tokens)
    loss = total / num_tokens
    if not bool(torch.isfinite(loss)):
        raise UsageError(
            "The loss of a masked model is not finite on the calibration text: a batch predicts no token, or the source"
            " gives NaN or infinite values (float16 often overflows; bfloat16 or float32 does not)."
        )
    return loss


def project(values: Tensor, num_kept: int, open_now: Tensor | None = None) -> Tensor:
    """The nearest probabilities to ``values`` [*rows, units] whose rows sum to ``num_kept``, closed units at 0.

    They are values - tau clipped to [lowest, 1 - lowest], with one tau per row, found by bisection. A row with no more
    open units than are kept has them all at 1.
    """
    open_now = torch.ones_like(values) if open_now is None else open_now.to(values.dtype)
    num_open = open_now.sum(dim=-1, keepdim=True)
    lowest = (num_kept / num_open.clamp(min=1)).minimum(1 - num_kept / num_open.clamp(min=1)).clamp(min=0)
    lowest = lowest.clamp(max=LOWEST_PROBABILITY)
    low, high = values.amin(dim=-1, keepdim=True) - 1, values.amax(dim=-1, keepdim=True) + 1
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        total = ((values - middle).maximum(lowest).minimum(1 - lowest) * open_now).sum(dim=-1, keepdim=True)
        low, high = torch.where(total > num_kept, middle, low), torch.where(total > num_kept, high, middle)
    clipped = (values - (low + high) / 2).maximum(lowest).minimum(1 - lowest)
    return torch.where(num_open > num_kept, clipped, 1.0) * open_now
