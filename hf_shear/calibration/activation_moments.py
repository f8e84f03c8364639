"""Moments of what o_proj and down_proj read: means, mean squares and variances of each channel over counted tokens.

Batches, and processes, are merged by the update of Chan, Golub and LeVeque (1979) from (count, mean, sum of squared
deviations), which subtracts no large numbers from one another: a variance far below the squared mean survives float32.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..core import sum_over_ranks
from ..modeling import ShearingMixin
from .measuring import watch


class ChannelMoments:
    """Running moments of [C] channels, in float32.

    Attributes:
        count: of tokens.
        mean: [C].
        deviations: [C], sum of (a - mean)^2.
    """

    def __init__(self, num_channels: int, device):
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean, self.deviations = torch.zeros(num_channels, device=device), torch.zeros(num_channels, device=device)

    def add(self, values: Tensor, counted: Tensor) -> None:
        """Count the tokens of ``values`` [B, T, C] that ``counted`` [B, T] says."""
        weights = counted.flatten().float()
        rows = values.flatten(0, 1).float()
        count = weights.sum()
        mean = (weights @ rows) / count.clamp(min=1)
        self._merge(count.double(), mean, weights @ (rows - mean).square())

    def _merge(self, count: Tensor, mean: Tensor, deviations: Tensor) -> None:
        total = (self.count + count).clamp(min=1)
        gap, share = mean - self.mean, (count / total).float()
        self.deviations += deviations + gap.square() * self.count.float() * share
        self.mean += gap * share
        self.count += count

    def over_ranks(self) -> None:
        """Merge with the other processes' moments."""
        count, mean = self.count.clone(), self.mean * self.count.float()
        sum_over_ranks(count, mean)
        mean /= count.clamp(min=1).float()
        self.deviations += (self.mean - mean).square() * self.count.float()
        sum_over_ranks(self.deviations)
        self.count, self.mean = count, mean

    @property
    def variance(self) -> Tensor:
        """[C], divided by the count."""
        return self.deviations / self.count.float()

    @property
    def mean_square(self) -> Tensor:
        """E[a^2], [C]."""
        return self.variance + self.mean.square()


def write_input_moments(model: ShearingMixin, batches: Iterable[dict[str, Tensor]]) -> dict[str, ChannelMoments]:
    """Moments of the inputs of every o_proj and down_proj, by the name of the matrix, from one forward per batch.

    Inputs of closed units are counted as they are; their columns are 0 in the model and must be left out by the caller.

    Raises:
        ValueError: no token counts.
    """
    found, inputs = {}, {}
    for index, layer in enumerate(model.model.layers):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            module = layer.get_submodule(name)
            moments = ChannelMoments(module.in_features, model.device)
            found[f"model.layers.{index}.{name}.weight"] = moments
            inputs[module] = moments.add
    watch(model, batches, inputs=inputs)
    for moments in found.values():
        moments.over_ranks()
    return found
