"""A Trainer callback that predicts where the run in progress will end, and can end it when more gains too little."""

from __future__ import annotations

import math

from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from ..core import UsageError, check_ranges
from .curves import LossCurve, PowerCurve
from .law_fit import LawFit, fit_constants
from .read_runs import checkpoints_of_log
from .recovery_run import Case, RecoveryRun, rising_slope

logger = logging.get_logger(__name__)

FINAL_LOSS, DOUBLING_GAIN, LAW_TOKENS = "law/final_loss", "law/doubling_gain", "law/num_tokens"
MIN_CHECKPOINTS, MIN_CHECKPOINTS_WITH_LAW = 6, 3
"""Evaluations after the start from which on the run's own curve is fitted: 3 constants, or 2 with a borrowed exponent."""
DROP_START = 0.1
CONSTANT_SCHEDULES = ("constant", "constant_with_warmup")
_ANY_SIZE = 1e6  # a run alone is fitted in its tokens; the size of its model does not enter


class ScalingLawCallback(TrainerCallback):
    """After each evaluation: fit the run so far, log the predicted final loss and the gain of the next doubling.

        trainer.add_callback(ScalingLawCallback(trainer, law=LawFit.load("law.json"), case=case, min_gain=0.01))

    The fit is a power law of this run; with ``law``, its exponent is borrowed from earlier runs, and before there are
    enough evaluations, ``law`` itself is asked. Everything is computed from the Trainer's log, which its checkpoints
    hold, so a resumed run goes on as if it had not stopped.

    Args:
        trainer: the one that it is added to; logs go through it, to its reporters and its progress.
        law: fitted to earlier runs.
        case: the model of this run, for ``law``.
        min_gain: nats of loss; training stops when the next doubling of tokens is predicted to gain less. None: never.
        patience: evaluations in a row that must say so.
        tokens_per_step: of this run, over all processes; not needed for ``ShearTrainer``, nor where the log counts
            tokens (``include_num_input_tokens_seen``).

    Raises:
        ValueError: ``law`` without ``case`` or the other way round, or an argument out of range.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        law: LawFit | None = None,
        case: Case | None = None,
        min_gain: float | None = None,
        patience: int = 2,
        tokens_per_step: float | None = None,
    ):
        if (law is None) != (case is None):
            raise UsageError("`law` and `case` go together: a law of earlier runs says nothing without the model.")
        check_ranges({"min_gain": min_gain, "patience": patience, "tokens_per_step": tokens_per_step})
        self.trainer, self.law, self.case = trainer, law, case
        self.min_gain, self.patience, self.tokens_per_step = min_gain, patience, tokens_per_step

    def on_train_begin(self, args, state, control, **kwargs):
        if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) not in CONSTANT_SCHEDULES:
            logger.warning_once(
                f"The learning rate follows {args.lr_scheduler_type!s}: the law predicts a run that goes on at the rate it"
                " has, and a rate that falls ends lower. Use 'constant_with_warmup', or read predictions as bounds."
            )

    def on_evaluate(self, args, state, control, **kwargs):
        tokens, losses = checkpoints_of_log(state.log_history, self.tokens_per_step)
        curve = self._curve(tokens, losses)
        if curve is None:
            return
        final = tokens[-1] * state.max_steps / state.global_step
        gain = float(curve.doubling_gain(tokens[-1]))
        entries = {
            FINAL_LOSS: float(curve.predict(max(final, tokens[-1]))),
            DOUBLING_GAIN: gain,
            LAW_TOKENS: tokens[-1],
        }
        self.trainer.log(entries)
        if self.min_gain is not None and self._gains_too_little(state.log_history):
            control.should_training_stop = True

    def _curve(self, tokens: list[float], losses: list[float]) -> LossCurve | None:
        """Of the run in progress; None before anything can be said."""
        late = [index for index, value in enumerate(tokens) if value >= DROP_START * tokens[-1]] if tokens else []
        prior = None if self.law is None or self.case is None else self.law.curve(self.case)
        borrowed = {"exponent": prior.exponent} if isinstance(prior, PowerCurve) else {}
        if len(late) < (MIN_CHECKPOINTS_WITH_LAW if borrowed else MIN_CHECKPOINTS):
            return prior if tokens else None
        case = Case(_ANY_SIZE, 0.5, max(losses))
        late_tokens, late_losses = [tokens[i] for i in late], [losses[i] for i in late]
        if rising_slope(late_tokens, late_losses) > 0:
            logger.warning(
                f"No prediction at {tokens[-1]:,.0f} tokens: the held-out loss rises ({late_losses[-1]:.4f})."
            )
            return None
        run = RecoveryRun("this run", case, late_tokens, late_losses)
        return fit_constants([run], "power_law", fixed=borrowed, drop_start=0.0, num_starts=4).curve(case)

    def _gains_too_little(self, log_history: list[dict]) -> bool:
        """Whether the last ``patience`` predictions all say so."""
        assert self.min_gain is not None, "asked by the caller"
        gains = [entry[DOUBLING_GAIN] for entry in log_history if DOUBLING_GAIN in entry][-self.patience :]
        return len(gains) == self.patience and all(math.isfinite(gain) and gain < self.min_gain for gain in gains)
