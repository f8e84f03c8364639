"""Masks and multipliers have an optimizer of their own, and are apart from the model while it trains."""

from __future__ import annotations

import copy

import pytest
import torch
from training_helpers import make_args, make_trainer, masked_model, train_domains

from hf_shear import ShearingLlamaForCausalLM, slice_model
from hf_shear.data import collate_domain_samples
from hf_shear.training.mask_optimizer import MASKS, MULTIPLIERS, MaskOptimizer


def optimizer(masks, factor=lambda step: 1.0) -> MaskOptimizer:
    return MaskOptimizer(masks, {MASKS: 0.1, MULTIPLIERS: 0.5}, factor)


def set_gradients(masks, value: float = 1.0) -> None:
    for parameter in masks.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_each_role_moves_at_its_rate_times_the_factor_of_the_step():
    masks = masked_model("hard_concrete").masks
    before = {name: value.clone() for name, value in masks.state_dict().items()}
    set_gradients(masks)
    optimizer(masks, factor=lambda step: 0.5 if step == 3 else 0.0).step(3)  # AdamW's first step is the rate
    for name, value in masks.state_dict().items():
        rate = 0.25 if name.startswith("multiplier") else 0.05
        torch.testing.assert_close(before[name] - value, torch.full_like(value, rate), rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in masks.parameters())


def test_a_factor_of_zero_stands_still():
    masks = masked_model().masks
    before = copy.deepcopy(masks.state_dict())
    set_gradients(masks)
    optimizer(masks, factor=lambda step: 0.0).step(0)
    assert all(torch.equal(value, before[name]) for name, value in masks.state_dict().items())


def test_a_mask_that_no_loss_reached_has_a_gradient_of_zero():
    masks = masked_model().masks
    first, *others = masks.parameters()
    first.grad = torch.ones_like(first)
    optimizer(masks).reduce_gradients()  # one process: nothing to do
    assert optimizer(masks).gradient_norm() == pytest.approx(first.numel() ** 0.5)
    assert all(not parameter.grad.any() for parameter in others)


def test_state_comes_back_bit_for_bit(tmp_path):
    masks = masked_model("hard_concrete").masks
    mine = optimizer(masks)
    for step in range(3):
        set_gradients(masks, 0.3 + step)
        mine.step(step)
    mine.save(tmp_path, {})
    other = masked_model("hard_concrete").masks
    theirs = optimizer(other)
    theirs.load(tmp_path)
    for m, o in ((masks, mine), (other, theirs)):
        set_gradients(m, -1.7)
        o.step(3)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in masks.state_dict().items())


def test_masks_apart_are_out_of_reach_for_what_wraps_the_model_and_work_as_before(tmp_path):
    model = masked_model("hard_concrete")
    batch = collate_domain_samples([train_domains()["books"][index] for index in range(2)])
    model.eval()
    whole = model(**batch).logits
    model.take_masks_apart()
    model.take_masks_apart()  # again is fine
    assert not any(name.startswith("masks") for name, _ in model.named_parameters())
    assert not any(name.startswith("masks") for name in model.state_dict())
    assert torch.equal(model(**batch).logits, whole)
    assert not model.masks.training and model.train().masks.training and not model.eval().masks.training
    assert model.to(torch.bfloat16).masks.log_alpha_hidden.dtype == torch.float32
    assert {parameter.device.type for parameter in model.to("meta").masks.parameters()} == {"meta"}


def test_masks_apart_are_saved_copied_and_sliced(tmp_path):
    model = masked_model("hard_concrete").eval()
    expected = slice_model(model)[1]
    model.take_masks_apart()
    assert slice_model(model)[1] == expected
    model.save_pretrained(tmp_path / "own")
    model.save_pretrained(tmp_path / "given", state_dict=model.state_dict())
    for name in ("own", "given"):
        loaded = ShearingLlamaForCausalLM.from_pretrained(tmp_path / name)
        assert torch.equal(loaded.masks.log_alpha_hidden, model.masks.log_alpha_hidden)
    copied = copy.deepcopy(model)
    assert torch.equal(copied.masks.log_alpha_hidden, model.masks.log_alpha_hidden)
    assert copied.masks is not model.masks
    model.put_masks_back()
    model.put_masks_back()
    assert "masks.log_alpha_hidden" in model.state_dict()


def test_training_takes_masks_apart_and_puts_them_back(tmp_path):
    model = masked_model()
    trainer = make_trainer(model, make_args(tmp_path, max_steps=1))
    seen = []
    step = trainer.training_step

    def look(*args, **kwargs):
        seen.append("masks" in model._modules)
        return step(*args, **kwargs)

    trainer.training_step = look
    trainer.train()
    assert seen == [False]
    assert "masks" in model._modules and model.masks.log_alpha_hidden in set(model.parameters())
