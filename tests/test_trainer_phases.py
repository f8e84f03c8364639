"""Masks through a run of ShearTrainer: their draws and rates, how they harden, and the paper's way of learning them."""

from __future__ import annotations

import pytest
import torch
from training_helpers import TARGET, held_out_domains, masked_model, masks_of, trained

from hf_shear import MaskSettings, slice_model
from hf_shear.masks.hard_concrete import PAPER_LOG_ALPHA_BOUND
from hf_shear.training import PAPER_MASK_LEARNING, evaluate_domains


@pytest.mark.parametrize("method", ["relaxed_topk", "hard_concrete"])
def test_masks_stand_still_while_they_harden_and_end_binary(tmp_path, method):
    model = masked_model(MaskSettings(method=method, log_alpha_start=0.5))
    trainer = trained(tmp_path, model, max_steps=8, hardening_ratio=0.5, learning_rate=1e-2, lr_scheduler_type="linear")
    assert [record["phase"].optimizer_step for record in trainer.records] == list(range(8))
    assert [record["phase"].hardening for record in trainer.records] == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1.0]
    masks = [record["masks"] for record in trainer.records] + [masks_of(model)]
    assert all(before != after for before, after in zip(masks[:4], masks[1:5], strict=True))
    assert all(later == masks[4] for later in masks[4:])
    soft, hard = trainer.records[3]["hidden_gates"], trainer.records[-1]["hidden_gates"]
    assert ((soft > 0.0) & (soft < 1.0)).any()
    assert hard.tolist() == model.masks.kept_units()["hidden"].float().tolist()
    assert hard.sum() == TARGET["hidden_size"]
    gates = model.masks.deterministic()
    assert all(bool(((gate == 0) | (gate == 1)).all()) for gate in gates.values())


@pytest.mark.parametrize("draw", ["per_step", "per_micro_batch"])
def test_micro_batches_share_a_draw_or_have_their_own(tmp_path, draw):
    model = masked_model(MaskSettings(method="hard_concrete", log_alpha_start=0.0, draw=draw))
    trainer = trained(tmp_path, model, max_steps=2, gradient_accumulation_steps=2, hardening_ratio=0.0)
    assert [record["phase"].micro_batch for record in trainer.records] == [0, 1, 0, 1]
    gates = [record["hidden_gates"].tolist() for record in trainer.records]
    assert (gates[0] == gates[1], gates[2] == gates[3]) == ((draw == "per_step"),) * 2
    assert gates[0] != gates[2]


def test_the_masks_rate_is_constant_or_the_weights(tmp_path):
    changes = {"hardening_ratio": 0.25, "warmup_steps": 2, "lr_scheduler_type": "linear"}
    trainer = trained(tmp_path, masked_model(), **changes)
    logged = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert logged == pytest.approx([0, 5e-3, 1e-2, *(1e-2 * k / 6 for k in (5, 4, 3, 2, 1))])
    assert trainer.mask_learning.optimizer.rates["masks"] == 0.05
    assert [trainer.mask_learning.optimizer.factor(step) for step in range(8)] == [1.0] * 6 + [0.0] * 2
    trainer = trained(tmp_path, masked_model(), **changes, mask_scheduler="weights")
    assert [1e-2 * trainer.mask_learning.optimizer.factor(step) for step in range(8)] == pytest.approx(logged)


def test_the_papers_mask_learning(tmp_path):
    """End to end; log_alpha never leaves +- ln(100), whatever its learning rate of 1."""
    model = masked_model(MaskSettings.paper())
    trainer = trained(tmp_path, model, max_steps=10, eval_strategy="steps", eval_steps=5, **PAPER_MASK_LEARNING)
    rates = [[row["learning_rate"] for row in trainer.state.log_history if "loss" in row]]
    assert rates[0][0] == 0.0 and max(rates[0]) == pytest.approx(1e-2)
    assert all(record["phase"].hardening == 0 for record in trainer.records)
    assert [record["phase"].budget_progress for record in trainer.records] == [0.0, 0.5] + [1.0] * 8
    bound = PAPER_LOG_ALPHA_BOUND + 1e-6
    for record in [*trainer.records, {"masks": masks_of(model)}]:
        for name, values in record["masks"].items():
            if "log_alpha" in name:
                assert torch.tensor(values).abs().max() <= bound, (name, record.get("step"))
    sliced, _ = slice_model(model)
    assert sliced.config.hidden_size == TARGET["hidden_size"]
    found, _ = evaluate_domains(sliced, held_out_domains(), 4)
    expected, _ = evaluate_domains(model, held_out_domains(), 4)
    assert found == pytest.approx(expected, abs=1e-5)
    assert trainer.mask_report["kept_below_half"].keys() == TARGET.keys()
