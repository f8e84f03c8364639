"""A Trainer callback that predicts where the run in progress will end, and proposes to stop when more gains too little."""

from __future__ import annotations

import math
import os
from pathlib import Path

from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from ..core import UsageError, check_ranges
from .better_use import Alternative, better_use, other_fractions, predicted_ends, searched_shapes
from .estimates import Estimate, number_text
from .forecast import Forecast, check_law, forecast, late_checkpoints, own_forecast
from .law_fit import OWN_CHECKPOINTS, LawFit
from .planning import Candidate
from .read_runs import checkpoints_of_log
from .recovery_run import Case, rising_slope

logger = logging.get_logger(__name__)

FINAL_LOSS, DOUBLING_GAIN, LAW_TOKENS = "law/final_loss", "law/doubling_gain", "law/num_tokens"
MORE_TOKENS, GAIN_PER_FLOP = "law/more_tokens", "law/gain_per_flop"
BETTER_USE = "law/better_num_parameters"
PATIENCE = 4
"""Evaluations: the least regret on the kept runs of one seed, and less than 2 on those of the others."""
CONSTANT_SCHEDULES = ("constant", "constant_with_warmup")
PRIOR = Path(__file__).with_name("prior.json")
"""The law of our own small runs, with its provenance: for a user without runs of the kind."""


class ScalingLawCallback(TrainerCallback):
    """After each evaluation: forecast the run, log its predicted final loss and what more tokens gain.

        trainer.add_callback(ScalingLawCallback(trainer, case=case, target_loss=2.45, price=1e-20))

    With ``case``, a law of earlier runs speaks first, and every evaluation of this run corrects it
    (:func:`~hf_shear.scaling_law.forecast.forecast`). From six evaluations on it is a power law of this run alone without
    ``case``, and where the source has more than four times the parameters of the largest that the law was fitted to.
    Where the held-out loss rises there is no forecast, and the gains count as 0.

    With a law, it also says once when another shape of the same source, cut anew, would be the better use of the FLOPs
    that the run has left (:mod:`~hf_shear.scaling_law.better_use`).
    Everything is computed from the Trainer's log, which its checkpoints hold, so a resumed run goes on as if it had not
    stopped.

    Args:
        trainer: the one that it is added to; logs go through it, to its reporters and its progress.
        law: fitted to earlier runs; default the one that ships, of sources of up to 3 M parameters, which for yours is an
            extrapolation. It needs ``case``.
        case: the model of this run.
        target_loss: nats per token; each evaluation says how many more tokens reach it.
        search: ``search.json`` of ``hf-shear search``, or its folder: its shapes are compared with this run; default other
            fractions of the source. It needs ``case``.
        price: nats that a FLOP must gain (6 FLOPs per parameter and token); needs ``case``. A price close to what the run
            gains decides little: there stops were worse than none on the kept runs (model_cards/scaling_law.md). The
            message of a stop gives the interval of the gain.
        min_gain: nats that the next doubling of tokens must gain.
        patience: evaluations in a row that must fall below ``price`` or ``min_gain`` before a stop is proposed.
        ends_training: whether a proposal ends the training, or is only told.
        tokens_per_step: of this run, over all processes; not needed for ``ShearTrainer``, nor where the log counts
            tokens (``include_num_input_tokens_seen``).

    Raises:
        ValueError: ``law``, ``price`` or ``search`` without ``case``, a search that cannot be read, a law without
            intervals, or an argument out of range.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        law: LawFit | None = None,
        case: Case | None = None,
        target_loss: float | None = None,
        search: str | os.PathLike | None = None,
        price: float | None = None,
        min_gain: float | None = None,
        patience: int = PATIENCE,
        ends_training: bool = True,
        tokens_per_step: float | None = None,
    ):
        for name, value in (("law", law), ("price", price), ("search", search)):
            if value is not None and case is None:
                raise UsageError(f"`{name}` needs `case`, the model of this run. Give it, or leave `{name}` out.")
        check_ranges({"target_loss": target_loss, "price": price, "min_gain": min_gain, "patience": patience})
        check_ranges({"tokens_per_step": tokens_per_step})
        self.trainer, self.case, self.target_loss, self.price = trainer, case, target_loss, price
        self.law = LawFit.load(PRIOR) if law is None and case is not None else law
        self.min_gain, self.patience, self.ends_training = min_gain, patience, ends_training
        self.tokens_per_step = tokens_per_step
        self.alternatives: list[Alternative] = []
        if self.law is None or case is None:
            return
        check_law(self.law)
        shapes = other_fractions(self.law, case) if search is None else searched_shapes(search, self.law, case)
        if not self.law.leaves_it_to(case, OWN_CHECKPOINTS):
            self.alternatives = shapes
        elif search is not None:
            logger.warning(
                f"The shapes of `search` {os.fspath(search)!r} are not compared with this run: the law was fitted to far"
                " smaller sources, and does not predict this one. Give a `law` of sources of its size."
            )

    def on_train_begin(self, args, state, control, **kwargs):
        if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) not in CONSTANT_SCHEDULES:
            measured = None if self.law is None else self.law.decay_correction
            logger.warning_once(
                f"The learning rate follows {args.lr_scheduler_type!s}: the law predicts a run that goes on at the rate it"
                " has, and a rate that falls ends lower"
                + ("" if measured is None else f" (by {-measured:.3f} nats, with a linear decay over the last 30 %)")
                + ". Use 'constant_with_warmup', or read predictions as bounds."
            )

    def on_evaluate(self, args, state, control, **kwargs):
        tokens, losses = checkpoints_of_log(state.log_history, self.tokens_per_step)
        late = late_checkpoints(tokens, losses)
        if not tokens or (self.law is None and len(late[0]) < OWN_CHECKPOINTS):
            return  # nothing can be said yet
        found = None if rising_slope(*late) > 0 else self.forecast(tokens, losses)
        if found is None:
            entries = {DOUBLING_GAIN: 0.0, GAIN_PER_FLOP: 0.0}
            lines, notes = [f"no forecast, because the held-out loss rises ({losses[-1]:.4f})"], ()
        else:
            final = max(tokens[-1] * state.max_steps / state.global_step, tokens[-1])
            (entries, lines), notes = self.say(found, final, state.log_history), found.notes
        self.trainer.log(entries | {LAW_TOKENS: tokens[-1]})
        if self.gains_too_little(state.log_history):
            control.should_training_stop = control.should_training_stop or self.ends_training
            lines.append(f"{'stops' if self.ends_training else 'proposal: stop'} here, because {self._reason(found)}")
        if state.is_world_process_zero:
            tqdm.write(f"  law at {number_text(tokens[-1])} tokens: {'; '.join([*lines, *notes])}")

    def forecast(self, tokens: list[float], losses: list[float]) -> Forecast:
        """Of the run in progress."""
        if self.law is not None and self.case is not None:
            return forecast(self.law, self.case, tokens, losses)
        return own_forecast(tokens, losses)

    def say(self, found: Forecast, final: float, log_history: list[dict]) -> tuple[dict[str, float], list[str]]:
        """Entries of the log, and what is printed, for a run that ends at ``final`` tokens."""
        end = found.loss(final)
        assert end.value is not None, "a curve has a value at any number of tokens"
        entries = {FINAL_LOSS: end.value, DOUBLING_GAIN: float(found.curve.doubling_gain(found.seen))}
        lines = [f"ends at {end.with_level()}"]
        if self.target_loss is not None:
            more = found.tokens_to(self.target_loss)
            entries |= {} if more.value is None else {MORE_TOKENS: more.value}
            lines.append(reach_text(self.target_loss, more))
        if self.case is not None:
            cost = Candidate("this run", self.case).recovery_cost
            gain = found.gain_per_flop(cost)
            assert gain.value is not None, "a curve has a slope"
            entries[GAIN_PER_FLOP] = gain.value
            left = (final - found.seen) * cost
            if left > 0 and not any(BETTER_USE in entry for entry in log_history):
                better = better_use(predicted_ends(self.alternatives, left), self.case, end, self.target_loss)
                if better is not None:
                    entries[BETTER_USE] = better.candidate.case.pruned_size
                    lines.append(str(better))
        return entries, lines

    def gains_too_little(self, log_history: list[dict]) -> bool:
        """Whether the last ``patience`` predictions all say so, of one threshold."""
        for key, threshold in ((DOUBLING_GAIN, self.min_gain), (GAIN_PER_FLOP, self.price)):
            gains = [entry[key] for entry in log_history if key in entry][-self.patience :]
            if threshold is not None and len(gains) == self.patience:
                if all(math.isfinite(gain) and gain < threshold for gain in gains):
                    return True
        return False

    def _reason(self, found: Forecast | None) -> str:
        if found is None:
            return "the held-out loss rises"
        if self.price is not None and self.case is not None:
            gain = found.gain_per_flop(Candidate("this run", self.case).recovery_cost)
            if gain.value is not None and gain.value < self.price:
                return f"the next FLOP gains {gain.with_level()} nats, and must gain {self.price:g}"
        gain = float(found.curve.doubling_gain(found.seen))
        return f"twice the tokens would gain {gain:.4f} nats, and must gain {self.min_gain:g}"


def reach_text(target_loss: float, more: Estimate) -> str:
    """What is said of a target."""
    if more.value == 0:
        return f"has reached {target_loss:g}"
    if more.value is None:
        return f"does not reach {target_loss:g} ({more.reason})"
    span = "" if more.low is None else f" ({more.span()})"
    return f"reaches {target_loss:g} with {number_text(more.value)} more tokens{span}"
