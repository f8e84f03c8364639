"""The spread of the constants, by fitting runs that are drawn anew.

Whole runs are drawn: checkpoints of one run are autocorrelated, and drawing those would make intervals far too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .fitting import Problem, solve
from .recovery_run import RecoveryRun

MIN_RUNS = 4
"""Fewer runs have too few ways of being drawn for an interval."""
MAX_DRAWS = 200  # tries for one set of runs that is rich enough


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
