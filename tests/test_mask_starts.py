"""Where mask scores start, by a value, the paper's bound or importance, and the bound that they never leave."""

import math

import pytest
import torch
from mask_helpers import SOURCE, TARGET, assert_same_gates, make_masks

from hf_shear.criteria import mask_start_importance
from hf_shear.criteria.loss_rise import loss_rise
from hf_shear.criteria.taylor import taylor
from hf_shear.data import Calibration
from hf_shear.masks import (
    HIDDEN,
    KEY_VALUE_HEAD,
    LAYER,
    QUERY_HEAD,
    START_SPREAD,
    MaskSettings,
    ShearingMasks,
    hard_topk,
)


def test_paper_start_is_the_bound_exactly():
    settings_ = MaskSettings.paper(seed=1)
    masks = ShearingMasks(SOURCE, TARGET, settings_)
    start = masks.start_parameters()
    for name in masks.log_alpha:
        # 5 +- .01 lies outside of the clamp, so that every gate really starts at ln 100.
        assert (start[f"log_alpha_{name}"] == torch.tensor(math.log(100))).all()
    assert (start["multiplier_linear"] == 0).all() and (start["multiplier_quadratic"] == 0).all()


@pytest.mark.parametrize("method, value", [("hard_concrete", 5.0), ("relaxed_topk", 0.0)])
def test_start_is_jittered_seeded_and_complete(method, value):
    masks = make_masks(method=method, seed=3)
    start = masks.start_parameters()
    assert start.keys() == dict(masks.named_parameters()).keys()
    scores = torch.cat([start[f"log_alpha_{name}"].flatten() for name in masks.log_alpha]) - value
    # 158 draws of standard deviation .01: their mean is within 4 standard errors, .0032, of 0.
    assert scores.numel() == 158 and abs(scores.mean()) < 0.0032
    assert 0.008 < scores.std() < 0.012
    again, other = make_masks(method=method, seed=3), make_masks(method=method, seed=4)
    assert_same_gates(again.start_parameters(), start)
    assert not torch.equal(other.start_parameters()["log_alpha_hidden"], start["log_alpha_hidden"])


def test_start_value_can_be_given():
    start = make_masks(log_alpha_start=-1.5, log_alpha_jitter=0.0).start_parameters()
    assert (start["log_alpha_hidden"] == -1.5).all()


def test_start_from_importance_takes_ranks_within_each_row():
    masks = make_masks(log_alpha_start=1.0)
    importance = {name: torch.rand(parameter.shape) for name, parameter in masks.log_alpha.items()}
    importance[LAYER] = torch.tensor([0.3, 1e9, -5.0, 0.31])
    importance[KEY_VALUE_HEAD][2] = torch.tensor([3.0, 1.0, 2.0])
    masks.start_from_importance(importance, spread=0.5)
    # Ranks 0 to 3 become 1 - .5, 1 - .5 / 3, 1 + .5 / 3 and 1 + .5, whatever the scores' scale.
    expected = torch.tensor([1 - 0.5 / 3, 1.5, 0.5, 1 + 0.5 / 3])
    torch.testing.assert_close(masks.log_alpha[LAYER].detach(), expected)
    torch.testing.assert_close(masks.log_alpha[KEY_VALUE_HEAD][2].detach(), torch.tensor([1.5, 0.5, 1.0]))
    for name, scores in importance.items():
        kept = masks.kept_units()[name]
        assert torch.equal(kept, hard_topk(scores, masks.kinds[name].num_kept).bool())


def test_start_from_importance_spans_start_spread():
    assert START_SPREAD == 4.0  # what the model cards measured
    masks = make_masks(log_alpha_start=1.0)
    masks.start_from_importance({name: torch.rand(p.shape) for name, p in masks.log_alpha.items()})
    for name, log_alpha in masks.log_alpha.items():
        assert (log_alpha.amin(dim=-1) == 1 - START_SPREAD).all(), name
        assert (log_alpha.amax(dim=-1) == 1 + START_SPREAD).all(), name


def test_equal_scores_start_where_a_one_shot_choice_would_keep_them():
    masks = make_masks()
    importance = {name: torch.zeros(parameter.shape) for name, parameter in masks.log_alpha.items()}
    masks.start_from_importance(importance)
    for name, scores in importance.items():
        assert torch.equal(masks.kept_units()[name], hard_topk(scores, masks.kinds[name].num_kept).bool())


def test_start_from_importance_respects_the_bound():
    masks = make_masks(method="hard_concrete", log_alpha_bound=0.2, log_alpha_start=0.0)
    masks.start_from_importance({name: torch.rand(p.shape) for name, p in masks.log_alpha.items()}, spread=3.0)
    for parameter in masks.log_alpha.values():
        assert parameter.abs().max() == torch.tensor(0.2)


def test_start_from_importance_names_what_is_wrong():
    masks = make_masks()
    importance = {name: torch.rand(parameter.shape) for name, parameter in masks.log_alpha.items()}
    with pytest.raises(ValueError, match=r"`importance\['hidden'\]` must be \(18,\), but is \(17,\)"):
        masks.start_from_importance({**importance, HIDDEN: torch.rand(17)}, spread=1.0)
    del importance[QUERY_HEAD]
    with pytest.raises(ValueError, match="`importance` has no scores for 'query_head'; it has"):
        masks.start_from_importance(importance, spread=1.0)


def test_clamp_follows_the_bound():
    masks = make_masks(log_alpha_bound=1.5, log_alpha=0)
    before = {name: parameter.detach().clone() for name, parameter in masks.log_alpha.items()}
    masks.clamp_log_alpha()
    for name, parameter in masks.log_alpha.items():
        assert torch.equal(parameter, before[name].clamp(-1.5, 1.5))
    assert before[HIDDEN].abs().max() > 1.5
    unbounded = make_masks(log_alpha=0)
    unbounded.clamp_log_alpha()
    assert torch.equal(unbounded.log_alpha[HIDDEN], before[HIDDEN])


@pytest.fixture
def model(build_llama, add_masks):
    return add_masks(build_llama(), {"num_hidden_layers": 3, "intermediate_size": 13})


@pytest.fixture
def batches():
    ids = torch.randint(3, 40, (3, 3, 11), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": batch, "labels": batch} for batch in ids]


def test_masks_start_from_taylor_scores_and_the_loss_rise_of_layers(model, batches):
    importance, wanted = mask_start_importance(model, iter(batches * 2)), taylor(model, Calibration(batches * 2))
    assert tuple(importance) == tuple(wanted)
    assert torch.equal(importance[LAYER], loss_rise(model, Calibration(batches * 2), num_samples=8)[LAYER])
    assert all(torch.equal(importance[name], wanted[name]) for name in wanted if name != LAYER)


def test_layers_that_all_stay_cost_no_forward_pass(build_llama, add_masks, batches):
    model = add_masks(build_llama(), {"intermediate_size": 13})
    importance, wanted = mask_start_importance(model, batches), taylor(model, Calibration(batches))
    assert torch.equal(importance[LAYER], wanted[LAYER])


@pytest.mark.parametrize("size", [1, 2])
def test_starts_do_not_depend_on_how_many_samples_fit_into_a_forward(model, batches, size):
    whole, parts = mask_start_importance(model, batches), mask_start_importance(model, batches, size)
    for name, wanted in whole.items():
        torch.testing.assert_close(parts[name], wanted, rtol=1e-4, atol=2e-6)
