"""How good a fit is, run by run: a pooled R^2 would mostly praise the law for the offsets between runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from .bootstrap import MIN_RUNS
from .identifiability import MAX_CONDITION, Identifiability
from .recovery_run import RecoveryRun

HUBER_DELTA = 1e-3  # nats
NUM_SLOPES = 10  # intervals of the token grid on which slopes are compared


@dataclass(frozen=True)
class RunQuality:
    """One run against the law.

    Attributes:
        r_squared: 1 - residual / total sum of squares of this run's losses; negative: worse than their mean.
        relative_error: mean |predicted - observed| / mean |observed L - L0|.
        bias: mean of predicted - observed, nats.
        huber: mean Huber loss with delta 1e-3.
        slope_difference: ASD, mean |predicted - measured slope| over a grid of tokens, nats per token.
    """

    name: str
    num_parameters: float
    fraction_removed: float
    num_checkpoints: int
    r_squared: float
    relative_error: float
    bias: float
    huber: float
    slope_difference: float


@dataclass(frozen=True)
class FitReport:
    """What a fit is worth.

    Attributes:
        runs: quality of each.
        identifiability: of the constants.
        warnings: what to be careful about.
    """

    runs: tuple[RunQuality, ...]
    identifiability: Identifiability
    warnings: tuple[str, ...]

    def to_dict(self) -> dict:
        """JSON-ready; what is not finite is None."""
        return {name: _finite(value) for name, value in asdict(self).items()}

    def table(self) -> str:
        """For people."""
        lines = [f"{'run':<24}{'N0':>10}{'removed':>9}{'points':>8}{'R^2':>8}{'err. rise':>11}{'bias':>9}{'ASD':>10}"]
        for run in self.runs:
            lines.append(
                f"{run.name[:23]:<24}{run.num_parameters:>10.3g}{run.fraction_removed:>9.3f}{run.num_checkpoints:>8}"
                f"{run.r_squared:>8.3f}{run.relative_error:>11.1%}{run.bias:>+9.4f}{run.slope_difference:>10.1e}"
            )
        state = self.identifiability
        lines.append(
            f"condition number {state.condition:.2g}; not identified: {', '.join(state.unidentified) or 'none'}"
        )
        return "\n".join([*lines, *(f"careful: {text}" for text in self.warnings)])


def run_quality(run: RecoveryRun, predicted: NDArray) -> RunQuality:
    """Quality of ``predicted`` losses at the run's checkpoints."""
    observed = np.array(run.losses)
    error = predicted - observed
    total = float(((observed - observed.mean()) ** 2).sum())
    absolute = np.abs(error)
    huber = np.where(absolute <= HUBER_DELTA, 0.5 * error**2, HUBER_DELTA * (absolute - 0.5 * HUBER_DELTA))
    return RunQuality(
        run.name, run.case.num_parameters, run.case.fraction_removed, len(observed),
        1 - float((error**2).sum()) / total if total > 0 else math.nan,
        relative_error(run, predicted), float(error.mean()), float(huber.mean()), slope_difference(run, predicted),
    )  # fmt: skip


def relative_error(run: RecoveryRun, predicted: NDArray) -> float:
    """Mean |predicted - observed loss| / mean |L - L0|."""
    return float(np.abs(predicted - np.array(run.losses)).mean() / np.abs(run.rises).mean())


def slope_difference(run: RecoveryRun, predicted: NDArray) -> float:
    """ASD: mean |predicted slope - measured slope| on a grid of tokens; NaN for one checkpoint."""
    if len(run.tokens) < 2:
        return math.nan
    tokens = np.array(run.tokens)
    grid = np.linspace(tokens[0], tokens[-1], min(NUM_SLOPES, len(tokens) - 1) + 1)
    slopes = [np.diff(np.interp(grid, tokens, values)) / np.diff(grid) for values in (predicted, np.array(run.losses))]
    return float(np.abs(slopes[0] - slopes[1]).mean())


def fit_warnings(runs: Sequence[RecoveryRun], form, state: Identifiability, wants_intervals: bool) -> list[str]:
    """What to be careful about, as the law's authors and its users found (see ``examples/docs/scaling_law.md``)."""
    warnings = []
    num_sizes = len({run.case.num_parameters for run in runs})
    num_fractions = len({round(run.case.fraction_removed, 2) for run in runs})
    if len(form.exponents) > 1 and num_sizes < 3:
        warnings.append(
            f"The runs have {num_sizes} size(s) before pruning; three are needed to tell N_C, alpha and E apart"
            + (", so predictions may be right, but these constants mean nothing. Use form 'p2_five'."
               if "alpha" in form.constants else ".")
        )  # fmt: skip
    if "rho_exponent" in form.constants and num_fractions < 2:
        warnings.append("The runs have one fraction removed; two are needed for rho_exponent.")
    if state.condition > MAX_CONDITION:
        warnings.append(
            f"The condition number is {state.condition:.1e} (above {MAX_CONDITION:.0e}): not identified are"
            f" {', '.join(state.unidentified) or 'single constants'}. Borrow some with `fixed`, or add sizes."
        )
    if state.at_bounds:
        warnings.append(
            f"At the limit of what is looked at: {', '.join(state.at_bounds)}. Such a term may be missing from the data."
        )
    negative = [run.name for run in runs if (run.rises < 0).any()] if form.of_rise else []
    if negative:
        warnings.append(
            f"L - L0 is negative in {len(negative)} run(s), such as {negative[0]!r}: the source is under-trained for"
            " this text and improves like the pruned model. Continue it unpruned on the same tokens, and give its losses"
            " as `control_losses`."
        )
    if wants_intervals and len(runs) < MIN_RUNS:
        warnings.append(f"{len(runs)} runs are too few for intervals, which {MIN_RUNS} are needed for.")
    return warnings


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
