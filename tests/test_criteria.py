"""Each criterion against its formula, by hand: loops over samples and tokens, two passes, finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
from masked_llama_helpers import TARGET, scatter_masks

from hf_shear import ShearingLlamaForCausalLM
from hf_shear.calibration.moments import ChannelMoments
from hf_shear.core import counted_flops
from hf_shear.criteria import CRITERIA, resolve_criterion, weight_gradients
from hf_shear.criteria.joint_rise import joint_rise
from hf_shear.criteria.loss_rise import loss_rise, sub_layer_rise
from hf_shear.criteria.random import random
from hf_shear.criteria.taylor import _adapters, estimated_gradient, taylor
from hf_shear.data import Calibration
from hf_shear.masks import (
    ATTENTION,
    HIDDEN,
    INTERMEDIATE,
    KEY_VALUE_HEAD,
    LAYER,
    MLP,
    QUERY_HEAD,
    MaskPhase,
    MaskSettings,
)
from hf_shear.masks.unit_kinds import UNIT_KINDS
from hf_shear.pruning import score_units

LENGTHS = (9, 6, 9)


@pytest.fixture
def samples():
    ids = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(3))
    labels = ids.clone()
    for row, length in enumerate(LENGTHS):
        labels[row, length:] = -100
    return {"input_ids": ids, "labels": labels}


@pytest.fixture
def source(build_llama):
    return build_llama(attention_bias=True, mlp_bias=True)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 40, (3, 2, 11), generator=generator)
    return [{"input_ids": batch, "labels": batch} for batch in ids]


@pytest.fixture
def model(build_llama, add_masks):
    return add_masks(build_llama(attention_bias=True, mlp_bias=True), TARGET, MaskSettings("hard_concrete"))


def scored(source, name, samples):
    model = ShearingLlamaForCausalLM.from_model(source)
    return score_units(model, name, Calibration([samples]), resolve_criterion(name).ranks)


def seen(source, module, samples, output=False):
    """Counted rows [tokens, C] of each sample that a module of the stock model reads, or writes."""
    rows = []

    def hook(_, args, out):
        rows.append((out if output else args[0])[0])

    handle = source.get_submodule(module).register_forward_hook(hook)
    with torch.no_grad():
        for ids, length in zip(samples["input_ids"], LENGTHS, strict=True):
            source(ids[None])
            rows[-1] = rows[-1][:length]
    handle.remove()
    return rows


DENSE = sorted(set(CRITERIA) - {"expert_rise"})
OPTIONS = {"policy_gradient": ":steps=2", "wanda_sp": ":gradient_weight=1.0"}
MORE = ("taylor:aggregation=element", "taylor:gradient=adapters,aggregation=element", "llm_surgeon:gradients=false",
        "kobd:gradients=false,layers_per_pass=1")  # fmt: skip


@pytest.mark.filterwarnings("ignore:The calibration text has:hf_shear.calibration.ShortCalibrationWarning")
@pytest.mark.parametrize("name", [name + OPTIONS.get(name, "") for name in DENSE] + list(MORE))
def test_a_criterion_scores_the_source_whatever_the_masks_would_cut(source, add_masks, samples, name):
    """Called as it is, in evaluation mode and with masks that have been learned."""
    learned, plain = scatter_masks(add_masks(source, TARGET)), add_masks(source, TARGET)
    learned.set_mask_phase(MaskPhase(hardening=1.0))
    with torch.no_grad():
        assert learned.eval()(samples["input_ids"]).logits.ne(source(samples["input_ids"]).logits).any()
    score, text = resolve_criterion(name), Calibration([samples])
    with plain.use_gates({}):
        expected = score(plain, text)
    found = score(learned, text)
    assert found.keys() == expected.keys()
    for kind, values in expected.items():
        assert torch.equal(found[kind], values), kind
    assert learned.gates_in_use == {} and not learned.training


def test_magnitude_sums_the_weights_that_go_with_a_unit(source, samples):
    scores, mlp, attention = (
        scored(source, "magnitude", samples),
        *(getattr(source.model.layers[2], name) for name in ("mlp", "self_attn")),
    )
    with torch.no_grad():
        neuron = sum(
            w.abs().sum() for w in (mlp.gate_proj.weight[5], mlp.up_proj.weight[5], mlp.down_proj.weight[:, 5])
        )
        neuron += mlp.gate_proj.bias[5].abs() + mlp.up_proj.bias[5].abs()
        rows, group = slice(4 * 4, 4 * 5), slice(4, 8)  # head 4: query 1 of group 1
        head = attention.q_proj.weight[rows].abs().sum() + attention.o_proj.weight[:, rows].abs().sum()
        head += attention.q_proj.bias[rows].abs().sum()
        shared = sum(
            p.weight[group].abs().sum() + p.bias[group].abs().sum() for p in (attention.k_proj, attention.v_proj)
        )
        hidden = source.model.embed_tokens.weight[:, 7].abs().sum() + source.lm_head.weight[:, 7].abs().sum()
        hidden += source.model.norm.weight[7].abs()
        for layer in source.model.layers:
            for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
                hidden += module.weight[7].abs().sum() + module.bias[7].abs()
            for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
                hidden += layer.get_submodule(name).weight[:, 7].abs().sum()
            hidden += layer.input_layernorm.weight[7].abs() + layer.post_attention_layernorm.weight[7].abs()
        whole = sum(parameter.abs().sum() for parameter in source.model.layers[2].parameters())
    torch.testing.assert_close(scores[INTERMEDIATE][2, 5], neuron)
    torch.testing.assert_close(scores[QUERY_HEAD][2, 1, 1], head)
    torch.testing.assert_close(scores[KEY_VALUE_HEAD][2, 1], scores[QUERY_HEAD][2, 1].sum() + shared)
    torch.testing.assert_close(scores[HIDDEN][7], hidden)
    torch.testing.assert_close(scores[LAYER][2], whole)


@pytest.mark.parametrize("aggregation", ["l2", "mean_abs"])
def test_activation_is_a_mean_of_sizes(source, samples, aggregation):
    scores = scored(source, f"activation:aggregation={aggregation}", samples)

    def mean(rows):  # of sizes [tokens, units] per sample
        if aggregation == "l2":
            return torch.stack([row.norm(dim=0) for row in rows]).mean(dim=0)
        return torch.cat(rows).abs().mean(dim=0)

    neurons = seen(source, "model.layers.1.mlp.down_proj", samples)
    torch.testing.assert_close(scores[INTERMEDIATE][1], mean(neurons))
    heads = [row.view(-1, 3, 3, 4) for row in seen(source, "model.layers.1.self_attn.o_proj", samples)]
    torch.testing.assert_close(scores[QUERY_HEAD][1].flatten(), mean([row.norm(dim=-1).flatten(1) for row in heads]))
    torch.testing.assert_close(scores[KEY_VALUE_HEAD][1], mean([row.flatten(2).norm(dim=-1) for row in heads]))
    norms = ["model.norm"]
    norms += [f"model.layers.{i}.{n}" for i in range(4) for n in ("input_layernorm", "post_attention_layernorm")]
    torch.testing.assert_close(scores[HIDDEN], sum(mean(seen(source, norm, samples, output=True)) for norm in norms))


def test_wanda_sp_and_flap_are_column_sums(source, samples):
    wanda, flap = scored(source, "wanda_sp", samples), scored(source, "flap", samples)
    for module, kinds in (("mlp.down_proj", (INTERMEDIATE,)), ("self_attn.o_proj", (QUERY_HEAD, KEY_VALUE_HEAD))):
        weight = source.model.layers[3].get_submodule(module).weight.detach()
        rows = torch.cat(seen(source, f"model.layers.3.{module}", samples)).double()
        by_norm = weight.double().abs().sum(dim=0) * rows.square().mean(dim=0).sqrt()
        by_variance = weight.double().square().sum(dim=0) * rows.var(dim=0, correction=0)
        for kind in kinds:
            shape = (*wanda[kind][3].shape, -1)
            for scores, wanted in ((wanda, by_norm), (flap, by_variance)):
                torch.testing.assert_close(scores[kind][3].double(), wanted.view(shape).sum(-1), rtol=1e-4, atol=0)
    standard = scored(source, "flap:standardise=true", samples)
    for score in standard.values():
        torch.testing.assert_close(score.flatten(1).mean(dim=1), torch.zeros(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(score.flatten(1).std(dim=1, correction=0), torch.ones(4))
    assert torch.equal(standard[INTERMEDIATE].argsort(), flap[INTERMEDIATE].argsort())


def test_a_variance_far_below_the_squared_mean_is_exact():
    """E[a^2] - E[a]^2 in float32 would lose it: the mean is 1000, the deviation .01."""
    generator = torch.Generator().manual_seed(0)
    values = (1000 + 0.01 * torch.randn(64, 50, 3, generator=generator, dtype=torch.float64)).float()
    moments = ChannelMoments(3, "cpu")
    for start in range(0, 64, 8):
        moments.add(values[start : start + 8, :40].flatten(0, 1))
    exact = values[:, :40].double().flatten(0, 1)
    torch.testing.assert_close(moments.variance.double(), exact.var(dim=0, correction=0), rtol=1e-2, atol=0)
    naive = values[:, :40].square().mean(dim=(0, 1)) - values[:, :40].mean(dim=(0, 1)).square()
    assert ((naive - moments.variance) / moments.variance).abs().max() > 0.5


def test_flap_needs_two_tokens(source, samples):
    one = samples["labels"].clone().fill_(-100)
    one[0, 0] = samples["input_ids"][0, 0]
    with pytest.raises(ValueError, match="at least 2 tokens of calibration text, but there is 1"):
        scored(source, "flap", samples | {"labels": one})


def test_block_influence_is_one_minus_the_mean_cosine(source, samples):
    scores = scored(source, "block_influence", samples)[LAYER]
    for index in range(4):
        before = torch.cat(seen(source, f"model.layers.{index}", samples))
        after = torch.cat(seen(source, f"model.layers.{index}", samples, output=True))
        cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
        assert scores[index].item() == pytest.approx(1 - cosine.mean().item(), abs=1e-6)
    assert scores.min() > 1e-3


def test_random_scores_are_seeded_uniform_and_complete(model, batches):
    scores, again, other = (random(model, Calibration(batches, seed)) for seed in (1, 1, 2))
    assert tuple(scores) == UNIT_KINDS
    for name, score in scores.items():
        assert score.shape == model.masks.kinds[name].mask_shape
        assert torch.equal(score, again[name]) and not torch.equal(score, other[name])
    values = torch.cat([score.flatten() for score in scores.values()])
    # 158 uniform draws: standard error of the mean .023.
    assert 0 <= values.min() and values.max() <= 1 and abs(values.mean() - 0.5) < 0.1


# ---- The rise of the loss without layers -------------------------------------------------------------------------


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


def test_loss_rise_names_what_is_wrong(model, batches):
    nothing = [batch | {"labels": torch.full_like(batch["labels"], -100)} for batch in batches]
    with pytest.raises(ValueError, match="Give at least one calibration batch"):
        loss_rise(model.train(), Calibration(nothing))
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 4] = float("inf")
    with pytest.raises(ValueError, match="is not finite on the calibration text"):
        loss_rise(model, Calibration(batches))
    assert model.training


# ---- Layers that go together ------------------------------------------------------------------------------------------


def whole_loss(plain, batches, without=()):
    """Mean loss of a stock model, some decoder layers taken out by hand."""
    plain = copy.deepcopy(plain)
    for index in sorted(without, reverse=True):
        del plain.model.layers[index]
    plain.config.num_hidden_layers -= len(without)
    with torch.no_grad():
        return sum(plain(**batch, use_cache=False).loss.item() for batch in batches) / len(batches)


def test_joint_rise_is_the_loss_without_all_layers_that_go(build_llama, add_masks, batches):
    source = build_llama(num_hidden_layers=5)
    text, options = Calibration(batches), {"mean": False, "shortlist": 0, "num_tokens": 0}
    scores = joint_rise(add_masks(source, {"num_hidden_layers": 3}), text, **options)[LAYER]
    first, second = scores.argsort()[:2].tolist()
    full = whole_loss(source, batches)
    assert scores[first].item() == pytest.approx(max(whole_loss(source, batches, [first]) - full, 0), abs=1e-5)
    together = whole_loss(source, batches, [first, second]) - full
    assert scores[second].item() == pytest.approx(max(together, scores[first].item()), abs=1e-5)
    alone = loss_rise(add_masks(source, {"num_hidden_layers": 3}), text)[LAYER]
    torch.testing.assert_close(joint_rise(add_masks(source, {}), text, **options)[LAYER], alone, rtol=0, atol=2e-6)
    again = joint_rise(add_masks(source, {"num_hidden_layers": 3}), Calibration(batches[::-1]), **options)[LAYER]
    torch.testing.assert_close(again, scores, rtol=0, atol=2e-6)


def test_joint_rise_searches_around_protected_layers(build_llama, add_masks, batches):
    """What goes is chosen as if a protected layer could not: the second layer, with the first one gone that may go."""
    source = build_llama(num_hidden_layers=5)
    text, options = Calibration(batches), {"mean": False, "shortlist": 0, "num_tokens": 0}
    model = add_masks(source, {"num_hidden_layers": 3})
    first = int(joint_rise(model, text, **options)[LAYER].argmin())
    scores = joint_rise(model, text, **options, protected=str(first))[LAYER]
    gone = scores.argsort()[:2].tolist()
    full, others = whole_loss(source, batches), [layer for layer in range(5) if layer != first]
    alone = {layer: whole_loss(source, batches, [layer]) - full for layer in others}
    best = min(others, key=lambda layer: alone[layer])
    pairs = {layer: whole_loss(source, batches, [best, layer]) - full for layer in others if layer != best}
    second = min(pairs, key=lambda layer: pairs[layer])
    assert {*gone} == {best, second} and int(scores.argmax()) == first
    assert scores[best].item() == pytest.approx(max(alone[best], 0), abs=1e-5)
    assert scores[second].item() == pytest.approx(max(pairs[second], alone[best], 0), abs=1e-5)


@pytest.mark.parametrize("protected", ["5", "-1", "first:1", "0 1 2 3"])
def test_joint_rise_refuses_what_it_cannot_protect(build_llama, add_masks, batches, protected):
    model = add_masks(build_llama(num_hidden_layers=5), {"num_hidden_layers": 3})
    with pytest.raises(ValueError, match="`protected` of joint_rise must name at most 3 of the layers 0 to 4"):
        joint_rise(model, Calibration(batches), protected=protected)


def test_an_unneeded_pair_of_layers_is_found_at_less_cost(build_llama, add_masks, batches):
    source = build_llama(num_hidden_layers=12)
    with torch.no_grad():
        for index in (3, 8):
            source.model.layers[index].self_attn.o_proj.weight.zero_()
            source.model.layers[index].mlp.down_proj.weight.zero_()
        for batch in batches:  # what the model predicts, so that whatever changes it raises the loss
            predicted = source(batch["input_ids"]).logits[:, :-1].argmax(dim=-1)
            batch["labels"] = torch.cat([batch["input_ids"][:, :1], predicted], dim=1)
    model, text = add_masks(source, {"num_hidden_layers": 10}), Calibration(batches)
    with counted_flops() as joint:
        scores = joint_rise(model, text)[LAYER]
    with counted_flops() as single:
        loss_rise(model, text)
    assert sorted(scores.argsort()[:2].tolist()) == [3, 8] and scores[3] == scores[8] == 0
    assert bool(torch.isfinite(scores).all()) and joint.total < single.total


def test_the_mean_stands_in_the_place_of_a_layer(build_llama, add_masks, batches):
    """Of a layer that adds the same vector everywhere it is all that the layer gave."""
    source = build_llama(mlp_bias=True)
    with torch.no_grad():
        source.model.layers[1].self_attn.o_proj.weight.zero_()
        source.model.layers[1].mlp.down_proj.weight.zero_()
        source.model.layers[1].mlp.down_proj.bias.copy_(torch.arange(18.0))
    model, text = add_masks(source, {"num_hidden_layers": 3}), Calibration(batches)
    with_mean, without = (joint_rise(model, text, mean=mean)[LAYER] for mean in (True, False))
    assert abs(with_mean[1].item()) < 1e-5 < 1e-2 < abs(without[1].item())


def test_sub_layer_rise_is_the_rise_of_the_loss(build_llama, add_masks, batches):
    calibration = Calibration(batches)
    masked = add_masks(build_llama(), {})

    def loss(gates):
        with torch.no_grad(), masked.use_gates(gates):
            return sum(masked(**batch).loss.item() for batch in calibration.batches) / len(calibration.batches)

    outer = {KEY_VALUE_HEAD: torch.tensor([[1.0, 0, 1]] * 4)}
    with masked.use_gates(outer):
        found = sub_layer_rise(masked, calibration)
    neurons = torch.ones(4, 22)
    neurons[2] = 0
    assert float(found[MLP][2]) == pytest.approx(loss(outer | {INTERMEDIATE: neurons}) - loss(outer), abs=1e-5)
    groups = outer[KEY_VALUE_HEAD].clone()
    groups[1] = 0
    assert float(found[ATTENTION][1]) == pytest.approx(loss({KEY_VALUE_HEAD: groups}) - loss(outer), abs=1e-5)


# ---- Taylor ---------------------------------------------------------------------------------------------------


def sample_gradients(source, samples):
    """(share of the predicted tokens, gradients by name) of each sample's mean loss."""
    found, total = [], sum(length - 1 for length in LENGTHS)
    for ids, length in zip(samples["input_ids"], LENGTHS, strict=True):
        loss = source(ids[None, :length], labels=ids[None, :length]).loss
        names, weights = zip(*source.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, weights)
        found.append(((length - 1) / total, dict(zip(names, gradients, strict=True))))
    return found


def test_gradients_of_weights_are_those_of_the_mean_loss_and_their_squares_of_samples(source, samples):
    apart = sample_gradients(source, samples)
    found = weight_gradients(ShearingLlamaForCausalLM.from_model(source), Calibration([samples]), second=True)
    for name in found.mean:
        mean = sum(share * gradients[name] for share, gradients in apart)
        torch.testing.assert_close(found.mean[name], mean, rtol=1e-4, atol=1e-6)
        squares = sum(share * gradients[name].square() for share, gradients in apart)
        torch.testing.assert_close(found.second[name], squares, rtol=1e-4, atol=1e-7)
    assert len(found.mean) == len(dict(source.named_parameters()))


@pytest.mark.parametrize("order", ["first", "mixed", "norm"])
def test_taylor_over_weights_is_the_formula_of_a_neuron(source, samples, order):
    apart, neuron, prefix = sample_gradients(source, samples), 5, "model.layers.2.mlp."
    parts = []
    for name in ("gate_proj.weight", "up_proj.weight", "gate_proj.bias", "up_proj.bias", "down_proj.weight"):
        pick = (slice(None), neuron) if name.startswith("down") else neuron
        theta = source.get_parameter(prefix + name).detach()[pick].flatten()
        g = sum(share * gradients[prefix + name][pick].flatten() for share, gradients in apart)
        h = sum(share * gradients[prefix + name][pick].flatten().square() for share, gradients in apart)
        formula = {"first": theta * g, "mixed": theta * g - theta**2 * h / 2, "norm": theta.abs() * h.sqrt()}
        parts.append(formula[order])
    parts = torch.cat(parts)
    options = f"taylor:order={order},aggregation="
    fine, coarse, fused = (scored(source, options + a, samples)[INTERMEDIATE] for a in ("element", "vector", "fused"))
    torch.testing.assert_close(fine[2, neuron], parts.abs().sum(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(coarse[2, neuron], parts.sum().abs(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(fused, coarse / coarse.std(correction=0) + fine / fine.std(correction=0))


@pytest.mark.parametrize("order", ["first", "mixed", "norm"])
def test_taylor_of_gates_is_the_formula_of_a_neuron(source, samples, order):
    """The slope by a neuron's gate is theta * g over its column of down_proj, for each sample."""
    name = "model.layers.2.mlp.down_proj.weight"
    theta = source.get_parameter(name).detach()
    slopes = [(share, (theta * gradients[name]).sum(dim=0)) for share, gradients in sample_gradients(source, samples)]
    formula = {
        "first": lambda: sum(share * s.abs() for share, s in slopes),
        "mixed": lambda: sum(share * (s - s**2 / 2).abs() for share, s in slopes),
        "norm": lambda: sum(share * s**2 for share, s in slopes).sqrt(),
    }
    scores = scored(source, f"taylor:order={order}", samples)[INTERMEDIATE][2]
    torch.testing.assert_close(scores, formula[order](), rtol=1e-4, atol=1e-6)


def test_taylor_per_token_is_activation_times_gradient(source, samples):
    scores = scored(source, "taylor:aggregation=token", samples)
    total, wanted = sum(length - 1 for length in LENGTHS), torch.zeros(22)
    for ids, length in zip(samples["input_ids"], LENGTHS, strict=True):
        kept = []
        handle = source.model.layers[2].mlp.down_proj.register_forward_pre_hook(
            lambda _, args, k=kept: k.append(args[0])
        )
        loss = source(ids[None, :length], labels=ids[None, :length]).loss
        handle.remove()
        (gradient,) = torch.autograd.grad(loss, kept)
        wanted += (length - 1) / total * (kept[0].detach() * gradient).abs().sum(dim=(0, 1))
    torch.testing.assert_close(scores[INTERMEDIATE][2], wanted, rtol=1e-4, atol=1e-6)


def test_wanda_with_gradients_adds_the_norm_over_samples(source, samples):
    name = "model.layers.2.mlp.down_proj.weight"
    theta = source.get_parameter(name).detach().abs()
    squares = sum(share * gradients[name].square() for share, gradients in sample_gradients(source, samples))
    plain, weighted = (
        scored(source, f"wanda_sp:gradient_weight={alpha}", samples)[INTERMEDIATE][2] for alpha in (0, 3)
    )
    torch.testing.assert_close(weighted - plain, 3 * (theta * squares.sqrt()).sum(dim=0), rtol=1e-3, atol=1e-5)


def test_gradients_of_fresh_adapters_project_those_of_weights(source, samples):
    """B = 0, so g = G A^T A; at full rank and with orthogonal A that would be G itself."""
    generator = torch.Generator().manual_seed(0)
    gradient, a = torch.randn(7, 5, generator=generator), torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    b = torch.zeros(7, 5)
    torch.testing.assert_close(estimated_gradient(a, b, b.T @ gradient, gradient @ a.T), gradient)
    a, b = torch.randn(2, 5, generator=generator), torch.randn(7, 2, generator=generator)
    grad_a, grad_b = b.T @ gradient, gradient @ a.T
    step = b @ a - (b - grad_b) @ (a - grad_a)  # of one step of size 1 down both gradients
    torch.testing.assert_close(estimated_gradient(a, b, grad_a, grad_b), step)
    # With as many ranks as inputs the adapters' estimate ranks neurons nearly as the gradient itself does.
    options = "taylor:aggregation=element"
    exact = scored(source, options, samples)[INTERMEDIATE].flatten()
    found = scored(source, f"{options},gradient=adapters,rank=256", samples)[INTERMEDIATE].flatten()
    rough = scored(source, f"{options},gradient=adapters,rank=1", samples)[INTERMEDIATE].flatten()
    fits = [torch.corrcoef(torch.stack([scores, exact]))[0, 1] for scores in (found, rough)]
    assert fits[0] > 0.9 and fits[0] > fits[1]
    trained = scored(source, f"{options},gradient=adapters,rank=256,adapter_steps=2", samples)[INTERMEDIATE].flatten()
    assert not torch.equal(trained, found)


@pytest.mark.parametrize(
    "name, message",
    [
        ("taylor:order=third", "`order` of Taylor scores must be one of first, mixed, norm, but it is 'third'"),
        ("taylor:aggregation=sum", "`aggregation` of Taylor scores must be one of gate, token, element"),
        ("taylor:gradient=none", "`gradient` of Taylor scores must be one of weights, adapters, but it is 'none'"),
        ("taylor:gradient=adapters", "needs order=first and an aggregation over weights .*'first' and 'gate'"),
        (
            "taylor:gradient=adapters,aggregation=element,rank=0",
            "`rank` of `Criterion 'taylor'` must be at least 1, but it is 0",
        ),
        ("activation:aggregation=max", "`aggregation` must be one of l2, mean_abs, but it is 'max'"),
    ],
)
def test_bad_options_are_refused_before_any_forward(source, samples, name, message, monkeypatch):
    monkeypatch.setattr(ShearingLlamaForCausalLM, "forward", lambda *args, **kwargs: pytest.fail("a forward ran"))
    with pytest.raises(ValueError, match=message):
        scored(source, name, samples)


def test_adapters_compute_through_closed_units(source, samples):
    """Fresh ones change no logit, and the estimate at full rank fits the gradient through the same gates."""
    model = ShearingLlamaForCausalLM.from_model(source, {"intermediate_size": 13, "hidden_size": 9})
    gates = {kind.name: torch.ones(kind.mask_shape) for kind in model.masks.kinds.values()}
    gates[INTERMEDIATE][:, ::2] = gates[KEY_VALUE_HEAD][1, 2] = gates[HIDDEN][5] = gates[LAYER][3] = 0
    with torch.no_grad(), model.use_gates(gates):
        wanted = model(samples["input_ids"]).logits
        with _adapters(model, rank=3, seed=0):
            torch.testing.assert_close(model(samples["input_ids"]).logits, wanted)
        options = "taylor:aggregation=element"
        exact = score_units(model, options, Calibration([samples]), [INTERMEDIATE])[INTERMEDIATE]
        found = score_units(model, f"{options},gradient=adapters,rank=256", Calibration([samples]), [INTERMEDIATE])[
            INTERMEDIATE
        ]
    assert (found[:, ::2] == 0).all() and (found[3] == 0).all()
    pairs = torch.stack([found[:3, 1::2].flatten(), exact[:3, 1::2].flatten()])
    assert torch.corrcoef(pairs)[0, 1] > 0.9


SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 5,
    "head_dim": 2,
}
SMALL_TARGET = {"hidden_size": 6, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 3}


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


def test_frozen_weights_and_checkpointing_change_nothing(model, batches):
    expected = taylor(model, Calibration(batches))
    model.requires_grad_(False)
    older = not hasattr(model, "activation_checkpointing_enable")  # transformers before 5.23
    (model.gradient_checkpointing_enable if older else model.activation_checkpointing_enable)()
    model.train()
    found = taylor(model, Calibration(batches))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


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
