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
NUM_GRID, NUM_ROUNDS = 2_000, 3
"""Points of the search for tokens, and how often it goes on between two of them."""
NUM_DRAWS = 100
DRIFT_SPREAD = 0.02
"""Nats that the source itself still moves by, up or down: a standard deviation. At D tokens 1 - seen / D of it have passed.
A run without a control cannot tell it from recovery. Chosen on the kept runs (model_cards/scaling_law/registered.md)."""


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
    """A loss over tokens without a closed inverse: what :class:`PowerCurve` has, searched on finer and finer grids.

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
        step = 1e-4 * tokens  # ahead: a course of ``gain_draws`` bends at the tokens seen
        return (self.law(tokens + step) - self.law(tokens)) / step

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


def gain_draws(curve: LossCurve, seen: float, log_spread: float, noise: float = 0.0) -> list[LossCurve]:
    """Courses that a run may take after the tokens seen, for an interval.

    Args:
        curve: the most likely one.
        log_spread: standard deviation of ln (gain / gain of ``curve``), the gain being what the loss still falls by.
        noise: nats, of a checkpoint from its run's own course.
    """
    quantiles, random = NormalDist(), np.random.default_rng(0)
    normal = np.array([quantiles.inv_cdf((number + 0.5) / NUM_DRAWS) for number in range(NUM_DRAWS)])
    draws = np.exp(log_spread * normal), noise * random.permutation(normal), DRIFT_SPREAD * random.permutation(normal)
    return [_course(curve, seen, *draw) for draw in zip(*draws, strict=True)]


def _course(curve: LossCurve, seen: float, factor: float, shift: float, drift: float) -> NumericCurve:
    """What gains ``factor`` times as much as ``curve`` after ``seen``, plus nats at once and, in the end, of a drift."""
    now = float(curve.predict(seen))

    def law(tokens: NDArray) -> NDArray:
        return now - factor * (now - curve.predict(tokens)) + shift + drift * np.maximum(1 - seen / tokens, 0.0)

    return NumericCurve(law, now - factor * (now - curve.floor) + shift + drift)


def _first_below(excess: Callable[[NDArray], NDArray]) -> float:
    """ln of the lowest tokens at which ``excess`` is at most 0, or infinity."""
    low, high = LOG_TOKENS_SEARCHED
    for _ in range(NUM_ROUNDS):
        grid = np.linspace(low, high, NUM_GRID)
        below = excess(np.exp(grid)) <= 0
        if not below.any():
            return math.inf
        first = int(below.argmax())
        low, high = grid[max(first - 1, 0)], grid[first]
    return float(high)
