"""Which constants the runs determine, from the singular values of the Jacobian in scaled units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .fitting import Problem

MAX_CONDITION = 1e4
"""Largest ratio of singular values at which constants count as determined: 2 sizes give far more, 3 about 3e2."""
MIN_SHARE = 0.1
"""Of an undetermined direction (a unit vector): constants with less of it are not held to be part of it."""


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
    _, singular, directions = np.linalg.svd(problem.jacobian(free), full_matrices=True)
    singular = np.concatenate([singular, np.zeros(len(names) - len(singular))])
    smallest, largest = singular[-1], singular[0]
    condition = float(largest / smallest) if smallest > 0 else float("inf")
    loose = directions[singular * MAX_CONDITION < largest]
    unidentified = tuple(name for name, shares in zip(names, loose.T, strict=True) if (abs(shares) > MIN_SHARE).any())
    return Identifiability(condition, unidentified, at_bounds)
