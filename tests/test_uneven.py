"""Models whose layers keep different numbers of units: masked = padded = reloaded, and their exact parameter counts."""

import copy
from dataclasses import replace

import pytest
import torch
from test_families import build as build_family
from transformers import AutoModelForCausalLM

from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD
from hf_shear.modeling import AutoShearingModelForCausalLM
from hf_shear.pruning.open_units import OpenUnits
from hf_shear.shapes import count_parameters, supported_model_types
from hf_shear.shapes.family_table import FAMILIES as FAMILY_ROWS
from hf_shear.slicing import count_kept_parameters, save_checkpoint, slice_model, slice_uneven, uneven

TOLERANCE = 1e-5


def closed(mask, *indices):
    for index in indices:
        mask[index] = 0
    return mask


def uneven_gates(num_groups, group_size, width=22, num_layers=4):
    """Gates under which no two layers are alike; layer 1 has no attention, layer 2 no MLP."""
    groups = closed(torch.ones(num_layers, num_groups), (0, 1), 1, (3, 0))
    neurons = torch.ones(num_layers, width)
    neurons[0, 5:] = neurons[1, ::2] = neurons[2] = neurons[3, 9] = 0
    gates = {KEY_VALUE_HEAD: groups, INTERMEDIATE: neurons}
    if group_size > 1:
        gates[QUERY_HEAD] = closed(torch.ones(num_layers, num_groups, group_size), (0, 0, 1), (3, 1, 0), (3, 2, 2))
    return gates


def logits(model, token_ids):
    with torch.no_grad():
        return model(token_ids).logits


FAMILIES = {
    "grouped": {},
    "multi-head": {"num_key_value_heads": 9},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "biased, tied, multi-head": {
        "num_key_value_heads": 9, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True,
    },
}  # fmt: skip


@pytest.fixture(params=FAMILIES, ids=list(FAMILIES))
def masked(request, build_llama, add_masks):
    return add_masks(build_llama(**FAMILIES[request.param]), {})


def gates_for(masked):
    source = masked.masks.source
    return uneven_gates(source.num_key_value_heads, source.queries_per_group)


@pytest.mark.parametrize("more", [{}, {LAYER: [1, 1, 1, 0]}, {HIDDEN: [1, 0] * 9}], ids=["", "layer", "hidden"])
def test_masked_equals_padded_equals_reloaded(masked, token_ids, more, tmp_path):
    gates = gates_for(masked) | {kind: torch.tensor(gate).float() for kind, gate in more.items()}
    with masked.use_gates(gates):
        wanted = logits(masked, token_ids)
    padded, kept = slice_uneven(masked, gates)
    assert (logits(padded, token_ids) - wanted).abs().max() < TOLERANCE
    assert (wanted - logits(masked, token_ids)).abs().max() > 0.1
    save_checkpoint(padded, tmp_path / "padded")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
    assert type(reloaded).__name__ == "LlamaForCausalLM"
    assert torch.equal(logits(reloaded, token_ids), logits(padded, token_ids))
    assert [len(kept.intermediate[layer]) for layer in kept.layers] == [5, 11, 0, 21][: len(kept.layers)]


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("name", [name for name in supported_model_types() if not FAMILY_ROWS[name].has_experts])
def test_every_family_is_padded_exactly(name, bias, token_ids):
    """Fused projections, norms behind sub-layers, norms of heads: masked = padded, and its non-zeros are counted."""
    source = build_family(name, bias=bias)
    masked = AutoShearingModelForCausalLM.from_model(source).eval()
    gates = uneven_gates(3, 3)
    if masked.family.fixed_sizes:
        del gates[QUERY_HEAD]
        gates[KEY_VALUE_HEAD] = closed(torch.ones(4, 3), 1)
    with masked.use_gates(gates):
        wanted = logits(masked, token_ids)
    padded, kept = slice_uneven(masked, gates)
    assert (logits(padded, token_ids) - wanted).abs().max() < TOLERANCE * wanted.abs().max()
    num_nonzero = sum(int(parameter.count_nonzero()) for parameter in padded.parameters())
    assert count_kept_parameters(masked.config, kept) == num_nonzero < padded.num_parameters()
    units = OpenUnits(masked.config, masked.masks.source, gates)
    assert units.num_parameters == num_nonzero and OpenUnits(
        masked.config, masked.masks.source
    ).num_parameters == count_parameters(source.config)


def test_what_is_not_padding_is_what_is_counted(masked):
    """Every weight of the fixtures is far from 0, so the zeros of the padded model are its padding."""
    padded, kept = slice_uneven(masked, gates_for(masked))
    num_nonzero = sum(int(parameter.count_nonzero()) for parameter in padded.parameters())
    assert count_kept_parameters(masked.config, kept) == num_nonzero < padded.num_parameters()


def test_padding_is_as_small_as_the_config_allows(masked):
    padded, kept = slice_uneven(masked, gates_for(masked))
    heads = max(len(kept.heads[layer]) for layer in kept.layers)
    assert padded.config.intermediate_size == 21
    assert padded.config.num_attention_heads >= heads
    assert padded.config.hidden_size % padded.config.num_attention_heads == 0  # what LlamaConfig asks for
    assert padded.config.head_dim == masked.config.head_dim


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-6), (torch.float64, 1e-13)])
def test_padding_adds_nothing(build_llama, add_masks, token_ids, monkeypatch, dtype, tolerance):
    """The same units, unpadded and padded to the source's widths; sums of other lengths may round otherwise."""
    target = {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 13}
    masked = add_masks(build_llama(), target).to(dtype)
    unpadded, kept = slice_model(masked)
    gates = masked.masks.deterministic()
    source = masked.masks.source
    monkeypatch.setattr(uneven, "padded_shape", lambda config, kept: replace(source, num_hidden_layers=4))
    padded, same = slice_uneven(masked, gates)
    assert same == kept and padded.config.intermediate_size == 22 and unpadded.config.intermediate_size == 13
    assert (logits(padded, token_ids) - logits(unpadded, token_ids)).abs().max() < tolerance


def test_even_gates_give_the_plain_slice(build_llama, add_masks, token_ids):
    target = {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 13, "num_hidden_layers": 3}
    masked = add_masks(build_llama(), target)
    plain, kept = slice_model(masked)
    padded, same = slice_uneven(masked, masked.masks.deterministic())
    assert kept == same and padded.config.to_dict() == plain.config.to_dict()
    assert all(torch.equal(weight, padded.state_dict()[name]) for name, weight in plain.state_dict().items())
    assert count_kept_parameters(masked.config, kept) == plain.num_parameters() == count_parameters(plain.config)


@pytest.mark.parametrize("whole_groups", [True, False])
def test_training_leaves_the_padding_zero(build_llama, add_masks, token_ids, whole_groups):
    """Neurons, KV heads and sub-layers of zeros get gradients of exactly 0. Single query heads of a live group do not:
    they read its values, so their columns of o_proj fill up, and then their rows of q_proj.
    """
    masked = add_masks(build_llama(attention_bias=True, mlp_bias=True), {})
    gates = uneven_gates(3, 3)
    if whole_groups:
        del gates[QUERY_HEAD]
    padded, _ = slice_uneven(masked, gates)
    before = copy.deepcopy(padded.state_dict())
    optimizer = torch.optim.AdamW(padded.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        padded(token_ids, labels=token_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = padded.state_dict()
    filled = {name for name, weight in before.items() if bool((after[name][weight == 0] != 0).any())}
    assert all(not torch.equal(after[name], before[name]) for name in before if "layers.0" in name)
    parts = [] if whole_groups else ["o_proj.weight", "q_proj.weight", "q_proj.bias"]
    assert filled == {f"model.layers.{layer}.self_attn.{part}" for layer in (0, 3) for part in parts}


def test_no_layer_left_is_refused(build_llama, add_masks):
    with pytest.raises(ValueError, match="closes all layers; at least one must stay"):
        slice_uneven(add_masks(build_llama(), {}), {LAYER: torch.zeros(4)})
