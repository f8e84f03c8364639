"""A checkpoint or target that does not give a whole masked Llama is refused, and what is wrong is named."""

import logging
import shutil

import pytest
import torch
from masked_llama_helpers import TARGET
from safetensors.torch import load_file, save_file
from transformers import MistralConfig, MistralForCausalLM

from hf_shear.modeling import ShearingLlamaForCausalLM


@pytest.fixture
def no_transformers_log():
    """transformers reports missing weights by a log line of its own; only our exception is wanted here."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def test_a_plain_checkpoint_needs_a_target(source_folder):
    with pytest.raises(ValueError, match="`target_shape` is needed to add masks.*hidden_size, num_hidden_layers"):
        ShearingLlamaForCausalLM.from_pretrained(source_folder)


def test_a_bad_target_is_refused_before_any_weight_is_read(source, tmp_path):
    source.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`hidden_size` must be between 1 and the source's 18, but it is 19"):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path, target_shape={"hidden_size": 19})


def test_another_family_is_refused_and_the_supported_one_is_named(tmp_path):
    config = MistralConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=8,
        bos_token_id=1,
        eos_token_id=2,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type 'mistral' has no exact equivalent of model_type 'llama'"):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path, target_shape={"intermediate_size": 4})


def copy_without(folder, target, *parts):
    """A copy of a checkpoint without the tensors whose names contain any of ``parts``."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not any(part in name for part in parts)}
    assert len(kept) < len(weights)
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text((folder / "config.json").read_text())
    return target


@pytest.mark.parametrize("part", ["layers.2.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight", "layers.1."])
def test_missing_weights_are_refused_by_name(source_folder, masked_folder, tmp_path, part, no_transformers_log):
    copy_without(source_folder, tmp_path, part)
    with pytest.raises(ValueError, match=f"missing weights .*{part}"):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path, target_shape=TARGET)
    copy_without(masked_folder, tmp_path, part)
    with pytest.raises(ValueError, match=f"missing weights .*{part}"):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["masks.log_alpha_hidden", "masks.multiplier_linear", "masks."])
def test_a_masked_checkpoint_without_its_masks_is_refused(masked_folder, tmp_path, part, no_transformers_log):
    """Start values in place of learned ones would be a silent loss of the whole mask learning."""
    copy_without(masked_folder, tmp_path, part)
    with pytest.raises(ValueError, match=f"missing weights .*{part}"):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path)


def test_weights_of_another_shape_are_refused(source_folder, tmp_path, no_transformers_log):
    copy_without(source_folder, tmp_path, "model.norm.weight")
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(17)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match="mismatch|another shape"):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path, target_shape=TARGET)
    with pytest.raises(ValueError, match=r"weights of another shape .*model\.norm\.weight"):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path, target_shape=TARGET, ignore_mismatched_sizes=True)


def test_weights_that_the_config_does_not_name_are_refused(source_folder, tmp_path):
    shutil.copytree(source_folder, tmp_path / "source")
    weights = load_file(tmp_path / "source" / "model.safetensors")
    weights["model.layers.0.self_attn.extra.weight"] = torch.ones(3)
    save_file(weights, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"weights that the config does not name \['model\.layers\.0.*extra\.weight'\]"
    ):
        ShearingLlamaForCausalLM.from_pretrained(tmp_path / "source", target_shape=TARGET)
