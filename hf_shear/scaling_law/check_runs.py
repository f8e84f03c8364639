"""Whether runs may be fitted together."""

from __future__ import annotations

from collections.abc import Sequence

from ..core import UsageError
from .recovery_run import UNITS_HINT, RecoveryRun, rising_slope

MIN_TOKENS = 1_000
"""A run that ends below is one of 0.001 million, or a single optimizer step: its tokens are counted in another unit."""
MIN_TOKENS_PER_PARAMETER = 1e-4
"""Recovery runs of the paper end at .06 to 2 tokens per parameter (arXiv 2411.10272); in millions, at most at 1e-5."""
TOKEN_TOLERANCE = 1.05
"""Largest ratio of the tokens at which runs of one table end; steps are rounded."""
WRONG_UNIT_RATIO = 300.0


def check_runs(runs: Sequence[RecoveryRun], allow_different_tokens: bool = False) -> None:
    """Refuse runs that one law can not hold for.

    Args:
        allow_different_tokens: accept runs that end at different token counts; right where their learning rates are
            constant, because only then is a checkpoint of a long run the same as the end of a short one.

    Raises:
        ValueError: no runs, two of one name, families or kinds of pruning mixed, controls for some runs only,
            tokens in another unit, losses that rise, or different token counts.
    """
    if not runs:
        raise UsageError("`runs` has no runs to fit. Give some.")
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"Runs must have different names, but these are there twice: {', '.join(twice)}.")
    for what, values in (("family", [run.family for run in runs]), ("pruning", [run.pruning for run in runs])):
        kinds = sorted({str(value) for value in values})
        if len(kinds) > 1:
            raise UsageError(
                f"One law holds for one {what}, but the runs have {', '.join(kinds)} ('None' is a run that names none)."
                f" Fit each {what} alone, or borrow constants from the other's fit with `fixed`."
            )
    without = [run.name for run in runs if run.control_losses is None]
    if without and len(without) < len(runs):
        raise UsageError(
            f"Runs with a control and runs without are mixed; without: {', '.join(without)}. L - L0 is not the same in"
            " both. Give all runs a control, or none."
        )
    for run in runs:
        _check_units(run)
        values = run.losses if run.control_losses is None else run.rises.tolist()  # a control may rise with its run
        slope = rising_slope(run.tokens, values)
        if slope > 0:
            raise UsageError(
                f"The losses of run {run.name!r} rise: from {values[0]:.4g} to {values[-1]:.4g}, or"
                f" {slope:+.3g} nats per doubling of tokens. A law of recovery has nothing to say of a run that diverged:"
                " lower its learning rate, or leave it out."
            )
    _check_token_counts(runs, allow_different_tokens)


def _check_units(run: RecoveryRun) -> None:
    last, size = run.tokens[-1], run.case.num_parameters
    if last < MIN_TOKENS or last < MIN_TOKENS_PER_PARAMETER * size:
        raise UsageError(
            f"The `tokens` of run {run.name!r} end at {last:g}, and its source has {size:,.0f} parameters: that looks like"
            f" {UNITS_HINT}"
        )


def _check_token_counts(runs: Sequence[RecoveryRun], allow_different_tokens: bool) -> None:
    shortest, longest = min(runs, key=lambda run: run.tokens[-1]), max(runs, key=lambda run: run.tokens[-1])
    ratio = longest.tokens[-1] / shortest.tokens[-1]
    ends = (
        f"{shortest.name!r} ends at {shortest.tokens[-1]:,.0f} tokens and {longest.name!r} at {longest.tokens[-1]:,.0f}"
    )
    if ratio > WRONG_UNIT_RATIO:
        raise UsageError(f"{ends}, {ratio:,.0f} x as many: the first looks like thousands or millions of tokens.")
    if ratio > TOKEN_TOLERANCE and not allow_different_tokens:
        raise UsageError(
            f"Runs of different token counts are mixed: {ends}. Under a learning rate that falls, a checkpoint on the"
            " way is no short run. If all rates were constant, pass `allow_different_tokens=True`"
            " (--allow_different_tokens); else fit runs of one length."
        )
