"""Which masks, gates and multipliers a target needs, which settings there are, and the dtype that masks keep."""

import pytest
import torch
from mask_helpers import METHODS, SOURCE, make_masks

from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, MaskSettings
from hf_shear.masks.unit_kinds import UNIT_KINDS
from hf_shear.shapes import ModelShape


def test_kinds_have_the_rows_and_sizes_of_grouped_attention():
    masks = make_masks()
    assert tuple(masks.kinds) == UNIT_KINDS
    assert {name: (kind.mask_shape, kind.num_kept) for name, kind in masks.kinds.items()} == {
        HIDDEN: ((18,), 12),
        LAYER: ((4,), 3),
        KEY_VALUE_HEAD: ((4, 3), 2),
        QUERY_HEAD: ((4, 3, 3), 2),
        INTERMEDIATE: ((4, 22), 13),
    }


def test_frozen_kinds_have_no_parameter_no_gate_and_no_constraint():
    masks = make_masks(target=ModelShape(18, 4, 9, 3, 13, head_dim=4), method="hard_concrete", log_alpha=0)
    assert {name for name, _ in masks.named_parameters()} == {
        "log_alpha_intermediate",
        "multiplier_linear",
        "multiplier_quadratic",
    }
    assert masks.multiplier_linear.shape == (1,)
    assert list(masks.sample()) == list(masks.deterministic()) == [INTERMEDIATE]
    assert masks.kept_units()[LAYER].tolist() == [True] * 4
    assert masks.expected_shape()["hidden_size"] == 18
    assert masks.expected_shape()["num_attention_heads"] == 9


@pytest.mark.parametrize("method", METHODS)
def test_a_target_equal_to_the_source_leaves_nothing_to_learn(method):
    masks = make_masks(target=SOURCE, method=method)
    assert not list(masks.parameters())
    assert masks() == {} and masks.deterministic() == {} and masks.lagrangian() is None
    assert masks.expected_shape() == {name: float(size) for name, size in SOURCE.sizes().items()}
    assert set(masks.kept_below_half().values()) == {0}


def test_only_hard_concrete_needs_multipliers():
    assert make_masks(method="relaxed_topk").lagrangian() is None
    assert not make_masks(method="relaxed_topk").multipliers()
    assert len(make_masks(method="hard_concrete").multipliers()) == 2


@pytest.mark.parametrize("field, value", [("method", "l0"), ("draw", "per_rank")])
def test_unknown_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}` must be one of .*, but it is '{value}'"):
        MaskSettings(**{field: value})


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
def test_masks_stay_float32_whatever_the_model_is_cast_to(cast):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), make_masks(method="hard_concrete", log_alpha=0))
    before = {name: parameter.detach().clone() for name, parameter in model[1].named_parameters()}
    cast(model)
    assert model[0].weight.dtype != torch.float32
    for name, parameter in model[1].named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name])
