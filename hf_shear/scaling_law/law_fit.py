"""Fit a law to recovery runs, and ask it: losses at tokens, tokens for losses, and what a budget pays for."""

from __future__ import annotations

import math
import os
import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..core import UsageError, check_ranges, read_results, write_results
from .bootstrap import Spread, bootstrap, level_of, spread_of
from .check_runs import check_runs
from .curves import FLOPS_PER_PARAMETER_AND_TOKEN, LossCurve, NumericCurve, PowerCurve, gain_draws
from .estimates import Estimate, interval, tokens_estimate, tokens_of
from .fit_report import FitReport, fit_warnings, run_quality
from .fitting import RIDGE, ROBUST_LOSSES, ROBUST_SCALES, WEIGHTINGS, Problem, scatter, solve
from .forms import FORMS, NEIGHBOUR, POWER_LAW, TOKENS, LawForm, feature_values, resolve_form, term_values
from .identifiability import Identifiability, identifiability
from .neighbours import STARTS_OF_A_RUN, draw_runs, nearest, own_curves, spread_of_neighbours
from .recovery_run import Case, RecoveryRun

DROP_START = 0.1
"""Share of each run's tokens at its start that a fit leaves out, where the loss falls faster than any power law."""
NUM_STARTS = 16
NUM_BOOTSTRAP = 100
_SAVE_FIX = "Save the fit again (`hf-shear plan --save`)."
MAX_FACTOR = 1.05
"""Beyond this multiple of what was fitted an answer is noted as extrapolation, and its interval widens."""


FAR_SIZE = 4.0
"""A source of more than so many times the largest fitted one is left to its own run. Laws were judged at up to 2.6 times,
where the nearest run is better, and at 107 times, where the run's own power law is (model_cards/scaling_law.md)."""
OWN_CHECKPOINTS = 6
"""From which on a run alone is fitted: a power law has three constants."""
OWN_GAIN_SPREAD = 0.85
"""Standard deviation of ln (gain / predicted gain) of power laws of single runs after the tokens seen, on the kept runs."""
OWN_LAW = "by the run's own power law: its source is {:.1f} x the largest that the law was fitted to"


class ScalingLawWarning(UserWarning):
    """A fit that is easily read for more than it says."""


@dataclass(frozen=True)
class LawFit:
    """A fitted law. Cases are answered by :meth:`predict` and its siblings, each with an interval where there is one.

    Attributes:
        form: the law.
        theta: [k] constants in natural units, scales as logarithms; in the order of ``form.constants``. Of "neighbour"
            [runs, k], for each run its own.
        samples: [b, k] the same for each fit of the bootstrap; of "neighbour" [b, runs], how often each run was drawn.
        fitted: largest and smallest of what was fitted: ``num_parameters``, ``fraction_removed``, ``tokens``.
        has_controls: whether L0 was the control's loss at the same tokens.
        report: how good it is.
        spread: of runs that were left out of the fit, for the intervals; None without a bootstrap.
        anchored_at: tokens up to which a run was seen that the law has been anchored to, or that it is of alone; None
            for the law as it is.
        decay_correction: nats to add for a run whose rate decays at its end, as measured at equal tokens; None: not
            measured. The law itself speaks for the schedule of its runs, a constant rate.
        cases: of "neighbour", the model of each run.
    """

    form: LawForm
    theta: NDArray
    samples: NDArray
    fitted: Mapping[str, tuple[float, float]]
    has_controls: bool
    report: FitReport | None
    spread: Spread | None = None
    anchored_at: float | None = None
    decay_correction: float | None = None
    cases: tuple[Case, ...] = ()

    @property
    def constants(self) -> dict[str, float]:
        """In natural units: tokens and parameters counted one by one. The paper's gamma is ``-rho_exponent``.

        "neighbour" has none that hold for all runs.
        """
        if self.cases:
            return {}
        named = dict(zip(self.form.constants, self.theta, strict=True))
        return {name: math.exp(value) if name in self.form.scales else float(value) for name, value in named.items()}

    def curve(self, case: Case) -> LossCurve:
        """Loss over tokens for one model."""
        return curve_of(self.form, self.theta_for(case), case)

    def theta_for(self, case: Case) -> NDArray:
        """[k] constants that hold for this model."""
        return self.theta[nearest(case, self.cases)] if self.cases else self.theta

    def samples_for(self, case: Case) -> NDArray:
        """[b, k] the same for each fit of the bootstrap."""
        if not self.cases:
            return self.samples
        drawn = [nearest(case, self.cases, np.flatnonzero(counts).tolist()) for counts in self.samples]
        return self.theta[drawn] if drawn else np.zeros((0, self.theta.shape[1]))

    def sample_curves(self, case: Case, tokens: float | None = None) -> list[LossCurve]:
        """The same for each fit of the bootstrap, together as far from the law as single runs are at ``tokens``.

        Beyond the fitted sizes, fractions or tokens that is farther: by as much again for each e-fold.
        """
        if self.form is POWER_LAW and self.anchored_at is not None:
            return gain_draws(self.curve(case), self.anchored_at, OWN_GAIN_SPREAD)
        thetas = self.samples_for(case)
        curves = [curve_of(self.form, theta, case) for theta in thetas]
        if self.spread is None or not curves:
            return curves
        tokens = self.fitted["tokens"][1] if tokens is None or not math.isfinite(tokens) else tokens
        scale = self.spread.log_scale(tokens, self.anchored_at) * self.widening(case, tokens)
        shown = np.std(np.log([float(curve.predict(tokens)) - case.source_loss for curve in curves]))
        shifts = self.spread.draws(len(thetas)) * math.sqrt(max(scale**2 - shown**2, 0.0))
        return [curve_of(self.form, self._at_level(theta, s), case) for theta, s in zip(thetas, shifts, strict=True)]

    def widening(self, case: Case, tokens: float | None) -> float:
        """What standard deviations are multiplied with, outside of what was fitted."""
        return 1 + sum(map(math.log, self.extrapolation(case, tokens).values()))

    def _at_level(self, theta: NDArray, log_factor: float) -> NDArray:
        """``theta`` with every term times a factor."""
        return theta + log_factor * np.isin(self.form.constants, self.form.scales)

    def anchored(self, run: RecoveryRun) -> LawFit:
        """The law times one factor, at which it is right for a run of which a part was seen.

        Args:
            run: its checkpoints so far, with a control where the law was fitted against controls.

        Raises:
            UsageError: the law is not one of L - L0.
        """
        if not self.form.of_rise:
            raise UsageError(
                f"{self.form.name!r} predicts L and not L - L0, so there is nothing to anchor. Use 'damage'."
            )

        def shifted(theta: NDArray) -> NDArray:
            predicted = predict_run(self.form, theta, run) - run.reference
            return self._at_level(theta, level_of(run.rises, predicted))

        theta, samples = shifted(self.theta_for(run.case)), self.samples_for(run.case)
        samples = np.array([shifted(one) for one in samples]).reshape(samples.shape)
        return replace(self, theta=theta, samples=samples, anchored_at=run.tokens[-1], cases=())

    def after(self, run: RecoveryRun) -> LawFit:
        """What predicts a run best of which a part was seen: the law, anchored, or the run alone where that is better.

        Args:
            run: its checkpoints so far, as for :meth:`anchored`.
        """
        return own_law(run) if self.leaves_it_to(run.case, len(run.tokens)) else self.anchored(run)

    def leaves_it_to(self, case: Case, num_checkpoints: int) -> bool:
        """Whether a run with so many checkpoints predicts itself better: that of a source far larger than the fitted."""
        is_far = case.num_parameters > FAR_SIZE * self.fitted["num_parameters"][1]
        return is_far and num_checkpoints >= OWN_CHECKPOINTS

    def floor(self, case: Case) -> Estimate:
        """Loss at infinitely many tokens."""
        low, high = interval([curve.floor for curve in self.sample_curves(case)])
        return Estimate(self.curve(case).floor, low, high, notes=tuple(self.stretch(case)))

    def predict(self, case: Case, tokens: float) -> Estimate:
        """Loss after ``tokens`` of recovery, nats per token."""
        _check_positive("tokens", tokens)
        low, high = interval([float(curve.predict(tokens)) for curve in self.sample_curves(case, tokens)])
        return Estimate(float(self.curve(case).predict(tokens)), low, high, notes=tuple(self.stretch(case, tokens)))

    def tokens_for(self, case: Case, target_loss: float) -> Estimate:
        """Tokens at which ``target_loss`` is reached, or that it is unreachable."""
        _check_positive("target_loss", target_loss)
        curve = self.curve(case)
        log_tokens = curve.log_tokens_for(target_loss)
        if math.isinf(log_tokens):
            return Estimate(
                None, reason=f"unreachable: the floor is {curve.floor:.4f}", notes=tuple(self.stretch(case))
            )
        samples = [curve.log_tokens_for(target_loss) for curve in self.sample_curves(case, tokens_of(log_tokens))]
        return self._tokens(case, log_tokens, samples)

    def saturation_tokens(self, case: Case, gain: float) -> Estimate:
        """Tokens from which on a doubling gains less than ``gain`` nats: the "optimal amount", unless said otherwise."""
        _check_positive("gain", gain)
        log_tokens = self.curve(case).log_saturation_tokens(gain)
        samples = [curve.log_saturation_tokens(gain) for curve in self.sample_curves(case, tokens_of(log_tokens))]
        return self._tokens(case, log_tokens, samples)

    def tokens_at_price(self, case: Case, nats_per_flop: float, flops_per_token: float | None = None) -> Estimate:
        """Tokens up to which one more FLOP gains at least ``nats_per_flop``."""
        _check_positive("nats_per_flop", nats_per_flop)
        cost = _flops_per_token(case, flops_per_token)
        log_tokens = self.curve(case).log_tokens_at_price(nats_per_flop, cost)
        curves = self.sample_curves(case, tokens_of(log_tokens))
        return self._tokens(case, log_tokens, [curve.log_tokens_at_price(nats_per_flop, cost) for curve in curves])

    def tokens_for_flops(self, case: Case, flops: float, flops_per_token: float | None = None) -> Estimate:
        """Tokens that ``flops`` pay for; arithmetic, so its interval has no width."""
        _check_positive("flops", flops)
        log_tokens = math.log(flops / _flops_per_token(case, flops_per_token))
        return self._tokens(case, log_tokens, [log_tokens] * len(self.samples))

    def _tokens(self, case: Case, log_tokens: float, samples: Sequence[float]) -> Estimate:
        return tokens_estimate(log_tokens, samples, self.stretch(case, tokens_of(log_tokens)))

    def extrapolation(self, case: Case, tokens: float | None = None) -> dict[str, float]:
        """How many times beyond what was fitted, up or down: 1 within it."""
        asked = {"num_parameters": case.num_parameters, "fraction_removed": case.fraction_removed}
        asked |= {} if tokens is None else {"tokens": tokens}
        factors = {}
        for name, value in asked.items():
            low, high = self.fitted[name]
            factors[name] = max(value / high, low / value, 1.0)
        return factors

    def stretch(self, case: Case, tokens: float | None = None) -> list[str]:
        """Notes where the law is asked for what is far from its runs."""
        factors, notes = self.extrapolation(case, tokens), []
        for name, what in (("tokens", "tokens"), ("num_parameters", "sizes")):
            if factors.get(name, 1.0) > MAX_FACTOR:
                notes.append(f"extrapolation: {factors[name]:.1f} x outside the fitted {what}")
        low, high = self.fitted["fraction_removed"]
        if factors["fraction_removed"] > MAX_FACTOR:
            notes.append(f"fraction removed {case.fraction_removed:.2f} outside the fitted {low:.2f} to {high:.2f}")
        if self.leaves_it_to(case, OWN_CHECKPOINTS):
            notes.append(f"so large a source predicts itself better, once its run has {OWN_CHECKPOINTS} evaluations")
        return notes

    def save(self, path: str | os.PathLike) -> None:
        """Write the fit as JSON, without the runs."""
        write_results(path, {
            "form": self.form.name, "theta": self.theta.tolist(), "samples": self.samples.tolist(),
            "fitted": {name: list(limits) for name, limits in self.fitted.items()}, "has_controls": self.has_controls,
            "spread": None if self.spread is None else asdict(self.spread), "anchored_at": self.anchored_at,
            "decay_correction": self.decay_correction,
            "cases": [[case.num_parameters, case.fraction_removed] for case in self.cases],
            "constants": self.constants, "report": None if self.report is None else self.report.to_dict(),
        })  # fmt: skip

    @classmethod
    def load(cls, path: str | os.PathLike) -> LawFit:
        """A fit that was saved; its report is in the file, and not read.

        Raises:
            UsageError: the file holds no fit, or a damaged one.
        """
        return _saved_fit(os.fspath(path), read_results(path))


def _saved_fit(path: str, saved: Mapping) -> LawFit:
    """The fit that a file holds, each of its parts checked."""

    def part(name: str, rule: str, holds: Callable[[object], bool]):
        if name not in saved:
            raise UsageError(f"{path!r} lacks `{name}`, so it holds no fitted law. {_SAVE_FIX}")
        if not holds(saved[name]):
            raise UsageError(f"`{name}` in {path!r} must be {rule}, but it is {reprlib.repr(saved[name])}. {_SAVE_FIX}")
        return saved[name]

    def numbers(value: object, count: int) -> bool:
        return isinstance(value, list) and len(value) == count and all(isinstance(one, int | float) and math.isfinite(one)
                                                                       for one in value)  # fmt: skip

    form = resolve_form(part("form", f"one of {', '.join(FORMS)}", lambda value: value in list(FORMS)))
    size, names = len(form.constants), ("num_parameters", "fraction_removed", "tokens")

    def lists(value: object, count: int) -> bool:
        return isinstance(value, list) and all(numbers(row, count) for row in value)

    cases = saved.get("cases") or []
    if cases:
        part("cases", "lists of a number of parameters and a fraction", lambda value: lists(value, 2))
        cases = [Case(number, fraction, 1.0) for number, fraction in cases]
        rule = f"{len(cases)} lists of {size} finite numbers"
        part("theta", rule, lambda v: isinstance(v, list) and lists(v, size) and len(v) == len(cases))
    else:
        part("theta", f"{size} finite numbers", lambda value: numbers(value, size))
    theta, width = np.array(saved["theta"]), len(cases) or size
    samples = part("samples", f"lists of {width} finite numbers each", lambda value: lists(value, width))
    fitted = part(
        "fitted", f"a dict with two finite numbers for each of {', '.join(names)}",
        lambda value: isinstance(value, dict) and all(numbers(value.get(name), 2) for name in names),
    )  # fmt: skip
    has_controls = part("has_controls", "true or false", lambda value: isinstance(value, bool))
    spread = saved.get("spread")
    if spread is not None:
        facts = ("level", "drift", "noise", "num_errors")
        rule = f"a dict with a finite number of at least 0 for each of {', '.join(facts)}"
        part("spread", rule, lambda value: isinstance(value, dict) and set(value) == set(facts)
             and numbers(list(value.values()), 4) and min(value.values()) >= 0)  # fmt: skip
        spread = Spread(**spread)
    for name in ("anchored_at", "decay_correction"):
        if saved.get(name) is not None:
            part(name, "a finite number, or null", lambda value: numbers([value], 1))
    limits = {name: tuple(fitted[name]) for name in names}
    return LawFit(
        form, theta, np.array(samples).reshape(-1, width), limits, has_controls, None, spread,
        saved.get("anchored_at"), saved.get("decay_correction"), tuple(cases),
    )  # fmt: skip


def curve_of(form: LawForm, theta: NDArray, case: Case) -> LossCurve:
    """The law for one model as a loss over tokens; ``theta`` in natural units."""
    base = case.source_loss if form.of_rise else 0.0
    depends = [any(feature == TOKENS for feature, _ in term.exponents.values()) for term in form.terms]
    if TOKENS not in form.features:
        return _numeric_curve(form, theta, case, base)
    at_one = form.design(feature_values(case, np.ones(1), form.features))[:, 0] @ theta  # logs of terms at one token
    floor = base + math.fsum(math.exp(value) for value, moves in zip(at_one, depends, strict=True) if not moves)
    index = depends.index(True)
    exponent = next(name for name, (feature, _) in form.terms[index].exponents.items() if feature == TOKENS)
    return PowerCurve(floor, float(at_one[index]), float(theta[form.constants.index(exponent)]))


def _numeric_curve(form: LawForm, theta: NDArray, case: Case, base: float) -> NumericCurve:
    def law(tokens: NDArray) -> NDArray:
        features = feature_values(case, np.atleast_1d(tokens), form.features)
        values = base + term_values(form.design(features), theta).sum(axis=0)
        return values if np.ndim(tokens) else values[0]

    return NumericCurve(law, float(law(np.array(1e30))))


def fit_law(
    runs: Sequence[RecoveryRun],
    form: str | LawForm = "auto",
    *,
    loss: str = "linear",
    f_scale: float | None = None,
    weighting: str | None = None,
    ridge: float = RIDGE,
    fixed: Mapping[str, float] | None = None,
    drop_start: float = DROP_START,
    num_starts: int = NUM_STARTS,
    num_bootstrap: int = NUM_BOOTSTRAP,
    seed: int = 0,
    allow_different_tokens: bool = False,
) -> LawFit:
    """Fit one law to runs, all their checkpoints used but the start (2410.11840).

    Args:
        runs: of one family and one kind of pruning.
        form: a name of ``FORMS``; "auto" is "neighbour", the nearest run, which predicted fresh runs better than any law
            (model_cards/scaling_law.md).
        loss: "linear", or a robust loss of scipy's ``least_squares``.
        f_scale: nats from which on a residual is an outlier; default 1.5 standard deviations of the runs' own scatter.
        weighting: "absolute" takes residuals in nats, as the P2 paper; "relative" relative to the mean |L - L0| of their
            run; default the form's own, which is relative for "damage" alone.
        ridge: of "damage", on how differently its two terms depend on size and fraction; 0: none.
        fixed: constants by name, in natural units, that are borrowed and not fitted.
        drop_start: share of each run's tokens that is left out at its start.
        num_starts: random starts, seeded.
        num_bootstrap: fits to runs drawn anew, for the intervals.
        allow_different_tokens: see :func:`check_runs`.

    Raises:
        ValueError: runs that do not go together, one run only for a law of many, or fewer checkpoints than constants.

    Warns:
        ScalingLawWarning: each of ``report.warnings``.
    """
    check_ranges({"drop_start": drop_start, "num_starts": num_starts, "num_bootstrap": num_bootstrap, "seed": seed})
    check_ranges({"f_scale": f_scale})
    check_runs(runs, allow_different_tokens)
    if form in ("auto", NEIGHBOUR.name, NEIGHBOUR):
        _check_weighting(weighting or "absolute")
        if fixed:
            raise UsageError(
                f"`fixed` names {next(iter(fixed))!r}; 'neighbour' has no constants to hold. Name another form."
            )
        if len(runs) == 1:
            raise UsageError(
                f"One run only ({runs[0].name!r}) has no neighbours. Fit its own power law"
                " (`form` 'power_law'), or add runs."
            )
        return _fit_neighbours([run.without_start(drop_start) for run in runs], loss, f_scale, num_bootstrap, seed)
    chosen, options = (
        _choose_form(form, runs),
        {"loss": loss, "f_scale": f_scale, "weighting": weighting, "ridge": ridge},
    )
    runs = [run.without_start(drop_start) for run in runs]
    problem, solution, f_scale = _solve(runs, chosen, fixed, num_starts=num_starts, seed=seed, **options)
    theta = chosen.natural(problem.whole(solution), problem.shifts)
    samples = bootstrap(problem, runs, solution, loss, f_scale, num_bootstrap, seed)
    spread = spread_of(problem, runs, solution, loss, f_scale, seed) if num_bootstrap else None
    state = identifiability(problem, solution)
    found = fit_warnings(runs, chosen, state, num_bootstrap > 0)
    quality = tuple(run_quality(run, predict_run(chosen, theta, run)) for run in runs)
    for text in found:
        warnings.warn(text, ScalingLawWarning, stacklevel=2)
    return LawFit(chosen, theta, samples, _ranges(runs), runs[0].control_losses is not None,
                  FitReport(quality, state, tuple(found)), spread)  # fmt: skip


def _fit_neighbours(runs, loss: str, f_scale: float | None, num_bootstrap: int, seed: int) -> LawFit:
    if loss not in ROBUST_LOSSES:
        raise UsageError(f"`loss` must be one of {', '.join(ROBUST_LOSSES)}, but it is {loss!r}.")
    theta, cases = own_curves(runs, loss, f_scale, seed), tuple(run.case for run in runs)
    spread = spread_of_neighbours(runs, theta) if num_bootstrap else None
    state = Identifiability(1.0, (), ())  # each run has its own constants, and enough checkpoints for them
    found = fit_warnings(runs, NEIGHBOUR, state, num_bootstrap > 0)
    pairs = zip(runs, theta, strict=True)
    quality = tuple(run_quality(run, predict_run(NEIGHBOUR, own, run)) for run, own in pairs)
    for text in found:
        warnings.warn(text, ScalingLawWarning, stacklevel=3)
    samples = draw_runs(num_bootstrap, len(runs), seed)
    controlled = runs[0].control_losses is not None
    return LawFit(NEIGHBOUR, theta, samples, _ranges(runs), controlled, FitReport(quality, state, tuple(found)), spread,
                  cases=cases)  # fmt: skip


def fit_constants(
    runs: Sequence[RecoveryRun],
    form: str | LawForm = "p2",
    *,
    loss: str = "linear",
    f_scale: float | None = None,
    weighting: str | None = None,
    ridge: float = RIDGE,
    fixed: Mapping[str, float] | None = None,
    drop_start: float = DROP_START,
    num_starts: int = NUM_STARTS,
    seed: int = 0,
) -> LawFit:
    """As :func:`fit_law`, for parts of runs: without checks among them, intervals, report and warnings."""
    check_ranges({"drop_start": drop_start, "num_starts": num_starts, "seed": seed, "f_scale": f_scale})
    chosen = _choose_form(form, runs)
    runs = [run.without_start(drop_start) for run in runs]
    options = {"loss": loss, "f_scale": f_scale, "weighting": weighting, "ridge": ridge}
    problem, solution, _ = _solve(runs, chosen, fixed, num_starts=num_starts, seed=seed, **options)
    theta = chosen.natural(problem.whole(solution), problem.shifts)
    none = np.zeros((0, len(theta)))
    return LawFit(chosen, theta, none, _ranges(runs), runs[0].control_losses is not None, None)


def own_law(run: RecoveryRun) -> LawFit:
    """A power law of the part of a run that was seen, with intervals as wide as such laws were wrong on the kept runs."""
    law = fit_constants([run], POWER_LAW, drop_start=0.0, num_starts=STARTS_OF_A_RUN)
    return replace(law, anchored_at=run.tokens[-1])


def fit_each_run(runs: Sequence[RecoveryRun], **options) -> dict[str, LawFit]:
    """A power law for each run alone (a baseline, and all that one run allows); ``options`` of :func:`fit_constants`.

    It has no intervals: one run has nothing to draw from.
    """
    return {run.name: fit_constants([run], POWER_LAW, **options) for run in runs}


def _solve(runs, form: LawForm, fixed, *, loss, f_scale, weighting, ridge, num_starts, seed):
    """The problem, its solution, and the scale of outliers."""
    if loss not in ROBUST_LOSSES:
        raise UsageError(f"`loss` must be one of {', '.join(ROBUST_LOSSES)}, but it is {loss!r}.")
    if not (math.isfinite(ridge) and ridge >= 0):
        raise UsageError(f"`ridge` must be at least 0 and finite, but it is {ridge}. Give 0 for none.")
    weighting = form.weighting if weighting is None else weighting
    _check_weighting(weighting)
    problem = Problem.of(runs, form, fixed or {}, weighting, ridge)
    _check_counts(runs, form, problem, fixed)
    f_scale = ROBUST_SCALES * scatter(runs, form.of_rise) if f_scale is None else f_scale
    return problem, solve(problem, loss, f_scale, num_starts, seed).free, f_scale


def _check_weighting(weighting: str) -> None:
    if weighting not in WEIGHTINGS:
        raise UsageError(f"`weighting` must be one of {', '.join(WEIGHTINGS)}, but it is {weighting!r}.")


def predict_run(form: LawForm, theta: NDArray, run: RecoveryRun) -> NDArray:
    """Losses that the law expects at the checkpoints of a run, above its control where it has one."""
    features = feature_values(run.case, np.array(run.tokens), form.features)
    predicted = term_values(form.design(features), theta).sum(axis=0)
    return run.reference + predicted if form.of_rise else predicted


def _choose_form(form: str | LawForm, runs: Sequence[RecoveryRun]) -> LawForm:
    chosen = resolve_form(form)
    if chosen is POWER_LAW and len(runs) > 1:
        raise UsageError(
            f"`form` 'power_law' is of one run, but there are {len(runs)}. Use another form, or fit each run alone"
            " (`fit_each_run`)."
        )
    if chosen is not POWER_LAW and len(runs) == 1:
        raise UsageError(
            f"One run only ({runs[0].name!r}) can not tell size, fraction and tokens apart: {chosen.name!r} needs runs of"
            " several sizes and fractions. Fit its own power law (`form` 'power_law'), or add runs."
        )
    return chosen


def _check_counts(runs, form: LawForm, problem: Problem, fixed: Mapping[str, float] | None) -> None:
    number, needed = len(problem.target), int(problem.free.sum())
    if number < needed:
        raise UsageError(
            f"{form.name!r} has {needed} free constants, but there are {number} checkpoint(s) after the start is left"
            " out. Evaluate more often, or hold constants with `fixed`."
        )
    if max(len(run.tokens) for run in runs) < 2 and any(name in form.constants for name in ("beta", "exponent")):
        if not {"beta", "exponent"} & set(fixed or {}):
            raise UsageError(
                "Every run has one checkpoint, so nothing says how the loss falls with tokens. Give the checkpoints on"
                " the way (the history of a run), or hold `beta` with `fixed`."
            )


def _ranges(runs: Sequence[RecoveryRun]) -> dict[str, tuple[float, float]]:
    sizes, fractions = [run.case.num_parameters for run in runs], [run.case.fraction_removed for run in runs]
    tokens = [value for run in runs for value in (run.tokens[0], run.tokens[-1])]
    return {
        "num_parameters": (min(sizes), max(sizes)),
        "fraction_removed": (min(fractions), max(fractions)),
        "tokens": (min(tokens), max(tokens)),
    }


def _flops_per_token(case: Case, given: float | None) -> float:
    if given is not None:
        _check_positive("flops_per_token", given)
        return given
    return FLOPS_PER_PARAMETER_AND_TOKEN * case.pruned_size


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"`{name}` must be above 0 and finite, but it is {value}.")
