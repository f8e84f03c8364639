"""Sizes that masks report, by hand: the expected shape, units kept below one half, the count a norm averages over."""

import math

import pytest
import torch
from mask_helpers import TARGET, make_masks

from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, MaskPhase
from hf_shear.shapes import ModelShape


def test_expected_shape_by_hand_for_relaxed_masks():
    masks = make_masks(log_alpha=0)
    masks.phase = MaskPhase(budget_progress=0.5, temperature=0.3)
    # Half of the way: hidden 15, layers 3.5, groups 2.5, queries 2.5 in each, so 6.25 heads, neurons 17.5.
    expected = {
        "hidden_size": 15,
        "num_hidden_layers": 3.5,
        "num_attention_heads": 6.25,
        "num_key_value_heads": 2.5,
        "intermediate_size": 17.5,
    }
    assert masks.expected_shape() == pytest.approx(expected, rel=1e-5)
    assert masks.target_shape_now() == pytest.approx(expected, rel=1e-12)
    masks.phase = MaskPhase(budget_progress=1.0, temperature=0.3)
    assert masks.expected_shape() == pytest.approx(TARGET.sizes(), rel=1e-5)
    assert masks.target_shape_now() == TARGET.sizes()


def test_expected_shape_by_hand_for_hard_concrete_masks():
    # Open probabilities 1 - .16818 at 0 and 1 - .00202 at ln 100.
    half, full = 1 - 0.16818, 1 - 0.00202
    source, target = ModelShape(4, 2, 4, 2, 3, head_dim=4), ModelShape(2, 1, 1, 1, 1, head_dim=4)
    top = math.log(100)
    masks = make_masks(
        source,
        target,
        method="hard_concrete",
        log_alpha={
            HIDDEN: [0.0, 0.0, top, top],
            LAYER: [0.0, top],
            KEY_VALUE_HEAD: [[0.0, top], [top, top]],
            QUERY_HEAD: [[[0.0, 0.0], [top, top]], [[0.0, top], [0.0, top]]],
            INTERMEDIATE: [[0.0, 0.0, 0.0], [top, top, top]],
        },
    )
    first = half * 2 * half + full * 2 * full
    second = 2 * full * (half + full)
    assert masks.expected_shape() == pytest.approx(
        {
            "hidden_size": 2 * half + 2 * full,
            "num_hidden_layers": half + full,
            "num_attention_heads": (first + second) / 2,
            "num_key_value_heads": (half + 3 * full) / 2,
            "intermediate_size": 3 * (half + full) / 2,
        },
        abs=2e-5,
    )
    rows = masks.expected_sparsity(masks.kinds[INTERMEDIATE])
    torch.testing.assert_close(rows.detach(), torch.tensor([0.16818, 0.00202]), rtol=0, atol=5e-6)
    assert masks.expected_sparsity(masks.kinds[HIDDEN]).shape == (1,)
    assert masks.expected_sparsity(masks.kinds[QUERY_HEAD]).shape == (4,)


def test_kept_below_half_by_hand():
    """soft(a) = sigmoid(1.2 a) is below one half for negative scores; soft(.2) = .56, and .56 squared is below too."""
    source, target = ModelShape(4, 2, 4, 2, 3, head_dim=4), ModelShape(2, 1, 1, 1, 2, head_dim=4)
    masks = make_masks(
        source,
        target,
        method="hard_concrete",
        log_alpha={
            HIDDEN: [-0.1, -3.0, -2.0, 1.0],  # keeps 1.0 and -.1
            LAYER: [-0.2, -0.1],  # keeps -.1
            KEY_VALUE_HEAD: [[0.2, -1.0], [3.0, 2.0]],  # keeps .2 and 3
            QUERY_HEAD: [[[0.2, 0.1], [9.0, 8.0]], [[-4.0, -0.3], [0.1, 0.2]]],  # in kept groups: .2 and -.3
            INTERMEDIATE: [[-1.0, -2.0, -3.0], [1.0, -2.0, 3.0]],  # keeps two low ones, then none
        },
    )
    assert masks.kept_below_half() == {
        "hidden_size": 1,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 0,
        "intermediate_size": 2,
    }


def test_kept_below_half_of_relaxed_masks_looks_at_the_relaxed_value():
    source, target = ModelShape(4, 2, 2, 1, 4, head_dim=4), ModelShape(2, 2, 2, 1, 4, head_dim=4)
    masks = make_masks(source, target, log_alpha={HIDDEN: [4.0, 0.1, 0.0, 0.0]})
    masks.phase = MaskPhase(temperature=1.0)
    gate = masks.expected_open(masks.kinds[HIDDEN])[1].item()
    assert gate < 0.5
    assert masks.kept_below_half()["hidden_size"] == 1
    masks.phase = MaskPhase(temperature=0.01)
    assert masks.kept_below_half()["hidden_size"] == 0


def test_hidden_count_is_what_a_norm_averages_over():
    masks = make_masks(log_alpha=0)
    gates = {HIDDEN: torch.tensor([0.5] * 4 + [0.0] * 14)}
    masks.train()
    assert masks.hidden_count(gates).item() == 2.0  # the exact sum stands in while relaxed gates are soft
    masks.eval()
    assert masks.hidden_count(gates).item() == 4.0
    paper = make_masks(method="hard_concrete", log_alpha=0).train()
    assert paper.hidden_count(gates).item() == 4.0
    assert masks.hidden_count({}) is None
