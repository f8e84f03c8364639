"""One-shot pruning: one path for every criterion, compensated or not, in one shot or several."""

import copy

import pytest
import torch
from masked_llama_helpers import TARGET

from hf_shear import ShearingLlamaForCausalLM
from hf_shear.compensation import compensate
from hf_shear.core.defaults import default_criterion_words
from hf_shear.criteria import CRITERIA, criteria_by_kind, criteria_from_words, criterion, resolve_criterion
from hf_shear.criteria.loss_rise import loss_rise
from hf_shear.criteria.random import random
from hf_shear.criteria.taylor import taylor
from hf_shear.data import Calibration
from hf_shear.masks import (
    HIDDEN,
    INTERMEDIATE,
    KEY_VALUE_HEAD,
    LAYER,
    QUERY_HEAD,
    RANKED_KINDS,
    SUB_LAYERS,
    MaskSettings,
    hard_topk,
)
from hf_shear.masks.unit_kinds import UNIT_KINDS
from hf_shear.pruning import PruneConfig, prune_one_shot
from hf_shear.pruning.allocation import uniform_gates
from hf_shear.slicing import slice_model

COLUMNS = {"num_key_value_heads": 2, "num_attention_heads": 6, "intermediate_size": 13}


@pytest.fixture
def calibration():
    ids = torch.randint(3, 40, (12, 24), generator=torch.Generator().manual_seed(3))
    return Calibration.from_batches([{"input_ids": ids, "labels": ids}], 4, seed=5)


def loss(model, calibration):
    with torch.no_grad():
        return sum(model(**batch).loss.item() for batch in calibration.batches)


@pytest.mark.parametrize("tied", [False, True])
def test_masks_are_added_to_a_model_in_memory(build_llama, token_ids, tied):
    source = build_llama(tie_word_embeddings=tied, attention_bias=True)
    state = copy.deepcopy(source.state_dict())
    masked = ShearingLlamaForCausalLM.from_model(source, TARGET).eval()
    shared = dict(masked.named_parameters())
    assert all(shared[name].data_ptr() == weight.data_ptr() for name, weight in source.named_parameters())
    assert masked.masks.target.to_dict()["hidden_size"] == 12
    with torch.no_grad(), masked.use_gates({}):
        assert torch.equal(masked(token_ids).logits, source(token_ids).logits)
    again = ShearingLlamaForCausalLM.from_model(masked)
    assert again.masks.target.sizes() == again.masks.source.sizes()
    assert masked.masks.target.sizes() != masked.masks.source.sizes()
    assert all(torch.equal(weight, state[name]) for name, weight in source.state_dict().items())


@pytest.mark.parametrize("num_shots", [1, 3])
@pytest.mark.parametrize("compensation", ["none", "least_squares"])
def test_the_target_is_reached_and_the_source_left_alone(build_llama, calibration, compensation, num_shots):
    source = build_llama()
    state = copy.deepcopy(source.state_dict())
    pruning = prune_one_shot(source, TARGET, calibration, PruneConfig("taylor", compensation, num_shots))
    assert {name: getattr(pruning.model.config, name) for name in TARGET} == TARGET
    assert len(pruning.kept.hidden) == 12 and len(pruning.kept.layers) == 3
    assert all(torch.equal(weight, state[name]) for name, weight in source.state_dict().items())
    assert len(pruning.compensation) == num_shots
    assert torch.isfinite(torch.tensor(loss(pruning.model, calibration)))


def test_compensation_never_raises_the_error_and_lowers_the_loss(build_llama, calibration):
    source = build_llama()
    plain = prune_one_shot(source, COLUMNS, calibration, PruneConfig("random", "none", num_shots=1))
    mended = prune_one_shot(source, COLUMNS, calibration, PruneConfig("random", "least_squares", num_shots=1))
    assert plain.kept == mended.kept
    (report,) = mended.compensation
    assert sorted(report.before) == sorted(report.after) and len(report.before) == 8
    assert all(report.after[name] <= report.before[name] for name in report.before)

    def gap(model):
        ids = calibration.batches[0]["input_ids"]
        with torch.no_grad():
            return (model(ids).logits - source(ids).logits).square().mean().item()

    assert gap(mended.model) < gap(plain.model)


def test_a_removed_unit_never_comes_back(build_llama, calibration):
    """Units that a shot removed are closed in those after it, whatever their scores."""
    seen = []

    @criterion(ranks=(INTERMEDIATE,))
    def by_turns(model, calibration):
        gate = model.gates_in_use.get(INTERMEDIATE, torch.ones(4, 22))
        seen.append(gate)
        scores = torch.arange(22.0).repeat(4, 1)
        return {INTERMEDIATE: scores if len(seen) % 2 else -scores}

    kept = prune_one_shot(
        build_llama(), {"intermediate_size": 10}, calibration, PruneConfig(by_turns, "none", num_shots=4)
    ).kept
    assert [int(gate.sum(1)[0]) for gate in seen] == [22, 19, 16, 13]
    assert kept.intermediate[0] == [
        6,
        7,
        8,
        9,
        10,
        11,
        12,
        13,
        14,
        15,
    ]  # 0-2 and 3-5 from one end, others from the other


def test_a_criterion_per_kind_is_called_once(build_llama, calibration):
    calls = []

    @criterion(ranks=(INTERMEDIATE, KEY_VALUE_HEAD, "query_head"))
    def first(model, calibration):
        calls.append("first")
        return {
            "intermediate": torch.rand(4, 22),
            "key_value_head": torch.rand(4, 3),
            "query_head": torch.rand(4, 3, 3),
        }

    choice = {"default": first, LAYER: "loss_rise", HIDDEN: "taylor"}
    pruning = prune_one_shot(build_llama(), TARGET, calibration, PruneConfig(choice, "none", num_shots=1))
    assert calls == ["first"] and set(pruning.scores) == set(UNIT_KINDS)


def test_a_kind_that_a_criterion_cannot_rank_is_refused_before_any_forward(build_llama, calibration, monkeypatch):
    monkeypatch.setattr(ShearingLlamaForCausalLM, "forward", lambda *args, **kwargs: pytest.fail("a forward ran"))
    with pytest.raises(ValueError, match="`criterion` 'loss_rise' cannot rank 'hidden'.*it ranks layer.*these can:"):
        prune_one_shot(build_llama(), TARGET, calibration, PruneConfig("loss_rise"))


@pytest.mark.parametrize(
    "choice, message",
    [
        ("nothing", "`criterion` must be one of .*random.*, but it is 'nothing'"),
        ("taylor:color=red", "Criterion 'taylor' has no option 'color=red'"),
        (len, "does not say which units it ranks. Declare"),
        ({"heads": "taylor"}, r"`criterion` names \['heads'\]; kinds of units are hidden"),
        ({LAYER: "taylor"}, "`criterion` has none for 'hidden'"),
    ],
)
def test_bad_choices_are_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        criteria_by_kind(choice, [HIDDEN])


def test_words_of_a_command_line():
    assert criteria_from_words(["taylor", "layer=loss_rise"]) == {"default": "taylor", LAYER: "loss_rise"}
    with pytest.raises(ValueError, match="names two criteria for 'default'"):
        criteria_from_words(["taylor", "random"])
    with pytest.raises(ValueError, match="'loss_rise' cannot rank 'hidden'"):
        criteria_from_words(["taylor", "hidden=loss_rise"])


@pytest.mark.parametrize("compensation", ["none", "least_squares", "least_squares:towards=source"])
def test_layers_are_chosen_in_the_cut(build_llama, calibration, compensation):
    """By the loss without each once neurons are chosen and made up for; a criterion of another kind scores all at once."""
    target = {"num_hidden_layers": 3, "intermediate_size": 5}
    choices = PruneConfig({"default": "magnitude", LAYER: "loss_rise"}, compensation)
    pruning = prune_one_shot(build_llama(), target, calibration, choices)
    narrow = ShearingLlamaForCausalLM.from_model(build_llama(), target).eval()
    gates = {INTERMEDIATE: hard_topk(pruning.scores[INTERMEDIATE], 5)}
    whole = loss_rise(narrow, calibration)[LAYER]
    if compensation != "none":
        compensate(narrow, gates, calibration, "least_squares")
    with narrow.use_gates(gates):
        wanted = loss_rise(narrow, calibration)[LAYER]
    torch.testing.assert_close(pruning.scores[LAYER], wanted)
    assert not torch.allclose(wanted, whole, atol=1e-3)
    assert pruning.kept.layers == sorted(wanted.topk(3).indices.tolist())


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_is_a_function_of_its_files_name(name):
    function = resolve_criterion(name)
    assert function.name == name and set(function.ranks) <= set(RANKED_KINDS) and function.ranks
    assert resolve_criterion(function) is function


@pytest.mark.parametrize("compensation", ["none", "least_squares"])
@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "expert_rise"])  # in tests/test_experts.py
def test_every_criterion_prunes_what_it_ranks(build_llama, calibration, name, compensation):
    """In two shots, so that each scores a model with closed units, and to the same units when it is run again."""
    sizes = {
        HIDDEN: {"hidden_size": 12},
        LAYER: {"num_hidden_layers": 3},
        KEY_VALUE_HEAD: {"num_key_value_heads": 2, "num_attention_heads": 6},
        QUERY_HEAD: {"num_attention_heads": 2},  # one of each group
        INTERMEDIATE: {"intermediate_size": 13},
    }
    ranks = resolve_criterion(name).ranks
    choice = f"{name}:steps=2" if name == "policy_gradient" else name
    kinds, more = {kind for kind in sizes if kind in ranks}, {}
    target = {size: number for kind in sizes if kind in ranks for size, number in sizes[kind].items()}
    if not kinds:  # sub-layers, which no shape names
        kinds, target = set(SUB_LAYERS), 0.8
        more = {"allocation": "global", "units": list(kinds)}
    pruning, again = (
        prune_one_shot(build_llama(), target, calibration, PruneConfig(choice, compensation, 2, **more))
        for _ in range(2)
    )
    if more:
        assert pruning.num_parameters <= pruning.budget
    else:
        assert {size: getattr(pruning.model.config, size) for size in target} == target
    assert pruning.kept == again.kept and set(pruning.scores) == kinds
    assert torch.isfinite(torch.tensor(loss(pruning.model, calibration)))


def test_taylor_is_found_by_name_and_by_function():
    assert resolve_criterion("taylor") is taylor


@pytest.mark.parametrize(("size", "lengths"), [(None, [6, 5]), (6, [6, 5]), (4, [4, 2, 4, 1]), (1, [1] * 11)])
def test_parts_of_a_calibration_are_its_batches(size, lengths):
    ids = torch.randint(3, 61, (11, 10), generator=torch.Generator().manual_seed(5))
    found = Calibration.from_batches([{"input_ids": part, "labels": part} for part in ids.split(6)], size).batches
    assert [len(part["input_ids"]) for part in found] == lengths
    assert torch.equal(torch.cat([part["labels"] for part in found]), ids)


def test_empty_calibration_is_refused():
    with pytest.raises(ValueError, match="`batches` is empty"):
        Calibration([])


def test_the_defaults_are_those_that_won_the_bench(build_llama, calibration):
    by_default = prune_one_shot(build_llama(), TARGET, calibration)
    named = PruneConfig().criterion
    assert named == {"default": "llm_surgeon", HIDDEN: "activation", LAYER: "joint_rise"}
    assert criteria_from_words(default_criterion_words()) == named
    told = prune_one_shot(build_llama(), TARGET, calibration, PruneConfig(named, "least_squares:towards=source"))
    assert by_default.kept == told.kept and by_default.compensation == told.compensation
    assert len(told.compensation) == 1 and any(report.before for report in told.compensation)


@pytest.mark.parametrize("allocation", ["global", "adaptive:num_steps=10"])
def test_uneven_models_are_pruned_by_default(build_llama, calibration, allocation):
    pruning = prune_one_shot(build_llama(), 0.7, calibration, PruneConfig(allocation=allocation))
    assert pruning.num_parameters <= pruning.budget


def test_a_criterion_alone_is_compensated_too(build_llama, calibration):
    """The defaults do not depend on each other."""
    pruning = prune_one_shot(build_llama(), COLUMNS, calibration, PruneConfig("taylor", num_shots=1))
    told = prune_one_shot(build_llama(), COLUMNS, calibration, PruneConfig("taylor", "least_squares", num_shots=1))
    assert pruning.compensation == told.compensation and pruning.compensation[0].before


def test_a_surgeon_alone_names_what_to_give_for_the_kinds_it_cannot_rank(build_llama, calibration):
    message = "'llm_surgeon' cannot rank 'hidden'.*'hidden': 'activation'.*--criterion llm_surgeon hidden=activation"
    with pytest.raises(ValueError, match=message):
        prune_one_shot(build_llama(), TARGET, calibration, PruneConfig("llm_surgeon"))


@pytest.mark.parametrize("num_shots", [0, -1])
def test_a_number_of_shots_below_one_is_refused(build_llama, calibration, num_shots):
    with pytest.raises(ValueError, match="`num_shots` must be at least 1"):
        prune_one_shot(build_llama(), TARGET, calibration, PruneConfig(num_shots=num_shots))


def sliced_by(model, importance):
    scores = {kind.name: importance[kind.name] for kind in model.masks.constrained}
    return slice_model(model, uniform_gates(scores, model.masks.kinds, {}))


def test_one_shot_keeps_the_highest_scores(build_llama, add_masks, calibration):
    model = add_masks(build_llama(attention_bias=True, mlp_bias=True), TARGET)
    importance = random(model, calibration)
    state = copy.deepcopy(model.state_dict())
    sliced, kept = sliced_by(model, importance)
    assert kept.hidden == sorted(importance[HIDDEN].topk(12).indices.tolist())
    assert kept.layers == sorted(importance[LAYER].topk(3).indices.tolist())
    for layer in kept.layers:
        assert kept.intermediate[layer] == sorted(importance[INTERMEDIATE][layer].topk(13).indices.tolist())
        groups = sorted(importance[KEY_VALUE_HEAD][layer].topk(2).indices.tolist())
        assert kept.key_value_heads[layer] == groups
        queries = [sorted(importance[QUERY_HEAD][layer, group].topk(2).indices.tolist()) for group in groups]
        assert kept.heads[layer] == [
            3 * group + query for group, row in zip(groups, queries, strict=True) for query in row
        ]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    # All gates at 1: weights are selections of the source's, whatever the masks' own values are.
    norm = model.model.norm.weight[kept.hidden]
    assert torch.equal(sliced.model.norm.weight, norm)
    assert sliced.config.num_hidden_layers == 3


def test_one_shot_needs_scores_of_what_shrinks_only(build_llama, add_masks, token_ids):
    model = add_masks(build_llama(), {"intermediate_size": 13})
    importance = {INTERMEDIATE: torch.rand(4, 22)}
    sliced, kept = sliced_by(model, importance)
    gates = {INTERMEDIATE: torch.zeros(4, 22).scatter_(1, importance[INTERMEDIATE].topk(13).indices, 1.0)}
    with torch.no_grad(), model.use_gates(gates):
        torch.testing.assert_close(sliced(token_ids).logits, model(token_ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["hard_concrete", "relaxed_topk"])
def test_masks_started_from_scores_keep_what_one_shot_keeps(build_llama, add_masks, calibration, method):
    model = add_masks(build_llama(), TARGET, MaskSettings(method))
    importance = taylor(model, calibration)
    _, one_shot = sliced_by(model, importance)
    model.masks.start_from_importance(importance, spread=1.0)
    _, learned = slice_model(model)
    assert learned == one_shot


def test_taylor_scores_lose_less_than_random_ones_and_than_their_opposite(build_llama, add_masks):
    """Not a law, but on this seeded model a choice that knows the loss must not be the worst of three."""
    source = build_llama(tie_word_embeddings=True)
    model = add_masks(source, {"intermediate_size": 11})
    with torch.no_grad():
        # A model with something to know: half of the neurons hardly matter.
        for layer in source.model.layers:
            layer.mlp.down_proj.weight[:, ::2] *= 0.01
        for masked, plain in zip(model.model.layers, source.model.layers, strict=True):
            masked.mlp.down_proj.weight.copy_(plain.mlp.down_proj.weight)
        prompt = torch.randint(3, 40, (8, 8), generator=torch.Generator().manual_seed(0))
        ids = source.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
    text = Calibration([{"input_ids": ids, "labels": ids}])
    importance = taylor(model, text)
    choices = {
        "taylor": importance,
        "random": random(model, text),
        "opposite": {name: -score for name, score in importance.items()},
    }
    with torch.no_grad():
        source_logits = source(ids).logits
        gaps = {
            name: (sliced_by(model, scores)[0](ids).logits - source_logits).square().mean().item()
            for name, scores in choices.items()
        }
    assert gaps["taylor"] < gaps["random"] < gaps["opposite"]


def test_a_kind_is_scored_in_shots_that_remove_some(build_llama, calibration):
    """Four layers to three, in five shots: 3.8, 3.6, 3.4 (three stay), 3.2, 3."""
    calls = []

    @criterion(ranks=(LAYER,))
    def counted(model, calibration):
        calls.append(int(model.gates_in_use.get(LAYER, torch.ones(4)).sum()))
        return {LAYER: torch.tensor([4.0, 1.0, 2.0, 3.0])}

    config = PruneConfig({"default": "magnitude", LAYER: counted}, "none", num_shots=5)
    pruning = prune_one_shot(build_llama(), TARGET | {"num_hidden_layers": 3}, calibration, config)
    assert pruning.kept.layers == [0, 2, 3] and LAYER in pruning.scores
    assert calls == [4, 4]  # at first, and where one goes
