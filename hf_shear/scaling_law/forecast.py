"""The course of one run that is under way, without a control: a law of earlier runs, corrected by what the run shows.

    L(D) = floor + amplitude D^-exponent - slope ln(1 + D / D0)

The law gives the first three, and how far single runs lie from it (``Spread``). The last term is what the unpruned source
would still learn, D0 being the tokens that it has seen; without ``source_tokens`` it is left out. The run's own checkpoints
move all four: the most likely curve under both is the forecast. Where the source is far larger than those of the law, the
forecast is the run's own power law as soon as it has enough checkpoints (``LawFit.leaves_it_to``).

Intervals are of what the loss still falls by: by how much that was misjudged on the kept runs of model_cards/scaling_law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core import UsageError
from .curves import LossCurve, NumericCurve, PowerCurve, gain_draws
from .estimates import Estimate, interval
from .law_fit import OWN_LAW, LawFit, own_law
from .recovery_run import Case, RecoveryRun

DROP_START = 0.1
"""Share of the tokens so far that a forecast leaves out at their start."""
FLOOR_SPREAD = 0.1
"""Nats by which training moves the source itself, on text that it does not know well: controls of the kept runs moved by
.05 to .08. Without a control this is part of the floor."""
SOURCE_SLOPE, SOURCE_SLOPE_SPREAD = 0.35, 0.15
"""Nats that the source learns for each e-fold of all its training tokens, from the controls of the kept runs."""
GAIN_SPREAD = 0.22
"""Standard deviation of ln (gain / predicted gain) after the tokens seen, on the kept runs, each by a law of other sizes;
times the law's widening."""
LEAST_EXPONENT_SPREAD = 0.05
INDEPENDENT = 4
"""Checkpoints of one run are alike: however many, they count as so many."""
LEAST_NOISE = 1e-3  # nats
_ANY_SIZE = 1e6  # a run alone is fitted in its tokens; the size of its model does not enter


@dataclass(frozen=True)
class Forecast:
    """The curve of a run under way.

    Attributes:
        curve: the most likely one.
        samples: others that are as likely as the errors of earlier forecasts say.
        seen: tokens so far.
        notes: how far the law is stretched, and whether the run speaks for itself.
    """

    curve: LossCurve
    samples: Sequence[LossCurve]
    seen: float
    notes: tuple[str, ...] = ()

    def loss(self, tokens: float) -> Estimate:
        """After ``tokens`` in all, nats per token."""
        low, high = interval([float(curve.predict(tokens)) for curve in self.samples])
        return Estimate(float(self.curve.predict(tokens)), low, high, notes=self.notes)

    def tokens_to(self, target_loss: float) -> Estimate:
        """Tokens that are still needed; 0 where the curve is there, none where its floor lies above."""

        def more(curve: LossCurve) -> float:
            log_tokens = curve.log_tokens_for(target_loss)
            return math.inf if math.isinf(log_tokens) else math.exp(min(log_tokens, 100.0)) - self.seen

        low, high = interval([max(more(curve), 0.0) for curve in self.samples])
        if math.isinf(more(self.curve)):
            return Estimate(None, low, high, f"unreachable: the floor is {self.curve.floor:.4f}", self.notes)
        return Estimate(max(more(self.curve), 0.0), low, high, notes=self.notes)

    def gain_per_flop(self, flops_per_token: float) -> Estimate:
        """Nats that the next FLOP gains."""
        low, high = interval([float(-curve.slope(self.seen)) / flops_per_token for curve in self.samples])
        return Estimate(float(-self.curve.slope(self.seen)) / flops_per_token, low, high, notes=self.notes)


def forecast(law: LawFit, case: Case, tokens: Sequence[float], losses: Sequence[float]) -> Forecast:
    """The forecast of a run by a law and its checkpoints so far.

    Raises:
        UsageError: the law has no spread (it was fitted without a bootstrap), or is not one of L - L0.
    """
    check_law(law)
    own = law_after(law, case, tokens, losses)
    if own is not law:
        return _alone(own, case, (OWN_LAW.format(law.extrapolation(case)["num_parameters"]),))
    assert law.spread is not None, "checked"
    tokens, losses = late_checkpoints(tokens, losses)
    x, y, seen = np.log(np.array(tokens)), np.array(losses), float(tokens[-1])
    widen = law.widening(case, seen)
    curve = law.curve(case)
    assert isinstance(curve, PowerCurve), "laws of L - L0 are powers of tokens"
    scales = np.array([
        math.hypot(FLOOR_SPREAD, law.spread.level * (curve.floor - case.source_loss)) * widen,
        law.spread.level * widen,
        max(law.spread.drift, LEAST_EXPONENT_SPREAD) * widen,
        SOURCE_SLOPE_SPREAD,
    ])  # fmt: skip
    expected = np.maximum(curve.predict(np.exp(x)) - case.source_loss, np.maximum(y - y[-1], 0.0))
    noise = np.hypot(law.spread.noise * expected, LEAST_NOISE)
    source_tokens = math.inf if case.source_tokens is None else case.source_tokens
    prior = np.array([curve.floor, curve.log_amplitude, curve.exponent, SOURCE_SLOPE])
    counted = noise * math.sqrt(max(len(x) / INDEPENDENT, 1.0))
    likely = _most_likely(prior, scales, x, y, counted, source_tokens)
    samples = gain_draws(likely, seen, GAIN_SPREAD * widen, float(noise[-1]))
    return Forecast(likely, samples, seen, tuple(law.stretch(case, seen)))


def check_law(law: LawFit) -> None:
    """Refuse a law that forecasts cannot start from."""
    if not law.form.of_rise or law.spread is None:
        raise UsageError(
            f"`law` must be of L - L0 and have intervals, but it is {law.form.name!r} with {len(law.samples)} fits of a"
            " bootstrap. Fit 'damage' or 'p2' with `num_bootstrap` above 0."
        )


def late_checkpoints(tokens: Sequence[float], losses: Sequence[float]) -> tuple[list[float], list[float]]:
    """Without those at the start, where the loss falls faster than any power law."""
    late = [index for index, value in enumerate(tokens) if value >= DROP_START * tokens[-1]]
    return [tokens[index] for index in late], [losses[index] for index in late]


def law_after(law: LawFit, case: Case, tokens: Sequence[float], losses: Sequence[float]) -> LawFit:
    """``law``, or in its place the power law of the run so far, where the law leaves it to the run."""
    late = late_checkpoints(tokens, losses)
    return own_law(RecoveryRun("this run", case, *late)) if law.leaves_it_to(case, len(late[0])) else law


def own_forecast(tokens: Sequence[float], losses: Sequence[float]) -> Forecast:
    """By a power law of the run alone, of whose model nothing is known."""
    case = Case(_ANY_SIZE, 0.5, max(losses))
    return _alone(own_law(RecoveryRun("this run", case, *late_checkpoints(tokens, losses))), case, ())


def _alone(law: LawFit, case: Case, notes: tuple[str, ...]) -> Forecast:
    assert law.anchored_at is not None, "the end of the run so far"
    return Forecast(law.curve(case), law.sample_curves(case), law.anchored_at, notes)


def _most_likely(
    prior: NDArray, scales: NDArray, x: NDArray, y: NDArray, noise: NDArray, source_tokens: float
) -> LossCurve:
    """The curve that fits the checkpoints and is near the law's, each in its own standard deviations.

    The logarithm of the amplitude is taken at the middle of the checkpoints, so that a change of the exponent alone moves
    no level.
    """
    from scipy.optimize import least_squares

    middle = float(x.mean()) if len(x) else 0.0
    level, least = prior[1] - prior[2] * middle, 0.2 * prior[2]
    learned = np.log1p(np.exp(x) / source_tokens)

    def parts(steps: NDArray) -> tuple[float, float, float, float]:
        floor, at_middle, exponent, slope = np.array([prior[0], level, *prior[2:]]) + scales * steps
        return floor, at_middle, max(exponent, least), max(slope, 0.0)

    def residuals(steps: NDArray) -> NDArray:
        floor, at_middle, exponent, slope = parts(steps)
        predicted = floor + np.exp(at_middle - exponent * (x - middle)) - slope * learned
        return np.concatenate([(predicted - y) / noise, steps])

    start = np.zeros(len(scales))
    floor, at_middle, exponent, slope = parts(least_squares(residuals, start, method="lm").x if len(x) else start)
    own = PowerCurve(float(floor), float(at_middle + exponent * middle), float(exponent))
    if math.isinf(source_tokens):
        return own
    return NumericCurve(lambda tokens: own.predict(tokens) - slope * np.log1p(tokens / source_tokens), own.floor)
