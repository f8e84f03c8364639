"""Gradients of the weights: of the mean loss, and their second moments over samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibration import measuring, sample_losses
from ..core import UsageError, sum_over_ranks, tracked
from ..data import Calibration
from ..modeling import ShearingMixin
from .coupled_weights import weights_of


@dataclass
class WeightGradients:
    """float32, by the weights' names.

    Attributes:
        mean: gradient of the mean loss per token.
        second: mean over samples of the squared gradients of their mean losses, weighted by predicted tokens; empty
            where it was not asked for.
    """

    mean: dict[str, Tensor]
    second: dict[str, Tensor]


def weight_gradients(model: ShearingMixin, calibration: Calibration, second: bool = False) -> WeightGradients:
    """Gradients of all weights, through the gates in use. They take the room of one or two float32 copies of the model.

    Args:
        second: also their second moments, which takes a backward pass for every sample.

    Raises:
        ValueError: no tokens to predict.
    """
    weights = weights_of(model)
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    squares = {name: torch.zeros_like(gradient) for name, gradient in total.items()} if second else {}
    num_tokens = torch.zeros((), dtype=torch.float64, device=model.device)
    with measuring(model, weights_require_grad=True), torch.enable_grad():
        samples = Calibration.from_batches(calibration.batches, 1 if second else None)
        for batch in tracked(samples.batches, "Gradients of weights"):
            losses, counts = sample_losses(model, batch)
            gradients = torch.autograd.grad(losses.sum(), list(weights.values()))
            num_tokens += counts.sum()
            for name, gradient in zip(weights, gradients, strict=True):
                total[name] += gradient
                if second and counts[0] > 0:
                    squares[name] += gradient.float().square() / counts[0]
    sum_over_ranks(num_tokens, total.values(), squares.values())
    if num_tokens == 0:
        raise UsageError("The calibration text has no token to predict: gradients need some.")
    return WeightGradients(
        {name: (tensor / num_tokens).float() for name, tensor in total.items()},
        {name: (tensor / num_tokens).float() for name, tensor in squares.items()},
    )
