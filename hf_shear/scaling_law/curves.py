"""The loss of one model over tokens, and its inverses (closed forms: arXiv 2411.10272's law solved for D)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LN2 = math.log(2)
FLOPS_PER_PARAMETER_AND_TOKEN = 6
"""Forward 2, backward 4 (arXiv 2001.08361)."""
LOG_TOKENS_SEARCHED = (0.0, math.log(1e18))
NUM_GRID = 2_000


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


LossCurve = PowerCurve | NumericCurve


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
