"""The loss and the Lagrangian of ShearTrainer: one batch however it is accumulated, and each reported by itself."""

from __future__ import annotations

import pytest
import torch
from training_helpers import (
    LENGTH,
    NO_DROPOUT,
    OPEN_MASKS,
    differences,
    held_out_domains,
    make_args,
    make_trainer,
    masked_model,
    next_token_loss,
    trained,
    weights_of,
)


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    """1 x 8, 2 x 4 and 8 x 1 differ by float32 rounding alone, the Lagrangian included."""
    runs = {}
    for accumulated in (1, 2, 8):
        model = masked_model(OPEN_MASKS, **NO_DROPOUT)
        with torch.no_grad():
            model.masks.multiplier_linear.fill_(-0.5)
        runs[accumulated] = trained(
            tmp_path,
            model,
            max_steps=5,
            per_device_train_batch_size=8 // accumulated,
            gradient_accumulation_steps=accumulated,
            eval_strategy="steps",
            eval_steps=2,
            hardening_ratio=0.0,
            adam_epsilon=1e-3,  # keeps a gradient that is zero but for rounding from becoming a whole step
        )
    logs = {accumulated: [row for row in run.state.log_history if "loss" in row] for accumulated, run in runs.items()}
    expected = weights_of(runs[1].model)
    for accumulated in (2, 8):
        batches = [record["input_ids"] for record in runs[accumulated].records]
        joined = [sum(batches[start : start + accumulated], []) for start in range(0, len(batches), accumulated)]
        assert joined == [record["input_ids"] for record in runs[1].records]
        for found, wanted in zip(logs[accumulated], logs[1], strict=True):
            assert found["loss"] == pytest.approx(wanted["loss"], abs=2e-5)
            assert found["lagrangian_loss"] == pytest.approx(wanted["lagrangian_loss"], abs=2e-5)
        maximum, mean = differences(runs[accumulated].model, expected)
        assert maximum < 2e-5
        assert mean < 2e-7
    start = weights_of(masked_model(OPEN_MASKS, **NO_DROPOUT))
    assert differences(runs[1].model, start)[1] > 1e-3  # the bounds above are far below what training changed


def test_the_reported_loss_has_no_lagrangian_in_it(tmp_path):
    model = masked_model(OPEN_MASKS, **NO_DROPOUT)
    with torch.no_grad():
        model.masks.multiplier_linear.fill_(-3.0)
        model.masks.multiplier_quadratic.fill_(7.0)
    trainer = make_trainer(model, make_args(tmp_path, max_steps=1, gradient_accumulation_steps=2, hardening_ratio=0))
    model.train()
    trainer.mask_learning.set_phase(0)
    penalty = model.masks.lagrangian().item()
    start = weights_of(model)
    trainer.train()
    log = next(row for row in trainer.state.log_history if "loss" in row)
    assert log["lagrangian_loss"] == pytest.approx(penalty, rel=1e-6)
    assert abs(penalty) > 0.1
    trained_ids = [record["input_ids"] for record in trainer.records]
    model.load_state_dict(start)
    model.train()
    trainer.mask_learning.set_phase(0)
    expected = torch.stack([next_token_loss(model, ids) for ids in trained_ids]).mean().item()
    assert log["loss"] == pytest.approx(expected, abs=1e-5)
    assert sum(record["loss"] for record in trainer.records) == pytest.approx(expected, abs=1e-5)


def test_the_lagrangian_is_logged_as_a_mean_over_steps(tmp_path):
    options = {"max_steps": 6, "hardening_ratio": 0.0, "budget_warmup_ratio": 0.5}
    single = trained(tmp_path, masked_model(OPEN_MASKS), logging_steps=1, **options)
    triple = trained(tmp_path, masked_model(OPEN_MASKS), logging_steps=3, **options)
    each = [row["lagrangian_loss"] for row in single.state.log_history if "loss" in row]
    means = [row["lagrangian_loss"] for row in triple.state.log_history if "loss" in row]
    assert len(set(each)) == 6
    assert means == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3], rel=1e-5)
    without = trained(tmp_path, masked_model("relaxed_topk"), max_steps=1)
    assert all("lagrangian_loss" not in row for row in without.state.log_history)


def test_the_evaluation_loss_has_no_lagrangian_in_it(tmp_path):
    model = masked_model(OPEN_MASKS)
    with torch.no_grad():
        model.masks.multiplier_linear.fill_(-100.0)
    held_out = held_out_domains()
    trainer = make_trainer(model, make_args(tmp_path), held_out=held_out)
    model.train()
    metrics = trainer.evaluate()
    assert model.training
    model.eval()
    with torch.no_grad():
        expected = {name: next_token_loss(model, dataset["input_ids"]).item() for name, dataset in held_out.items()}
    for name, loss in expected.items():
        assert metrics[f"eval_{name}_loss"] == pytest.approx(loss, abs=1e-5)
    assert metrics["eval_loss"] == pytest.approx(sum(expected.values()) / 3, abs=1e-5)
    assert metrics["eval_tokens"] == 3 * 4 * (LENGTH - 1)
    other = trainer.evaluate({"books": held_out["books"]}, metric_key_prefix="test")
    assert other["test_loss"] == other["test_books_loss"] == metrics["eval_books_loss"]
    single = trainer.evaluate(held_out["books"])  # a data set alone is one domain
    assert single["eval_loss"] == metrics["eval_books_loss"]
    with pytest.raises(ValueError, match="`eval_dataset` must be a data set, or a non-empty dict"):
        trainer.evaluate([1, 2])
