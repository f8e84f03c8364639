"""A NaN stops ShearTrainer before another checkpoint, and a run can resume from the last one with lower rates."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import OPEN_MASKS, make_args, make_trainer, masked_model, next_token_loss, plain_model, trained

from hf_shear import ShearingLlamaForCausalLM
from hf_shear.core import content_of
from hf_shear.training import TrainingDivergedError
from hf_shear.training.schedules import set_peak_rate


def _poison(trainer, name: str, step: int, value: float = math.nan) -> None:
    """Make the gradient of one parameter not finite in one step."""
    parameter = dict(trainer.model.named_parameters())[name]
    parameter.register_hook(lambda gradient: gradient * (value if trainer.state.global_step == step else 1.0))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("model.layers.1.mlp.up_proj.weight", {}),
        ("model.layers.1.mlp.up_proj.weight", {"max_grad_norm": 0.0}),
        ("masks.log_alpha_hidden", {"logging_strategy": "no"}),
        ("masks.multiplier_quadratic", {"gradient_accumulation_steps": 2}),
    ],
)
def test_a_nan_stops_the_run_before_another_checkpoint(tmp_path, name, changes):
    trainer = make_trainer(
        masked_model(OPEN_MASKS), make_args(tmp_path, save_strategy="steps", save_steps=1, **changes)
    )
    _poison(trainer, name, step=3)
    with pytest.raises(TrainingDivergedError) as caught:
        trainer.train()
    text = str(caught.value)
    assert text.startswith("The loss or a gradient became NaN or infinite during mask learning, by step 4.")
    assert (
        f"The last good checkpoint is {tmp_path / 'checkpoint-3'}: resume from it with a lower `learning_rate`" in text
    )
    assert "`learning_rate` (0.01) or `mask_learning_rate` (0.05)" in text
    assert ("`max_grad_norm` (1.0)" in text) is ("max_grad_norm" not in changes)
    assert sorted(path.name for path in content_of(tmp_path)) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    tensors = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    reloaded = ShearingLlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-3")
    assert math.isfinite(next_token_loss(reloaded.eval(), trainer.records[0]["input_ids"]).item())


def test_a_nan_is_found_steps_later_where_nothing_is_logged_between(tmp_path):
    args = make_args(tmp_path, save_strategy="steps", save_steps=6, logging_steps=6)
    trainer = make_trainer(plain_model(), args)
    _poison(trainer, "lm_head.weight", step=2, value=math.inf)
    (tmp_path / "checkpoint-3").mkdir()  # of another run, which it must not name
    text = (
        "during training, by step 6. No checkpoint was written before that: start again"
        r" with a lower `learning_rate` \(0.01\) or `max_grad_norm` \(1.0\)\.$"
    )
    with pytest.raises(TrainingDivergedError, match=text):
        trainer.train()
    assert [path.name for path in content_of(tmp_path)] == ["checkpoint-3"]


def test_a_lower_rate_is_obeyed_on_resume(tmp_path, capsys):
    """What a NaN's message asks for: resume with lower rates. All else of the checkpoint stays."""
    changes = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "linear", "warmup_steps": 0}
    trained(tmp_path, masked_model(), **changes)
    checkpoint = str(tmp_path / "checkpoint-4")
    lower = make_trainer(
        masked_model(), make_args(tmp_path, **changes, learning_rate=1e-3, mask_learning_rate=0.0), callbacks=None
    )
    capsys.readouterr()
    before = ShearingLlamaForCausalLM.from_pretrained(checkpoint).masks.log_alpha_hidden
    lower.train(resume_from_checkpoint=checkpoint)
    shown = capsys.readouterr().out
    assert "The checkpoint's learning rate of weights was 0.01; it goes on with 0.001." in shown
    assert "The checkpoint's learning rate of masks was 0.05; it goes on with 0." in shown
    rates = [row["learning_rate"] for row in lower.state.log_history if "learning_rate" in row and row["step"] > 4]
    assert rates == pytest.approx([1e-3 * (8 - step) / 8 for step in range(4, 8)])  # the schedule goes on
    assert torch.equal(lower.model.masks.log_alpha_hidden, before)


def test_another_schedule_cannot_change_its_rate_on_resume():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    set_peak_rate(scheduler, optimizer, 0.1)
    with pytest.raises(ValueError, match="at 0.1, now 0.2 is asked for, but a resumed ReduceLROnPlateau cannot"):
        set_peak_rate(scheduler, optimizer, 0.2)


def test_a_nan_in_the_last_step_is_found_where_nothing_is_logged(tmp_path):
    trainer = make_trainer(plain_model(), make_args(tmp_path, logging_strategy="no", max_steps=3))
    _poison(trainer, "lm_head.weight", step=2)
    with pytest.raises(TrainingDivergedError, match="by step 3"):
        trainer.train()
