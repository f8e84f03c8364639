"""A masked checkpoint comes back as it was saved: weights, masks, phase, target and settings, and no other target."""

import json
from dataclasses import asdict

import pytest
import torch
from mask_helpers import METHODS
from masked_llama_helpers import PAPER, TARGET, TRAINING_PHASE, fresh
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from hf_shear.masks import MaskPhase, MaskSettings
from hf_shear.modeling import ShearingLlamaConfig, ShearingLlamaForCausalLM


@pytest.mark.parametrize("load", [ShearingLlamaForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained])
def test_masked_checkpoint_comes_back_whole(masked_folder, token_ids, load):
    model = load(masked_folder)
    assert type(model) is ShearingLlamaForCausalLM
    saved = load_file(masked_folder / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert len([name for name in saved if name.startswith("masks.")]) == 7
    assert model.masks.phase == MaskPhase(7, 1, 0.25, 0.125, 0.5, 0.75)
    assert model.masks.settings == PAPER and model.masks.target.sizes() == TARGET


def test_masked_checkpoint_has_a_model_type_of_its_own(masked_folder):
    config = json.loads((masked_folder / "config.json").read_text())
    assert config["model_type"] == "hf_shear_llama"
    assert config["architectures"] == ["ShearingLlamaForCausalLM"]
    assert config["mask_phase"] == asdict(MaskPhase(7, 1, 0.25, 0.125, 0.5, 0.75))
    assert type(AutoConfig.from_pretrained(masked_folder)) is ShearingLlamaConfig


@pytest.mark.parametrize("method", METHODS)
def test_a_reloaded_model_computes_and_draws_the_same(source, add_masks, token_ids, tmp_path, method):
    model = fresh(source, add_masks, method)
    model.set_mask_phase(TRAINING_PHASE)
    model.save_pretrained(tmp_path)
    again = ShearingLlamaForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(token_ids).logits, model(token_ids).logits)
        assert torch.equal(again.train()(token_ids).logits, model.train()(token_ids).logits)


def test_masks_of_a_bfloat16_checkpoint_are_saved_in_float32(source, add_masks, tmp_path):
    model = fresh(source, add_masks, "hard_concrete").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    for options in ({}, {"dtype": torch.float32}, {"dtype": torch.float16}):
        again = ShearingLlamaForCausalLM.from_pretrained(tmp_path, **options)
        assert again.dtype == options.get("dtype", torch.bfloat16)
        for name, parameter in again.masks.named_parameters():
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, model.masks.get_parameter(name))


def test_the_same_target_and_settings_may_be_repeated(masked_folder):
    model = ShearingLlamaForCausalLM.from_pretrained(masked_folder, target_shape=TARGET, mask_settings=PAPER)
    assert model.masks.target.sizes() == TARGET


@pytest.mark.parametrize("given", [{"hidden_size": 12}, {"intermediate_size": 13, "num_hidden_layers": None}, {}])
def test_a_part_of_the_same_target_may_be_repeated(masked_folder, given):
    model = ShearingLlamaForCausalLM.from_pretrained(masked_folder, target_shape=given)
    assert model.masks.target.sizes() == TARGET


@pytest.mark.parametrize("given", [{"hidden_size": 18}, {"num_hidden_layers": 3, "head_dim": 5}, {"hidden": 12}])
def test_a_part_of_another_target_is_refused_on_reload(masked_folder, given):
    with pytest.raises(ValueError, match=f"`target_shape` {given} differs from .*'hidden_size': 12"):
        ShearingLlamaForCausalLM.from_pretrained(masked_folder, target_shape=given)


def test_another_target_is_refused_on_reload(masked_folder):
    wrong = {**TARGET, "intermediate_size": 12}
    with pytest.raises(ValueError, match="`target_shape` .*'intermediate_size': 12.* differs from .*: 13"):
        ShearingLlamaForCausalLM.from_pretrained(masked_folder, target_shape=wrong)


def test_other_settings_are_refused_on_reload(masked_folder):
    with pytest.raises(ValueError, match="`mask_settings` .*seed=6.* differ from .*seed=5"):
        ShearingLlamaForCausalLM.from_pretrained(masked_folder, mask_settings=MaskSettings("hard_concrete", seed=6))
