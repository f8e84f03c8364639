"""The invariant everything rests on: masked, sliced and reloaded model compute the same function."""

import json
import math

import numpy as np
import pytest
import torch
from slicing_helpers import ATTENTION, FLOAT32_BOUND, assert_invariant, make_model, masked_logits, random_gates
from transformers import LlamaConfig, Qwen3Config, Qwen3ForCausalLM

from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, MaskPhase, MaskSettings
from hf_shear.modeling import AutoShearingModelForCausalLM, ShearingLlamaConfig, ShearingLlamaForCausalLM
from hf_shear.slicing import slice_model

# bfloat16 keeps 8 bits: one rounding is 2^-9 relative. In standard deviations of the logits, two seeds of the six models
# below measured a mean gap of .0036 to .0045 and a largest one of .056; the same sliced model in bfloat16 and in
# float32 is .003 and .038 apart.
BFLOAT16_MEAN_BOUND = 0.008
BFLOAT16_MAX_BOUND = 0.12
KEPT_LAYERS = {
    "ends removed": [1, 2],
    "middle removed": [0, 3],
    "first removed": [1, 2, 3],
    "none removed": [0, 1, 2, 3],
}


@pytest.mark.parametrize("kept_layers", KEPT_LAYERS.values(), ids=KEPT_LAYERS)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_masked_equals_sliced_equals_loaded(
    build_llama, add_masks, token_ids, tmp_path, attention, tied, bias, kept_layers
):
    model = make_model(build_llama, add_masks, attention, tied, bias, len(kept_layers))
    gates = random_gates(model, kept_layers)
    expected_kinds = {HIDDEN, LAYER, KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE}
    expected_kinds -= {"mha": {QUERY_HEAD}, "mqa": {KEY_VALUE_HEAD}}.get(attention, set())
    expected_kinds -= {LAYER} if len(kept_layers) == 4 else set()
    assert gates.keys() == expected_kinds
    assert all(((gate > 0) & (gate < 1)).any() for gate in gates.values())
    assert_invariant(model, gates, token_ids, tmp_path)


@pytest.mark.parametrize("kind", [HIDDEN, LAYER, KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE])
@pytest.mark.parametrize("tied", [False, True])
def test_each_kind_alone(build_llama, add_masks, token_ids, tmp_path, kind, tied):
    source = build_llama(tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    target = {
        HIDDEN: {"hidden_size": 9},
        LAYER: {"num_hidden_layers": 2},
        KEY_VALUE_HEAD: {"num_attention_heads": 6, "num_key_value_heads": 2},
        QUERY_HEAD: {"num_attention_heads": 6},
        INTERMEDIATE: {"intermediate_size": 13},
    }[kind]
    model = add_masks(source, target)
    gates = random_gates(model, [0, 2])
    assert list(gates) == [kind]
    assert_invariant(model, gates, token_ids, tmp_path)


@pytest.mark.parametrize("method", ["hard_concrete", "relaxed_topk"])
@pytest.mark.parametrize("hardening", [0.0, 0.5, 1.0])
def test_the_model_s_own_masks(build_llama, add_masks, token_ids, tmp_path, method, hardening):
    source = build_llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    target = {**ATTENTION["gqa"][1], "hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 13}
    model = add_masks(source, target, MaskSettings(method=method))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.masks.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
    model.set_mask_phase(MaskPhase(hardening=hardening))
    assert_invariant(model, None, token_ids, tmp_path)
    _, kept = slice_model(model)
    assert kept.layers == model.masks.kept_units()[LAYER].nonzero().flatten().tolist()


def test_soft_gates_of_kinds_that_lose_nothing(build_llama, add_masks, token_ids, tmp_path):
    model = add_masks(build_llama(attention_bias=True, mlp_bias=True), {"intermediate_size": 13})
    generator = torch.Generator().manual_seed(1)
    gates = {
        kind.name: 0.1 + 0.9 * torch.rand(kind.mask_shape, generator=generator) for kind in model.masks.kinds.values()
    }
    gates[INTERMEDIATE] = random_gates(model, [0, 1, 2, 3])[INTERMEDIATE]
    assert_invariant(model, gates, token_ids, tmp_path)


def test_a_target_equal_to_the_source_gives_the_source(build_llama, add_masks, token_ids, tmp_path):
    source = build_llama()
    model = add_masks(source, {"hidden_size": 18})
    assert assert_invariant(model, None, token_ids, tmp_path) == 0
    sliced, _ = slice_model(model)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in sliced.state_dict().items())


def test_padded_batches(build_llama, add_masks, token_ids, tmp_path):
    model = make_model(build_llama, add_masks, bias=True)
    attention_mask = torch.ones_like(token_ids)
    attention_mask[1, :4] = 0
    gates = random_gates(model, [0, 3])
    assert_invariant(model, gates, token_ids, tmp_path, attention_mask=attention_mask)
    padded = masked_logits(model, gates, token_ids, attention_mask=attention_mask)
    assert not torch.allclose(padded[1], masked_logits(model, gates, token_ids)[1])


def test_rope_scaling_and_large_epsilon_survive(build_llama, add_masks, token_ids, tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = make_model(build_llama, add_masks, rope_parameters=rope, rms_norm_eps=0.3)
    assert_invariant(model, random_gates(model, [1, 2]), token_ids, tmp_path)
    sliced, _ = slice_model(model, random_gates(model, [1, 2]))
    assert sliced.config.rope_parameters == model.config.rope_parameters
    assert sliced.config.rms_norm_eps == 0.3


def test_per_layer_lists_of_the_config_are_cut(build_llama, add_masks, token_ids, tmp_path):
    lists = {"layer_types": ["full_attention"] * 4, "layer_scales": [0.1, 0.2, 0.3, 0.4]}
    model = make_model(build_llama, add_masks, **lists)
    assert_invariant(model, random_gates(model, [0, 3]), token_ids, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["layer_scales"] == [0.1, 0.4]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("tied", [False, True])
def test_bfloat16_within_its_rounding(build_llama, add_masks, tmp_path, attention, tied):
    ids = torch.randint(3, 40, (4, 32), generator=torch.Generator().manual_seed(1))
    model = make_model(build_llama, add_masks, attention, tied, bias=True).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "masked")
    # Loaded, not only cast: a cast takes the rotary frequencies to bfloat16 too, which no loaded model has.
    model = ShearingLlamaForCausalLM.from_pretrained(tmp_path / "masked")
    gates = random_gates(model, [0, 3])
    sliced, _ = slice_model(model, gates)
    assert {parameter.dtype for parameter in sliced.parameters()} == {torch.bfloat16}
    assert sliced.config.dtype == torch.bfloat16
    with torch.no_grad():
        logits = sliced(ids).logits.float()
    gap = (logits - masked_logits(model, gates, ids).float()).abs() / logits.std()
    assert gap.mean() < BFLOAT16_MEAN_BOUND and gap.max() < BFLOAT16_MAX_BOUND
    assert_invariant(model, gates, ids, tmp_path, bound=BFLOAT16_MAX_BOUND * logits.std().item())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_follows_the_source(build_llama, add_masks, dtype):
    model = make_model(build_llama, add_masks, bias=True).to(dtype)
    sliced, _ = slice_model(model, random_gates(model, [0, 3]))
    assert sliced.dtype == sliced.config.dtype == dtype
    assert {parameter.dtype for parameter in sliced.parameters()} == {dtype}


# ---- the reference's sliced logits ------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", ["binary", "soft_nohidden"])
def test_reference_sliced_logits(monkeypatch, shared_data, tmp_path, masks):
    """On logits of up to 23."""
    reference = np.load(shared_data / "reference" / "stories260K_mha_masks.npz")
    target = {"num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 128}
    if masks == "binary":
        target["hidden_size"] = 48
    else:
        # LlamaConfig refuses hidden 64 with 6 heads, for no reason of the model's: head_dim is explicit. The
        # reference's case is cut exactly like that, so the refusal is lifted here.
        for config_class in (LlamaConfig, ShearingLlamaConfig):
            allowed = [v for v in config_class.__class_validators__ if v.__name__ != "validate_architecture"]
            monkeypatch.setattr(config_class, "__class_validators__", allowed)
    model = ShearingLlamaForCausalLM.from_pretrained(shared_data / "models" / "stories260K-mha", target_shape=target)
    names = {"head_z": KEY_VALUE_HEAD, "intermediate_z": INTERMEDIATE, "head_layer_z": LAYER, "hidden_z": HIDDEN}
    gates = {
        kind: torch.from_numpy(reference[f"{masks}.{name}"]).reshape(model.masks.kinds[kind].mask_shape)
        for name, kind in names.items()
        if f"{masks}.{name}" in reference
    }
    assert gates.keys() == {kind.name for kind in model.masks.constrained}
    ids = torch.from_numpy(reference["input_ids"])
    sliced, kept = slice_model(model, gates)
    with torch.no_grad():
        logits = sliced(ids).logits
    expected = torch.from_numpy(reference[f"{masks}.pruned_logits"])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    bound = FLOAT32_BOUND * math.ceil(expected.abs().max().item())  # relative to the largest logit, 18 or 23
    assert_invariant(model, gates, ids, tmp_path, bound=bound)
    assert len(kept.hidden) == (48 if masks == "binary" else 64)
    assert [len(heads) for heads in kept.heads.values()] == [6, 6, 6, 6]


def test_a_sliced_model_shares_no_memory_with_its_source():
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        vocab_size=40,
    )  # fmt: skip
    source = Qwen3ForCausalLM(config)  # whose norms over each head no kind of unit cuts
    masked = AutoShearingModelForCausalLM.from_model(source, {"intermediate_size": 16})
    sliced, _ = slice_model(masked)
    of_source = {weight.untyped_storage().data_ptr() for model in (source, masked) for weight in model.parameters()}
    assert not [name for name, one in sliced.named_parameters() if one.untyped_storage().data_ptr() in of_source]
