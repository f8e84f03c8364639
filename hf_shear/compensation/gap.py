"""What a linear layer falls short of on the calibration text, and what an update of it leaves.

A layer with kept inputs a (K of them) and R outputs gives W a + b where y is wanted: the gap is d = y - W a - b. Every
method of compensation finds an update U of the weight and c of the bias that makes E|d - U a - c|^2 small. U = 0 and
c = 0 are always among those it may choose, so that this error never rises.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import charge_flops

FIRST_DAMPING = 1e-10  # share of the mean diagonal that is tried where none was asked for and none does not suffice
MORE_DAMPING = 10.0  # factor by which it is raised until the system can be solved


@dataclass
class Gap:
    """Means over tokens, in float64.

    Attributes:
        cross: E[d a^T], [R, K].
        mean: E[d], [R].
        power: E|d|^2, summed over outputs.
        gram: E[a a^T], [K, K].
        input_mean: E[a], [K].
        wanted_power: E|y|^2, summed over outputs.
        num_tokens: behind the means.
    """

    cross: Tensor
    mean: Tensor
    power: float
    gram: Tensor
    input_mean: Tensor
    wanted_power: float
    num_tokens: int

    def error(self, update: Tensor | None = None, bias: Tensor | None = None) -> float:
        """E|d - U a - c|^2 / E|y|^2 for an update [R, K] of the weight and one [R] of the bias; 0 where y is 0."""
        left = self.power
        if update is not None:
            left += float(((update @ self.gram) * update).sum() - 2 * (update * self.cross).sum())
        if bias is not None:
            left += float(bias @ bias - 2 * bias @ self.mean)
            if update is not None:
                left += float(2 * bias @ (update @ self.input_mean))
        return max(left, 0.0) / self.wanted_power if self.wanted_power else 0.0


def ridge(cross: Tensor, gram: Tensor, damping: float) -> Tensor:
    """U = cross (gram + damping I)^-1, [R, K]: of all U the one with the smallest error + damping |U|^2.

    That sum is the plain error at U = 0, so no damping lets the error rise above it. Where rounding leaves a system that
    has no Cholesky factor, the damping is raised until it has one.
    """
    if not bool(gram.diagonal().any()):
        return torch.zeros_like(cross)  # dead inputs tell nothing
    scale = gram.diagonal().mean()
    while True:
        system = gram.clone()
        system.diagonal().add_(damping)
        charge_flops(len(gram) ** 3 / 3 + 2 * len(cross) * len(gram) ** 2)
        factor, failed = torch.linalg.cholesky_ex(system)
        if not failed:
            return torch.cholesky_solve(cross.t(), factor).t()
        damping = max(float(FIRST_DAMPING * scale), damping * MORE_DAMPING)
