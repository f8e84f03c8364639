"""Which constants the runs determine, from the singular values of the Jacobian in scaled units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .fitting import SCALE_RANGE, Problem

MAX_CONDITION = 1e4
"""Largest ratio of singular values at which constants count as determined: 2 sizes give far more, 3 about 3e2."""
MIN_SHARE = 0.1
"""Of an undetermined direction (a unit vector): constants with less of it are not held to be part of it."""
INSIDE_EXPONENT = 0.5


@dataclass(frozen=True)
class Identifiability:
    """What the runs say of the constants.

    Attributes:
        condition: largest / smallest singular value of the Jacobian; infinite where a direction changes nothing.
        unidentified: constants that can move together, far, without a change of any prediction at the runs.
        at_bounds: constants at the limit of what the fit looks at.
    """

    condition: float
    unidentified: tuple[str, ...]
    at_bounds: tuple[str, ...]


def identifiability(problem: Problem, free: NDArray) -> Identifiability:
    """The state of the free constants at a solution."""
    names = [name for name, is_free in zip(problem.form.constants, problem.free, strict=True) if is_free]
    low, high = problem.low[problem.free], problem.high[problem.free]
    near = 1e-3 * (high - low)
    at_bounds = tuple(name for name, value, a, b, d in zip(names, free, low, high, near, strict=True)
                      if value < a + d or value > b - d)  # fmt: skip
    condition, loose = _loose(problem, names, free)
    # Where a term has vanished at the solution, its partners look determined; inside the bounds they show themselves.
    loose |= _loose(problem, names, _inside(problem, names))[1]
    return Identifiability(condition, tuple(name for name in names if name in loose), at_bounds)


def _inside(problem: Problem, names: list[str]) -> NDArray:
    """A point of the constants away from all bounds, where every term counts."""
    exponents = np.array([INSIDE_EXPONENT if name in problem.form.exponents else 0.0 for name in names])
    low, high = problem.low[problem.free], problem.high[problem.free]
    return np.where(exponents > 0, exponents, low - SCALE_RANGE[0]).clip(low, high)


def _loose(problem: Problem, names: list[str], free: NDArray) -> tuple[float, set[str]]:
    """Condition number of the Jacobian, and the constants of its undetermined directions."""
    _, singular, directions = np.linalg.svd(problem.data_jacobian(free), full_matrices=True)
    singular = np.concatenate([singular, np.zeros(len(names) - len(singular))])
    smallest, largest = singular[-1], singular[0]
    condition = float(largest / smallest) if smallest > 0 else float("inf")
    directions = directions[singular * MAX_CONDITION < largest]
    return condition, {
        name for name, shares in zip(names, directions.T, strict=True) if (abs(shares) > MIN_SHARE).any()
    }
