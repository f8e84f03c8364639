"""Gradients of the masked Llama reach all that learns, and stay the same with checkpointing and other attention."""

import warnings

import pytest
import torch
from mask_helpers import METHODS
from masked_llama_helpers import TARGET, TRAINING_PHASE, enable_checkpointing, fresh, gradients, scatter_masks

from hf_shear.masks import MaskPhase, ShearingMasks
from hf_shear.modeling import ShearingLlamaForCausalLM
from hf_shear.slicing import slice_model


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_all_masks_multipliers_and_weights(source, add_masks, token_ids, method):
    model = fresh(source, add_masks, method).train()
    model.set_mask_phase(TRAINING_PHASE)
    found = gradients(model, token_ids)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, gradient in found.items():
        assert torch.isfinite(gradient).all() and (gradient != 0).any(), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [None, {"use_reentrant": False}, {"preserve_rng_state": False}])
def test_checkpointing_gives_the_same_gradients(source, add_masks, token_ids, method, options):
    model = fresh(source, add_masks, method).train()
    model.set_mask_phase(TRAINING_PHASE)
    expected = gradients(model, token_ids)
    enable_checkpointing(model, options)
    assert model.model.gradient_checkpointing
    found = gradients(model, token_ids)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_masks_are_drawn_once_per_forward_even_when_layers_are_recomputed(monkeypatch, source, add_masks, token_ids):
    model = fresh(source, add_masks).train()
    enable_checkpointing(model)
    draws, norms = [], []
    sample = ShearingMasks.sample
    monkeypatch.setattr(ShearingMasks, "sample", lambda self: draws.append(1) or sample(self))
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *call: norms.append(1))
    gradients(model, token_ids)
    assert len(norms) == 2 and len(draws) == 1


def test_reentrant_checkpointing_is_refused_with_the_reason(source, add_masks):
    model = fresh(source, add_masks)
    reason = "`use_reentrant=True` does not work with masks: re-entrant checkpointing computes no gradient"
    for options in ({}, {"offload": True}):
        with pytest.raises(ValueError, match=reason):
            enable_checkpointing(model, {"use_reentrant": True}, **options)
    assert not model.model.gradient_checkpointing
    with warnings.catch_warnings(), pytest.raises(ValueError, match=reason):
        warnings.simplefilter("ignore", FutureWarning)  # newer releases of transformers warn of this name
        model.gradient_checkpointing_enable({"use_reentrant": True})


def test_checkpointing_can_be_switched_off_and_thinned_out(source, add_masks):
    model = fresh(source, add_masks)
    enable_checkpointing(model, every_n_layers=2)
    assert [layer.gradient_checkpointing for layer in model.model.layers] == [True, False, True, False]
    older = not hasattr(model, "activation_checkpointing_disable")
    (model.gradient_checkpointing_disable if older else model.activation_checkpointing_disable)()
    assert not model.model.gradient_checkpointing


@pytest.mark.parametrize("training", [True, False])
def test_sdpa_and_eager_attention_agree(source_folder, token_ids, training):
    outputs = []
    for attention in ("sdpa", "eager"):
        model = ShearingLlamaForCausalLM.from_pretrained(
            source_folder, target_shape=TARGET, attn_implementation=attention
        )
        assert model.config._attn_implementation == attention
        scatter_masks(model).train(training).set_mask_phase(TRAINING_PHASE)
        outputs.append((model(token_ids).logits.detach(), gradients(model, token_ids)))
    (sdpa, sdpa_gradients), (eager, eager_gradients) = outputs
    torch.testing.assert_close(sdpa, eager, rtol=0, atol=1e-5)
    for name, gradient in sdpa_gradients.items():
        torch.testing.assert_close(gradient, eager_gradients[name], rtol=1e-3, atol=1e-5)


def test_two_forwards_before_one_backward_keep_their_own_masks(source_folder):
    """A recompute must see the masks of its own forward, not those of a later one."""

    def gradients(checkpointing: bool) -> dict:
        model = ShearingLlamaForCausalLM.from_pretrained(source_folder, target_shape=TARGET).train()
        if checkpointing:
            enable_checkpointing(model)
        losses = []
        for step in (0, 1):
            model.set_mask_phase(MaskPhase(optimizer_step=step, temperature=0.5, noise_scale=1.0))
            torch.manual_seed(step)
            ids = torch.randint(0, model.config.vocab_size, (2, 8))
            losses.append(model(input_ids=ids, labels=ids, use_cache=False).loss)
        sum(losses).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys() and len(plain) > 10
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "target",
    [
        {"hidden_size": 18},
        {"num_hidden_layers": 3},
        {"num_attention_heads": 2, "num_key_value_heads": 1},
        {"num_attention_heads": 3},
        {"intermediate_size": 20},
    ],
    ids=lambda target: "-".join(target),
)
def test_each_kind_of_mask_learns_alone(source_folder, target):
    """Whatever else is frozen: a training step reaches every score, and masked equals sliced afterwards."""
    model = ShearingLlamaForCausalLM.from_pretrained(source_folder, target_shape=target).train()
    model.set_mask_phase(MaskPhase(temperature=0.5))
    ids = torch.arange(16).view(2, 8)
    model(input_ids=ids, labels=ids).loss.backward()
    for kind, log_alpha in model.masks.log_alpha.items():
        assert log_alpha.grad.shape == log_alpha.shape and log_alpha.grad.abs().sum() > 0, kind
        log_alpha.data -= log_alpha.grad
    with torch.no_grad():
        sliced, _ = slice_model(model.eval())
        torch.testing.assert_close(sliced(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
