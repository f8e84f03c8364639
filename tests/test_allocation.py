"""Which units go under a parameter budget: exact accounting, global and adaptive allocation, early refusals."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from hf_shear import ShearingLlamaForCausalLM
from hf_shear.criteria import criterion
from hf_shear.criteria.block_influence import block_influence
from hf_shear.data import Calibration
from hf_shear.masks import ATTENTION, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, MLP, QUERY_HEAD
from hf_shear.pruning import PruneConfig, make_plan, prune_one_shot
from hf_shear.pruning.allocation import GLOBAL_KINDS, centred, close_cheapest, smallest_count
from hf_shear.pruning.open_units import OpenUnits, Unit, units_per_layer
from hf_shear.shapes import ModelShape, count_parameters
from hf_shear.slicing import count_kept_parameters, slice_uneven

NO_FORWARD = "a forward ran"


@pytest.fixture
def calibration():
    ids = torch.randint(3, 40, (8, 24), generator=torch.Generator().manual_seed(3))
    return Calibration.from_batches([{"input_ids": ids, "labels": ids}], 4, seed=5)


def config_of(layers, groups, queries, width, biased=False, tied=False):
    heads = groups * queries
    return LlamaConfig(
        vocab_size=11, hidden_size=2 * heads, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, intermediate_size=width, head_dim=2, attention_bias=biased, mlp_bias=biased,
        tie_word_embeddings=tied,
    )  # fmt: skip


def random_scores(config, kinds, seed, ties):
    """Scores of each kind, [layers, units]; with ``ties`` of few values."""
    source, generator = ModelShape.from_config(config), torch.Generator().manual_seed(seed)
    scores = {}
    for kind in kinds:
        size = (source.num_hidden_layers, units_per_layer(kind, source))
        scores[kind] = (
            torch.randint(0, 3, size, generator=generator).float() if ties else torch.rand(size, generator=generator)
        )
    return scores


SOURCES = st.builds(
    config_of,
    layers=st.integers(1, 4), groups=st.integers(1, 3), queries=st.integers(1, 3), width=st.integers(1, 9),
    biased=st.booleans(), tied=st.booleans(),
)  # fmt: skip
KINDS = st.sets(st.sampled_from(GLOBAL_KINDS), min_size=1)


@settings(max_examples=200, deadline=None)
@given(SOURCES, KINDS, st.floats(0, 1), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
def test_a_budget_is_met_and_filled(config, kinds, share, ties, comparable, per_parameter, seed):
    """Never above the budget, and below it by less than any single unit that could be given back."""
    source = ModelShape.from_config(config)
    smallest = smallest_count(OpenUnits(config, source), kinds)
    num_source = count_parameters(config)
    budget = round(smallest + share * (num_source - smallest))
    units = OpenUnits(config, source)
    assert units.num_parameters == num_source
    close_cheapest(units, random_scores(config, kinds, seed, ties), budget, comparable, per_parameter)
    assert smallest <= units.num_parameters <= budget
    assert units.num_parameters == OpenUnits(config, source, units.gates()).num_parameters
    widths = [units.sizes(layer).num_neurons for layer in range(source.num_hidden_layers)]
    if any(0 < width < source.intermediate_size for width in widths):
        assert budget - units.num_parameters < 3 * source.hidden_size + 2 * config.mlp_bias


def test_ties_do_not_overshoot():
    """All scores alike: the units go one by one, and no more of them than must."""
    config = config_of(3, 2, 2, 8)
    units, per_neuron = OpenUnits(config, ModelShape.from_config(config)), 3 * config.hidden_size
    close_cheapest(units, {INTERMEDIATE: torch.ones(3, 8)}, units.num_parameters - 5 * per_neuron)
    assert [units.sizes(layer).num_neurons for layer in range(3)] == [3, 8, 8]


def test_what_units_share_is_counted_once():
    config = config_of(3, 2, 2, 8, biased=True)
    source = ModelShape.from_config(config)
    units, hidden, head_dim = OpenUnits(config, source), config.hidden_size, config.head_dim
    whole = units.num_parameters
    query = 2 * hidden * head_dim + head_dim
    assert units.close(Unit(QUERY_HEAD, 0, 1)) and whole - units.num_parameters == query
    assert units.close(Unit(QUERY_HEAD, 0, 0)) is None  # the last of its group
    group = units.close(Unit(KEY_VALUE_HEAD, 0, 0))
    assert whole - units.num_parameters == 2 * query + 2 * (hidden * head_dim + head_dim)
    assert units.close(Unit(KEY_VALUE_HEAD, 0, 1)) is None and units.close(Unit(KEY_VALUE_HEAD, 0, 0)) is None
    attention = units.close(Unit(ATTENTION, 0, 0))
    assert whole - units.num_parameters == 4 * query + 4 * (hidden * head_dim + head_dim) + hidden  # the bias stays
    assert not units.reopen_within(group, whole)  # a unit does not bring a removed sub-layer back
    assert units.close(Unit(MLP, 0, 0))
    assert units.layer_parameters(0) == 0 and units.gates()[LAYER].tolist() == [0, 1, 1]
    assert units.reopen_within(attention, whole) and units.sizes(0).num_heads == 2
    assert units.close(Unit(LAYER, 1, 0)) and units.close(Unit(LAYER, 2, 0)) is None  # no MLP would be left
    assert not units.reopen_within(attention, whole)  # it is open


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize("seed", range(3))
def test_the_count_is_that_of_the_weights(build_llama, add_masks, changes, seed):
    """Against the weights themselves: what is not zero in the padded model."""
    masked = add_masks(build_llama(**changes), {})
    units = OpenUnits(masked.config, masked.masks.source)
    close_cheapest(units, random_scores(masked.config, GLOBAL_KINDS, seed, ties=False), units.num_parameters * 6 // 10)
    padded, kept = slice_uneven(masked, units.gates())
    num_nonzero = sum(int(parameter.count_nonzero()) for parameter in padded.parameters())
    assert units.num_parameters == count_kept_parameters(masked.config, kept) == num_nonzero


def test_scores_that_do_not_compare_are_standardised_per_layer():
    """Layer 1 has a thousand times the scores of layer 0: as they are, layer 0 loses all; standardised, both the same."""
    config = config_of(2, 1, 1, 9)
    scores = {INTERMEDIATE: torch.arange(1.0, 10).repeat(2, 1) * torch.tensor([[1.0], [1000.0]])}
    widths = {}
    for comparable in (True, False):
        units = OpenUnits(config, ModelShape.from_config(config))
        close_cheapest(units, scores, units.num_parameters - 8 * 3 * config.hidden_size, comparable)
        widths[comparable] = [units.sizes(layer).num_neurons for layer in range(2)]
    assert widths == {True: [1, 9], False: [5, 5]}


def test_a_score_counts_per_parameter_that_it_frees():
    """A KV head frees more than a neuron, so at equal scores it goes first, unless scores count alone."""
    config = config_of(2, 3, 1, 6)
    scores = {KEY_VALUE_HEAD: torch.full((2, 3), 1.5), INTERMEDIATE: torch.ones(2, 6)}
    for per_parameter, lost in ((True, [2, 3, 6, 6]), (False, [3, 3, 5, 6])):
        units = OpenUnits(config, ModelShape.from_config(config))
        close_cheapest(units, scores, units.num_parameters - 1, True, per_parameter)
        sizes = [units.sizes(layer) for layer in range(2)]
        assert [size.num_key_value_heads for size in sizes] + [size.num_neurons for size in sizes] == lost


@pytest.mark.parametrize("num_shots", [1, 3])
@pytest.mark.parametrize("compensation", ["none", "least_squares"])
@pytest.mark.parametrize("allocation", ["global", "adaptive:num_steps=4"])
def test_pruning_to_a_budget(build_llama, calibration, allocation, compensation, num_shots):
    source = build_llama()
    budget = count_parameters(source.config) * 7 // 10
    pruning = prune_one_shot(
        source, budget, calibration, PruneConfig("taylor", compensation, num_shots, allocation=allocation)
    )
    assert budget - 3 * 18 < pruning.num_parameters <= budget == pruning.budget
    assert pruning.num_padded_parameters == pruning.model.num_parameters() >= pruning.num_parameters
    widths = {len(neurons) for neurons in pruning.kept.intermediate.values()}
    assert pruning.uneven and len(widths) > 1
    with torch.no_grad():
        assert torch.isfinite(pruning.model(calibration.batches[0]["input_ids"]).logits).all()


def test_whole_sub_layers_and_layers_stand_in_the_same_list(build_llama, calibration):
    source = build_llama()
    criteria = {"default": "taylor", ATTENTION: "sub_layer_rise", MLP: "sub_layer_rise", LAYER: "loss_rise"}
    pruning = prune_one_shot(
        source, 0.4, calibration, PruneConfig(criteria, "least_squares", 2, allocation="global", units=GLOBAL_KINDS)
    )
    assert pruning.num_parameters <= 0.4 * source.num_parameters()
    kept = pruning.kept
    assert len(kept.layers) < 4 or any(not kept.heads[i] or not kept.intermediate[i] for i in kept.layers)


def test_the_surgeon_ranks_units_and_sub_layers_in_one_list(build_llama, calibration):
    units = [KEY_VALUE_HEAD, INTERMEDIATE, ATTENTION, MLP]
    pruning = prune_one_shot(
        build_llama(),
        0.5,
        calibration,
        PruneConfig("llm_surgeon", "least_squares", 1, allocation="global", units=units),
    )
    assert pruning.num_parameters <= pruning.budget and set(pruning.scores) >= set(units)
    with pytest.raises(ValueError, match="Scores of `criterion` llm_surgeon:gradients=False do not compare"):
        prune_one_shot(
            build_llama(),
            0.5,
            calibration,
            PruneConfig("llm_surgeon:gradients=false", allocation="global", units=units),
        )


def test_protected_layers_keep_their_sub_layers(build_llama, calibration):
    choice = {"units": [ATTENTION, MLP, LAYER], "allocation": "global", "protect": "0,last:1"}
    criteria = {"default": "sub_layer_rise", LAYER: "loss_rise"}
    kept = prune_one_shot(build_llama(), 0.6, calibration, PruneConfig(criteria, "none", 1, **choice)).kept
    assert all(len(kept.heads[layer]) == 9 and len(kept.intermediate[layer]) == 22 for layer in (0, 3))
    with pytest.raises(ValueError, match="remain when everything is removed"):
        prune_one_shot(build_llama(), 0.5, calibration, PruneConfig(criteria, **choice | {"protect": "first:3"}))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("compensation", ["bias", "least_squares_bias:towards=source"])
def test_biases_of_compensation_are_counted(build_llama, calibration, allocation, compensation):
    """Also those of sub-layers that are gone, which then write a constant."""
    source = build_llama()
    more = {"units": [ATTENTION, MLP, INTERMEDIATE]} if allocation == "global" else {}
    criteria = {"default": "taylor", ATTENTION: "sub_layer_rise", MLP: "sub_layer_rise"}
    pruning = prune_one_shot(
        source, 0.5, calibration, PruneConfig(criteria, compensation, 2, allocation=allocation, **more)
    )
    assert pruning.model.config.mlp_bias and pruning.model.config.attention_bias
    assert pruning.num_parameters <= pruning.budget == source.num_parameters() // 2
    if allocation == "uniform":
        assert pruning.num_parameters == pruning.model.num_parameters()
    else:
        sub_layers = [bool(part[layer]) for part in (pruning.kept.heads, pruning.kept.intermediate) for layer in part]
        assert not all(sub_layers)
        assert any(bool(layer.mlp.down_proj.bias.any()) for layer in pruning.model.model.layers)


def test_another_family_can_be_named(build_llama, calibration):
    pruning = prune_one_shot(
        build_llama(), 0.7, calibration, PruneConfig("taylor", "none", 1, as_family="mistral", allocation="global")
    )
    assert pruning.model.config.model_type == "mistral" and pruning.num_parameters <= pruning.budget


def test_a_uniform_budget_picks_a_shape(build_llama, calibration):
    pruning = prune_one_shot(build_llama(), 0.5, calibration, PruneConfig("random", "none", 1))
    assert not pruning.uneven and pruning.num_parameters == pruning.model.num_parameters() <= pruning.budget


def test_a_removed_unit_never_comes_back(build_llama, calibration):
    seen = []

    @criterion(ranks=(INTERMEDIATE,), comparable_across_layers=True)
    def changing(model, calibration):
        seen.append(model.gates_in_use.get(INTERMEDIATE, torch.ones(4, 22)).clone())
        return {INTERMEDIATE: torch.rand(4, 22)}

    for allocation in ("global", "adaptive:num_steps=3"):
        seen.clear()
        prune_one_shot(
            build_llama(),
            0.8,
            calibration,
            PruneConfig(changing, "none", 4, allocation=allocation, units=["intermediate"]),
        )
        assert len(seen) == 4 and all(bool((later <= now).all()) for now, later in pairwise(seen))
        assert [int(gate.sum()) for gate in seen] == sorted({int(gate.sum()) for gate in seen}, reverse=True)


def test_influence_is_that_of_the_layer_outputs(build_llama, add_masks, token_ids):
    """Against the stock model's hidden states; a layer whose gate is closed turns nothing."""
    source = build_llama()
    masked = add_masks(source, {})
    with torch.no_grad():
        states = source(token_ids, output_hidden_states=True).hidden_states
    batches = [
        {"input_ids": token_ids[:1], "labels": token_ids[:1]},
        {"input_ids": token_ids[1:], "labels": token_ids[1:]},
    ]
    found = block_influence(masked, Calibration(batches))[LAYER]
    for layer in range(3):  # the last state of the stock model is behind the final norm
        cosine = torch.nn.functional.cosine_similarity(states[layer], states[layer + 1], dim=-1)
        assert float(found[layer]) == pytest.approx(float(1 - cosine.mean()), abs=1e-5)
    with masked.use_gates({LAYER: torch.tensor([1.0, 0, 1, 1])}):
        assert float(block_influence(masked, Calibration(batches))[LAYER][1]) == pytest.approx(0, abs=1e-6)
    assert centred(torch.tensor([1.0, 2, 6])).tolist() == pytest.approx([-2 / 3, -1 / 3, 1])
    assert centred(torch.ones(3)).tolist() == [0, 0, 0]


def test_adaptive_spares_layers_of_influence(build_llama, calibration):
    """The layer of most influence keeps most of its units; without amplitude all lose alike."""
    source, widths = build_llama(), {}
    influence = block_influence(ShearingLlamaForCausalLM.from_model(source), calibration)[LAYER]
    for amplitude in (0, 1):
        choice = f"adaptive:num_steps=10,amplitude={amplitude}"
        kept = prune_one_shot(
            source, 0.8, calibration, PruneConfig("taylor", "none", 1, allocation=choice, units=["intermediate"])
        ).kept
        widths[amplitude] = [len(kept.intermediate[layer]) for layer in range(4)]
    assert max(widths[0]) - min(widths[0]) <= 2
    assert widths[1][int(influence.argmax())] == max(widths[1]) > max(widths[0])


def test_options_may_decide_whether_scores_compare():
    @criterion(ranks=(INTERMEDIATE,), comparable_across_layers=lambda options: options["gradients"])
    def costs(model, calibration, *, gradients=True):
        pytest.fail(NO_FORWARD)

    assert costs.comparable_across_layers and costs.with_options(gradients=True).comparable_across_layers
    assert not costs.with_options(gradients=False).comparable_across_layers


@criterion(ranks=(LAYER, INTERMEDIATE))
def incomparable(model, calibration):
    pytest.fail(NO_FORWARD)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target": {"intermediate_size": 8}, "allocation": "global"}, "`target` is a shape, .* `allocation` is 'global'"),
        ({"allocation": "greedy"}, "`allocation` must be one of uniform, global, adaptive, but it is 'greedy'"),
        ({"allocation": "global:depth=2"}, "Allocation 'global' has no option 'depth=2'"),
        ({"allocation": "uniform:depth=2"}, "Allocation 'uniform' has no option 'depth=2'"),
        ({"allocation": "adaptive:num_steps=0"}, "`num_steps` of `Allocation 'adaptive'` must be at least 1, but it is 0"),
        ({"units": ["intermediate"]}, "`units` .* goes with `allocation` global or adaptive"),
        ({"allocation": "global", "units": ["hidden"]}, "`units` must name some of layer, attention, mlp"),
        ({"allocation": "adaptive", "units": ["layer"]}, "`units` must name some of key_value_head, intermediate"),
        ({"allocation": "global", "target": 0.2}, "parameters, but .* remain when everything is removed"),
        ({"allocation": "global", "target": 10**9}, "`num_parameters` must be between 1 and the source's"),
        ({"allocation": "global", "target": 1.5}, "`fraction_kept` must be above 0 and at most 1"),
        ({"target": "small"}, "`target` must be a shape"),
        ({"allocation": "global", "criterion": "loss_rise"}, "`criterion` 'loss_rise' cannot rank"),
        ({"allocation": "global", "criterion": incomparable, "units": ["layer", "intermediate"]}, "do not compare between"),
        ({"allocation": "global", "criterion": "policy_gradient"}, "learns towards the numbers of a target shape"),
        ({"allocation": "global", "protect": "first:9"}, "`protect` has the part 'first:9'"),
        ({"form": "folded"}, "`form` must be one of padded, nemotron_nas"),
        ({"allocation": "global", "form": "nemotron_nas"}, "one number of query heads for all layers, so key_value_head"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_any_forward(build_llama, calibration, monkeypatch, options, message):
    monkeypatch.setattr(ShearingLlamaForCausalLM, "forward", lambda *args, **kwargs: pytest.fail(NO_FORWARD))
    with pytest.raises(ValueError, match=message):
        target = options.get("target", 0.8)
        choices = {name: value for name, value in options.items() if name != "target"}
        prune_one_shot(build_llama(), target, calibration, PruneConfig(**choices))


def test_a_plan_says_what_is_removed():
    plan = make_plan(config_of(2, 2, 1, 8), 0.9, PruneConfig("taylor", allocation="global"))
    assert (
        plan.kinds == (KEY_VALUE_HEAD, INTERMEDIATE) and plan.uneven and plan.shape.sizes() == plan.shape.source.sizes()
    )
