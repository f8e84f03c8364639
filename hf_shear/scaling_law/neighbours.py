"""The nearest run in place of a law of sizes and fractions: anchored, it predicted fresh runs better than any law did.

Near is first the fraction removed, in steps, and then the size. Each run has a curve of its own, L - L0 = floor +
amplitude D^-exponent, so that there is a value at any number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .bootstrap import MIN_RUNS, Spread, spread_of_errors
from .fitting import ROBUST_SCALES, Problem, scatter, solve
from .forms import NEIGHBOUR, term_values
from .recovery_run import Case, RecoveryRun

SAME_FRACTION = 0.25
"""Difference of the logarithms of two fractions that counts as one step: .25 and .35 are a step apart."""
STARTS_OF_A_RUN = 4
"""Three constants have few valleys to end in."""


def nearest(case: Case, cases: Sequence[Case], allowed: Sequence[int] | None = None) -> int:
    """Index of the case that differs least from ``case``, of those that are allowed (default all)."""

    def distance(index: int) -> tuple[float, float]:
        other = cases[index]
        size = abs(math.log(other.num_parameters / case.num_parameters))
        return _steps(case, other), round(size, 6)

    return min(range(len(cases)) if allowed is None else allowed, key=distance)


def _steps(one: Case, other: Case) -> int:
    """Between their fractions."""
    return round(abs(math.log(other.fraction_removed / one.fraction_removed)) / SAME_FRACTION)


def own_curves(runs: Sequence[RecoveryRun], loss: str, f_scale: float | None, seed: int) -> NDArray:
    """[runs, 3] constants of each run's curve, in the order of ``NEIGHBOUR.constants``."""
    found = []
    for run in runs:
        problem = Problem.of([run], NEIGHBOUR, {})
        limit = ROBUST_SCALES * scatter([run], True) if f_scale is None else f_scale
        free = solve(problem, loss, limit, STARTS_OF_A_RUN, seed).free
        found.append(NEIGHBOUR.natural(problem.whole(free), problem.shifts))
    return np.array(found)


def draw_runs(number: int, num_runs: int, seed: int) -> NDArray:
    """[number, runs] how often each run is drawn, with replacement; none for few runs."""
    if num_runs < MIN_RUNS:
        return np.zeros((0, num_runs))
    return np.random.default_rng(seed).multinomial(num_runs, np.full(num_runs, 1 / num_runs), size=number).astype(float)


def spread_of_neighbours(runs: Sequence[RecoveryRun], theta: NDArray) -> Spread | None:
    """How far runs lie from their nearest run of another size, and from that of another fraction.

    Where all have one size and one fraction, it is any other run.
    """
    if len(runs) < MIN_RUNS:
        return None
    cases, pairs = [run.case for run in runs], []
    for index, run in enumerate(runs):
        others = [i for i in range(len(runs)) if i != index]
        other_size = [i for i in others if cases[i].num_parameters != run.case.num_parameters]
        other_fraction = [i for i in others if _steps(cases[i], run.case)]
        design = NEIGHBOUR.design({name: np.log(run.tokens) for name in NEIGHBOUR.features})
        for allowed in [one for one in (other_size, other_fraction) if one] or [others]:
            predicted = term_values(design, theta[nearest(run.case, cases, allowed)]).sum(axis=0)
            pairs.append((np.array(run.tokens), run.rises, predicted))
    return spread_of_errors(pairs)
