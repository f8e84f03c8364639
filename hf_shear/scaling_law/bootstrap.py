"""What intervals are made of: constants of fits to runs drawn anew, and how far single runs lie from a law without them.

Whole runs are drawn: checkpoints of one run are autocorrelated, and drawing those would make intervals far too narrow.
The constants say where the law is. A new run lies beside it, as far as runs do that were left out of a fit (``Spread``).
Those lie as far as they do because the law is uncertain as well, so what fits to runs drawn anew show of it counts once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .fitting import Problem, solve
from .forms import TOKENS, term_values
from .recovery_run import RecoveryRun

MIN_RUNS = 4
"""Fewer runs have too few ways of being drawn for an interval."""
MAX_DRAWS = 200  # tries for one set of runs that is rich enough
SEEN_SHARE = 0.2
"""Share of a left-out run's tokens that it is anchored to."""
LEAST_RATIO = 0.05
"""Observed / predicted L - L0 below which it counts as this: a run may dip to its control, and a logarithm may not."""


@dataclass(frozen=True)
class Spread:
    """How far runs lie from a law that was fitted without them: standard deviations of ln (L - L0).

    Attributes:
        level: of a run from the law.
        drift: of a run from the law at the run's own level, for each e-fold of tokens since that level was measured.
        noise: of a checkpoint from its run's own course.
        num_errors: from so many courses of runs that were left out.
    """

    level: float
    drift: float
    noise: float
    num_errors: int

    def log_scale(self, tokens: float, anchored_at: float | None) -> float:
        """Standard deviation of ln (L - L0) at ``tokens``, for a law as it is or anchored to a run at some tokens."""
        if anchored_at is None:
            return math.hypot(self.level, self.noise)
        return math.hypot(self.drift * math.log(max(tokens / anchored_at, 1.0)), self.noise)

    def draws(self, number: int) -> NDArray:
        """[number] in units of ``log_scale``: quantiles of Student's t for so many errors, in an order of chance."""
        from scipy.stats import t

        quantiles = t.ppf((np.arange(number) + 0.5) / number, self.num_errors)
        return np.random.default_rng(0).permutation(quantiles)


def log_ratios(observed: NDArray, predicted: NDArray) -> NDArray:
    """ln of observed / predicted L - L0."""
    return np.log(np.maximum(observed / predicted, LEAST_RATIO))


def level_of(observed: NDArray, predicted: NDArray) -> float:
    """ln of what a law is to be multiplied with for a run: the mean over the later half of what was seen."""
    return float(log_ratios(observed, predicted)[len(observed) // 2 :].mean())


def spread_of(
    problem: Problem, runs: Sequence[RecoveryRun], solution: NDArray, loss: str, f_scale: float, seed: int
) -> Spread | None:
    """Leave out all runs of each size, or single runs where there are fewer than three sizes; None for few runs."""
    if len(runs) < MIN_RUNS or not problem.form.of_rise or TOKENS not in problem.form.features:
        return None
    sizes = [run.case.num_parameters for run in runs]
    groups = [[i for i, size in enumerate(sizes) if size == one] for one in sorted(set(sizes))]
    if len(groups) < 3:
        groups = [[i] for i in range(len(runs))]
    pairs = []
    for group in groups:
        rest = problem.of_runs([i for i in range(len(runs)) if i not in group])
        theta = problem.whole(solve(rest, loss, f_scale, 0, seed, start=solution, polish=False).free)
        predicted = term_values(problem.design, theta).sum(axis=0)
        for index in group:
            rows = problem.run_index == index
            pairs.append((np.array(runs[index].tokens), problem.target[rows], predicted[rows]))
    return spread_of_errors(pairs)


def spread_of_errors(pairs: Sequence[tuple[NDArray, NDArray, NDArray]]) -> Spread:
    """The spread of runs that were left out: tokens, observed and predicted L - L0 of each."""
    levels, drifts, noises = [], [], []
    for tokens, observed, predicted in pairs:
        errors = log_ratios(observed, predicted)
        levels.append(errors.mean())
        seen = max(int((tokens <= SEEN_SHARE * tokens[-1]).sum()), 1)
        late = max(len(tokens) - 3, seen)
        if late < len(tokens):
            passed = np.log(tokens[late:].mean() / tokens[seen - 1])
            drifts.append((errors[late:].mean() - errors[seen // 2 : seen].mean()) / passed)
        if len(tokens) > 3:
            course = np.polyval(np.polyfit(np.log(tokens), errors, 1), np.log(tokens))
            noises.append(np.sqrt(((errors - course) ** 2).sum() / (len(tokens) - 2)))
    level, drift, noise = (float(np.sqrt(np.mean(np.square(one)))) if one else 0.0 for one in (levels, drifts, noises))
    return Spread(level, drift, noise, len(pairs))


def bootstrap(
    problem: Problem, runs: Sequence[RecoveryRun], solution: NDArray, loss: str, f_scale: float, number: int, seed: int
) -> NDArray:
    """Theta in natural units of ``number`` fits, each to as many runs drawn with replacement; none for few runs.

    A draw must have as many sizes, and as many fractions, as the constants need of those that the runs have (three and
    two): with fewer, the fit would be of another law. It is drawn again otherwise.

    Returns:
        [number, k].
    """
    form = problem.form
    if len(runs) < MIN_RUNS or number == 0:
        return np.zeros((0, len(form.constants)))
    random = np.random.default_rng(seed)
    sizes = [run.case.num_parameters for run in runs]
    fractions = [round(run.case.fraction_removed, 2) for run in runs]
    needed = min(3, len(set(sizes))), min(2, len(set(fractions)))
    found = []
    for _ in range(number):
        enough, draws = False, 0
        drawn: list[int] = []
        while not enough and draws < MAX_DRAWS:
            drawn, draws = random.integers(len(runs), size=len(runs)).tolist(), draws + 1
            enough = len({sizes[i] for i in drawn}) >= needed[0] and len({fractions[i] for i in drawn}) >= needed[1]
        part = problem.of_runs(drawn)
        free = solve(part, loss, f_scale, 0, seed, start=solution, polish=False).free
        found.append(form.natural(part.whole(free), part.shifts))
    return np.array(found)
