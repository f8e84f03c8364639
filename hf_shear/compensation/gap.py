"""What a linear layer falls short of on the calibration text, and what an update of it leaves.

A layer with kept inputs a (K of them) and R outputs gives W a + b where y is wanted: the gap is d = y - W a - b. Every
method of compensation finds an update U of the weight and c of the bias that makes E|d - U a - c|^2 small. U = 0 and
c = 0 are always among those it may choose, so that this error never rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibration.moments import full_float32, one_of
from ..core import charge_flops, count_over_ranks, num_processes, sum_over_ranks

FIRST_DAMPING = 1e-10  # share of the mean diagonal that is tried where none was asked for and none does not suffice
MORE_DAMPING = 10.0  # factor by which it is raised until the system can be solved


NUM_MIXTURES = 64  # of outputs, which tell dampings apart as all outputs would, at a fraction of the cost
DAMPINGS = (1.0, 10.0, 100.0, 1000.0, 10_000.0)  # factors of the least one
HELD_OUT_SHARE = 0.25  # of the tokens that choose a damping, those on which fits to the others are judged


@dataclass
class ChoosingTokens:
    """Some tokens of this process, which choose the damping.

    Attributes:
        inputs: a, [n, K].
        mixed: random mixtures of d, [n, M]: their squares add up to |d|^2 on average, up to a factor.
        share: n, as a mean over the processes, of all tokens of the gap.
    """

    inputs: Tensor
    mixed: Tensor
    share: float

    def changes(self, dampings: Sequence[float], centred: bool = False) -> Tensor:
        """By damping: what the update that fits the last tokens best changes the squared error on the first by, [dampings].

        Summed over tokens and processes. Ridge regression in its primal or its dual form, of as many unknowns as there are
        inputs or tokens, whichever are fewer.

        Args:
            dampings: that are tried.
            centred: whether a bias makes the means of the last tokens equal, before and after the update.
        """
        num_held = int(HELD_OUT_SHARE * len(self.inputs))
        inputs, mixed = self.inputs, self.mixed.double()
        found = torch.zeros(len(dampings), dtype=torch.float64, device=inputs.device)
        if num_held:
            if centred:
                inputs, mixed = (rows - rows[num_held:].mean(dim=0) for rows in (inputs, mixed))
            held, others, read, fitted = mixed[:num_held], mixed[num_held:], inputs[:num_held], inputs[num_held:]
            with full_float32():
                if inputs.shape[1] <= len(fitted):
                    gram, cross, read = fitted.t() @ fitted, others.t() @ fitted.double() / len(fitted), read.double()
                else:
                    gram, cross, read = fitted @ fitted.t(), others.t(), (read @ fitted.t()).double() / len(fitted)
            charge_flops(2 * inputs.numel() * len(gram))
            gram = gram.double() / len(fitted)
            for index, damping in enumerate(dampings):
                predicted = read @ ridge(cross, gram, damping).t()
                found[index] = (predicted * (predicted - 2 * held)).sum()
        sum_over_ranks(found)
        return found


class ChoosingTokenRows:
    """``ChoosingTokens``, as they are read.

    Args:
        every: one of so many tokens is read.
        num_outputs: R.
        device: of what is added.
    """

    def __init__(self, every: int, num_outputs: int, device: torch.device):
        generator = torch.Generator().manual_seed(num_outputs)  # the same in every process
        size = (num_outputs, min(NUM_MIXTURES, num_outputs))
        self._mixing = torch.randn(size, generator=generator).to(device)
        self._every, self._num_before = every, 0
        self._inputs: list[Tensor] = []
        self._mixed: list[Tensor] = []

    def add(self, inputs: Tensor, gap: Tensor) -> None:
        """Count rows of inputs [n, K] and of d [n, R], in float32."""
        self._inputs.append(one_of(self._every, inputs, self._num_before))
        with full_float32():
            self._mixed.append(one_of(self._every, gap, self._num_before) @ self._mixing)
        self._num_before += len(inputs)

    def found(self, num_inputs: int, num_tokens: int) -> ChoosingTokens:
        """What was added.

        Args:
            num_inputs: K.
            num_tokens: of the gap, over all processes.
        """
        none = self._mixing.new_zeros(0, num_inputs), self._mixing.new_zeros(0, self._mixing.shape[1])
        inputs, mixed = torch.cat([none[0], *self._inputs]), torch.cat([none[1], *self._mixed])
        mean = count_over_ranks(len(inputs), inputs.device) / num_processes()
        return ChoosingTokens(inputs, mixed, mean / num_tokens)


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
        choosing: some of these tokens, which choose the damping; None: it is the least one.
    """

    cross: Tensor
    mean: Tensor
    power: float
    gram: Tensor
    input_mean: Tensor
    wanted_power: float
    num_tokens: int
    choosing: ChoosingTokens | None = None

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


def damping_for(gap: Gap, least: float, centred: bool = False) -> float | None:
    """Of ``least`` and its multiples, the damping whose fit to some tokens is best on others that are held out.

    Fitted to few tokens, an update of many inputs is good on these alone: more damping makes it smaller. What a damping
    weighs against is a sum over tokens: a fit to ten times as many tokens as have chosen has a tenth of it, but ``least``.

    Args:
        least: added to the diagonal of the gram, as ``ridge`` does.
        centred: whether a bias makes the means equal, with an update and without.

    Returns:
        None if every update is worse than none.
    """
    if gap.choosing is None:
        return least
    dampings = [factor * least for factor in DAMPINGS]
    changes = gap.choosing.changes(dampings, centred)
    best = int(changes.argmin())
    return max(least, dampings[best] * gap.choosing.share) if float(changes[best]) < 0 else None
