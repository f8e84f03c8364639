"""What each recovery method trains."""

from __future__ import annotations

import pytest
from training_helpers import plain_model

from hf_shear.training import num_trainable, recovery_method
from hf_shear.training.adapters import default_peft_config


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_full_trains_everything():
    model = plain_model()
    assert recovery_method("full").prepare(model) is model
    assert num_trainable(model) == sum(parameter.numel() for parameter in model.parameters())


def test_norms_and_biases_are_all_norms_and_all_biases():
    model = plain_model(attention_bias=True, mlp_bias=True)
    assert recovery_method("norms_and_biases").prepare(model) is model
    names = {name for name, _ in model.named_parameters()}
    assert trained(model) == {name for name in names if name.endswith((".bias", "norm.weight"))}
    assert num_trainable(model) == 7 * 18 + 3 * (24 + 12 + 12 + 18 + 24 + 24 + 18)


def test_lora_trains_adapters_alone():
    pytest.importorskip("peft", reason="peft is not installed")
    model = recovery_method("lora").prepare(plain_model())
    assert trained(model) and all("lora_" in name for name in trained(model))
    per_layer = (18 + 24) + 2 * (18 + 12) + (24 + 18) + 3 * (18 + 24)  # q, k and v, o, the MLP's three
    assert num_trainable(model) == 3 * 16 * per_layer


def test_refusals():
    with pytest.raises(ValueError, match="must be one of full, lora, norms_and_biases, but it is 'all'"):
        recovery_method("all")
    pytest.importorskip("peft", reason="peft is not installed")
    with pytest.raises(ValueError, match="`peft_config` is given, but `recovery_method` is 'full'"):
        recovery_method("full", default_peft_config())
