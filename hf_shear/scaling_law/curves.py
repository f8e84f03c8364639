"""The loss of one model over tokens, and its inverses (closed forms: arXiv 2411.10272's law solved for D)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LN2 = math.log(2)
FLOPS_PER_PARAMETER_AND_TOKEN = 6
"""Forward 2, backward 4 (arXiv 2001.08361)."""
LOG_TOKENS_SEARCHED = (0.0, math.log(1e18))
NUM_GRID = 2_000
NUM_DRAWS = 100


@dataclass(frozen=True)
class PowerCurve:
    """``loss = floor + exp(log_amplitude) * tokens ** -exponent``."""

    floor: float
    log_amplitude: float
    exponent: float

    def predict(self, tokens: NDArray | float) -> NDArray:
        """Loss in nats per token."""
        return self.floor + np.exp(self.log_amplitude - self.exponent * np.log(tokens))

    def slope(self, tokens: NDArray | float) -> NDArray:
        """Nats per token of training; negative."""
        tokens = np.asarray(tokens, dtype=float)
        return -self.exponent * np.exp(self.log_amplitude - (self.exponent + 1) * np.log(tokens))

    def doubling_gain(self, tokens: NDArray | float) -> NDArray:
        """Nats that twice the tokens would gain."""
        return -math.expm1(-self.exponent * LN2) * (self.predict(tokens) - self.floor)

    def log_tokens_for(self, loss: float) -> float:
        """ln of the tokens at which ``loss`` is reached; infinite where the floor is not below it."""
        if loss <= self.floor:
            return math.inf
        return (self.log_amplitude - math.log(loss - self.floor)) / self.exponent

    def log_saturation_tokens(self, gain: float) -> float:
        """ln of the tokens from which on a doubling gains less than ``gain`` nats."""
        share = -math.expm1(-self.exponent * LN2)
        return (self.log_amplitude + math.log(share) - math.log(gain)) / self.exponent

    def log_tokens_at_price(self, nats_per_flop: float, flops_per_token: float) -> float:
        """ln of the tokens at which one more FLOP gains ``nats_per_flop``."""
        price = math.log(nats_per_flop) + math.log(flops_per_token)
        return (math.log(self.exponent) + self.log_amplitude - price) / (1 + self.exponent)

    def with_gain(self, tokens: float, factor: float, shift: float) -> PowerCurve:
        """The curve that gains ``factor`` times as much as this one after ``tokens``, plus ``shift`` nats."""
        now = float(self.predict(tokens))
        floor = now - factor * (now - self.floor) + shift
        return PowerCurve(floor, self.log_amplitude + math.log(factor), self.exponent)


@dataclass(frozen=True)
class NumericCurve:
    """A loss over tokens without a closed inverse: what :class:`PowerCurve` has, searched on a grid and bisected.

    Attributes:
        law: loss at tokens.
        floor: loss at infinitely many.
    """

    law: Callable[[NDArray], NDArray]
    floor: float

    def predict(self, tokens: NDArray | float) -> NDArray:
        return self.law(np.asarray(tokens, dtype=float))

    def slope(self, tokens: NDArray | float) -> NDArray:
        tokens = np.asarray(tokens, dtype=float)
        step = 1e-4
        return (self.law(tokens * (1 + step)) - self.law(tokens * (1 - step))) / (2 * step * tokens)

    def doubling_gain(self, tokens: NDArray | float) -> NDArray:
        tokens = np.asarray(tokens, dtype=float)
        return self.law(tokens) - self.law(2 * tokens)

    def log_tokens_for(self, loss: float) -> float:
        return _first_below(lambda tokens: self.law(tokens) - loss)

    def log_saturation_tokens(self, gain: float) -> float:
        return _first_below(lambda tokens: self.doubling_gain(tokens) - gain)

    def log_tokens_at_price(self, nats_per_flop: float, flops_per_token: float) -> float:
        return _first_below(lambda tokens: -self.slope(tokens) - nats_per_flop * flops_per_token)

    def with_gain(self, tokens: float, factor: float, shift: float) -> NumericCurve:
        now = float(self.predict(tokens))
        return NumericCurve(
            lambda asked: now - factor * (now - self.law(asked)) + shift, now - factor * (now - self.floor) + shift
        )


LossCurve = PowerCurve | NumericCurve


def gain_draws(curve: LossCurve, seen: float, log_spread: float, noise: float = 0.0) -> list[LossCurve]:
    """Courses that a run may take after the tokens seen, for an interval.

    Args:
        curve: the most likely one.
        log_spread: standard deviation of ln (gain / gain of ``curve``), the gain being what the loss still falls by.
        noise: nats, of a checkpoint from its run's own course.
    """
    quantiles, random = NormalDist(), np.random.default_rng(0)
    normal = [quantiles.inv_cdf((number + 0.5) / NUM_DRAWS) for number in range(NUM_DRAWS)]
    shifts = noise * random.permutation(normal)
    return [curve.with_gain(seen, math.exp(log_spread * z), shift) for z, shift in zip(normal, shifts, strict=True)]


def _first_below(excess: Callable[[NDArray], NDArray]) -> float:
    """ln of the lowest tokens from which ``excess`` falls to 0, or infinity; 0.0 where it is below from the start."""
    grid = np.linspace(*LOG_TOKENS_SEARCHED, NUM_GRID)
    above = excess(np.exp(grid)) > 0
    if above[-1]:
        return math.inf
    if not above.any():
        return 0.0
    last = int(np.flatnonzero(above)[-1])
    low, high = grid[last], grid[last + 1]
    for _ in range(60):
        middle = (low + high) / 2
        if excess(np.exp(np.array([middle])))[0] > 0:
            low = middle
        else:
            high = middle
    return float(high)
