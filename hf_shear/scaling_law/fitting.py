"""Least squares for the constants of a law: scaled units, logarithms of scales, several starts, bounds.

Units: features are taken about their means over the observations, so that scales are of the size of the losses and
exponents do not trade against them. A scale that is held fixed keeps the natural units that it was given in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core import UsageError
from .forms import LawForm, feature_values, term_values
from .recovery_run import RecoveryRun

ROBUST_LOSSES = ("linear", "soft_l1", "huber", "cauchy")
WEIGHTINGS = ("absolute", "relative")
"""Residuals in nats, or relative to the mean |L - L0| of their run: damage differs tenfold between fractions, and in nats
the most damaged runs decide."""
RIDGE = 1e-3
"""Of each observation, on the squared differences of a form's ties: chosen on the kept runs of model_cards/scaling_law."""
SCALE_RANGE = (-14.0, 6.0)
"""How far, as a logarithm, a scale in scaled units may be from the median of what is fitted."""
START_EXPONENTS = (0.05, 1.5)
ROUGH_TOLERANCE, ROUGH_EVALUATIONS = 1e-7, 150
"""Of every start; a valley without a bottom is left early."""
FINE_TOLERANCE, FINE_EVALUATIONS = 1e-12, 400
"""Of the best of them."""
ROBUST_SCALES = 1.5
"""Residuals beyond so many standard deviations of the scatter count less under a robust loss."""
NORMAL_MAD = 1.4826  # standard deviations per median absolute deviation, for normal scatter


@dataclass(frozen=True)
class Problem:
    """Observations in the units of the fit.

    Attributes:
        form: the law.
        target: [n] L - L0, or L.
        features: logarithms of facts, [n] each.
        shifts: per term, what is taken off its features.
        design: [terms, n, k].
        free: [k] which constants are fitted.
        start: [k] values of those that are not.
        low, high: [k] bounds.
        run_index: [n] which run an observation is of.
        weight: [n] of the residuals.
        pull: [ties, k] rows of the ridge in nats, for one observation; none without a ridge.
    """

    form: LawForm
    target: NDArray
    features: Mapping[str, NDArray]
    shifts: list[dict[str, float]]
    design: NDArray
    free: NDArray
    start: NDArray
    low: NDArray
    high: NDArray
    run_index: NDArray
    weight: NDArray
    pull: NDArray

    @classmethod
    def of(
        cls,
        runs: Sequence[RecoveryRun],
        form: LawForm,
        fixed: Mapping[str, float],
        weighting: str = "absolute",
        ridge: float = 0.0,
    ) -> Problem:
        """Observations of ``runs``, with ``fixed`` constants; ``weighting`` is one of ``WEIGHTINGS``."""
        held = check_fixed(form, fixed)
        parts = [feature_values(run.case, np.array(run.tokens), form.features) for run in runs]
        features = {name: np.concatenate([part[name] for part in parts]) for name in form.features}
        observed = [run.rises if form.of_rise else np.array(run.losses) for run in runs]
        target = np.concatenate(observed)
        means = {name: float(values.mean()) for name, values in features.items()}
        shifts = [{} if term.scale in held else means for term in form.terms]
        typical = math.log(float(np.median(np.abs(target))) or 1e-6)
        low, high = [], []
        for name in form.constants:
            bounds = form.exponents.get(name, (typical + SCALE_RANGE[0], typical + SCALE_RANGE[1]))
            low.append(bounds[0])
            high.append(bounds[1])
        start = np.array([held.get(name, 0.0) for name in form.constants])
        free = np.array([name not in held for name in form.constants])
        lengths = [len(run.tokens) for run in runs]
        index = np.repeat(np.arange(len(runs)), lengths)
        size = np.array([np.abs(run.rises).mean() for run in runs])
        weight = np.repeat(np.median(size) / size if weighting == "relative" else np.ones(len(runs)), lengths)
        ties = form.ties if ridge else ()
        pull = np.zeros((len(ties), len(form.constants)))
        for row, (first, second, unit) in zip(pull, ties, strict=True):
            at = [form.constants.index(first), form.constants.index(second)]
            row[at] = np.array([1.0, -1.0]) * math.sqrt(ridge) * np.median(size) / unit
        return cls(form, target, features, shifts, form.design(features, shifts), free, start, np.array(low),
                   np.array(high), index, weight, pull)  # fmt: skip

    def of_runs(self, drawn: Sequence[int]) -> Problem:
        """The same problem on these runs, some perhaps several times; units stay."""
        rows = np.concatenate([np.flatnonzero(self.run_index == index) for index in drawn])
        counts = [int((self.run_index == index).sum()) for index in drawn]
        features = {name: values[rows] for name, values in self.features.items()}
        return Problem(self.form, self.target[rows], features, self.shifts, self.design[:, rows], self.free, self.start,
                       self.low, self.high, np.repeat(np.arange(len(drawn)), counts), self.weight[rows],
                       self.pull)  # fmt: skip

    def whole(self, free: NDArray) -> NDArray:
        """Theta from its free constants."""
        theta = self.start.copy()
        theta[self.free] = free
        return theta

    def residuals(self, free: NDArray) -> NDArray:
        """Predicted - observed, nats, times the weights; after them the rows of the ridge."""
        theta = self.whole(free)
        observed = self.weight * (term_values(self.design, theta).sum(axis=0) - self.target)
        return np.concatenate([observed, math.sqrt(len(self.target)) * (self.pull @ theta)])

    def jacobian(self, free: NDArray) -> NDArray:
        """[n + ties, free constants]."""
        ridge = math.sqrt(len(self.target)) * self.pull[:, self.free]
        return np.concatenate([self.data_jacobian(free), ridge])

    def data_jacobian(self, free: NDArray) -> NDArray:
        """[n, free constants], of the observations alone."""
        terms = term_values(self.design, self.whole(free))
        return np.einsum("tn,tnk->nk", terms * self.weight, self.design[:, :, self.free])

    def with_best_scales(self, theta: NDArray) -> NDArray:
        """``theta`` with the free scales that fit best at its exponents; they enter linearly."""
        from scipy.optimize import nnls

        theta = theta.copy()
        names = self.form.constants
        for name in self.form.scales:
            if self.free[names.index(name)]:
                theta[names.index(name)] = 0.0
        terms = term_values(self.design, theta)
        scale_index = [names.index(name) for name in self.form.scales]
        is_free = self.free[scale_index]
        if not is_free.any():
            return theta
        target = self.weight * (self.target - terms[~is_free].sum(axis=0))
        columns = (self.weight * terms[is_free]).T
        norms = np.linalg.norm(columns, axis=0)
        scales = nnls(columns / norms, target)[0] / norms
        chosen = np.array(scale_index)[is_free]
        floor = np.exp(self.low[chosen] + 2.0)  # a scale at its bound would not move from there
        theta[chosen] = np.log(np.maximum(scales, floor))
        return theta


@dataclass(frozen=True)
class Solution:
    """The best of all starts, in the units of the problem: free constants, and the cost."""

    free: NDArray
    cost: float


def check_fixed(form: LawForm, fixed: Mapping[str, float]) -> dict[str, float]:
    """Fixed constants as theta has them: scales as logarithms.

    Raises:
        ValueError: a name that the form does not have, a scale or an exponent out of range, or nothing left to fit.
    """
    held = {}
    for name, value in fixed.items():
        if name not in form.constants:
            raise UsageError(
                f"`fixed` names {name!r}; the constants of {form.name!r} are {', '.join(form.constants)}. Name those."
            )
        if not math.isfinite(value):
            raise UsageError(f"`fixed[{name!r}]` must be finite, but it is {value}. Give a number.")
        if name in form.scales and value <= 0:
            raise UsageError(f"`fixed[{name!r}]` must be above 0, but it is {value}.")
        if name in form.exponents and not form.exponents[name][0] <= value <= form.exponents[name][1]:
            low, high = form.exponents[name]
            raise UsageError(f"`fixed[{name!r}]` must be between {low:g} and {high:g}, but it is {value}.")
        held[name] = math.log(value) if name in form.scales else float(value)
    if len(held) == len(form.constants):
        raise UsageError("`fixed` holds all constants, so there is nothing to fit. Leave at least one out.")
    return held


def solve(
    problem: Problem,
    loss: str,
    f_scale: float,
    num_starts: int,
    seed: int,
    start: NDArray | None = None,
    polish: bool = True,
) -> Solution:
    """Fit the free constants.

    Args:
        loss: of scipy's ``least_squares``; all but "linear" bound the weight of outliers.
        f_scale: nats from which on a residual is an outlier.
        num_starts: random exponents to start from, beside ``start``; each with the scales that fit best there.
        start: free constants to start from.
        polish: go on from the best of all starts until nothing changes.
    """
    random = np.random.default_rng(seed)
    starts = [] if start is None else [start]
    for _ in range(num_starts):
        theta = problem.start.copy()
        for index, name in enumerate(problem.form.constants):
            if name in problem.form.exponents and problem.free[index]:
                low, high = problem.low[index], problem.high[index]
                inside = (max(low, START_EXPONENTS[0]), min(high, START_EXPONENTS[1]))
                theta[index] = random.uniform(*inside)
        starts.append(problem.with_best_scales(theta)[problem.free])
    rough = [_solve_from(problem, loss, f_scale, point, ROUGH_TOLERANCE, ROUGH_EVALUATIONS) for point in starts]
    best = min(rough, key=lambda solution: solution.cost)
    if not polish:
        return best
    fine = _solve_from(problem, loss, f_scale, best.free, FINE_TOLERANCE, FINE_EVALUATIONS)
    return min(best, fine, key=lambda solution: solution.cost)


def _solve_from(
    problem: Problem, loss: str, f_scale: float, start: NDArray, tolerance: float, evaluations: int
) -> Solution:
    from scipy.optimize import least_squares

    low, high = problem.low[problem.free], problem.high[problem.free]
    margin = 1e-6 * (high - low)
    result = least_squares(
        problem.residuals, np.clip(start, low + margin, high - margin),
        problem.jacobian,  # pyright: ignore[reportArgumentType]  # scipy has no types; its default is a string
        bounds=(low, high), loss=loss, f_scale=f_scale, max_nfev=evaluations,
        ftol=tolerance, xtol=tolerance, gtol=tolerance,
    )  # fmt: skip
    return Solution(result.x, float(result.cost))


def scatter(runs: Sequence[RecoveryRun], of_rise: bool) -> float:
    """Standard deviation of the checkpoints of a run about its own smooth course, nats; robust against outliers.

    From second differences, which a smooth curve hardly has and scatter has sqrt(6) times over.
    """
    seconds = []
    for run in runs:
        values = run.rises if of_rise else np.array(run.losses)
        seconds.append(values[2:] - 2 * values[1:-1] + values[:-2])
    seconds = np.abs(np.concatenate(seconds))
    if not len(seconds) or not seconds.any():
        return 1e-4
    return float(NORMAL_MAD * np.median(seconds) / math.sqrt(6)) or 1e-4
