"""What a linear layer falls short of on the calibration text, and what an update of it leaves.

A layer with kept inputs a (K of them) and R outputs gives W a + b where y is wanted: the gap is d = y - W a - b. Every
method of compensation finds an update U of the weight and c of the bias that makes E|d - U a - c|^2 small. U = 0 and
c = 0 are always among those it may choose, so that this error never rises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibration import Sums
from ..calibration.moments import full_float32
from ..core import charge_flops

FIRST_DAMPING = 1e-10  # share of the mean diagonal that is tried where none was asked for and none does not suffice
MORE_DAMPING = 10.0  # factor by which it is raised until the system can be solved


NUM_MIXTURES = 64  # of outputs, which tell dampings apart as all outputs would, at a fraction of the cost
DAMPINGS = (1.0, 10.0, 100.0, 1000.0, 10_000.0)  # factors of the least one


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

    def changes(self, gap: Gap) -> Callable[[float], float]:
        """By damping: what the error on these tokens changes by with the update that fits the others best.

        In float32, which tells dampings apart.
        """
        held, held_cross, rest = self.gram.float(), self.cross.float(), 1 - self.share
        gram = (gap.gram.float() - self.share * held) / rest
        cross = (self.mixing @ gap.cross).float().sub_(held_cross, alpha=self.share) / rest

        def change(damping: float) -> float:
            with full_float32():
                update = ridge(cross, gram, damping)
                return float(((update @ held) * update).sum() - 2 * (update * held_cross).sum())

        return change


@dataclass
class HeldOutRows:
    """All tokens of a text that has fewer than a module has inputs: fits to them are solved token by token.

    Attributes:
        inputs: a, [n, K].
        mixed: d, mixed as in ``HeldOut``, [n, M].
        num_held: of the first ones, which choose the damping.
    """

    inputs: Tensor
    mixed: Tensor
    num_held: int

    def changes(self, gap: Gap) -> Callable[[float], float]:
        """As of ``HeldOut``, by ridge regression in its dual form, of as many unknowns as there are other tokens."""
        held, rest = slice(self.num_held), slice(self.num_held, None)
        others = self.inputs[rest]
        with full_float32():
            charge_flops(2 * self.inputs.numel() * len(others))
            products = (self.inputs @ others.t()).double() / len(others)
        wanted, known = self.mixed[held].double(), self.mixed[rest].double().t()

        def change(damping: float) -> float:
            predicted = products[held] @ ridge(known, products[rest], damping).t()
            return float((predicted * (predicted - 2 * wanted)).sum()) / self.num_held

        return change


class HeldOutTokens:
    """The tokens of this process that choose a damping, as they are read.

    Args:
        num_held: of the first ones.
        keeps_all: whether to keep the others as well, as ``HeldOutRows`` does; this process then reads all there are.
        num_outputs: R.
        device: of what is added.
    """

    def __init__(self, num_held: int, keeps_all: bool, num_outputs: int, device: torch.device):
        generator = torch.Generator().manual_seed(num_outputs)  # the same in every process
        size = (min(NUM_MIXTURES, num_outputs), num_outputs)
        self._mixing = torch.randn(size, dtype=torch.float64, generator=generator).to(device)
        self._num_held, self._keeps_all, self._num_read = num_held, keeps_all, 0
        self._inputs: list[Tensor] = []
        self._mixed: list[Tensor] = []

    def add(self, inputs: Tensor, gap: Tensor) -> None:
        """Count rows of inputs [n, K] and of d [n, R], float32 or wider."""
        wanted = len(inputs) if self._keeps_all else max(self._num_held - self._num_read, 0)
        self._num_read += len(inputs)
        with full_float32():
            self._inputs.append(inputs[:wanted].clone())
            self._mixed.append(gap[:wanted] @ self._mixing.to(gap.dtype).t())

    def found(self, num_tokens: int) -> HeldOut | HeldOutRows | None:
        """Over all processes; None if they hold out nothing.

        Args:
            num_tokens: of the gap, over all processes.
        """
        inputs, mixed = torch.cat(self._inputs), torch.cat(self._mixed)
        if self._keeps_all:
            return HeldOutRows(inputs, mixed, self._num_held) if self._num_held else None
        sums = Sums()
        with full_float32():
            charge_flops(2 * inputs.numel() * inputs.shape[1])
            sums.add(len(inputs), gram=inputs.t() @ inputs, cross=mixed.t() @ inputs)
        means = sums.means()
        return HeldOut(self._mixing, means["cross"], means["gram"], sums.count / num_tokens) if sums.count else None


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
        held_out: the part of these tokens that chooses the damping; None: there is none.
    """

    cross: Tensor
    mean: Tensor
    power: float
    gram: Tensor
    input_mean: Tensor
    wanted_power: float
    num_tokens: int
    held_out: HeldOut | HeldOutRows | None = None

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
    if gap.held_out is None:
        return least
    best, lowest = None, 0.0  # the error without an update, to which the change by it is added
    change_by, previous = gap.held_out.changes(gap), float("inf")
    for factor in DAMPINGS:
        change = change_by(factor * least)
        if change < lowest:
            best, lowest = factor * least, change
        if change >= previous:
            break
        previous = change
    return best
