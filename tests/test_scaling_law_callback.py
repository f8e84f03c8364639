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

from hf_shear.scaling_law import Case, ScalingLawCallback, fit_law
from hf_shear.scaling_law.callback import DOUBLING_GAIN, FINAL_LOSS, MIN_CHECKPOINTS, MIN_CHECKPOINTS_WITH_LAW
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
        assert bool(predictions(callback)) == (late >= MIN_CHECKPOINTS), number
    assert predictions(callback)[-1] == pytest.approx(float(curve(MAX_STEPS)), abs=1e-4)
    assert predictions(callback, DOUBLING_GAIN)[-1] == pytest.approx(float(curve(400) - curve(800)), abs=1e-4)


@pytest.fixture(scope="module")
def law():
    return fit_law(draw_runs(), num_bootstrap=0)


def test_earlier_runs_speak_before_this_one_can(law):
    """First the law alone, then this run's own curve with the law's exponent."""
    case = Case(1e9, 0.25, source_loss(1e9))
    callback = ScalingLawCallback(LogOnly(), law=law, case=case, tokens_per_step=STEP_TOKENS)

    def measured(step):  # .1 above the law, and it falls twice as deep
        return case.source_loss + 0.1 + 2 * true_rise(1e9, 0.25, step * STEP_TOKENS)

    steps = [100, 200, 300]
    for step in steps:
        evaluate(callback, step, measured(step))
    found = predictions(callback)
    assert len(found) == 3 == MIN_CHECKPOINTS_WITH_LAW
    assert found[0] == found[1] == pytest.approx(case.source_loss + float(true_rise(1e9, 0.25, 1e9)), abs=1e-6)
    assert found[2] == pytest.approx(measured(MAX_STEPS), abs=1e-4)


def test_it_stops_after_patience_and_not_before():
    callback = ScalingLawCallback(LogOnly(), min_gain=0.05, patience=3, tokens_per_step=STEP_TOKENS)
    stopped = [step for step in range(20, 1000, 20) if evaluate(callback, step, curve(step))]
    gains = predictions(callback, DOUBLING_GAIN)
    below = [gain < 0.05 for gain in gains]
    first = next(index for index in range(len(below)) if all(below[max(index - 2, 0) : index + 1]) and index >= 2)
    assert stopped and stopped[0] == 20 * (first + MIN_CHECKPOINTS)
    never = ScalingLawCallback(LogOnly(), tokens_per_step=STEP_TOKENS)
    assert not any(evaluate(never, step, curve(step)) for step in range(20, 1000, 20))


def test_a_run_that_diverges_gets_no_prediction(caplog):
    callback = ScalingLawCallback(LogOnly(), min_gain=0.1, tokens_per_step=STEP_TOKENS)
    for step in range(20, 401, 20):
        assert not evaluate(callback, step, 2 + step / 400)
    assert predictions(callback) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"case": Case(1e9, 0.25, 2.0)}, "`law` and `case` go together"),
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
        "max_steps": 24, "eval_strategy": "steps", "eval_steps": 1, "lr_scheduler_type": "constant",
        "dynamic_batches": False, "learning_rate": 3e-3, "save_strategy": "steps", "save_steps": 12,
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
    assert len(expected) >= 12 and "predicted final loss" in capsys.readouterr().out
    tokens = whole.tokens_seen()
    assert tokens == [entry for entry in whole.state.log_history if "num_tokens" in entry][-1]["num_tokens"]
    shutil.copytree(tmp_path / "whole" / "checkpoint-12", tmp_path / "again" / "checkpoint-12")
    again = train(tmp_path / "again", resume=str(tmp_path / "again" / "checkpoint-12"))
    found = [[entry[key] for key in keys] for entry in again.state.log_history if FINAL_LOSS in entry]
    assert np.allclose(found, expected, atol=1e-6)


def test_a_run_is_ended_when_more_gains_too_little(tmp_path):
    trainer = make_trainer(plain_model(), make_args(tmp_path, **options(save_strategy="no")))
    trainer.add_callback(ScalingLawCallback(trainer, min_gain=50.0, patience=2))  # nats: any gain is less
    trainer.train()
    assert 0 < trainer.state.global_step < 24
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
