"""What a linear layer falls short of on the calibration text, and what an update of it leaves.

A layer with kept inputs a (K of them) and R outputs gives W a + b where y is wanted: the gap is d = y - W a - b. Every
method of compensation finds an update U of the weight and c of the bias that makes E|d - U a - c|^2 small. U = 0 and
c = 0 are always among those it may choose, so that this error never rises.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibration import Sums
from ..calibration.moments import full_float32
from ..core import charge_flops

FIRST_DAMPING = 1e-10  # share of the mean diagonal that is tried where none was asked for and none does not suffice
MORE_DAMPING = 10.0  # factor by which it is raised until the system can be solved


NUM_MIXTURES = 64  # of outputs, which tell dampings apart as all outputs would, at a fraction of the cost
DAMPINGS = (1.0, 10.0, 100.0, 1000.0)  # factors of the least one


@dataclass
class HeldOut:
    """Means over the tokens that choose the damping, of random mixtures of the outputs.

    Attributes:
        mixing: [M, R], of independent normal numbers: |mixing d|^2 is |d|^2 on average, up to a factor.
        cross: E[(mixing d) a^T], [M, K].
        gram: E[a a^T], [K, K].
        share: of the tokens of the gap.
    """

    mixing: Tensor
    cross: Tensor
    gram: Tensor
    share: float


class HeldOutSums:
    """Sums over the held-out tokens of this process.

    Args:
        num_outputs: R.
        device: of what is added.
    """

    def __init__(self, num_outputs: int, device: torch.device):
        generator = torch.Generator().manual_seed(num_outputs)  # the same in every process
        size = (min(NUM_MIXTURES, num_outputs), num_outputs)
        self._mixing = torch.randn(size, dtype=torch.float64, generator=generator).to(device)
        self._sums = Sums()

    def add(self, inputs: Tensor, gap: Tensor) -> None:
        """Count rows of inputs [n, K] and of d [n, R]; at least once, if with no row."""
        if len(inputs) or not self._sums.count:
            with full_float32():
                charge_flops(2 * inputs.numel() * inputs.shape[1])
                mixed = gap @ self._mixing.to(gap.dtype).t()
                self._sums.add(len(inputs), gram=inputs.t() @ inputs, cross=mixed.t() @ inputs)

    def means(self, num_tokens: int) -> HeldOut | None:
        """Over all processes; None if they hold out nothing.

        Args:
            num_tokens: of the gap, over all processes.
        """
        means, count = self._sums.means(), self._sums.count
        return HeldOut(self._mixing, means["cross"], means["gram"], count / num_tokens) if count else None


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
        held_out: the same of the part of these tokens that chooses the damping; None: there is none.
    """

    cross: Tensor
    mean: Tensor
    power: float
    gram: Tensor
    input_mean: Tensor
    wanted_power: float
    num_tokens: int
    held_out: HeldOut | None = None

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


def damping_for(gap: Gap, least: float) -> float | None:
    """Of ``least`` and its multiples, the damping whose fit to the other tokens is best on those held out.

    Dampings are tried upwards, until one is worse than the one before. Fitted to few tokens, an update of many inputs is
    good on these alone: more damping makes it smaller.

    Args:
        least: added to the diagonal of the gram, as ``ridge`` does.

    Returns:
        None if every update is worse than none.
    """
    held = gap.held_out
    if held is None:
        return least
    rest = 1 - held.share
    gram = (gap.gram - held.share * held.gram) / rest
    cross = (held.mixing @ gap.cross - held.share * held.cross) / rest
    best, lowest = None, 0.0  # the error without an update, to which the change by it is added
    previous = float("inf")
    for factor in DAMPINGS:
        update = ridge(cross, gram, factor * least)
        change = float(((update @ held.gram) * update).sum() - 2 * (update * held.cross).sum())
        if change < lowest:
            best, lowest = factor * least, change
        if change >= previous:
            break
        previous = change
    return best
