"""Deterministic masks keep exactly the target's units, for any shape, and hardening ends in them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_helpers import METHODS, assert_same_gates, make_masks

from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, MaskPhase
from hf_shear.masks.hard_concrete import soft_gates
from hf_shear.masks.unit_kinds import UNIT_KINDS
from hf_shear.shapes import ModelShape


@pytest.mark.parametrize("method", METHODS)
def test_deterministic_masks_have_exactly_the_target_open(method):
    masks = make_masks(method=method, log_alpha=1)
    gates, kept = masks.deterministic(), masks.kept_units()
    assert list(gates) == list(UNIT_KINDS)
    for name, gate in gates.items():
        assert not gate.requires_grad
        assert ((gate != 0).sum(-1) == masks.kinds[name].num_kept).all()
        assert torch.equal(gate != 0, kept[name])
        if method == "hard_concrete":
            soft = soft_gates(masks.log_alpha[name].detach())
            assert torch.equal(gate, torch.where(kept[name], soft, 0.0))
        else:
            assert torch.equal(gate, kept[name].float())


@pytest.mark.parametrize("method", METHODS)
def test_grouped_attention_keeps_whole_groups_and_equal_queries_in_each(method):
    kept = make_masks(method=method, log_alpha=2).kept_units()
    assert (kept[KEY_VALUE_HEAD].sum(-1) == 2).all()
    heads = kept[KEY_VALUE_HEAD].unsqueeze(-1) & kept[QUERY_HEAD]
    for layer in range(4):
        assert sorted(heads[layer].sum(-1).tolist()) == [0, 2, 2]
    # Layers and groups choose for themselves.
    assert len({tuple(row) for row in kept[KEY_VALUE_HEAD].tolist()}) > 1


@pytest.mark.parametrize("method", METHODS)
def test_full_hardening_is_binary_and_equals_what_an_export_keeps(method):
    masks = make_masks(method=method, log_alpha=3)
    masks.phase = MaskPhase(optimizer_step=4, hardening=1.0, temperature=0.7, noise_scale=0.5)
    kept = masks.kept_units()
    for gates in (masks.sample(), masks.deterministic()):
        assert list(gates) == list(UNIT_KINDS)
        for name, gate in gates.items():
            assert torch.equal(gate, kept[name].float())


@pytest.mark.parametrize("method", METHODS)
def test_hardening_moves_linearly_from_the_learned_values(method):
    masks = make_masks(method=method, log_alpha=3)

    def drawn(hardening):
        masks.phase = MaskPhase(optimizer_step=4, hardening=hardening, temperature=0.7)
        return masks.sample()[INTERMEDIATE].detach(), masks.deterministic()[INTERMEDIATE]

    for soft, half, hard in zip(drawn(0.0), drawn(0.25), drawn(1.0), strict=True):
        torch.testing.assert_close(half, 0.75 * soft + 0.25 * hard)


def test_noise_ends_where_hardening_starts():
    masks = make_masks(log_alpha=3)
    masks.phase = MaskPhase(hardening=0.5, noise_scale=0.8, temperature=0.7)
    noisy_gates = masks.sample()
    masks.phase = MaskPhase(hardening=0.5, temperature=0.7)
    assert_same_gates(noisy_gates, masks.sample())


@given(
    layers=st.integers(1, 4),
    kv_heads=st.integers(1, 4),
    group=st.integers(1, 3),
    data=st.data(),
    method=st.sampled_from(METHODS),
)
@settings(max_examples=40, deadline=None)
def test_what_is_kept_has_the_target_size_for_any_shape(layers, kv_heads, group, data, method):
    source = ModelShape(6, layers, kv_heads * group, kv_heads, 5, head_dim=2)
    kept_kv, kept_group = data.draw(st.integers(1, kv_heads)), data.draw(st.integers(1, group))
    target = ModelShape(
        data.draw(st.integers(1, 6)),
        data.draw(st.integers(1, layers)),
        kept_kv * kept_group,
        kept_kv,
        data.draw(st.integers(1, 5)),
        head_dim=2,
    )
    masks = make_masks(source, target, log_alpha=data.draw(st.integers(0, 1000)), method=method)
    kept = masks.kept_units()
    assert {name: tuple(mask.shape) for name, mask in kept.items()} == {
        name: kind.mask_shape for name, kind in masks.kinds.items()
    }
    heads = (kept[KEY_VALUE_HEAD].unsqueeze(-1) & kept[QUERY_HEAD]).sum((-2, -1))
    assert (heads == target.num_attention_heads).all()
    assert kept[LAYER].sum() == target.num_hidden_layers and kept[HIDDEN].sum() == target.hidden_size
    assert (kept[INTERMEDIATE].sum(-1) == target.intermediate_size).all()
    assert set(masks.sample()) == set(masks.deterministic()) == {kind.name for kind in masks.constrained}
