"""The invariant everything rests on: masked, sliced and reloaded model compute the same function.

Measured here in float32: at most 4e-6 between masked and sliced logits of size up to 13, over all variants below.
"""

import copy
import importlib
import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, MaskPhase, MaskSettings
from hf_shear.modeling import MaskedLinear, MaskedRMSNorm, ShearingLlamaConfig, ShearingLlamaForCausalLM, scale_weight
from hf_shear.shapes import SHAPE_NAMES
from hf_shear.shapes import shape_config as shape_config_module
from hf_shear.slicing import slice_model

# The module, which the function of the same name hides.
slice_module = importlib.import_module("hf_shear.slicing.slice_model")
select_module = importlib.import_module("hf_shear.slicing.select_kept")

FLOAT32_BOUND = 1e-5
# bfloat16 keeps 8 bits: one rounding is 2^-9 relative. In standard deviations of the logits, two seeds of the six models
# below measured a mean gap of .0036 to .0045 and a largest one of .056; the same sliced model in bfloat16 and in
# float32 is .003 and .038 apart.
BFLOAT16_MEAN_BOUND = 0.008
BFLOAT16_MAX_BOUND = 0.12

ATTENTION = {
    "mha": ({"num_attention_heads": 6, "num_key_value_heads": 6}, {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "gqa": ({"num_attention_heads": 9, "num_key_value_heads": 3}, {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "mqa": ({"num_attention_heads": 6, "num_key_value_heads": 1}, {"num_attention_heads": 4, "num_key_value_heads": 1}),
}
KEPT_LAYERS = {
    "ends removed": [1, 2],
    "middle removed": [0, 3],
    "first removed": [1, 2, 3],
    "none removed": [0, 1, 2, 3],
}


def random_gates(model, kept_layers, seed=0, binary=False):
    """Gates of every constrained kind that keep the target's units, at random, with values in (.1, 1).

    Rows of removed layers and groups, which no slice looks at, keep any number.
    """
    generator = torch.Generator().manual_seed(seed)
    gates = {}
    for kind in model.masks.constrained:
        keep = torch.zeros(kind.mask_shape)
        if kind.name == LAYER:
            keep[kept_layers] = 1.0
        else:
            order = torch.rand(kind.mask_shape, generator=generator).argsort(dim=-1)
            keep[order < kind.num_kept] = 1.0
        values = 0.1 + 0.9 * torch.rand(kind.mask_shape, generator=generator)
        gates[kind.name] = keep if binary else keep * values
    removed = [layer for layer in range(model.config.num_hidden_layers) if layer not in kept_layers]
    for name in [name for name in (KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE) if name in gates and LAYER in gates]:
        gates[name][removed] = (torch.rand(gates[name][removed].shape, generator=generator) > 0.5).float()
    return gates


def make_model(build_llama, add_masks, attention="gqa", tied=False, bias=False, num_layers=2, seed=0, **config):
    heads, kept_heads = ATTENTION[attention]
    source = build_llama(seed=seed, **heads, tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias, **config)
    target = {"hidden_size": 12, "num_hidden_layers": num_layers, "intermediate_size": 13, **kept_heads}
    return add_masks(source, target)


def masked_logits(model, gates, ids, **inputs):
    with torch.no_grad():
        if gates is None:
            return model(ids, **inputs).logits
        with model.use_gates(gates):
            return model(ids, **inputs).logits


def assert_invariant(model, gates, ids, folder, bound=FLOAT32_BOUND, **inputs):
    """masked = sliced = saved and loaded, with nothing but stock classes after the cut. Returns the largest gap."""
    expected = masked_logits(model, gates, ids, **inputs)
    assert expected.std() > 0.1, "logits that are all alike would agree whatever the slice"
    sliced, kept = slice_model(model, gates)
    assert type(sliced) is LlamaForCausalLM and type(sliced.config) is LlamaConfig and not sliced.training
    with torch.no_grad():
        logits = sliced(ids, **inputs).logits
    gap = (logits - expected).abs().max().item()
    assert gap < bound, f"masked and sliced logits are {gap} apart"
    sliced.save_pretrained(folder)
    assert_plain_config(model, kept, json.loads((folder / "config.json").read_text()))
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(loaded) is LlamaForCausalLM and type(loaded.config) is LlamaConfig
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    with torch.no_grad():
        assert torch.equal(loaded(ids, **inputs).logits, logits)
    assert loaded.state_dict().keys() == sliced.state_dict().keys()
    assert loaded.dtype == sliced.dtype == model.dtype
    return gap


def assert_plain_config(model, kept, config):
    """The saved config names the target's shape in full, and nothing of hf_shear."""
    assert config["model_type"] == "llama" and config["architectures"] == ["LlamaForCausalLM"]
    assert {name: config[name] for name in SHAPE_NAMES} == model.masks.target.sizes()
    assert config.get("head_dim") == model.masks.source.head_dim, "head_dim is not in the config"
    added = set(ShearingLlamaConfig.__dataclass_fields__) - set(LlamaConfig.__dataclass_fields__)
    assert added and not added & set(config)
    for name in ("layer_types", "layer_scales"):
        if hasattr(model.config, name):
            kept_entries = [getattr(model.config, name)[layer] for layer in kept.layers]
            assert config[name] == kept_entries, f"{name} does not fit the kept layers"


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


# ---- what is kept, and what the cut leaves alone ----------------------------------------------------------------


def test_kept_units_by_hand(build_llama, add_masks):
    source = build_llama(num_attention_heads=6, num_key_value_heads=2, hidden_size=6, num_hidden_layers=3)
    model = add_masks(
        source,
        {
            "hidden_size": 4,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 1,
        },
    )
    neurons = torch.zeros(3, 22)
    neurons[0, 21], neurons[2, 7] = 1.0, 0.5
    gates = {
        HIDDEN: torch.tensor([0.0, 1.0, 0.3, 0.0, 1.0, 1.0]),
        LAYER: torch.tensor([1.0, 0.0, 0.2]),
        KEY_VALUE_HEAD: torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.5, 0.0]]),
        QUERY_HEAD: torch.tensor(
            [[[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]], [[0.0] * 3, [0.0] * 3], [[0.0, 0.1, 1.0], [0.0] * 3]]
        ),
        INTERMEDIATE: neurons,
    }
    sliced, kept = slice_model(model, gates)
    assert kept.to_dict() == {
        "layers": [0, 2],
        "hidden": [1, 2, 4, 5],
        "key_value_heads": {"0": [1], "2": [0]},
        "heads": {"0": [3, 5], "2": [1, 2]},
        "intermediate": {"0": [21], "2": [7]},
    }
    assert json.loads(json.dumps(kept.to_dict())) == kept.to_dict()
    # Unmasked weights are plain selections of the source's.
    second, origin = sliced.model.layers[1], source.model.layers[2]
    hidden = [1, 2, 4, 5]
    assert torch.equal(second.self_attn.q_proj.weight, origin.self_attn.q_proj.weight[4:12][:, hidden])
    assert torch.equal(second.self_attn.k_proj.weight, origin.self_attn.k_proj.weight[0:4][:, hidden])
    assert torch.equal(second.mlp.gate_proj.weight, origin.mlp.gate_proj.weight[[7]][:, hidden])


@pytest.mark.parametrize(
    "name, index, text",
    [
        (HIDDEN, (), "The hidden mask of the model keeps 18 of 18 units, but the target keeps 12"),
        (LAYER, (), "The layer mask of the model keeps 4 of 4 units, but the target keeps 2"),
        (INTERMEDIATE, (3,), "The intermediate mask of layer 3 keeps 22 of 22 units, but the target keeps 13"),
        (KEY_VALUE_HEAD, (3,), "The key_value_head mask of layer 3 keeps 3 of 3 units, but the target keeps 2"),
    ],
)
def test_gates_that_keep_another_number_are_refused(build_llama, add_masks, name, index, text):
    model = make_model(build_llama, add_masks)
    gates = random_gates(model, [0, 3])
    gates[name][index] = 1.0
    with pytest.raises(ValueError, match=text):
        slice_model(model, gates)
    del gates[name]
    with pytest.raises(ValueError, match=f"The {name} mask of .* but the target keeps"):
        slice_model(model, gates)


def test_queries_of_a_kept_group_are_counted_and_those_of_a_removed_group_are_not(build_llama, add_masks):
    model = make_model(build_llama, add_masks)
    gates = random_gates(model, [0, 3])
    removed_group = (gates[KEY_VALUE_HEAD][0] == 0).nonzero().item()
    kept_group = (gates[KEY_VALUE_HEAD][0] != 0).nonzero()[0].item()
    gates[QUERY_HEAD][0, removed_group] = 1.0
    slice_model(model, gates)
    gates[QUERY_HEAD][0, kept_group] = 1.0
    text = f"query_head mask of layer 0, KV head {kept_group} keeps 3 of 3 units, but the target keeps 2"
    with pytest.raises(ValueError, match=text):
        slice_model(model, gates)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_masked_model_is_left_as_it_is(build_llama, add_masks, token_ids, tied, training):
    model = make_model(build_llama, add_masks, tied=tied, bias=True, num_layers=4).train(training)
    config, state = copy.deepcopy(model.config.to_dict()), copy.deepcopy(model.state_dict())
    sliced, _ = slice_model(model)
    with torch.no_grad():
        for parameter in sliced.parameters():
            parameter.fill_(7.0)
    assert model.training == training
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_a_sliced_model_trains_on(build_llama, add_masks, token_ids, tied):
    model = make_model(build_llama, add_masks, tied=tied, bias=True)
    sliced, _ = slice_model(model, random_gates(model, [0, 3]))
    assert (sliced.lm_head.weight is sliced.model.embed_tokens.weight) == tied
    optimizer = torch.optim.SGD(sliced.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = sliced.train()(token_ids, labels=token_ids).loss
        loss.backward()
        assert all(parameter.grad is not None and parameter.is_leaf for parameter in sliced.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]


def test_generation_settings_and_attention_come_along(build_llama, add_masks):
    source = build_llama()
    source.generation_config.temperature = 0.7
    source.generation_config.do_sample = True
    model = add_masks(source, {"intermediate_size": 13})
    model.generation_config = copy.deepcopy(source.generation_config)
    model.set_attn_implementation("eager")
    sliced, _ = slice_model(model)
    assert sliced.generation_config.to_dict() == source.generation_config.to_dict()
    assert sliced.generation_config is not model.generation_config
    assert sliced.config._attn_implementation == "eager"


# ---- deliberate mistakes: the invariant must see each ------------------------------------------------------------


def scale_final_norm_twice(monkeypatch):
    original = slice_module._sliced_state_dict

    def wrong(model, gates, kept, *rest):
        state = original(model, gates, kept, *rest)
        state["model.norm.weight"] = state["model.norm.weight"] * gates[HIDDEN][kept.hidden]
        return state

    monkeypatch.setattr(slice_module, "_sliced_state_dict", wrong)


def scale_untied_head_too(monkeypatch):
    """The reference's export: z in the embeddings, the final norm and the head."""
    original = slice_module._sliced_state_dict

    def wrong(model, gates, kept, *rest):
        state = original(model, gates, kept, *rest)
        state["lm_head.weight"] = state["lm_head.weight"] * gates[HIDDEN][kept.hidden]
        return state

    monkeypatch.setattr(slice_module, "_sliced_state_dict", wrong)


def average_over_all_dimensions(monkeypatch):
    def wrong(self, hidden_states):
        normed = LlamaRMSNorm.forward(self, hidden_states)
        return normed if self.output_mask is None else normed * self.output_mask

    monkeypatch.setattr(MaskedRMSNorm, "forward", wrong)


def average_over_all_dimensions_in_epsilon(monkeypatch):
    """Only epsilon is left unscaled: seen where it matters beside the variance."""

    def wrong(self, hidden_states):
        if self.output_mask is None:
            return LlamaRMSNorm.forward(self, hidden_states)
        share = self.kept_count / hidden_states.shape[-1]
        variance = hidden_states.square().mean(-1, keepdim=True) / share + self.variance_epsilon / share
        return self.weight * self.output_mask * hidden_states * torch.rsqrt(variance)

    monkeypatch.setattr(MaskedRMSNorm, "forward", wrong)


def leave_bias_unmasked_in_the_forward(monkeypatch):
    def wrong(self, inputs):
        return torch.nn.functional.linear(
            inputs, scale_weight(self.weight, self.output_mask, self.input_mask), self.bias
        )

    monkeypatch.setattr(MaskedLinear, "forward", wrong)


def leave_bias_unmasked_in_the_slice(name):
    def patch(monkeypatch):
        original = slice_module._sliced_state_dict

        def wrong(model, gates, kept, *rest):
            state = original(model, gates, kept, *rest)
            for place, index in enumerate(kept.layers):
                bias = model.model.layers[index].get_submodule(name).bias
                state[f"model.layers.{place}.{name}.bias"] = bias[kept.hidden]
            return state

        monkeypatch.setattr(slice_module, "_sliced_state_dict", wrong)

    return patch


def keep_layer_types(monkeypatch):
    monkeypatch.setattr(shape_config_module, "_cut_layer_lists", lambda config, layers: {})


def cut_layer_lists_at_the_end(monkeypatch):
    original = shape_config_module._cut_layer_lists
    monkeypatch.setattr(
        shape_config_module, "_cut_layer_lists", lambda config, layers: original(config, range(len(layers)))
    )


def leave_head_dim_implicit(monkeypatch):
    original = LlamaConfig.to_dict
    monkeypatch.setattr(
        LlamaConfig, "to_dict", lambda self: {k: v for k, v in original(self).items() if k != "head_dim"}
    )


def replace_in_slice(name, make_wrong):
    return lambda monkeypatch: monkeypatch.setattr(slice_module, name, make_wrong(getattr(slice_module, name)))


def replace_in_selection(name, make_wrong):
    return lambda monkeypatch: monkeypatch.setattr(select_module, name, make_wrong(getattr(select_module, name)))


def without(kind):
    return lambda original: lambda gates, *rest: original({k: v for k, v in gates.items() if k != kind}, *rest)


def renumber_heads(original):
    """Reads the first heads in place of the kept ones."""
    return lambda heads, head_dim, device: original(list(range(len(heads))), head_dim, device)


APART = "masked and sliced logits are .* apart"
MISTAKES = {  # what is done, and the complaint
    "tied head scaled twice": (scale_final_norm_twice, APART),
    "untied head scaled too": (scale_untied_head_too, APART),
    "norm averaged over all dimensions": (average_over_all_dimensions, APART),
    "epsilon not scaled": (average_over_all_dimensions_in_epsilon, APART),
    "o_proj bias unmasked in the forward": (leave_bias_unmasked_in_the_forward, APART),
    "o_proj bias unmasked in the slice": (leave_bias_unmasked_in_the_slice("self_attn.o_proj"), APART),
    "down_proj bias unmasked in the slice": (leave_bias_unmasked_in_the_slice("mlp.down_proj"), APART),
    "layer_types not cut": (keep_layer_types, r"must be equal to the number of `layer_types` \(4\)"),
    "layer lists cut at the end": (cut_layer_lists_at_the_end, "layer_scales does not fit the kept layers"),
    "head_dim left implicit": (leave_head_dim_implicit, "head_dim is not in the config"),
    "layer gate not folded": (replace_in_slice("residual_write_masks", without(LAYER)), APART),
    "query gate not folded": (replace_in_slice("head_channel_masks", without(QUERY_HEAD)), APART),
    "group gate not folded": (replace_in_slice("head_channel_masks", without(KEY_VALUE_HEAD)), APART),
    "first heads in place of kept ones": (replace_in_selection("head_channels", renumber_heads), APART),
}
# A tied pair is one tensor, which a second fold would meet twice; an untied pair has a norm and a head to fold into.
ONLY_FOR = {"tied head scaled twice": True, "untied head scaled too": False}


def model_for_mistakes(build_llama, add_masks, tied):
    lists = {"layer_types": ["full_attention"] * 4, "layer_scales": [0.1, 0.2, 0.3, 0.4]}
    model = make_model(build_llama, add_masks, tied=tied, bias=True, rms_norm_eps=1e-2, **lists)
    return model, random_gates(model, [0, 3])


@pytest.mark.parametrize(
    "mistake, tied",
    [(name, tied) for name in MISTAKES for tied in (False, True) if ONLY_FOR.get(name, tied) == tied],
)
def test_the_invariant_sees_deliberate_mistakes(
    monkeypatch, build_llama, add_masks, token_ids, tmp_path, mistake, tied
):
    model, gates = model_for_mistakes(build_llama, add_masks, tied)
    make_mistake, complaint = MISTAKES[mistake]
    make_mistake(monkeypatch)
    with pytest.raises((AssertionError, ValueError), match=complaint):
        assert_invariant(model, gates, token_ids, tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_the_same_model_without_a_mistake(build_llama, add_masks, token_ids, tmp_path, tied):
    model, gates = model_for_mistakes(build_llama, add_masks, tied)
    assert_invariant(model, gates, token_ids, tmp_path)


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


def test_a_plain_model_can_not_be_sliced(build_llama):
    with pytest.raises(
        ValueError, match="`model` must be masked, but it is a LlamaForCausalLM. Load it with AutoShearing"
    ):
        slice_model(build_llama())
