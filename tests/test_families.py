"""The battery of every family: masked = sliced = reloaded, whatever is removed, tied or not, with biases or not.

A family is tested by its row in shapes/family_table.py: nothing is to be added here for a new one, unless its config
needs more than a Llama's (``CONFIGS``).
"""

import importlib
import json
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, MistralForCausalLM, OPTConfig

from hf_shear import ShearingLlamaForCausalLM, modeling, slice_model
from hf_shear.core.defaults import MASKED_PREFIX
from hf_shear.masks import EXPERT, HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD
from hf_shear.modeling import (
    AutoShearingModelForCausalLM,
    ShearingMistralForCausalLM,
    is_masked_config,
)
from hf_shear.modeling.auto_class import shearing_class
from hf_shear.modeling.family_classes import SHEARING_CLASSES
from hf_shear.shapes import ModelShape, TargetShape, check_supported_source, count_parameters, supported_model_types
from hf_shear.shapes.family import ALWAYS
from hf_shear.shapes.family_table import FAMILIES

FLOAT32_BOUND = 1e-5  # of the largest logit
BFLOAT16_BOUND = 0.2  # of the logits' standard deviation; measured: at most .078 on one CPU, .141 on another

SIZES = {
    "vocab_size": 40,
    "hidden_size": 18,
    "num_hidden_layers": 4,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 22,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADS = {
    "mha": ({"num_attention_heads": 6, "num_key_value_heads": 6}, {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "gqa": ({"num_attention_heads": 9, "num_key_value_heads": 3}, {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "mqa": ({"num_attention_heads": 6, "num_key_value_heads": 1}, {"num_attention_heads": 4, "num_key_value_heads": 1}),
}
LAYERS = {"ends removed": [1, 2], "middle removed": [0, 3], "none removed": [0, 1, 2, 3]}
ALTERNATING = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
WINDOW = {"sliding_window": 3}
# torch multiplies all experts at once, and only where rows of weights fill 16 bytes.
EXPERTS = {"hidden_size": 24, "num_local_experts": 6, "num_experts_per_tok": 2}

# What a config needs besides a Llama's fields, so that every part of the family does something.
CONFIGS = {
    "mistral": WINDOW,
    "ministral": WINDOW | {"layer_types": ALTERNATING},
    "qwen2": WINDOW | {"use_sliding_window": True, "layer_types": ALTERNATING},
    "qwen3": WINDOW | {"use_sliding_window": True, "layer_types": ALTERNATING},
    "smollm3": {"no_rope_layers": [1, 0, 1, 0]},
    "granite": {
        "embedding_multiplier": 1.7, "logits_scaling": 1.3, "residual_multiplier": 0.6, "attention_multiplier": 0.4,
    },
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}} | WINDOW,
    "gemma2": WINDOW | {"layer_types": ALTERNATING, "query_pre_attn_scalar": 5},
    "gemma3_text": WINDOW | {"layer_types": ALTERNATING, "query_pre_attn_scalar": 5},
    "olmo3": WINDOW | {"layer_types": ALTERNATING},
    "exaone4": WINDOW | {"layer_types": ALTERNATING},
    "seed_oss": {"attention_dropout": 0.0, "residual_dropout": 0.0},
    "mixtral": WINDOW | EXPERTS | {"intermediate_size": 16},
    "qwen3_moe": EXPERTS | {"moe_intermediate_size": 16, "norm_topk_prob": False},
}  # fmt: skip


def build(name, seed=0, bias=True, tied=False, **changes):
    """A tiny model of a family whose every weight, norm and bias is far from trivial."""
    family = FAMILIES[name]
    flags = {flag: bias for flag in family.biases.values() if flag != ALWAYS}
    config = family.config_class(**(SIZES | {"tie_word_embeddings": tied} | flags | CONFIGS.get(name, {}) | changes))
    model = family.model_class(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for full_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in full_name:
                parameter.copy_(1.0 - family.norm_offset + 0.3 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in full_name:
                parameter.copy_((0.2 if family.scaled_embedding else 0.7) * noise)
            else:
                parameter.copy_(1.2 * noise / parameter.shape[1] ** 0.5)
    return model


def target_of(name, attention, layers, **changes):
    heads = {} if FAMILIES[name].fixed_sizes else HEADS[attention][1]
    widths = {"hidden_size": 12, "intermediate_size": 13}
    if FAMILIES[name].has_experts:
        widths = {"hidden_size": 16, "num_experts": 4}
    return {**widths, "num_hidden_layers": len(layers), **heads, **changes}


def random_gates(model, kept_layers, seed=0):
    """Gates of every constrained kind that keep the target's units, with values in (.1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    gates = {}
    for kind in model.masks.constrained:
        keep = torch.zeros(kind.mask_shape)
        if kind.name == LAYER:
            keep[kept_layers] = 1.0
        else:
            keep[torch.rand(kind.mask_shape, generator=generator).argsort(dim=-1) < kind.num_kept] = 1.0
        gates[kind.name] = keep * (0.1 + 0.9 * torch.rand(kind.mask_shape, generator=generator))
    return gates


def logits(model, ids, gates=None):
    with torch.no_grad():
        if gates is None:
            return model(ids).logits
        with model.use_gates(gates):
            return model(ids).logits


def assert_invariant(model, gates, ids, folder):
    expected = logits(model, ids, gates)
    assert expected.std() > 0.05, "logits that are all alike would agree whatever the slice"
    sliced, kept = slice_model(model, gates)
    family = model.family
    assert type(sliced) is family.model_class and type(sliced.config) is family.config_class
    found = logits(sliced, ids)
    gap = (found - expected).abs().max() / expected.abs().max()
    assert gap < FLOAT32_BOUND, f"masked and sliced logits are {gap} of the largest apart"
    sliced.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == family.model_type and config["architectures"] == [family.model_name]
    assert config["head_dim"] == model.masks.source.head_dim
    for name in ("layer_types", "no_rope_layers"):
        if getattr(model.config, name, None) is not None:
            assert config[name] == [getattr(model.config, name)[layer] for layer in kept.layers]
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(loaded) is family.model_class
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    assert torch.equal(logits(loaded, ids), found)
    assert ModelShape.from_config(loaded.config).sizes() == model.masks.target.sizes()
    assert loaded.num_parameters() == count_parameters(loaded.config)
    return sliced, kept


@pytest.mark.parametrize("name", supported_model_types())
def test_open_masks_are_the_stock_model_and_its_count(name, token_ids):
    source = build(name)
    masked = AutoShearingModelForCausalLM.from_model(source)
    assert type(masked) is shearing_class(source.config) and isinstance(masked, FAMILIES[name].model_class)
    assert torch.equal(logits(masked, token_ids, {}), logits(source, token_ids))
    ones = {kind.name: torch.ones(kind.mask_shape) for kind in masked.masks.kinds.values()}
    torch.testing.assert_close(logits(masked, token_ids, ones), logits(source, token_ids), rtol=0, atol=2e-5)
    assert count_parameters(source.config) == source.num_parameters()


def combinations():
    """Family, attention, tied, bias, layers: all of them, most of them slow; each value of each factor is in a fast one."""
    for name in supported_model_types():
        biases = [False, True] if set(FAMILIES[name].biases.values()) - {ALWAYS} else [False]
        fast = {
            ("mha", False, biases[-1], "ends removed"),
            ("gqa", True, biases[0], "middle removed"),
            ("mqa", False, biases[0], "none removed"),
            ("gqa", False, biases[-1], "ends removed"),
        }
        for values in product(HEADS, (False, True), biases, LAYERS):
            flags = "tied" if values[1] else "untied", "bias" if values[2] else "no bias"
            text = "-".join((name, values[0], *flags, values[3]))
            yield pytest.param(name, *values, id=text, marks=() if values in fast else pytest.mark.slow)


@pytest.mark.parametrize("name, attention, tied, bias, layers", list(combinations()))
def test_masked_equals_sliced_equals_loaded(name, attention, tied, bias, layers, token_ids, tmp_path):
    layers = LAYERS[layers]
    source = build(name, bias=bias, tied=tied, **HEADS[attention][0])
    model = AutoShearingModelForCausalLM.from_model(source, target_of(name, attention, layers)).eval()
    gates = random_gates(model, layers)
    assert {HIDDEN, in_mlp(name)} <= gates.keys() and all(((g > 0) & (g < 1)).any() for g in gates.values())
    assert_invariant(model, gates, token_ids, tmp_path)


def in_mlp(name):
    return EXPERT if FAMILIES[name].has_experts else INTERMEDIATE


def kinds_of_families():
    for name in supported_model_types():
        heads = () if FAMILIES[name].fixed_sizes else (KEY_VALUE_HEAD, QUERY_HEAD)
        yield from ((name, kind) for kind in (HIDDEN, LAYER, in_mlp(name), *heads))


@pytest.mark.parametrize("name, kind", list(kinds_of_families()))
def test_each_kind_alone(name, kind, token_ids, tmp_path):
    target = {
        HIDDEN: {"hidden_size": 8 if FAMILIES[name].has_experts else 9},
        LAYER: {"num_hidden_layers": 2},
        KEY_VALUE_HEAD: {"num_attention_heads": 6, "num_key_value_heads": 2},
        QUERY_HEAD: {"num_attention_heads": 6},
        INTERMEDIATE: {"intermediate_size": 13},
        EXPERT: {"num_experts": 3},
    }[kind]
    model = AutoShearingModelForCausalLM.from_model(build(name, tied=True), target).eval()
    gates = random_gates(model, [0, 2])
    assert list(gates) == [kind]
    assert_invariant(model, gates, token_ids, tmp_path)


@pytest.mark.parametrize("name", supported_model_types())
def test_masks_survive_a_checkpoint_and_bfloat16(name, token_ids, tmp_path):
    source = build(name, tied=True)
    source.save_pretrained(tmp_path / "source")
    target = target_of(name, "gqa", [0, 3])
    masked = AutoShearingModelForCausalLM.from_pretrained(tmp_path / "source", target_shape=target).eval()
    assert is_masked_config(masked.config) and masked.config.model_type == f"{MASKED_PREFIX}{name}"
    masked.save_pretrained(tmp_path / "masked")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "masked").eval()
    assert type(again) is type(masked)
    assert torch.equal(logits(again, token_ids), logits(masked, token_ids))
    half = AutoShearingModelForCausalLM.from_model(source.to(torch.bfloat16), target).eval()
    gates = random_gates(half, [0, 3])
    expected = logits(half, token_ids, gates).float()
    found = logits(slice_model(half, gates)[0], token_ids).float()
    assert (found - expected).abs().max() / expected.std() < BFLOAT16_BOUND


@pytest.mark.parametrize("name", supported_model_types())
def test_generation_with_a_cache_equals_generation_without(name, token_ids):
    model = AutoShearingModelForCausalLM.from_model(build(name), target_of(name, "gqa", [0, 3])).eval()
    gates = random_gates(model, [0, 3])
    sliced, _ = slice_model(model, gates)
    with model.use_gates(gates):
        texts = [
            one.generate(token_ids, max_new_tokens=8, do_sample=False, use_cache=cache)
            for one in (sliced, model)
            for cache in (True, False)
        ]
    assert all(torch.equal(text, texts[0]) for text in texts[1:])


@pytest.mark.parametrize("name", supported_model_types())
def test_gradients_of_masks_are_the_same_under_checkpointing(name, token_ids):
    gradients = []
    for checkpointed in (False, True):
        model = AutoShearingModelForCausalLM.from_model(build(name), target_of(name, "gqa", [0, 3])).train()
        if checkpointed:
            older = not hasattr(model, "activation_checkpointing_enable")  # transformers before 5.23
            (model.gradient_checkpointing_enable if older else model.activation_checkpointing_enable)()
        model(token_ids, labels=token_ids, use_cache=False).loss.backward()
        gradients.append({kind: log_alpha.grad for kind, log_alpha in model.masks.log_alpha.items()})
    for kind, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[1][kind], gradient, rtol=1e-4, atol=1e-7)


def test_heads_that_are_normalised_together_stay():
    config = build("olmo2").config
    with pytest.raises(ValueError, match="normalised over all heads together.*Keep num_attention_heads=9"):
        TargetShape.from_source(config, num_attention_heads=6)
    assert TargetShape.from_source(config, hidden_size=12).num_attention_heads == 9


def test_other_families_are_refused_with_a_list():
    with pytest.raises(
        ValueError, match="'opt', which can not be sheared. Supported model types: .*qwen3.*docs families"
    ):
        AutoShearingModelForCausalLM.from_model(type("Model", (), {"config": OPTConfig()})())

    class OtherLlamaConfig(LlamaConfig):
        model_type = "other_llama"

    with pytest.raises(ValueError, match="'other_llama', which can not be sheared"):
        check_supported_source(OtherLlamaConfig())


def test_a_llama_without_biases_is_a_mistral(build_llama, token_ids, tmp_path):
    """LlamaConfig refuses a hidden size that the heads do not divide; a Mistral of the same function does not."""
    source = build_llama()
    source.save_pretrained(tmp_path / "source")
    target = {"hidden_size": 13, "num_attention_heads": 4, "num_key_value_heads": 2}
    with pytest.raises(ValueError, match="LlamaConfig refuses"):
        AutoShearingModelForCausalLM.from_pretrained(tmp_path / "source", target_shape=target)
    load = AutoShearingModelForCausalLM.from_pretrained
    model = load(tmp_path / "source", target_shape=target, as_family="mistral").eval()
    assert type(model) is ShearingMistralForCausalLM and model.config.sliding_window is None
    assert torch.equal(logits(model, token_ids, {}), logits(source, token_ids))
    gates = random_gates(model, [0, 1, 2, 3])
    sliced, _ = assert_invariant(model, gates, token_ids, tmp_path / "sliced")
    assert type(sliced) is MistralForCausalLM and sliced.config.hidden_size == 13


def test_what_is_no_mistral_is_refused(build_llama):
    with pytest.raises(ValueError, match="'llama' with biases has no exact equivalent of model_type 'mistral'"):
        AutoShearingModelForCausalLM.from_model(build_llama(attention_bias=True), as_family="mistral")
    with pytest.raises(ValueError, match="'mistral' has no exact equivalent of model_type 'llama'"):
        ShearingLlamaForCausalLM.from_model(MistralForCausalLM(MistralConfig(**SIZES)))
    with pytest.raises(ValueError, match="The model_type must be one of arcee.*but it is 'opt'"):
        AutoShearingModelForCausalLM.from_model(build_llama(), as_family="opt")


def without_offset(module):
    def scale(weight, mask, offset=0.0):
        return weight if mask is None else weight * mask.to(weight.dtype)

    return "scale_norm_weight", scale


def unfolded(name):
    return lambda module: (name, lambda *arguments: None)


def layer_gates_open(module):
    return "residual_write_masks", lambda gates, layers, family: ([gates.get(HIDDEN)] * layers, [None] * layers)


BUGS = {
    "norm offset forgotten": ("gemma2", "slice_model", without_offset),
    "embedding scale not made up for": ("gemma", "slice_model", unfolded("_fold_embedding_scale")),
    "layer gate before the norm behind it": ("olmo2", "slice_model", layer_gates_open),
    "hidden gates not folded": ("qwen3", "slice_model", unfolded("_fold_hidden")),
}


@pytest.mark.parametrize("name, module, bug", BUGS.values(), ids=BUGS)
def test_deliberate_bugs_are_caught(monkeypatch, name, module, bug, token_ids, tmp_path):
    model = AutoShearingModelForCausalLM.from_model(build(name, tied=True), target_of(name, "gqa", [0, 3])).eval()
    gates = random_gates(model, [0, 3])
    assert_invariant(model, gates, token_ids, tmp_path / "right")
    module = importlib.import_module(f"hf_shear.slicing.{module}")
    monkeypatch.setattr(module, *bug(module))
    with pytest.raises(AssertionError, match="apart"):
        assert_invariant(model, gates, token_ids, tmp_path / "wrong")


def test_parts_of_a_fused_projection_keep_their_order(monkeypatch, token_ids, tmp_path):
    model = AutoShearingModelForCausalLM.from_model(build("phi3"), target_of("phi3", "gqa", [0, 3])).eval()
    module = importlib.import_module("hf_shear.slicing.select_kept")
    right = module._axis_indices

    def swapped(kept, units, layer, source):
        order = units[::-1] if isinstance(units, tuple) and len(units) == 3 else units
        return right(kept, order, layer, source)

    monkeypatch.setattr(module, "_axis_indices", swapped)
    with pytest.raises((AssertionError, IndexError)):
        assert_invariant(model, random_gates(model, [0, 3]), token_ids, tmp_path)


def test_every_family_has_classes_of_its_own_and_no_other_class_is_there():
    assert set(SHEARING_CLASSES) == set(FAMILIES)
    for name, family in FAMILIES.items():
        masked, config = SHEARING_CLASSES[name], SHEARING_CLASSES[name].config_class
        assert masked.__name__ == f"Shearing{family.model_name}" and issubclass(masked, family.model_class)
        assert config.__name__ == f"Shearing{family.config_name}" and issubclass(config, family.config_class)
        assert config.model_type == f"{MASKED_PREFIX}{name}"
        assert {masked.__name__, config.__name__} <= set(modeling.__all__)


def test_the_page_names_every_family_and_what_can_be_removed():
    page = (Path(__file__).parent.parent / "examples/docs/families.md").read_text(encoding="utf-8")
    rows = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[0].startswith("`"):
            rows[cells[0].strip("`")] = cells[1:7]
    assert set(rows) == set(FAMILIES)
    for name, (class_name, layers, hidden, heads, neurons, experts) in rows.items():
        assert class_name.strip("`") == f"Shearing{FAMILIES[name].model_name}"
        assert (layers, hidden) == ("yes", "yes")
        assert (neurons, experts) == (("no", "yes") if FAMILIES[name].has_experts else ("yes", "-"))
        assert heads == ("no" if FAMILIES[name].fixed_sizes else "yes")
