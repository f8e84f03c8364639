"""A run that stops at any step and goes on from its checkpoint is the run that never stopped, bit for bit."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from training_helpers import (
    assert_equal_weights,
    make_args,
    make_domains,
    make_trainer,
    masked_model,
    plain_model,
    stop_workers,
    weights_of,
)
from transformers import TrainerCallback

from hf_shear import MaskSettings, slice_model
from hf_shear.training.checkpoints import FILES_NAME, STATE_NAME, read_state, write_state
from hf_shear.training.mask_learning import MaskLearning

STEPS = 9
CASES = {
    "relaxed_topk": (lambda: masked_model("relaxed_topk"), {"hardening_ratio": 0.25}),
    "hard_concrete": (
        lambda: masked_model(MaskSettings(method="hard_concrete", log_alpha_start=1.0, draw="per_micro_batch")),
        {"gradient_accumulation_steps": 2, "hardening_ratio": 0.25, "budget_warmup_ratio": 0.4},
    ),
    "recovery": (plain_model, {"lr_scheduler_type": "cosine"}),
}


def arguments(folder, case: str, **changes):
    fields = {"max_steps": STEPS, "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 1}
    return make_args(folder, **(fields | CASES[case][1] | changes))


def logs_of(trainer) -> list[dict]:
    """The log without what a clock measured, and without the summary of one `train` call."""
    rows = [row for row in trainer.state.log_history if "train_runtime" not in row]
    return [{name: value for name, value in row.items() if name != "eval_runtime"} for row in rows]


def assert_same_run(resumed, whole, first_step: int) -> None:
    """Losses, batches, weights of domains, masks and multipliers of every step, the logs, and the end."""
    expected = [record for record in whole.records if record["step"] >= first_step]
    for found, wanted in zip(resumed.records, expected, strict=True):
        for name in ("step", "input_ids", "loss", "mixture_weights", "masks", "phase"):
            assert found[name] == wanted[name], (name, wanted["step"])
    assert_equal_weights(resumed.model, weights_of(whole.model))
    assert logs_of(resumed) == logs_of(whole)
    assert resumed.domains.sampler.state_dict() == whole.domains.sampler.state_dict()
    assert resumed.domains.reference_losses == whole.domains.reference_losses
    assert resumed.mask_report == whole.mask_report
    mine, theirs = resumed.optimizer.state_dict(), whole.optimizer.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    for index, state in theirs["state"].items():
        assert all(torch.equal(mine["state"][index][name], value) for name, value in state.items())


@pytest.fixture(scope="module", params=list(CASES))
def whole_run(request, tmp_path_factory):
    """(case, trainer, folder) of a run of all steps with a checkpoint after each."""
    folder = tmp_path_factory.mktemp(request.param)
    trainer = make_trainer(CASES[request.param][0](), arguments(folder, request.param))
    trainer.train()
    assert trainer.state.global_step == STEPS
    return request.param, trainer, folder


# 4 and 8 are evaluations, 7 is the first step of hardening, 1 is before the first evaluation.
@pytest.mark.parametrize("step", [1, 4, 6, 7])
def test_resuming_gives_the_same_run(whole_run, step, tmp_path):
    case, whole, folder = whole_run
    resumed = make_trainer(CASES[case][0](), arguments(tmp_path, case, save_strategy="no"))
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert_same_run(resumed, whole, first_step=step)


def test_resuming_at_the_last_step_trains_nothing(whole_run, tmp_path):
    case, whole, folder = whole_run
    shutil.copytree(folder / f"checkpoint-{STEPS}", tmp_path / f"checkpoint-{STEPS}")
    resumed = make_trainer(CASES[case][0](), arguments(tmp_path, case))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.records == []
    assert resumed.state.global_step == STEPS
    assert_same_run(resumed, whole, first_step=STEPS)
    expected, found = whole.stage_record("stage"), resumed.stage_record("stage")
    assert [row["num_tokens"] for row in found["history"]] == [row["num_tokens"] for row in expected["history"]]
    assert all(found[name] == expected[name] for name in found if name != "history")
    if resumed.mask_learning is not None:
        assert resumed.model.masks.phase == whole.model.masks.phase
        assert slice_model(resumed.model)[1] == slice_model(whole.model)[1]


def test_checkpoints_do_not_change_a_run(whole_run, tmp_path):
    case, whole, _ = whole_run
    trainer = make_trainer(CASES[case][0](), arguments(tmp_path, case, save_strategy="no"))
    trainer.train()
    assert_same_run(trainer, whole, first_step=0)
    assert list(tmp_path.iterdir()) == []


class StopAfter(TrainerCallback):
    """Stops the run after a step, with or without a checkpoint of that step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = control.should_save = True


@pytest.mark.filterwarnings("ignore:Mask learning stopped at step 3:UserWarning")
def test_a_stopped_run_with_workers_that_read_ahead_goes_on(whole_run, tmp_path):
    case, whole, _ = whole_run
    changes = {"dataloader_num_workers": 2, "save_steps": 100}
    stopped = make_trainer(CASES[case][0](), arguments(tmp_path, case, **changes), callbacks=[StopAfter(3)])
    stopped.train()
    assert {record["step"] for record in stopped.records} == {0, 1, 2}
    stop_workers(stopped)
    resumed = make_trainer(CASES[case][0](), arguments(tmp_path, case, **changes))
    resumed.train(resume_from_checkpoint=True)
    stop_workers(resumed)
    assert_same_run(resumed, whole, first_step=3)


def test_logged_means_over_several_steps_survive_a_stop_between_them(tmp_path):
    changes = {"logging_steps": 3, "save_steps": 4}
    whole = make_trainer(CASES["hard_concrete"][0](), arguments(tmp_path, "hard_concrete", **changes))
    whole.train()
    resumed = make_trainer(CASES["hard_concrete"][0](), arguments(tmp_path, "hard_concrete", **changes))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same_run(resumed, whole, first_step=4)


def test_what_cannot_be_resumed_is_refused(whole_run, tmp_path):
    case, _, folder = whole_run
    trainer = make_trainer(CASES[case][0](), arguments(tmp_path, case))
    with pytest.raises(ValueError, match=r"No checkpoint to resume from in `output_dir` '.*'"):
        trainer.train(resume_from_checkpoint=True)
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(folder / "checkpoint-1", checkpoint)
    for name in (STATE_NAME, FILES_NAME):  # as one of another trainer
        (checkpoint / name).unlink()
    with pytest.raises(ValueError, match=r"`resume_from_checkpoint` '.*checkpoint-1' has no shear_state.json: it was"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    train = make_domains({"books": 9, "code": 4, "wiki": 6})
    other = make_trainer(CASES[case][0](), arguments(tmp_path, case), train)
    with pytest.raises(ValueError, match="arguments: the text of domain 'books' has changed, the text of .*'code'"):
        other.train(resume_from_checkpoint=str(folder / "checkpoint-1"))


def test_masks_whose_start_is_not_told_are_refused():
    own = SimpleNamespace(optimizer=SimpleNamespace(load=lambda folder: {}), kept_at_start={"layer": torch.ones(2)})
    with pytest.raises(ValueError, match="'checkpoint-1' does not say which units its masks' start keeps"):
        MaskLearning.load_files(own, "checkpoint-1")


def test_the_state_file_is_written_as_a_whole(tmp_path):
    write_state(str(tmp_path), {"a": 1 / 3})
    assert read_state(str(tmp_path)) == {"a": 1 / 3}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_state(str(tmp_path), {"a": float("nan")})
    assert json.loads((tmp_path / STATE_NAME).read_text()) == {"a": 1 / 3}
