"""Mixtures of experts: what is removed is not routed to, what is kept is scaled, and all else is as in other families.

The battery of every family (tests/test_families.py) covers these families too; here is what only experts have.
"""

import importlib
import json
from dataclasses import replace

import pytest
import torch
from test_families import assert_invariant, build, logits, random_gates, target_of
from training_helpers import VOCAB_SIZE, make_args, make_trainer
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

from hf_shear import MaskSettings, slice_model
from hf_shear.cli.main import main
from hf_shear.core.results import _check_same_shape
from hf_shear.criteria import resolve_criterion, sum_over_units, values_of
from hf_shear.criteria.loss_rise import expert_rise
from hf_shear.data import Calibration
from hf_shear.evaluation.size import config_shape
from hf_shear.masks import EXPERT, HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, ShearingMasks, unit_parameters
from hf_shear.modeling import AutoShearingModelForCausalLM
from hf_shear.modeling.experts import MaskedRouter
from hf_shear.pruning import PruneConfig, prune_one_shot, score_units
from hf_shear.publishing.run_files import _check_same_model
from hf_shear.report.html_pruning import kept_section, shape_section
from hf_shear.shapes import (
    SHAPE_NAMES,
    ModelShape,
    TargetShape,
    config_for_shape,
    count_parameters,
    forward_flops_per_token,
    shape_for_budget,
    supported_model_types,
)
from hf_shear.shapes.family_table import FAMILIES
from hf_shear.slicing import save_checkpoint, slice_uneven
from hf_shear.training.memory import estimate_memory
from hf_shear.training.memory_setup import TrainingSetup

NAMES = [name for name in supported_model_types() if FAMILIES[name].has_experts]
ENDS_REMOVED = torch.tensor([0, 1, 1, 1, 1, 0.0])
LAYERS, GROUPS, EXPERTS = 4, 3, 6  # of the models that `build` makes


def masked(name, target, settings=None, **changes):
    return AutoShearingModelForCausalLM.from_model(build(name, **changes), target, settings).eval()


def expert_gates(seed=0):
    """The experts at both ends closed, the others at values of (.2, 1): [L, E]."""
    values = 0.2 + 0.8 * torch.rand(LAYERS, EXPERTS, generator=torch.Generator().manual_seed(seed))
    return {EXPERT: values * ENDS_REMOVED}


def calibration(vocab_size=40):
    ids = torch.randint(3, vocab_size, (6, 16), generator=torch.Generator().manual_seed(3))
    return Calibration.from_batches([{"input_ids": ids, "labels": ids}], 3, seed=5)


def routed(model, ids, gates=None):
    """What the router of each layer gives: its weights and indices, [tokens, k]."""
    found, handles = [], []
    for layer in model.model.layers:
        handles.append(layer.mlp.gate.register_forward_hook(lambda module, args, output: found.append(output[1:])))
    logits(model, ids, gates)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("changes", [{}, {"norm_topk_prob": True}, {"num_experts_per_tok": 4}])
@pytest.mark.parametrize("name", NAMES)
def test_experts_at_both_ends_removed(name, changes, token_ids, tmp_path):
    changes = {key: value for key, value in changes.items() if hasattr(build(name).config, key)}
    model = masked(name, {"num_experts": 4}, **changes)
    sliced, kept = assert_invariant(model, expert_gates(), token_ids, tmp_path)
    assert kept.experts == {layer: [1, 2, 3, 4] for layer in range(LAYERS)}
    assert sliced.model.layers[0].mlp.experts.gate_up_proj.shape == (4, 32, 24)
    assert sliced.model.layers[0].mlp.gate.weight.shape == (4, 24)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_with_layers_hidden_dimensions_and_heads(name, tied, token_ids, tmp_path):
    model = masked(name, target_of(name, "gqa", [0, 2]), tied=tied)
    gates = random_gates(model, [0, 2]) | expert_gates()
    assert set(gates) == set(model.masks.kinds) and EXPERT in gates and INTERMEDIATE not in gates
    assert_invariant(model, gates, token_ids, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_experts_one_after_another(name, token_ids, tmp_path):
    """transformers multiplies all experts at once by default; the loop over them computes the same, for any size."""
    model = masked(name, {"num_experts": 4}, experts_implementation="eager", hidden_size=18, intermediate_size=10)
    sliced, _ = slice_model(model, expert_gates())
    assert model.config._experts_implementation == sliced.config._experts_implementation == "eager"
    expected = logits(model, token_ids, expert_gates())
    assert (logits(sliced, token_ids) - expected).abs().max() < 1e-5 * expected.abs().max()
    build(name).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`hidden_size` must be a multiple of 8.*but it is 12.*Give 16, or"):
        AutoShearingModelForCausalLM.from_pretrained(tmp_path, target_shape={"hidden_size": 12})
    loaded = AutoShearingModelForCausalLM.from_pretrained(
        tmp_path, target_shape={"hidden_size": 12}, experts_implementation="eager"
    ).eval()
    expected = logits(loaded, token_ids)
    assert (logits(slice_model(loaded)[0], token_ids) - expected).abs().max() < 1e-5 * expected.abs().max()
    at_once = masked(name, {"num_experts": 4})
    one_by_one = masked(name, {"num_experts": 4}, experts_implementation="eager")
    assert at_once.config._experts_implementation == "grouped_mm"
    gap = logits(at_once, token_ids, expert_gates()) - logits(one_by_one, token_ids, expert_gates())
    assert gap.abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_a_removed_expert_is_not_routed_to(name, token_ids):
    model = masked(name, {"num_experts": 4})
    sliced, _ = slice_model(model, expert_gates())
    whole = routed(model, token_ids, {})
    assert all({0, 5} & set(indices.flatten().tolist()) for _, indices in whole), "nothing was routed to them anyway"
    pairs = zip(routed(model, token_ids, expert_gates()), routed(sliced, token_ids), strict=True)
    for layer, ((weights, indices), (sliced_weights, sliced_indices)) in enumerate(pairs):
        assert torch.equal(indices, sliced_indices + 1)
        scale = expert_gates()[EXPERT][layer][indices]
        torch.testing.assert_close(weights, sliced_weights * scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_open_experts(name, token_ids):
    gates = {EXPERT: expert_gates()[EXPERT].requires_grad_()}
    model = masked(name, {"num_experts": 4})
    with model.use_gates(gates):
        model(token_ids, labels=token_ids).loss.backward()
    gradient = gates[EXPERT].grad
    assert bool((gradient[:, [0, 5]] == 0).all()) and bool((gradient[:, 1:5] != 0).all())
    step = torch.zeros(LAYERS, EXPERTS)
    step[1, 2] = 1e-2
    with torch.no_grad():
        losses = []
        for sign in (1, -1):
            with model.use_gates({EXPERT: expert_gates()[EXPERT] + sign * step}):
                losses.append(model(token_ids, labels=token_ids).loss)
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(gradient[1, 2].item(), rel=0.05, abs=1e-4)


@pytest.mark.parametrize("num_open", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_a_draw_may_leave_fewer_experts_than_a_token_needs(name, num_open, token_ids):
    """Hard-concrete draws are not exact: what is left is used, and nothing becomes NaN."""
    gate = torch.zeros(LAYERS, EXPERTS)
    gate[:, :num_open] = 1
    model, gate = masked(name, {"num_experts": 4}), gate.requires_grad_()
    without_mlp = build(name)
    for layer in without_mlp.model.layers:
        torch.nn.init.zeros_(layer.mlp.experts.down_proj if num_open == 0 else layer.mlp.experts.down_proj[1:])
    with model.use_gates({EXPERT: gate}):
        found = model(token_ids, labels=token_ids)
        found.loss.backward()
    assert bool(torch.isfinite(found.logits).all()) and bool(torch.isfinite(gate.grad).all())
    if num_open == 0:
        torch.testing.assert_close(found.logits.detach(), logits(without_mlp, token_ids), rtol=0, atol=1e-5)


# ---- bugs that these tests must see ---------------------------------------------------------------------------


def first_rows_of_the_router(monkeypatch):
    module = importlib.import_module("hf_shear.slicing.slice_model")
    right = module.select_kept

    def select(tensors, kept, source, family):
        found = right(tensors, kept, source, family)
        routers = {name: tensor for name, tensor in tensors.items() if name.endswith(".mlp.gate.weight")}
        return found | {name: tensor[: len(found[name])] for name, tensor in routers.items() if name in found}

    monkeypatch.setattr(module, "select_kept", select)


def closed_experts_routed_to(monkeypatch):
    def forward(self, hidden_states):
        scores, weights, indices = super(MaskedRouter, self).forward(hidden_states)
        return scores, weights * self.output_mask[indices], indices  # they give nothing, but take the place of others

    monkeypatch.setattr(MaskedRouter, "forward", forward)


def gates_not_folded(monkeypatch):
    module = importlib.import_module("hf_shear.slicing.slice_model")
    monkeypatch.setattr(module, "_expert_mask", lambda *arguments: None)


def write_masks_not_folded(monkeypatch):
    module = importlib.import_module("hf_shear.slicing.slice_model")
    right = module._scaled_experts
    monkeypatch.setattr(module, "_scaled_experts", lambda weight, write, experts: right(weight, None, experts))


BUGS = (first_rows_of_the_router, closed_experts_routed_to, gates_not_folded, write_masks_not_folded)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_deliberate_bugs_are_caught(name, bug, monkeypatch, token_ids, tmp_path):
    model = masked(name, {"num_experts": 4, "num_hidden_layers": 3})
    gates = random_gates(model, [0, 1, 2]) | expert_gates()
    assert_invariant(model, gates, token_ids, tmp_path / "right")
    bug(monkeypatch)
    with pytest.raises(AssertionError, match="apart"):
        assert_invariant(model, gates, token_ids, tmp_path / "wrong")


# ---- shapes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_targets_that_do_not_fit_are_refused(name):
    config = build(name).config
    for size, text in ((1, "between 2, to which each token is routed"), (7, "the source's 6"), (2.0, "an integer")):
        with pytest.raises(ValueError, match=f"`num_experts` must be.*{text}"):
            TargetShape.from_source(config, num_experts=size)
    with pytest.raises(ValueError, match="`intermediate_size` must stay at the source's 16.*Give `num_experts`"):
        TargetShape.from_source(config, intermediate_size=8)
    assert TargetShape.from_source(config, intermediate_size=16, num_experts=2).num_experts == 2
    with pytest.raises(ValueError, match="A shape for a budget.*mixture of experts.*num_experts"):
        shape_for_budget(config, fraction_kept=0.5)
    with pytest.raises(ValueError, match="`hidden_size` must be a multiple of 8.*but it is 12.*Give 16, or"):
        masked(name, {"hidden_size": 12})
    with pytest.raises(ValueError, match="no size named 'num_experts'"):
        TargetShape.from_dict(build("llama").config, {"num_experts": 2})
    with pytest.raises(ValueError, match="`num_experts` must be left out.*no mixture of experts"):
        TargetShape.from_source(build("llama").config, num_experts=2)


@pytest.mark.parametrize("name", NAMES)
def test_the_target_is_named_cut_and_counted(name):
    config = build(name).config
    target = TargetShape.from_source(config, num_experts=4)
    assert list(target.sizes()) == [*SHAPE_NAMES, "num_experts"] and "num_experts 6 -> 4" in str(target)
    assert TargetShape.from_dict(config, target.to_dict()) == target and target.sizes() != target.source.sizes()
    assert target.intermediate_size == 16
    own, larger = (count_parameters(config, replace(target.source, num_experts=size)) for size in (6, 7))
    assert unit_parameters(config)[EXPERT] * LAYERS == larger - own and INTERMEDIATE not in unit_parameters(config)
    assert unit_parameters(config)[EXPERT] == 24 * (1 + 3 * 16)  # its row of the router, gate, up and down


def test_dense_models_know_nothing_of_experts():
    config = build("llama").config
    shape = ModelShape.from_config(config)
    assert shape.num_experts is None and list(shape.to_dict()) == [*SHAPE_NAMES, "head_dim"]
    model = AutoShearingModelForCausalLM.from_model(build("llama"), {"hidden_size": 9})
    assert EXPERT not in model.masks.kinds and list(model.masks.expected_shape()) == list(SHAPE_NAMES)
    assert "experts" not in slice_model(model.eval())[1].to_dict()


@pytest.mark.parametrize("name", NAMES)
def test_flops_are_those_of_the_experts_that_a_token_is_routed_to(name):
    config = build(name).config
    cost = forward_flops_per_token(config, 16)
    shape = ModelShape.from_config(config)
    # An expert less is a row of the router less.
    assert cost - forward_flops_per_token(config, 16, replace(shape, num_experts=5)) == 2 * LAYERS * 24
    config.num_experts_per_tok = 3
    assert forward_flops_per_token(config, 16) - cost == 2 * LAYERS * 3 * 24 * 16


def test_models_of_which_not_all_layers_are_mixtures_are_refused():
    for changes in ({"mlp_only_layers": [1]}, {"decoder_sparse_step": 2}):
        config = Qwen3MoeConfig(**changes)
        with pytest.raises(ValueError, match=f"must have `{next(iter(changes))}`.*can not be sheared"):
            ModelShape.from_config(config)


def test_router_logits_are_refused(token_ids):
    with pytest.raises(ValueError, match="`output_router_logits` False.*Load it with output_router_logits=False"):
        ModelShape.from_config(MixtralConfig(output_router_logits=True))
    with pytest.raises(ValueError, match="`output_router_logits` must be False or left out"):
        masked("mixtral", {"num_experts": 4})(token_ids, output_router_logits=True)


REAL = {  # sizes of well-known checkpoints, and the parameters that are published of them
    "mixtral": ({}, 46_702_792_704),  # Mixtral-8x7B: the defaults of its config
    "qwen3_moe": ({"num_hidden_layers": 48, "head_dim": 128, "norm_topk_prob": True}, 30_532_122_624),  # Qwen3-30B-A3B
}


@pytest.mark.parametrize("name", NAMES)
def test_counts_of_real_checkpoints(name):
    changes, published = REAL[name]
    family = FAMILIES[name]
    config = family.config_class(**changes)
    assert count_parameters(config) == published
    target = TargetShape.from_source(config, num_experts=config.num_experts // 2, hidden_size=1024)
    with torch.device("meta"):
        cut = family.model_class(config_for_shape(config, target, config_class=family.config_class))
    assert cut.num_parameters() == count_parameters(config, target)
    assert getattr(cut.config, family.mlp_width) == target.intermediate_size


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_known_again_by_its_config(name, tmp_path):
    sliced, _ = slice_model(masked(name, {"num_experts": 4}))
    sliced.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    sizes = ModelShape.from_config(sliced.config).to_dict()
    _check_same_model({"pruned": {"shape": sizes}}, "pruned", config, tmp_path)
    with pytest.raises(ValueError, match="`num_experts` is 4, and 6 in `pruned`"):
        _check_same_model({"pruned": {"shape": sizes | {"num_experts": 6}}}, "pruned", config, tmp_path)


# ---- criteria -------------------------------------------------------------------------------------------------


CRITERIA = ("random", "magnitude", "taylor", "taylor:aggregation=fused", "policy_gradient", "expert_rise")


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", NAMES)
def test_criteria_rank_experts(name, criterion):
    choice = {EXPERT: f"{criterion}:steps=2" if criterion == "policy_gradient" else criterion, "default": "magnitude"}
    pruning = prune_one_shot(
        build(name), {"num_experts": 3, "hidden_size": 16}, calibration(), PruneConfig(choice, "none", 1)
    )
    assert pruning.scores[EXPERT].shape == (LAYERS, EXPERTS)
    assert ModelShape.from_config(pruning.model.config).num_experts == 3
    assert pruning.num_parameters == pruning.model.num_parameters()
    for layer, kept in pruning.kept.experts.items():
        assert kept == sorted(pruning.scores[EXPERT][layer].topk(3).indices.tolist())


@pytest.mark.parametrize("name", NAMES)
def test_the_magnitude_of_an_expert_is_that_of_its_weights(name):
    model = masked(name, {"num_experts": 4})
    found = sum_over_units(((weight, value.abs()) for weight, value in values_of(model)), model)
    mlp = model.model.layers[2].mlp
    parts = (mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj)
    wanted = sum(part.detach().abs().flatten(1).sum(dim=1) for part in parts)
    torch.testing.assert_close(found[EXPERT][2], wanted)
    whole = sum(value.abs().sum() for weight, value in values_of(model) if ".layers.2." in weight)
    torch.testing.assert_close(found[LAYER][2], whole)


@pytest.mark.parametrize("name", NAMES)
def test_the_rise_without_an_expert_is_that_of_the_cut_model(name):
    source, text = build(name), calibration()

    def loss(model):
        with torch.no_grad():
            return sum(model(**batch).loss.item() for batch in text.batches) / len(text.batches)

    model = masked(name, {"num_experts": 5})
    gates = {EXPERT: torch.ones(LAYERS, EXPERTS)}
    gates[EXPERT][[0, 1, 3], 0] = gates[EXPERT][2, 5] = 0
    others = {EXPERT: gates[EXPERT].clone()}
    others[EXPERT][2, 5] = 1
    with model.use_gates(others):
        rises = score_units(model, "expert_rise", text, [EXPERT])[EXPERT]
        before = loss(model)
    assert rises[2, 5].item() == pytest.approx(loss(slice_model(model, gates)[0]) - before, abs=1e-5)
    assert abs(rises[2, 5]) > 1e-3 and bool((rises[[0, 1, 3], 0] == 0).all())
    assert loss(source) == pytest.approx(loss(masked(name, {})), abs=1e-6)  # nothing was left closed


@pytest.mark.parametrize("name", NAMES)
def test_what_can_not_work_with_experts_is_refused(name):
    source, text = build(name), calibration()
    for criterion, words in (
        ({EXPERT: "loss_rise", "default": "taylor"}, "cannot rank 'expert'.*these can: expert_rise, magnitude"),
        ("flap", "'flap' measures the MLP of a layer"),
        ("taylor:gradient=adapters", "measures the MLP of a layer.*Name one of expert_rise"),
        ({EXPERT: "taylor", "default": "activation"}, "'activation' measures the MLP of a layer"),
    ):
        with pytest.raises(ValueError, match=words):
            prune_one_shot(source, {"num_experts": 4, "hidden_size": 16}, text, PruneConfig(criterion, "none"))
    with pytest.raises(ValueError, match=f"`compensation` must be 'none' for a {name}"):
        prune_one_shot(source, {"num_experts": 4}, text, PruneConfig("expert_rise"))
    with pytest.raises(ValueError, match="Say .compensation='none'"):  # of the default for dense models
        prune_one_shot(source, {"num_experts": 4}, text)
    for allocation in ("global", "adaptive"):
        with pytest.raises(ValueError, match=f"`allocation` must be 'uniform' for a mixture of experts.*{allocation}"):
            prune_one_shot(source, 0.5, text, PruneConfig("expert_rise", "none", allocation=allocation))
    with pytest.raises(ValueError, match=f"Layers of a {name} must all keep the same numbers"):
        slice_uneven(masked(name, {"num_experts": 4}), expert_gates())
    with pytest.raises(ValueError, match="mixture of experts has not been measured"):
        estimate_memory(source.config, TrainingSetup(1, 16))


def test_text_without_counted_tokens_and_weights_with_nan_are_refused():
    model, text = masked("mixtral", {"num_experts": 4}), calibration()
    nothing = [batch | {"labels": torch.full_like(batch["labels"], -100)} for batch in text.batches]
    with pytest.raises(ValueError, match="Give at least one calibration batch"):
        score_units(model, "expert_rise", Calibration(nothing), [EXPERT])
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        score_units(model, "expert_rise", text, [EXPERT])


def test_a_criterion_scores_the_kinds_that_a_model_has():
    kinds = resolve_criterion("magnitude").ranks
    assert {EXPERT, INTERMEDIATE} <= set(kinds)
    for name, absent in (("mixtral", INTERMEDIATE), ("llama", EXPERT)):
        model = AutoShearingModelForCausalLM.from_model(build(name))
        assert set(score_units(model, "magnitude", calibration(), kinds)) == set(kinds) - {absent}


def test_a_dense_model_has_no_experts_to_close():
    with pytest.raises(ValueError, match="`model` must be a mixture of experts, but a llama has none"):
        expert_rise(AutoShearingModelForCausalLM.from_model(build("llama")), calibration())


def test_experts_go_in_several_shots():
    target = {"num_experts": 2}
    pruning = prune_one_shot(
        build("mixtral"), target, calibration(), PruneConfig({EXPERT: "taylor"}, "none", num_shots=2)
    )
    assert {len(kept) for kept in pruning.kept.experts.values()} == {2}


def test_whole_layers_can_be_ranked_by_the_loss_without_them():
    choice = {LAYER: "loss_rise", "default": "taylor"}
    pruning = prune_one_shot(
        build("mixtral"), {"num_experts": 4, "num_hidden_layers": 2}, calibration(), PruneConfig(choice, "none")
    )
    assert len(pruning.kept.layers) == 2 and pruning.scores[LAYER].shape == (LAYERS,)


# ---- mask learning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["relaxed_topk", "hard_concrete"])
@pytest.mark.parametrize("name", NAMES)
def test_masks_learn_to_keep_the_target_s_number_of_experts(name, method, tmp_path):
    target = {"num_experts": 4, "num_hidden_layers": 3, "hidden_size": 16}
    model = masked(name, target, MaskSettings(method=method), vocab_size=VOCAB_SIZE)
    trainer = make_trainer(model, make_args(tmp_path / "run", max_steps=4))
    before = model.masks.log_alpha[EXPERT].detach().clone()
    trainer.train()
    assert bool(((model.masks.log_alpha[EXPERT] - before).abs() > 1e-3).any(dim=-1).all())
    expected = model.masks.expected_shape()
    if method == "relaxed_topk":
        assert expected["num_experts"] == pytest.approx(4, abs=1e-3)
    assert expected["intermediate_size"] == 16 and set(model.masks.kept_below_half()) == set(expected)
    entries = [entry for entry in trainer.state.log_history if "expected/num_experts" in entry]
    assert entries and all("target/num_experts" in entry for entry in entries)
    model.eval()
    sliced, kept = slice_model(model)
    assert all(len(experts) == 4 for experts in kept.experts.values())
    save_checkpoint(sliced, tmp_path / "pruned")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    ids = torch.randint(3, VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(1))
    expected = logits(model, ids)
    assert (logits(loaded, ids) - expected).abs().max() < 1e-5 * expected.abs().max()
    model.save_pretrained(tmp_path / "masked")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "masked").eval()
    assert torch.equal(logits(again, ids), expected)


def test_masks_start_from_scores_of_experts():
    source = ModelShape.from_config(build("mixtral").config)
    masks = ShearingMasks(source, replace(source, num_experts=4), MaskSettings())
    masks.load_state_dict(masks.start_parameters())
    scores = torch.rand(LAYERS, EXPERTS, generator=torch.Generator().manual_seed(0))
    masks.start_from_importance({EXPERT: scores})
    kept = masks.kept_units()
    assert all(set(kept[EXPERT][layer].nonzero().flatten().tolist()) == set(scores[layer].topk(4).indices.tolist())
               for layer in range(LAYERS))  # fmt: skip
    assert bool(kept[HIDDEN].all()) and bool(kept[KEY_VALUE_HEAD].all())


@pytest.mark.parametrize("name", NAMES)
def test_reports_show_experts(name):
    model = masked(name, {"num_experts": 4, "num_hidden_layers": 3})
    sliced, kept = slice_model(model)
    before, after = (ModelShape.from_config(part.config).to_dict() for part in (model, sliced))
    results = {"source": {"shape": before}, "target_shape": after, "kept": json.loads(json.dumps(kept.to_dict()))}
    assert "4 of 6 experts in each layer" in kept_section(results) and "6 → <b>4</b>" in shape_section(results)
    _check_same_shape(after, model.masks.target.sizes(), "pruned")
    with pytest.raises(ValueError, match="`pruned.shape.num_experts` must be the target's"):
        _check_same_shape(after, model.masks.target.sizes() | {"num_experts": 5}, "pruned")
    assert config_shape(sliced.config).num_experts == 4


# ---- the command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_inspect_shows_experts_and_the_target_s_parameters(name, tmp_path, capsys):
    source = build(name)
    source.save_pretrained(tmp_path)
    words = ["inspect", str(tmp_path), "--num_experts", "4", "--hidden_size", "16"]
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["now"]["shape"]["num_experts"] == 6 and facts["target"]["shape"]["num_experts"] == 4
    assert facts["now"]["num_parameters"] == source.num_parameters()
    model = AutoShearingModelForCausalLM.from_model(source, {"num_experts": 4, "hidden_size": 16}).eval()
    assert facts["target"]["num_parameters"] == slice_model(model)[0].num_parameters()
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "num_experts" in shown and "66.7%" in shown and "GiB" not in shown
    assert main(["inspect", str(tmp_path), "--num_experts", "1"]) == 2
