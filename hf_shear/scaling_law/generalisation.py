"""Does a law predict what it has not seen? The three tests of arXiv 2411.10272, against guesses without a law.

    tokens     fitted to the first 80 % of every run's tokens, asked for the last 20 %
    size       fitted without the largest size, asked for it
    fraction   fitted without the largest fraction removed of each size, asked for it

A predictor is named. A law by its form (``"p2"``, ``"damage"``), or the form and ``_anchored``: the law at the level of the
run's seen start (``LawFit.anchored``). Guesses see that start as well:

    carried              the last rise L - L0 that was seen
    power_law            one fitted to the seen start alone
    neighbour            the rise of the nearest run that laws are fitted to, at the same tokens
    neighbour_anchored   the same, at the level of the seen start
    guess_mean           geometric mean of carried and neighbour_anchored
    blend                geometric mean of damage_anchored and neighbour_anchored; half a law
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core import UsageError
from .bootstrap import level_of
from .check_runs import check_runs
from .fit_report import relative_error
from .forms import FORMS, LawForm
from .law_fit import fit_constants, fit_each_run, predict_run
from .neighbours import SAME_FRACTION, STARTS_OF_A_RUN
from .recovery_run import RecoveryRun

TEST_NAMES = ("tokens", "size", "fraction")
GUESSES = ("carried", "power_law", "neighbour", "neighbour_anchored", "guess_mean")
ANCHORED = "_anchored"
BLEND = "blend"
SEEN_OF_TOKENS = 0.8
"""Share of every run's tokens that laws and guesses see in the test of tokens."""
SEEN_AT_START = 0.2
"""Share of a held-out run's tokens that guesses and anchors see in the other two; judged is what comes after."""


@dataclass(frozen=True)
class Split:
    """One test: laws see ``fitted``; of held-out runs, guesses and anchors see ``seen``; ``judged`` is asked."""

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
        seen, judged = cut_runs(runs, SEEN_OF_TOKENS)
        return Split(name, seen, seen, judged)
    held = _largest_size(runs) if name == "size" else _largest_fractions(runs)
    asked, fitted = [run for run in runs if run.name in held], [run for run in runs if run.name not in held]
    return Split(name, fitted, *cut_runs(asked, SEEN_AT_START))


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


def cut_runs(runs: Sequence[RecoveryRun], share: float) -> tuple[list[RecoveryRun], list[RecoveryRun]]:
    """The runs up to this share of their tokens, and from there on."""
    limits = [share * run.tokens[-1] for run in runs]
    before = [run.between(high=limit) for run, limit in zip(runs, limits, strict=True)]
    after = [run.between(low=math.nextafter(limit, math.inf)) for run, limit in zip(runs, limits, strict=True)]
    return before, after


def generalisation_errors(
    runs: Sequence[RecoveryRun],
    name: str,
    forms: Sequence[str | LawForm] = ("p2",),
    *,
    baselines: bool = True,
    **options,
) -> list[dict]:
    """Errors of laws and guesses on one test.

    Args:
        forms: predictors by name; ``options`` of their fits are those of :func:`fit_constants`.
        baselines: whether to judge all guesses too.

    Returns:
        A record for each method: ``method``, ``relative_error`` (mean |predicted - observed| / mean L - L0 of a run, the
        mean over runs), ``mean_error`` in nats, ``worst_relative_error``, and ``runs``: name -> relative error.
    """
    check_runs(runs, allow_different_tokens=True)
    split = split_runs(runs, name)
    guesses = [guess for guess in GUESSES if name != "tokens" or guess in ("carried", "power_law")]
    methods = [*forms, *(guesses if baselines else [])]
    return [error_record(method, split, predict_split(split, method, **options)) for method in methods]


def predict_split(split: Split, method: str | LawForm, **options) -> list[NDArray]:
    """Losses at the judged checkpoints of each held-out run, by one predictor.

    In the test of tokens a run is its own neighbour, so that ``blend`` is the anchored law alone.
    """
    pairs = list(zip(split.seen, split.judged, strict=True))
    if method == "carried":
        return [run.reference + seen.rises[-1] for seen, run in pairs]
    if method == "power_law":
        laws = fit_each_run(split.seen, num_starts=STARTS_OF_A_RUN)
        return [predict_run(laws[run.name].form, laws[run.name].theta, run) for run in split.judged]
    if method == "neighbour":
        return [run.reference + _rises_of(_nearest(split.fitted, run), run) for run in split.judged]
    if method == "neighbour_anchored":
        return [run.reference + _anchored_neighbour(split.fitted, seen, run) for seen, run in pairs]
    if method in ("guess_mean", BLEND):
        first = "carried" if method == "guess_mean" else "damage" + ANCHORED
        if method == BLEND and split.name == "tokens":
            return predict_split(split, first, **options)
        both = predict_split(split, first, **options), predict_split(split, "neighbour_anchored")
        return [run.reference + _geometric_mean(one - run.reference, other - run.reference)
                for one, other, run in zip(*both, split.judged, strict=True)]  # fmt: skip
    anchored = isinstance(method, str) and method.endswith(ANCHORED) and method.removesuffix(ANCHORED) in FORMS
    fit = fit_constants(split.fitted, method.removesuffix(ANCHORED) if isinstance(method, str) else method, **options)
    laws = [fit.anchored(seen) if anchored else fit for seen in split.seen]
    return [predict_run(law.form, law.theta, run) for law, run in zip(laws, split.judged, strict=True)]


def _nearest(fitted: Sequence[RecoveryRun], run: RecoveryRun) -> RecoveryRun:
    """The run that differs least: in fraction, then in size, then in the learning rate where runs name theirs."""

    def distance(other: RecoveryRun) -> tuple[float, float, float]:
        size = abs(math.log(other.case.num_parameters / run.case.num_parameters))
        fraction = abs(math.log(other.case.fraction_removed / run.case.fraction_removed))
        rates = (other.learning_rate, run.learning_rate)
        rate = 0.0 if rates[0] is None or rates[1] is None else abs(math.log(rates[0] / rates[1]))
        return round(fraction / SAME_FRACTION), round(size, 6), rate

    return min(fitted, key=distance)


def _rises_of(neighbour: RecoveryRun, run: RecoveryRun) -> NDArray:
    """L - L0 of the neighbour at the tokens of ``run``."""
    return np.interp(np.log(run.tokens), np.log(neighbour.tokens), neighbour.rises)


def _anchored_neighbour(fitted: Sequence[RecoveryRun], seen: RecoveryRun, run: RecoveryRun) -> NDArray:
    neighbour = _nearest(fitted, run)
    return _rises_of(neighbour, run) * math.exp(level_of(seen.rises, _rises_of(neighbour, seen)))


def _geometric_mean(first: NDArray, second: NDArray) -> NDArray:
    """Of rises; their mean where one of them is not positive."""
    product = first * second
    return np.where((first > 0) & (second > 0), np.sqrt(np.abs(product)), (first + second) / 2)


def error_record(method: str | LawForm, split: Split, predictions: Sequence[NDArray]) -> dict:
    """Errors of one predictor, as :func:`generalisation_errors` gives them."""
    pairs = list(zip(split.judged, predictions, strict=True))
    errors = {run.name: relative_error(run, predicted) for run, predicted in pairs}
    nats = [float(np.abs(predicted - np.array(run.losses)).mean()) for run, predicted in pairs]
    return {
        "method": method.name if isinstance(method, LawForm) else method,
        "relative_error": float(np.mean(list(errors.values()))),
        "worst_relative_error": max(errors.values()),
        "mean_error": float(np.mean(nats)),
        "runs": errors,
    }
