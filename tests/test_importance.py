"""Taylor importance against finite differences, what it must not touch, and one-shot pruning."""

import copy

import pytest
import torch
from masked_llama_helpers import TARGET

from hf_shear.criteria import mask_start_importance
from hf_shear.criteria.loss_rise import loss_rise
from hf_shear.criteria.random import random
from hf_shear.criteria.taylor import taylor
from hf_shear.data import Calibration
from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, UNIT_KINDS, MaskPhase, MaskSettings
from hf_shear.pruning import uniform_gates
from hf_shear.slicing import slice_model

SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 5,
    "head_dim": 2,
}
SMALL_TARGET = {"hidden_size": 6, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 3}


def sliced_by(model, importance):
    scores = {kind.name: importance[kind.name] for kind in model.masks.constrained}
    return slice_model(model, uniform_gates(scores, model.masks.kinds, {}))


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 40, (3, 2, 11), generator=generator)
    return [{"input_ids": batch, "labels": batch} for batch in ids]


@pytest.fixture
def model(build_llama, add_masks):
    return add_masks(build_llama(attention_bias=True, mlp_bias=True), TARGET, MaskSettings("hard_concrete"))


def loss_with(model, batch, name, index, value):
    gates = {kind.name: torch.ones(kind.mask_shape) for kind in model.masks.kinds.values()}
    gates[name].view(-1)[index] = value
    with torch.no_grad(), model.use_gates(gates):
        return model(**batch).loss.item()


def slope_of_loss(model, batch, name, index, step=0.01):
    """Central differences over two steps, extrapolated: the error is of fourth order in the step."""
    near, far = (
        (loss_with(model, batch, name, index, 1 + h) - loss_with(model, batch, name, index, 1 - h)) / (2 * h)
        for h in (step, 2 * step)
    )
    return (4 * near - far) / 3


@pytest.mark.parametrize("tied", [False, True])
def test_scores_are_the_slopes_of_the_loss(build_llama, add_masks, batches, tied):
    """Finite differences of the loss by each unit's gate, around open gates, for every unit of every kind."""
    source = build_llama(**SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=tied).double()
    model = add_masks(source, SMALL_TARGET).double()
    one = {name: tensor[:1] for name, tensor in batches[0].items()}  # scores are means over samples
    scores = taylor(model, Calibration([one]))
    assert tuple(scores) == UNIT_KINDS
    largest = 0.0
    for name, score in scores.items():
        assert score.shape == model.masks.kinds[name].mask_shape and score.dtype == torch.float32
        for index, value in enumerate(score.flatten().tolist()):
            slope = abs(slope_of_loss(model, one, name, index))
            # Measured: at most 7e-5, since norms and the loss itself compute in float32, as in the stock model.
            assert value == pytest.approx(slope, rel=2e-3, abs=2e-4), (name, index)
            largest = max(largest, slope)
    assert largest > 0.1


def test_scores_are_means_of_absolute_slopes_over_samples(model, batches):
    together = taylor(model, Calibration(batches))
    samples = [{name: row[None] for name, row in zip(batch, rows, strict=True)}
               for batch in batches for rows in zip(*batch.values(), strict=True)]  # fmt: skip
    apart = [taylor(model, Calibration([sample])) for sample in samples]
    for name, score in together.items():
        torch.testing.assert_close(score, sum(single[name] for single in apart) / 6)
        assert (score >= 0).all() and (score > 0).any()


def test_units_that_do_nothing_score_nothing(build_llama, add_masks, batches):
    source = build_llama()
    with torch.no_grad():
        source.model.layers[1].mlp.down_proj.weight[:, 7] = 0
        source.model.layers[2].self_attn.o_proj.weight[:, 4 * 5 : 4 * 6] = 0  # head 5: query 2 of group 1
        source.model.layers[3].self_attn.o_proj.weight.zero_()
        source.model.layers[3].mlp.down_proj.weight.zero_()
    scores = taylor(add_masks(source, TARGET), Calibration(batches))
    zero = {name: (score == 0).nonzero().tolist() for name, score in scores.items()}
    assert zero[HIDDEN] == []
    assert zero[LAYER] == [[3]]
    assert zero[INTERMEDIATE] == [[1, 7], *([3, neuron] for neuron in range(22))]
    assert zero[KEY_VALUE_HEAD] == [[3, 0], [3, 1], [3, 2]]
    assert zero[QUERY_HEAD] == [[2, 1, 2], *([3, group, query] for group in range(3) for query in range(3))]


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_is(model, batches, token_ids, training):
    model.train(training)
    model.set_mask_phase(MaskPhase(optimizer_step=5, temperature=0.4))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    model.model.norm.weight.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        logits = model(token_ids).logits
    taylor(model, Calibration(batches))
    assert model.training == training and model.masks.training == training
    assert model.masks.phase == MaskPhase(optimizer_step=5, temperature=0.4)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all((parameter.grad == 0.25).all() for parameter in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["model.norm.weight"]
    with torch.no_grad():
        assert torch.equal(model(token_ids).logits, logits)


def test_masks_scores_and_phase_do_not_matter(model, batches):
    expected = taylor(model, Calibration(batches))
    with torch.no_grad():
        for parameter in model.masks.parameters():
            parameter.uniform_(-3, 3)
    model.train().set_mask_phase(MaskPhase(optimizer_step=9, hardening=1.0))
    found = taylor(model, Calibration(batches))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_frozen_weights_and_checkpointing_change_nothing(model, batches):
    expected = taylor(model, Calibration(batches))
    model.requires_grad_(False)
    older = not hasattr(model, "activation_checkpointing_enable")  # transformers before 5.23
    (model.gradient_checkpointing_enable if older else model.activation_checkpointing_enable)()
    model.train()
    found = taylor(model, Calibration(batches))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_a_bfloat16_model_gets_float32_scores_close_to_the_exact_ones(model, batches):
    exact = taylor(model, Calibration(batches))
    scores = taylor(model.to(torch.bfloat16), Calibration(batches))
    for name, score in scores.items():
        assert score.dtype == torch.float32
        assert torch.corrcoef(torch.stack([score.flatten(), exact[name].flatten()]))[0, 1] > 0.98


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_refused(model, batches, value):
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 4] = value
    with pytest.raises(ValueError, match=r"not finite for \['hidden'.*the source gives NaN or infinite losses"):
        taylor(model.train(), Calibration(batches))
    assert model.training


def test_mode_and_gates_are_restored_after_an_error(model, batches, token_ids):
    model.train()
    bad = {"input_ids": torch.full((1, 4), 10_000), "labels": torch.zeros(1, 4, dtype=torch.long)}
    with pytest.raises(IndexError):
        taylor(model, Calibration([batches[0], bad]))
    assert model.training and model._gates_override is None
    assert all(norm.output_mask is None for norm in model._norms())


def test_loss_rise_is_the_loss_of_the_model_without_the_layer(build_llama, add_masks, batches):
    """Against stock models from which one decoder layer was taken out by hand."""
    source = build_llama(attention_bias=True, mlp_bias=True)
    model = add_masks(source, TARGET)
    rise = loss_rise(model, Calibration(batches))[LAYER]
    assert rise.shape == (4,) and rise.dtype == torch.float32

    def mean_loss(plain):
        with torch.no_grad():
            return sum(plain(**batch, use_cache=False).loss.item() for batch in batches) / len(batches)

    full = mean_loss(source)
    for index in range(4):
        without = copy.deepcopy(source)
        del without.model.layers[index]
        without.config.num_hidden_layers = 3
        assert rise[index].item() == pytest.approx(mean_loss(without) - full, abs=2e-6)
    assert rise.abs().max() > 1e-3


def test_a_layer_that_does_nothing_has_no_rise(build_llama, add_masks, batches):
    source = build_llama(num_hidden_layers=2)
    with torch.no_grad():
        source.model.layers[0].self_attn.o_proj.weight.zero_()
        source.model.layers[0].mlp.down_proj.weight.zero_()
        source.model.layers[1].mlp.down_proj.weight.mul_(30)
    rise = loss_rise(add_masks(source, {"num_hidden_layers": 1}), Calibration(batches))[LAYER]
    assert rise[0] == 0 and rise[1] != 0


@pytest.mark.parametrize("training", [False, True])
def test_loss_rise_leaves_the_model_as_it_is(model, batches, token_ids, training):
    model.train(training)
    state = copy.deepcopy(model.state_dict())
    loss_rise(model, Calibration(batches))
    assert model.training == training and model.masks.training == training and model._gates_override is None
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_loss_rise_names_what_is_wrong(model, batches):
    nothing = [batch | {"labels": torch.full_like(batch["labels"], -100)} for batch in batches]
    with pytest.raises(ValueError, match="needs at least one calibration batch"):
        loss_rise(model.train(), Calibration(nothing))
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 4] = float("inf")
    with pytest.raises(ValueError, match="is not finite on the calibration text"):
        loss_rise(model, Calibration(batches))
    assert model.training


def test_masks_start_from_taylor_scores_and_the_loss_rise_of_layers(model, batches):
    importance, wanted = mask_start_importance(model, iter(batches * 2)), taylor(model, Calibration(batches * 2))
    assert tuple(importance) == tuple(wanted)
    assert torch.equal(importance[LAYER], loss_rise(model, Calibration((batches * 2)[:4]))[LAYER])
    assert not torch.equal(importance[LAYER], loss_rise(model, Calibration(batches))[LAYER])
    assert all(torch.equal(importance[name], wanted[name]) for name in wanted if name != LAYER)


def test_layers_that_all_stay_cost_no_forward_pass(build_llama, add_masks, batches):
    model = add_masks(build_llama(), {"intermediate_size": 13})
    importance, wanted = mask_start_importance(model, batches), taylor(model, Calibration(batches))
    assert torch.equal(importance[LAYER], wanted[LAYER])


def test_random_scores_are_seeded_uniform_and_complete(model, batches):
    scores, again, other = (random(model, Calibration(batches, seed)) for seed in (1, 1, 2))
    assert tuple(scores) == UNIT_KINDS
    for name, score in scores.items():
        assert score.shape == model.masks.kinds[name].mask_shape
        assert torch.equal(score, again[name]) and not torch.equal(score, other[name])
    values = torch.cat([score.flatten() for score in scores.values()])
    # 158 uniform draws: standard error of the mean .023.
    assert 0 <= values.min() and values.max() <= 1 and abs(values.mean() - 0.5) < 0.1


def test_one_shot_keeps_the_highest_scores(model, batches):
    importance = random(model, Calibration(batches, 4))
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
def test_masks_started_from_scores_keep_what_one_shot_keeps(build_llama, add_masks, batches, method):
    model = add_masks(build_llama(), TARGET, MaskSettings(method))
    importance = taylor(model, Calibration(batches))
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
    calibration = Calibration([{"input_ids": ids, "labels": ids}])
    importance = taylor(model, calibration)
    choices = {
        "taylor": importance,
        "random": random(model, calibration),
        "opposite": {name: -score for name, score in importance.items()},
    }
    with torch.no_grad():
        source_logits = source(ids).logits
        gaps = {
            name: (sliced_by(model, scores)[0](ids).logits - source_logits).square().mean().item()
            for name, scores in choices.items()
        }
    assert gaps["taylor"] < gaps["random"] < gaps["opposite"]
