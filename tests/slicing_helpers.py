"""Masked models of each attention with random gates, and the invariant that their slices must meet."""

import json

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_shear.masks import INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD
from hf_shear.modeling import ShearingLlamaConfig
from hf_shear.shapes import SHAPE_NAMES
from hf_shear.slicing import slice_model

# At most 4e-6 was measured between masked and sliced logits of size up to 13, over all variants in test_slice_model.py.
FLOAT32_BOUND = 1e-5
ATTENTION = {
    "mha": ({"num_attention_heads": 6, "num_key_value_heads": 6}, {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "gqa": ({"num_attention_heads": 9, "num_key_value_heads": 3}, {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "mqa": ({"num_attention_heads": 6, "num_key_value_heads": 1}, {"num_attention_heads": 4, "num_key_value_heads": 1}),
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
