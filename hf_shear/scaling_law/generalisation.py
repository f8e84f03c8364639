"""Does the law predict what it has not seen? The three tests of arXiv 2411.10272, against baselines without a law.

    tokens     fitted to the first 80 % of every run's tokens, asked for the last 20 %
    size       fitted without the largest size, asked for it
    fraction   fitted without the largest fraction removed of each size, asked for it

Baselines see a run's own start, which in "size" and "fraction" the law does not: ``carried`` keeps the last rise L - L0
that was seen, ``power_law`` is one fitted to that part of the run alone. ``neighbour`` takes the rise of the nearest
run that the law was fitted to, at the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core import UsageError
from .check_runs import check_runs
from .fit_report import relative_error
from .forms import LawForm
from .law_fit import fit_constants, fit_each_run, predict_run
from .recovery_run import RecoveryRun

TEST_NAMES = ("tokens", "size", "fraction")
SEEN_OF_TOKENS = 0.8
"""Share of every run's tokens that the law and the baselines see in the test of tokens."""
SEEN_BY_BASELINES = 0.2
"""Share of a held-out run's tokens that baselines see in the other two; judged is what comes after."""

STARTS_OF_A_RUN = 4
"""Three constants have few valleys to end in."""
SAME_FRACTION = 0.25
"""Difference of the logarithms of two fractions that counts as one step: .25 and .35 are a step apart."""


@dataclass(frozen=True)
class Split:
    """One test: ``fitted`` is what the law sees; of held-out runs, baselines see ``seen``; ``judged`` is asked."""

    name: str
    fitted: list[RecoveryRun]
    seen: list[RecoveryRun]
    judged: list[RecoveryRun]


def split_runs(runs: Sequence[RecoveryRun], name: str) -> Split:
    """The runs of one test.

    Raises:
        ValueError: an unknown test, or too few sizes or fractions to hold one out.
    """
    if name not in TEST_NAMES:
        raise UsageError(f"`name` must be one of {', '.join(TEST_NAMES)}, but it is {name!r}.")
    if name == "tokens":
        seen, judged = _cut(runs, SEEN_OF_TOKENS)
        return Split(name, seen, seen, judged)
    held = _largest_size(runs) if name == "size" else _largest_fractions(runs)
    asked, fitted = [run for run in runs if run.name in held], [run for run in runs if run.name not in held]
    return Split(name, fitted, *_cut(asked, SEEN_BY_BASELINES))


def _largest_size(runs: Sequence[RecoveryRun]) -> set[str]:
    sizes = {run.case.num_parameters for run in runs}
    if len(sizes) < 3:
        raise UsageError(f"The test of size needs three, to hold out one, but the runs have {len(sizes)}.")
    return {run.name for run in runs if run.case.num_parameters == max(sizes)}


def _largest_fractions(runs: Sequence[RecoveryRun]) -> set[str]:
    """The largest of each size: real shapes meet a fraction only nearly, and each size in its own way."""
    held = set()
    for size in {run.case.num_parameters for run in runs}:
        own = [run for run in runs if run.case.num_parameters == size]
        if len(own) < 3:
            raise UsageError(
                f"The test of fraction needs three of every size, to hold out one, but {size:,.0f} parameters have"
                f" {len(own)}."
            )
        held.add(max(own, key=lambda run: run.case.fraction_removed).name)
    return held


def _cut(runs: Sequence[RecoveryRun], share: float) -> tuple[list[RecoveryRun], list[RecoveryRun]]:
    """The runs up to this share of their tokens, and from there on."""
    limits = [share * run.tokens[-1] for run in runs]
    before = [run.between(high=limit) for run, limit in zip(runs, limits, strict=True)]
    after = [run.between(low=math.nextafter(limit, math.inf)) for run, limit in zip(runs, limits, strict=True)]
    return before, after


def generalisation_errors(
    runs: Sequence[RecoveryRun],
    name: str,
    forms: Sequence[str | LawForm] = ("auto",),
    *,
    baselines: bool = True,
    **options,
) -> list[dict]:
    """Errors of laws and baselines on one test.

    Args:
        forms: laws to fit; ``options`` are those of :func:`fit_constants`.
        baselines: whether to judge the guesses without a law too.

    Returns:
        A record for each method: ``method``, ``relative_error`` (mean |predicted - observed| / mean L - L0 of a run, the
        mean over runs), ``mean_error`` in nats, ``worst_relative_error``, and ``runs``: name -> relative error.
    """
    check_runs(runs, allow_different_tokens=True)
    split = split_runs(runs, name)
    predictions = {}
    for form in forms:
        fit = fit_constants(split.fitted, form, **options)
        predictions[fit.form.name] = [predict_run(fit.form, fit.theta, run) for run in split.judged]
    if baselines:
        pairs = list(zip(split.seen, split.judged, strict=True))
        predictions["carried"] = [run.reference + seen.rises[-1] for seen, run in pairs]
        predictions["power_law"] = _own_power_laws(split)
        if name != "tokens":
            predictions["neighbour"] = [_neighbour(split.fitted, run, name) for run in split.judged]
    return [_record(method, split.judged, values) for method, values in predictions.items()]


def _own_power_laws(split: Split) -> list[NDArray]:
    fits = fit_each_run(split.seen, num_starts=STARTS_OF_A_RUN)
    laws = [fits[run.name] for run in split.judged]
    return [predict_run(law.form, law.theta, run) for law, run in zip(laws, split.judged, strict=True)]


def _neighbour(fitted: Sequence[RecoveryRun], run: RecoveryRun, name: str) -> NDArray:
    """Losses with the rise of the run that differs least in what was held out, among those equal in the other."""

    def distance(other: RecoveryRun) -> tuple[float, float]:
        size = abs(math.log(other.case.num_parameters / run.case.num_parameters))
        fraction = abs(math.log(other.case.fraction_removed / run.case.fraction_removed))
        return (round(fraction / SAME_FRACTION), size) if name == "size" else (size, fraction)

    nearest = min(fitted, key=distance)
    return run.reference + np.interp(np.log(run.tokens), np.log(nearest.tokens), nearest.rises)


def _record(method: str, runs: Sequence[RecoveryRun], predictions: Sequence[NDArray]) -> dict:
    pairs = list(zip(runs, predictions, strict=True))
    errors = {run.name: relative_error(run, predicted) for run, predicted in pairs}
    nats = [float(np.abs(predicted - np.array(run.losses)).mean()) for run, predicted in pairs]
    return {
        "method": method,
        "relative_error": float(np.mean(list(errors.values()))),
        "worst_relative_error": max(errors.values()),
        "mean_error": float(np.mean(nats)),
        "runs": errors,
    }
