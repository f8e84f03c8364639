"""All masks of one model: starts, draws, deterministic masks, sizes, the reference's masks."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_shear.masks import (
    HIDDEN,
    INTERMEDIATE,
    KEY_VALUE_HEAD,
    LAYER,
    QUERY_HEAD,
    START_SPREAD,
    UNIT_KINDS,
    MaskPhase,
    MaskSettings,
    ShearingMasks,
    closed_probability,
    hard_topk,
    soft_gates,
)
from hf_shear.shapes import ModelShape

METHODS = ("hard_concrete", "relaxed_topk")
# 4 layers, 3 groups of 3 queries each
SOURCE = ModelShape(18, 4, 9, 3, 22, head_dim=4)
TARGET = ModelShape(12, 3, 4, 2, 13, head_dim=4)


def make_masks(source=SOURCE, target=TARGET, log_alpha=None, **settings_fields):
    """Masks at their start, or with random (seed, an integer) or given scores."""
    masks = ShearingMasks(source, target, MaskSettings(**settings_fields))
    masks.load_state_dict(masks.start_parameters())
    with torch.no_grad():
        if isinstance(log_alpha, int):
            generator = torch.Generator().manual_seed(log_alpha)
            for parameter in masks.log_alpha.values():
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
        elif log_alpha is not None:
            for name, values in log_alpha.items():
                masks.log_alpha[name].copy_(torch.as_tensor(values))
    return masks


def assert_same_gates(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def differs_everywhere(left, right):
    return all(not torch.equal(left[name], right[name]) for name in left)


# ---- units and settings ---------------------------------------------------------------------------------------


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


# ---- start ------------------------------------------------------------------------------------------------------


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


# ---- dtype ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
def test_masks_stay_float32_whatever_the_model_is_cast_to(cast):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), make_masks(method="hard_concrete", log_alpha=0))
    before = {name: parameter.detach().clone() for name, parameter in model[1].named_parameters()}
    cast(model)
    assert model[0].weight.dtype != torch.float32
    for name, parameter in model[1].named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name])


# ---- draws ------------------------------------------------------------------------------------------------------


def noisy(step=0, micro_batch=0):
    return MaskPhase(optimizer_step=step, micro_batch=micro_batch, noise_scale=0.5, temperature=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_draw_depends_on_seed_and_step_alone(method):
    first, second = make_masks(method=method, log_alpha=0), make_masks(method=method, log_alpha=0)
    first.phase, second.phase = noisy(step=5), noisy(step=5, micro_batch=3)
    second.rank = 2
    torch.manual_seed(1)
    drawn = first.sample()
    torch.manual_seed(2)
    torch.rand(3)
    assert_same_gates(first.sample(), drawn)
    assert_same_gates(second.sample(), drawn)
    second.phase = noisy(step=6)
    assert differs_everywhere(second.sample(), drawn)
    other_seed = make_masks(method=method, log_alpha=0, seed=43)
    other_seed.phase = noisy(step=5)
    assert differs_everywhere(other_seed.sample(), drawn)


@pytest.mark.parametrize("method", METHODS)
def test_per_micro_batch_draws_differ_by_micro_batch_and_rank(method):
    draws = []
    for rank in (0, 1):
        masks = make_masks(method=method, log_alpha=0, draw="per_micro_batch")
        masks.rank = rank
        for micro_batch in (0, 1):
            masks.phase = noisy(5, micro_batch)
            draws.append(masks.sample())
    for index, left in enumerate(draws):
        assert all(differs_everywhere(left, right) for right in draws[:index])
    masks.phase = noisy(5, 1)
    assert_same_gates(masks.sample(), draws[-1])


def test_draws_leave_the_global_generator_alone():
    masks = make_masks(log_alpha=0)
    masks.phase = noisy()
    torch.manual_seed(9)
    expected = torch.rand(4)
    torch.manual_seed(9)
    masks.sample()
    assert torch.equal(torch.rand(4), expected)


def test_hard_concrete_draws_close_as_often_as_their_probability_says():
    masks = make_masks(method="hard_concrete", log_alpha=0)
    num_draws = 2000
    closed = {name: torch.zeros(parameter.shape) for name, parameter in masks.log_alpha.items()}
    for step in range(num_draws):
        masks.phase = MaskPhase(optimizer_step=step)
        for name, gates in masks.sample().items():
            closed[name] += gates == 0
    deviations = []
    for name, parameter in masks.log_alpha.items():
        expected = closed_probability(parameter.detach())
        standard_error = (expected * (1 - expected) / num_draws).sqrt()
        deviations.append(((closed[name] / num_draws - expected) / standard_error).flatten())
    deviations = torch.cat(deviations)
    # 158 gates, each within 4.5 standard errors (about .001 to .011); together their mean square is 1 +- .11.
    assert deviations.abs().max() < 4.5
    assert abs(deviations.square().mean() - 1) < 0.5


def test_training_mode_draws_and_evaluation_mode_does_not():
    masks = make_masks(method="hard_concrete", log_alpha=0)
    masks.phase = noisy(3)
    assert_same_gates(masks.train()(), masks.sample())
    assert_same_gates(masks.eval()(), masks.deterministic())


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_relaxed_draws_meet_the_budget_of_the_warmup_exactly(progress):
    masks = make_masks(log_alpha=0)
    masks.phase = MaskPhase(budget_progress=progress, temperature=0.3, noise_scale=0.7)
    for name, gates in masks.sample().items():
        kind = masks.kinds[name]
        budget = kind.num_units - progress * (kind.num_units - kind.num_kept)
        torch.testing.assert_close(gates.sum(-1), torch.full(kind.rows, budget), rtol=1e-5, atol=1e-5)


def test_logistic_noise_moves_relaxed_gates_by_its_scale():
    masks = make_masks(log_alpha=0)
    masks.phase = MaskPhase(temperature=0.4)
    quiet = masks.sample()
    assert_same_gates(quiet, masks.sample())
    gaps = []
    for scale in (0.0, 0.1, 1.0):
        masks.phase = MaskPhase(temperature=0.4, noise_scale=scale)
        gaps.append((masks.sample()[INTERMEDIATE] - quiet[INTERMEDIATE]).abs().mean().item())
    assert gaps[0] == 0 and 0.001 < gaps[1] < gaps[2] / 2


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_every_score(method):
    masks = make_masks(method=method, log_alpha=0)
    masks.phase = noisy(1)
    for name, gates in masks.sample().items():
        (gradient,) = torch.autograd.grad((gates * torch.rand_like(gates)).sum(), masks.log_alpha[name])
        assert torch.isfinite(gradient).all() and (gradient != 0).any(), name


# ---- deterministic masks and what is kept -----------------------------------------------------------------------


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


# ---- sizes ------------------------------------------------------------------------------------------------------


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


# ---- the reference's masks --------------------------------------------------------------------------------------

REFERENCE_NAMES = {"head": KEY_VALUE_HEAD, "intermediate": INTERMEDIATE, "layer": LAYER, "hidden": HIDDEN}
REFERENCE_MASKS = {
    "head_z": KEY_VALUE_HEAD,
    "intermediate_z": INTERMEDIATE,
    "head_layer_z": LAYER,
    "mlp_z": LAYER,
    "hidden_z": HIDDEN,
}


@pytest.fixture(scope="module")
def reference(shared_data):
    return json.loads((shared_data / "reference" / "l0_module_target_shape.json").read_text())["cases"]


@pytest.fixture(scope="module")
def reference_masks():
    source, target = ModelShape(64, 5, 8, 8, 172, head_dim=8), ModelShape(48, 4, 6, 6, 128, head_dim=8)
    log_alpha = {}
    for phase, (name, ours) in enumerate(REFERENCE_NAMES.items()):
        shape = {"head": (5, 8), "intermediate": (5, 172), "layer": (5,), "hidden": (64,)}[name]
        index = torch.arange(math.prod(shape), dtype=torch.float64)
        log_alpha[ours] = (4 * torch.sin(0.7 * index + phase) + 0.5).reshape(shape)
    return make_masks(source, target, log_alpha, method="hard_concrete")


@pytest.mark.parametrize("name", REFERENCE_MASKS)
@pytest.mark.parametrize("case", ["target_model_eval_target", "target_model_eval_current"])
def test_reference_deterministic_masks(reference, reference_masks, case, name):
    current_size = case == "target_model_eval_current"
    ours = reference_masks.deterministic(current_size=current_size)[REFERENCE_MASKS[name]]
    expected = reference[case]["deterministic_z"][name]
    assert [*reference_masks.kinds[REFERENCE_MASKS[name]].mask_shape] == [n for n in expected["shape"] if n != 1]
    theirs = torch.tensor(expected["z"]).reshape(ours.shape)
    assert ((ours == 0) == (theirs == 0)).all()
    assert (ours == 0).sum().item() == reference[case]["n_zero"][name]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-7)


def test_reference_cases_differ(reference):
    """Without a difference the two cases above would be one."""
    counts = [reference[case]["n_zero"]["intermediate_z"] for case in reference]
    assert counts == [220, 262]


@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_reference_expected_shape(reference, reference_masks, name):
    kind = reference_masks.kinds[REFERENCE_NAMES[name]]
    expected = torch.tensor(reference["target_model_eval_target"]["expected_score"][name])
    torch.testing.assert_close(reference_masks.expected_open(kind).detach().flatten(), expected, rtol=0, atol=2e-7)
    key = {"head": "num_key_value_heads", "hidden": "hidden_size", "layer": "num_hidden_layers"}.get(
        name, "intermediate_size"
    )
    per_layer = expected.sum().item() / (5 if name in ("head", "intermediate") else 1)
    assert reference_masks.expected_shape()[key] == pytest.approx(per_layer, rel=1e-6)
