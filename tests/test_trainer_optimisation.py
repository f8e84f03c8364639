"""How ShearTrainer optimises weights, masks and multipliers: ascent, clipping and decay."""

from __future__ import annotations

import math

import pytest
import torch
from training_helpers import NO_DROPOUT, OPEN_MASKS, masked_model, masks_of, plain_model, trained, weights_of
from transformers import TrainerCallback


class MaskGradients(TrainerCallback):
    """Remembers the gradients of masks and multipliers that an optimizer step uses."""

    def __init__(self, masks):
        self.masks, self.seen = masks, {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.seen = {name: parameter.grad.clone() for name, parameter in self.masks.named_parameters()}


def test_multipliers_ascend_by_the_gap_unclipped(tmp_path):
    """The gradient that descends is -gap for lambda_1 and -gap^2 for lambda_2; AdamW's first step is the rate."""
    model = masked_model(OPEN_MASKS)
    masks, gradients = model.masks, MaskGradients(model.masks)
    gaps = [masks.expected_sparsity(kind).detach() - masks.target_sparsity(kind) for kind in masks.constrained]
    assert len(gaps) == 5
    trained(tmp_path, model, callbacks=[gradients], max_steps=1, multiplier_learning_rate=2.0, max_grad_norm=1e-6,
            hardening_ratio=0.0)  # fmt: skip
    torch.testing.assert_close(gradients.seen["multiplier_linear"], -torch.stack([gap.mean() for gap in gaps]))
    torch.testing.assert_close(
        gradients.seen["multiplier_quadratic"], -torch.stack([gap.square().mean() for gap in gaps])
    )
    signs = torch.stack([gap.mean().sign() for gap in gaps])
    torch.testing.assert_close(masks.multiplier_linear.detach(), 2.0 * signs)


def _one_sgd_step(tmp_path, **changes) -> tuple[dict, dict]:
    """Changes of weights by one step with rate 1, and the gradients of masks and multipliers it used."""
    model = masked_model(OPEN_MASKS, **NO_DROPOUT)
    start, gradients = weights_of(model), MaskGradients(model.masks)
    trained(tmp_path, model, callbacks=[gradients], optim="sgd", max_steps=1, hardening_ratio=0.0, learning_rate=1.0,
            lr_scheduler_type="constant", **changes)  # fmt: skip
    steps = {name: value - start[name] for name, value in weights_of(model).items()}
    return {name: step for name, step in steps.items() if not name.startswith("masks.")}, gradients.seen


def _norm(*groups: dict) -> float:
    return math.sqrt(sum(step.double().square().sum().item() for group in groups for step in group.values()))


def test_weights_are_clipped_without_masks(tmp_path):
    free_weights, free_masks = _one_sgd_step(tmp_path, max_grad_norm=1e6)
    weights, masks = _one_sgd_step(tmp_path, max_grad_norm=0.01)
    assert _norm(free_weights) > 0.1
    assert _norm(weights) == pytest.approx(0.01, rel=1e-3)
    for name, gradient in free_masks.items():
        assert torch.equal(masks[name], gradient)
    weights, masks = _one_sgd_step(tmp_path, max_grad_norm=0.01, clip_masks=True)
    assert _norm(weights, masks) == pytest.approx(0.01, rel=1e-3)
    shrunk = 0.01 / _norm(free_weights, free_masks)
    assert _norm(masks) == pytest.approx(shrunk * _norm(free_masks), rel=1e-3)


def test_masks_and_multipliers_do_not_decay(tmp_path):
    plain, decayed = masked_model(OPEN_MASKS, **NO_DROPOUT), masked_model(OPEN_MASKS, **NO_DROPOUT)
    trained(tmp_path, plain, max_steps=1)
    trainer = trained(tmp_path, decayed, max_steps=1, weight_decay=10.0)
    assert masks_of(plain) == masks_of(decayed)
    same, other = weights_of(plain), weights_of(decayed)
    assert torch.equal(same["model.norm.weight"], other["model.norm.weight"])
    assert not torch.equal(same["lm_head.weight"], other["lm_head.weight"])
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [10.0, 0.0]
    groups = [*trainer.optimizer.param_groups, *trainer.mask_learning.optimizer.optimizer.param_groups]
    every = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(every) == sorted(id(parameter) for parameter in decayed.parameters())
    assert [group["weight_decay"] for group in trainer.mask_learning.optimizer.optimizer.param_groups] == [0.0, 0.0]


def test_a_plain_model_has_no_mask_optimizer(tmp_path):
    trainer = trained(tmp_path, plain_model(), max_steps=1)
    assert trainer.mask_learning is None
    assert trainer.mask_report is None
