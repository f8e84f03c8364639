"""First-order Taylor importance of every unit, from the gradients of its gate.

With all gates at 1, the loss rise from closing gate z_i is -dL/dz_i to first order, and dL/dz_i sums theta * dL/dtheta
over the unit's weights (LLM-Pruner, arXiv 2305.11627, at the level of coupled units). The importance is the mean over
calibration batches of |dL/dz_i|.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..modeling import ShearingMixin
from .micro_batches import micro_batches


def taylor_importance(
    model: ShearingMixin, batches: Iterable[dict[str, Tensor]], micro_batch_size: int | None = None
) -> dict[str, Tensor]:
    """Importance per unit; higher = keep.

    Args:
        model: a masked model; its weights, masks, gradients and mode are left as they are.
        batches: inputs with ``input_ids`` and ``labels``, [batch, length]. Each batch is one sample of the gradient,
            so batches of equal token counts are expected; more batches give steadier ranks.
        micro_batch_size: samples per forward; a batch is split for memory, and its gradients are summed before their
            magnitude is taken, so that the scores do not depend on it. Default: a batch at once.

    Returns:
        float32 scores [*rows, units] per kind of unit, frozen kinds included.

    Raises:
        ValueError: no batches, or a gradient that is not finite.
    """
    masks, device = model.masks, model.device
    was_training = model.training
    scores = {kind.name: torch.zeros(kind.mask_shape, device=device) for kind in masks.kinds.values()}
    num_batches = 0
    model.eval()
    try:
        for batch in batches:
            gradients = {name: torch.zeros_like(score) for name, score in scores.items()}
            for share, inputs in micro_batches(batch, micro_batch_size):
                gates = {name: torch.ones_like(score, requires_grad=True) for name, score in scores.items()}
                with model.use_gates(gates):
                    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
                    loss = model(**inputs, use_cache=False).loss
                for name, gradient in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
                    gradients[name] += share * gradient.detach().float()
            for name, gradient in gradients.items():
                scores[name] += gradient.abs()
            num_batches += 1
    finally:
        model.train(was_training)
    if num_batches == 0:
        raise ValueError("`batches` is empty: Taylor importance needs at least one calibration batch.")
    bad = [name for name, score in scores.items() if not bool(torch.isfinite(score).all())]
    if bad:
        raise ValueError(
            f"The gates' gradients are not finite for {bad}: the source gives NaN or infinite losses on the calibration"
            " text. Check the checkpoint and its dtype (float16 often overflows; bfloat16 or float32 does not)."
        )
    return {name: score / num_batches for name, score in scores.items()}


def random_importance(model: ShearingMixin, seed: int) -> dict[str, Tensor]:
    """Seeded uniform scores: the choice of units that knows nothing, as a baseline."""
    generator = torch.Generator().manual_seed(seed)
    return {kind.name: torch.rand(kind.mask_shape, generator=generator) for kind in model.masks.kinds.values()}
