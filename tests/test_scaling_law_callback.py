"""The callback that predicts where a run ends: on curves that are known, and in the real Trainer."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scaling_law_helpers import draw_runs, source_loss, true_rise
from training_helpers import make_args, make_trainer, plain_model
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from hf_shear.scaling_law import Case, LawFit, RecoveryRun, ScalingLawCallback, fit_law
from hf_shear.scaling_law.callback import DOUBLING_GAIN, FINAL_LOSS, GAIN_PER_FLOP, MORE_TOKENS, PATIENCE, PRIOR
from hf_shear.scaling_law.curves import DRIFT_SPREAD
from hf_shear.scaling_law.forecast import GAIN_SPREAD, forecast
from hf_shear.scaling_law.law_fit import FAR_SIZE, OWN_CHECKPOINTS
from hf_shear.training.progress import log_line

STEP_TOKENS = 1_000_000
MAX_STEPS = 1_000


class LogOnly:
    """What the callback needs of a Trainer: its log."""

    def __init__(self, max_steps=MAX_STEPS):
        self.state = TrainerState(max_steps=max_steps)

    def log(self, entries):
        self.state.log_history.append(entries | {"step": self.state.global_step})


def evaluate(callback, step, loss) -> bool:
    """One evaluation; whether training is to stop."""
    trainer, control = callback.trainer, TrainerControl()
    trainer.state.global_step = step
    trainer.log({"eval_loss": float(loss)})
    callback.on_evaluate(None, trainer.state, control)
    return control.should_training_stop


def predictions(callback, key=FINAL_LOSS) -> list[float]:
    return [entry[key] for entry in callback.trainer.state.log_history if key in entry]


def curve(step, floor=2.0, amplitude=60.0, exponent=0.3):
    return floor + amplitude * (np.asarray(step, dtype=float) * STEP_TOKENS) ** -exponent


def test_a_known_curve_is_predicted_to_its_end():
    callback = ScalingLawCallback(LogOnly(), tokens_per_step=STEP_TOKENS)
    for number, step in enumerate(range(20, 401, 20), start=1):
        evaluate(callback, step, curve(step))
        late = sum(earlier >= 0.1 * step for earlier in range(20, step + 1, 20))
        assert bool(predictions(callback)) == (late >= OWN_CHECKPOINTS), number
    assert predictions(callback)[-1] == pytest.approx(float(curve(MAX_STEPS)), abs=1e-4)
    assert predictions(callback, DOUBLING_GAIN)[-1] == pytest.approx(float(curve(400) - curve(800)), abs=1e-4)


LEVEL_SPREAD = 0.3  # standard deviation of ln (L - L0) between runs and their law


def run_at_level(run: RecoveryRun, log_level: float) -> RecoveryRun:
    """The run with its rise times a factor, which no law of size, fraction and tokens knows."""
    losses = run.case.source_loss + run.rises * np.exp(log_level)
    return RecoveryRun(run.name, run.case, run.tokens, losses)


@pytest.fixture(scope="module")
def law():
    levels = LEVEL_SPREAD * np.random.default_rng(0).standard_normal(12)
    return fit_law([run_at_level(*pair) for pair in zip(draw_runs(), levels, strict=True)], "p2_five", num_bootstrap=24)


def test_earlier_runs_speak_first_and_this_one_corrects_them(law):
    """A run that lies twice as far above its source as the law says."""
    case = Case(1e9, 0.25, source_loss(1e9))
    callback = ScalingLawCallback(LogOnly(), law=law, case=case, tokens_per_step=STEP_TOKENS)

    def measured(step):
        return case.source_loss + 2 * true_rise(1e9, 0.25, step * STEP_TOKENS)

    end = measured(MAX_STEPS)
    for step in (50, 100, 200, 300):
        evaluate(callback, step, measured(step))
    _, second, _, last = np.abs(np.array(predictions(callback)) - end)
    alone = abs(law.predict(case, MAX_STEPS * STEP_TOKENS).value - end)
    assert second < 0.5 * alone and last < 0.1 * alone and last < 0.003
    found = forecast(law, case, [50e6, 100e6, 200e6, 300e6], [measured(step) for step in (50, 100, 200, 300)])
    estimate = found.loss(1e9)
    assert estimate.low < end < estimate.high and estimate.high - estimate.low < 0.1


def test_it_says_how_many_tokens_reach_a_target(law, capsys):
    case = Case(1e9, 0.25, source_loss(1e9))
    target = case.source_loss + float(true_rise(1e9, 0.25, 800e6))
    callback = ScalingLawCallback(LogOnly(), law=law, case=case, target_loss=target, tokens_per_step=STEP_TOKENS)
    for step in range(50, 201, 50):
        evaluate(callback, step, case.source_loss + true_rise(1e9, 0.25, step * STEP_TOKENS))
    text = capsys.readouterr().out
    assert f"reaches {target:g} with" in text and " more tokens (80 %: " in text and "ends at" in text
    more = predictions(callback, MORE_TOKENS)
    reached = source_loss(1e9) + float(true_rise(1e9, 0.25, 200e6 + more[-1]))
    assert len(more) >= 1 and reached == pytest.approx(target, abs=0.001)
    found = forecast(law, case, [1e8], [case.source_loss + float(true_rise(1e9, 0.25, 1e8))])
    assert found.tokens_to(1e3).value == 0 and "unreachable" in found.tokens_to(0.1).reason


@pytest.mark.parametrize("ends", [True, False])
def test_a_price_proposes_to_stop(law, ends, capsys):
    case = Case(1e9, 0.25, source_loss(1e9))
    flops = 6 * case.pruned_size
    slope = (true_rise(1e9, 0.25, 400e6) - true_rise(1e9, 0.25, 401e6)) / 1e6
    callback = ScalingLawCallback(LogOnly(), law=law, case=case, price=float(slope / flops), ends_training=ends,
                                  tokens_per_step=STEP_TOKENS)  # fmt: skip
    steps = range(40, 641, 40)
    stopped = [step for step in steps
               if evaluate(callback, step, case.source_loss + true_rise(1e9, 0.25, step * STEP_TOKENS))]  # fmt: skip
    text = capsys.readouterr().out
    assert ("stops here, because the next FLOP gains" if ends else "proposal: stop here") in text
    assert bool(stopped) == ends
    first = next(
        step for step, gain in zip(steps, predictions(callback, GAIN_PER_FLOP), strict=True) if gain < callback.price
    )
    assert abs(first - 400) <= 80 and (not ends or stopped[0] == first + 40 * (PATIENCE - 1))


def test_the_law_that_ships_speaks_for_a_user_without_runs():
    callback = ScalingLawCallback(LogOnly(), case=Case(135e6, 0.1, 3.0), tokens_per_step=1_000)
    evaluate(callback, 20, 3.2)
    assert 3.0 < predictions(callback)[0] < 3.25
    law = LawFit.load(PRIOR)
    notes = law.predict(Case(135e6, 0.1, 3.0), 100_000).notes
    assert any("extrapolation" in note and "sizes" in note for note in notes)
    near, far = (law.predict(Case(size, 0.25, 3.0), 100_000) for size in (1e6, 135e6))
    spans = [(found.high - 3.0) / (found.low - 3.0) for found in (near, far)]
    assert spans[1] > 2 * spans[0] > 2


def test_a_far_larger_source_is_left_to_its_own_run(law, capsys):
    """From six evaluations on; its course is one that the law does not know."""
    far = Case(FAR_SIZE * 1.01 * 3e9, 0.25, 2.0)
    callback = ScalingLawCallback(LogOnly(), law=law, case=far, tokens_per_step=STEP_TOKENS)
    steps = np.geomspace(40, 400, 8).astype(int).tolist()
    alone = []
    for step in steps:
        evaluate(callback, step, curve(step))
        text = capsys.readouterr().out
        alone.append("by the run's own power law: its source is 4.0 x the largest" in text)
        assert ("outside the fitted sizes; so large a source predicts itself better" in text) != alone[-1]
    assert alone == [False] * (OWN_CHECKPOINTS - 1) + [True] * (len(steps) - OWN_CHECKPOINTS + 1)
    assert predictions(callback)[-1] == pytest.approx(float(curve(MAX_STEPS)), abs=1e-4)
    near = forecast(law, Case(FAR_SIZE * 0.99 * 3e9, 0.25, 2.0), np.array(steps) * 1e6, curve(steps))
    assert not any("own power law" in note for note in near.notes)


def test_an_interval_is_of_what_the_run_still_gains(law):
    """Its ends lie as far from the likely curve as 80 % of the errors, and it widens with the tokens asked about."""
    case, steps = Case(1e9, 0.25, source_loss(1e9)), np.array([50, 100, 200, 300])
    found = forecast(law, case, steps * 1e6, case.source_loss + true_rise(1e9, 0.25, steps * 1e6))
    now = float(found.curve.predict(3e8))
    low, high = found.loss(1e9).low, found.loss(1e9).high
    gain = now - found.loss(1e9).value
    spread = np.hypot(GAIN_SPREAD * gain, DRIFT_SPREAD * (1 - 3e8 / 1e9))
    assert (high - low) / 2 == pytest.approx(1.28 * spread, rel=0.2)  # and the noise of a checkpoint
    assert found.loss(2e9).high - found.loss(2e9).low > 1.15 * (high - low)


def test_it_stops_after_patience_and_not_before():
    callback = ScalingLawCallback(LogOnly(), min_gain=0.05, patience=3, tokens_per_step=STEP_TOKENS)
    stopped = next(step for step in range(20, 1000, 20) if evaluate(callback, step, curve(step)))
    gains = predictions(callback, DOUBLING_GAIN)
    below = [gain < 0.05 for gain in gains]
    first = next(index for index in range(len(below)) if all(below[max(index - 2, 0) : index + 1]) and index >= 2)
    assert stopped == 20 * (first + OWN_CHECKPOINTS)
    never = ScalingLawCallback(LogOnly(), tokens_per_step=STEP_TOKENS)
    assert not any(evaluate(never, step, curve(step)) for step in range(20, stopped + 100, 20))


def test_a_run_that_rises_gets_no_forecast_and_gains_nothing(capsys):
    """Its gains count as 0, so a threshold stops it after ``patience`` evaluations; without one it goes on."""
    callback, never = (
        ScalingLawCallback(LogOnly(), min_gain=gain, tokens_per_step=STEP_TOKENS) for gain in (1e-9, None)
    )
    losses = {step: 2 + step / 400 for step in range(20, 401, 20)}
    stopped = [step for step, loss in losses.items() if evaluate(callback, step, loss)]
    text = capsys.readouterr().out
    assert predictions(callback) == [] and set(predictions(callback, DOUBLING_GAIN)) == {0.0}
    assert stopped[0] == 20 * (OWN_CHECKPOINTS + PATIENCE - 1)
    assert "no forecast, because the held-out loss rises (2.3000)" in text
    assert "stops here, because the held-out loss rises" in text
    assert not any(evaluate(never, step, loss) for step, loss in losses.items())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"price": 1e-20}, "`price` needs `case`"),
        (
            {"law": fit_law(draw_runs(), "p2", num_bootstrap=0), "case": Case(1e9, 0.25, 2.0)},
            "must be of L - L0 and have",
        ),
        ({"min_gain": 0.0}, "`min_gain` must be above 0"),
        ({"patience": 0}, "`patience` must be at least 1"),
    ],
)
def test_bad_arguments(options, text):
    with pytest.raises(ValueError, match=text):
        ScalingLawCallback(LogOnly(), **options)


def test_tokens_must_be_known():
    with pytest.raises(ValueError, match="`tokens_per_step` is needed"):
        evaluate(ScalingLawCallback(LogOnly()), 20, 2.0)


def test_its_log_is_a_line():
    line = log_line(5, 10, {FINAL_LOSS: 2.5, DOUBLING_GAIN: 0.01})
    assert line == "step  5/10  predicted final loss 2.5000; twice the tokens would gain 0.0100"


# ---- in the Trainer -------------------------------------------------------------------------------------------


def options(**changes):
    return {
        "max_steps": 16, "eval_strategy": "steps", "eval_steps": 1, "lr_scheduler_type": "constant",
        "dynamic_batches": False, "learning_rate": 3e-3, "save_strategy": "steps", "save_steps": 8,
    } | changes  # fmt: skip


def collate(samples):
    return {name: torch.tensor([sample[name] for sample in samples]) for name in samples[0]}


def train(folder, resume=None, **changes):
    trainer = make_trainer(plain_model(attention_dropout=0.0), make_args(folder, **options(**changes)))
    trainer.add_callback(ScalingLawCallback(trainer, min_gain=1e-9))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_resumed_run_predicts_what_the_whole_one_did(tmp_path, capsys):
    whole = train(tmp_path / "whole")
    keys = (FINAL_LOSS, DOUBLING_GAIN)
    expected = [[entry[key] for key in keys] for entry in whole.state.log_history if FINAL_LOSS in entry]
    assert len(expected) >= 8 and "predicted final loss" in capsys.readouterr().out
    tokens = whole.tokens_seen()
    assert tokens == [entry for entry in whole.state.log_history if "num_tokens" in entry][-1]["num_tokens"]
    shutil.copytree(tmp_path / "whole" / "checkpoint-8", tmp_path / "again" / "checkpoint-8")
    again = train(tmp_path / "again", resume=str(tmp_path / "again" / "checkpoint-8"))
    found = [[entry[key] for key in keys] for entry in again.state.log_history if FINAL_LOSS in entry]
    assert np.allclose(found, expected, atol=1e-6)


def test_a_run_is_ended_when_more_gains_too_little(tmp_path):
    trainer = make_trainer(plain_model(), make_args(tmp_path, **options(save_strategy="no")))
    trainer.add_callback(ScalingLawCallback(trainer, min_gain=50.0, patience=2))  # nats: any gain is less
    trainer.train()
    assert 0 < trainer.state.global_step < 16
    assert sum(FINAL_LOSS in entry for entry in trainer.state.log_history) == 2


def test_a_plain_trainer_predicts_too(tmp_path):
    samples = [{"input_ids": row, "labels": row} for row in torch.randint(3, 60, (32, 16)).tolist()]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=16, eval_strategy="steps", eval_steps=1, lr_scheduler_type="constant", report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="no", learning_rate=1e-3, per_device_train_batch_size=4,
    )  # fmt: skip
    trainer = Trainer(plain_model(), arguments, train_dataset=samples, eval_dataset=samples, data_collator=collate)
    trainer.add_callback(ScalingLawCallback(trainer, tokens_per_step=4 * 16))
    trainer.train()
    rows = [entry for entry in trainer.state.log_history if FINAL_LOSS in entry]
    last = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    assert rows and rows[-1]["law/num_tokens"] == 16 * 64
    assert rows[-1][FINAL_LOSS] == pytest.approx(last, abs=0.1)  # it has ended, so it is the fit's value there


@pytest.mark.parametrize(("schedule", "warned"), [("constant", 0), ("constant_with_warmup", 0), ("linear", 1)])
def test_a_rate_that_falls_is_said(schedule, warned, monkeypatch):
    from hf_shear.scaling_law import callback as module

    told = []
    monkeypatch.setattr(module.logger, "warning_once", told.append)
    ScalingLawCallback(LogOnly()).on_train_begin(SimpleNamespace(lr_scheduler_type=schedule), None, None)
    assert len(told) == warned
