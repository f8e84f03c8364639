"""Compensation: never a larger error on the calibration text, exact where it can be, and a stock checkpoint after it."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY_SIZES
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3TextConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from hf_shear.compensation import Compensation, add_biases, compensate, methods, resolve_compensation
from hf_shear.compensation.gap import DAMPINGS, ChoosingTokens, Gap, damping_for, ridge
from hf_shear.compensation.methods import COMPENSATIONS
from hf_shear.data import Calibration
from hf_shear.masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER
from hf_shear.modeling import ShearingLlamaForCausalLM
from hf_shear.pruning import PruneConfig, prune_one_shot
from hf_shear.pruning.config import DEFAULT_CRITERION
from hf_shear.pruning.plan import make_plan
from hf_shear.slicing import save_checkpoint

METHODS = [name for name in COMPENSATIONS if name != "none"]
COLUMNS = {"num_key_value_heads": 2, "num_attention_heads": 6, "intermediate_size": 13}
TARGET = COLUMNS | {"hidden_size": 12, "num_hidden_layers": 3}
TOWARDS = ("module", "source")


@pytest.fixture
def calibration():
    ids = torch.randint(3, 40, (12, 24), generator=torch.Generator().manual_seed(3))
    return Calibration.from_batches([{"input_ids": ids, "labels": ids}], 4, seed=5)


@st.composite
def layers(draw):
    """Weight [R, C], inputs [N, C] that may be few, correlated, dead or large, and how many inputs stay."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(2, 12))
    num_tokens = draw(st.integers(1, 60))
    rank = draw(st.integers(1, columns))  # below the number of inputs: correlated ones
    inputs = torch.randn(num_tokens, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
    inputs = inputs + draw(st.sampled_from([0.0, 1.0, 30.0]))  # a mean far above the spread
    inputs = inputs * draw(st.sampled_from([1e-4, 1.0, 1e3]))
    dead = draw(st.lists(st.integers(0, columns - 1), max_size=columns))
    inputs[:, dead] = 0
    weight = torch.randn(rows, columns, generator=generator)
    return weight.double(), inputs.double(), draw(st.integers(1, columns - 1))


def gap_of(weight, inputs, num_kept):
    a, d = inputs[:, :num_kept], inputs[:, num_kept:] @ weight[:, num_kept:].t()
    y, n = inputs @ weight.t(), len(inputs)
    return Gap(d.t() @ a / n, d.mean(0), float(d.square().sum() / n), a.t() @ a / n, a.mean(0),
               float(y.square().sum() / n), n)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(layers(), st.sampled_from([0.0, 1e-8, 0.01, 10.0]))
def test_no_method_raises_the_error(layer, damping):
    """The error is measured on the outputs themselves, not by the formula that the methods use."""
    weight, inputs, num_kept = layer
    gap, a = gap_of(*layer), inputs[:, :num_kept]
    wanted = inputs @ weight.t()
    scale = wanted.square().mean() + 1e-30

    def measured(update, bias):
        update = 0 if update is None else update
        outputs = a @ (weight[:, :num_kept] + update).t() + (0 if bias is None else bias)
        return float((wanted - outputs).square().mean() / scale)

    before, errors = measured(None, None), {}
    for name in METHODS:
        method = name if name == "bias" else f"{name}:damping={damping}"
        update, bias = resolve_compensation(method).update(gap)
        errors[name] = measured(update, bias)
        assert errors[name] <= before * (1 + 1e-6) + 1e-9, name
    assert errors["least_squares_bias"] <= errors["bias"] * (1 + 1e-6) + 1e-9
    if damping <= 1e-8 and torch.linalg.matrix_rank(gap.gram) == num_kept:
        assert errors["least_squares_bias"] <= errors["least_squares"] * (1 + 1e-3) + 1e-6


def test_the_updates_are_the_least_squares_solutions():
    generator = torch.Generator().manual_seed(0)
    inputs = (torch.randn(200, 9, generator=generator) @ torch.randn(9, 9, generator=generator) + 0.5).double()
    weight = torch.randn(4, 9, generator=generator).double()
    gap, a, wanted = gap_of(weight, inputs, 5), inputs[:, :5], inputs @ weight.t()
    update, none = resolve_compensation("least_squares:damping=0").update(gap)
    solution = torch.linalg.lstsq(a, wanted).solution.t()
    assert none is None and torch.allclose(weight[:, :5] + update, solution, atol=1e-9)
    update, bias = resolve_compensation("least_squares_bias:damping=0").update(gap)
    ones = torch.cat([a, torch.ones(200, 1).double()], dim=1)
    solution = torch.linalg.lstsq(ones, wanted).solution.t()
    assert torch.allclose(torch.cat([weight[:, :5] + update, bias[:, None]], dim=1), solution, atol=1e-9)
    none, bias = resolve_compensation("bias").update(gap)
    assert none is None and torch.allclose(bias, weight[:, 5:] @ inputs[:, 5:].mean(0))  # FLAP
    left = wanted - a @ (weight[:, :5]).t() - bias
    assert gap.error(None, bias) == pytest.approx(float(left.square().sum() / wanted.square().sum()))


def choosing_gap(inputs, weight, num_kept, share=1.0):
    """The gap on all tokens, which choose the damping by every output."""
    gap = gap_of(weight, inputs, num_kept)
    gap.choosing = ChoosingTokens(inputs[:, :num_kept], inputs[:, num_kept:] @ weight[:, num_kept:].t(), share)
    return gap


@pytest.mark.parametrize("num_tokens", [25, 60, 4000])
@pytest.mark.parametrize("name", ["least_squares", "least_squares_bias"])
def test_the_damping_is_that_of_the_fit_to_the_others_which_is_best_on_held_out_tokens(num_tokens, name):
    """By the outputs themselves, and with least squares of the rows of both kinds in place of their moments."""
    generator = torch.Generator().manual_seed(num_tokens)
    inputs = (
        torch.randn(num_tokens, 30, generator=generator).double() @ torch.randn(30, 30, generator=generator).double()
    )
    inputs += torch.randn(num_tokens, 30, generator=generator).double()
    weight, num_held, num_kept = torch.randn(4, 30, generator=generator).double(), num_tokens // 4, 20
    gap = choosing_gap(inputs, weight, num_kept)
    least, rest = float(0.01 * gap.gram.diagonal().mean()), gap_of(weight, inputs[num_held:], num_kept)
    a, wanted = inputs[:num_held, :num_kept], inputs[:num_held, num_kept:] @ weight[:, num_kept:].t()
    centred = name == "least_squares_bias"

    def fit(gap, damping):
        """Weight and bias; None: no weight."""
        mean, input_mean = (gap.mean, gap.input_mean) if centred else (0 * gap.mean, 0 * gap.input_mean)
        cross, gram = gap.cross - mean.outer(input_mean), gap.gram - input_mean.outer(input_mean)
        update = 0 * cross if damping is None else ridge(cross, gram, damping)
        return update, mean - update @ input_mean

    def error(damping):
        update, bias = fit(rest, damping)
        return float((wanted - a @ update.t() - bias).square().sum())

    chosen = damping_for(gap, least, centred)
    assert chosen == min([None, *(factor * least for factor in DAMPINGS)], key=error)
    assert (chosen == least) == (num_tokens == 4000)
    update, bias = resolve_compensation(name).update(gap)
    expected = fit(gap, chosen)
    assert update is None if chosen is None else torch.equal(update, expected[0])
    assert torch.equal(bias, expected[1]) if centred else bias is None


def test_more_tokens_than_have_chosen_need_less_damping():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(60, 30, generator=generator).double()
    inputs[:, 20:] += inputs[:, :10]
    weight = torch.randn(4, 30, generator=generator).double()
    all_of_them, some = (choosing_gap(inputs, weight, 20, share) for share in (1.0, 0.5))
    assert 0.01 < damping_for(all_of_them, 0.01) == 2 * damping_for(some, 0.01)
    some.choosing.share = 1e-6
    assert damping_for(some, 0.01) == 0.01  # never less than was asked for


def test_an_update_that_is_no_good_on_held_out_tokens_is_not_made():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 12, generator=generator).double()
    inputs[10:, 8:] = inputs[10:, :4]  # what the others have in common, the held-out ones have the other way round
    inputs[:10, 8:] = -inputs[:10, :4]
    gap = choosing_gap(inputs, torch.randn(3, 12, generator=generator).double(), 8)
    assert damping_for(gap, 0.01) is None and resolve_compensation("least_squares").update(gap) == (None, None)


def test_choosing_tokens_are_the_same_however_they_are_collected(build_llama, calibration, monkeypatch):
    """By batches of any size, in the pass of scores or one of its own, and fitted to the module or to the source."""
    seen = []
    monkeypatch.setattr(methods, "damping_for", lambda gap, least: seen.append(gap.choosing) or least)
    monkeypatch.setattr("hf_shear.calibration.layer_stream.PLENTY", 1_000)
    ids = torch.cat([batch["input_ids"] for batch in calibration.batches])
    whole, source = Calibration([{"input_ids": ids, "labels": ids}], seed=5), build_llama(num_hidden_layers=2)
    for text, criterion, towards in (
        (calibration, "magnitude", "module"),
        (whole, "magnitude", "module"),
        (whole, "magnitude", "source"),
    ):
        prune_one_shot(
            source, {"intermediate_size": 13}, text, PruneConfig(criterion, f"least_squares:towards={towards}")
        )
    # Of down_proj of the first layer, which reads the same in all cases: with towards=source o_proj is fitted, too.
    first, *others = [rows for rows in seen if rows.inputs.shape[1] == 13][::2]
    assert len(others) == 2
    assert first.share == 1
    for other in others:
        assert other.share == 1
        torch.testing.assert_close(other.inputs, first.inputs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.mixed, first.mixed, rtol=1e-3, atol=1e-4)
    seen.clear()
    for layers_per_pass in (0, 1):  # A is shared, or collected anew
        criterion = f"llm_surgeon:layers_per_pass={layers_per_pass}"
        prune_one_shot(source, {"intermediate_size": 13}, whole, PruneConfig(criterion, "least_squares"))
    assert len(seen) == 4
    for shared, own in zip(seen[:2], seen[2:], strict=True):
        torch.testing.assert_close(shared.inputs, own.inputs, rtol=1e-4, atol=1e-5)
    seen.clear()
    prune_one_shot(source, {"intermediate_size": 13}, whole, PruneConfig("magnitude", "least_squares:holds_out=false"))
    assert seen == [None, None]
    monkeypatch.setattr("hf_shear.calibration.layer_stream.PLENTY", 1)
    for towards, number in (("module", 2), ("source", 4)):
        seen.clear()
        choices = PruneConfig("magnitude", f"least_squares:towards={towards}")
        prune_one_shot(source, {"intermediate_size": 13}, whole, choices)
        # Tokens are plenty for what a module lost; fits to the source choose however many there are.
        assert [choosing is None for choosing in seen] == [towards == "module"] * number


def test_a_system_without_a_cholesky_factor_is_damped_until_it_has_one():
    gram = torch.ones(3, 3).double()
    gram[0, 0] = 1 - 1e-12  # indefinite by rounding
    update = ridge(torch.ones(1, 3).double(), gram, 0.0)
    assert torch.isfinite(update).all() and (update @ gram).allclose(torch.ones(1, 3).double(), atol=1e-3)
    assert not ridge(torch.ones(1, 3).double(), torch.zeros(3, 3).double(), 0.0).any()


@pytest.mark.parametrize("towards", TOWARDS)
@pytest.mark.parametrize("name", METHODS)
def test_errors_fall_and_the_loss_of_a_stock_checkpoint_is_that_of_the_masked_model(
    build_llama, calibration, name, towards, tmp_path
):
    source = build_llama()
    before = {key: value.clone() for key, value in source.state_dict().items()}
    pruning = prune_one_shot(
        source, TARGET, calibration, PruneConfig("taylor", f"{name}:towards={towards}", num_shots=2)
    )
    for report in pruning.compensation:
        assert report.before and not report.left_alone
        assert all(report.after[module] <= report.before[module] for module in report.before)
        assert sum(report.after.values()) < sum(report.before.values())
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    save_checkpoint(pruning.model, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(loaded) is LlamaForCausalLM
    assert loaded.config.attention_bias == loaded.config.mlp_bias == name.endswith("bias")
    ids = calibration.batches[0]["input_ids"]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, pruning.model(ids).logits)
    if name.endswith("bias"):
        attention, mlp = loaded.model.layers[0].self_attn, loaded.model.layers[0].mlp
        others = (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj)
        assert any(module.bias.any() for module in others) == (towards == "source" and name != "least_squares")
        assert attention.o_proj.bias.any() and mlp.down_proj.bias.any()


@pytest.mark.parametrize(
    ("target", "towards"),
    [
        (COLUMNS, "module"),
        ({"hidden_size": 12, "num_attention_heads": 6, "num_key_value_heads": 2}, "source"),
        ({"num_hidden_layers": 3}, "source"),
        (TARGET, "source"),
    ],
)
def test_by_default_the_residual_stream_is_fitted_where_it_changes(build_llama, calibration, target, towards):
    source = build_llama()
    default, named = (
        prune_one_shot(source, target, calibration, PruneConfig(DEFAULT_CRITERION, f"least_squares:towards={name}"))
        for name in ("auto", towards)
    )
    assert PruneConfig().compensation == "least_squares:towards=auto"
    assert default.compensation == named.compensation and default.kept == named.kept
    weights = named.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in default.model.state_dict().items())


def test_by_default_what_normalises_the_stream_is_fitted_by_module(build_llama):
    method, config = resolve_compensation("least_squares:towards=auto"), Gemma3TextConfig(num_hidden_layers=2)
    assert method.resolved(True, config).towards == "module"
    method.check(config)
    with pytest.raises(ValueError, match="Leave `towards` out"):
        resolve_compensation("least_squares:towards=source").check(config)


def test_between_stages_of_training_modules_are_fitted_to_what_they_give(build_llama):
    plan = make_plan(build_llama().config, TARGET, PruneConfig(num_shots=2, pruning_share=0.5))
    assert plan.compensation.towards == "module"


def test_biases_that_the_source_has_are_kept(build_llama, calibration):
    source = build_llama(attention_bias=True)
    masked = ShearingLlamaForCausalLM.from_model(source)
    add_biases(masked)
    ids = calibration.batches[0]["input_ids"]
    with torch.no_grad():
        assert torch.equal(masked(ids).logits, source(ids).logits)
    assert masked.config.mlp_bias and not source.config.mlp_bias
    old = source.model.layers[0].self_attn.o_proj.bias
    pruned = prune_one_shot(source, COLUMNS, calibration, PruneConfig("taylor", "bias", num_shots=1)).model
    assert pruned.model.layers[0].self_attn.q_proj.bias.any()
    assert not torch.equal(pruned.model.layers[0].self_attn.o_proj.bias, old)


@torch.no_grad()
def test_towards_a_reference_a_module_without_gap_is_left_as_it_is(build_llama, calibration):
    """Nothing removed: nothing to make up for. One neuron removed: the layers below are not even looked at."""
    masked = ShearingLlamaForCausalLM.from_model(build_llama()).eval()
    weights = {name: value.clone() for name, value in masked.named_parameters()}
    report = compensate(masked, {}, calibration, "least_squares:towards=source")
    assert not report.before
    gate = torch.ones(4, 22)
    gate[2, 5] = 0
    report = compensate(masked, {INTERMEDIATE: gate}, calibration, "least_squares:towards=source")
    changed = {n for n, value in masked.named_parameters() if not torch.allclose(value, weights[n], atol=1e-5)}
    above = {"model.layers.2.mlp.down_proj.weight", "model.layers.3.self_attn.o_proj.weight",
             "model.layers.3.mlp.down_proj.weight"}  # fmt: skip
    assert changed == above
    assert {f"{name}.weight" for name in report.before} == above | {"model.layers.2.self_attn.o_proj.weight"}
    assert report.before["model.layers.2.self_attn.o_proj"] < 1e-10 < report.after["model.layers.2.mlp.down_proj"]


@torch.no_grad()
def test_an_exact_copy_of_a_removed_neuron_takes_all_over(build_llama, calibration):
    source = build_llama()
    for layer in source.model.layers:
        for module in (layer.mlp.gate_proj, layer.mlp.up_proj):
            module.weight[0] = module.weight[1]
    gate = torch.ones(4, 22)
    gate[:, 0] = 0
    ids = calibration.batches[0]["input_ids"]
    for towards in TOWARDS:
        masked = ShearingLlamaForCausalLM.from_model(source).eval()
        compensate(masked, {INTERMEDIATE: gate}, calibration, f"least_squares:damping=1e-9,towards={towards}")
        with masked.use_gates({INTERMEDIATE: gate}):
            assert torch.allclose(masked(ids).logits, source(ids).logits, atol=1e-3)


def test_modules_of_removed_layers_and_removed_rows_are_left_out(build_llama, calibration):
    masked = ShearingLlamaForCausalLM.from_model(build_llama()).eval()
    old = {name: value.detach().clone() for name, value in masked.named_parameters()}
    gates = {LAYER: torch.tensor([1.0, 0, 1, 1]), HIDDEN: (torch.arange(18) % 3 > 0).float(),
             KEY_VALUE_HEAD: torch.tensor([[1.0, 1, 0]] * 4)}  # fmt: skip
    for towards in TOWARDS:
        report = compensate(masked, gates, calibration, f"least_squares:towards={towards}")
        assert not any(".layers.1." in name for name in report.before)
    for name, value in masked.named_parameters():
        if name.endswith("o_proj.weight") and ".1." not in name:
            assert torch.equal(value[::3], old[name][::3]) and not torch.equal(value[1::3], old[name][1::3])


def test_an_update_that_would_raise_the_error_is_not_made_and_is_reported(build_llama, calibration, monkeypatch):
    """Rounding to a narrow dtype can spoil an update; here the method itself is a bad one."""
    monkeypatch.setitem(COMPENSATIONS, "bad", Compensation("bad", lambda gap: (torch.ones_like(gap.cross), None)))
    masked = ShearingLlamaForCausalLM.from_model(build_llama()).eval()
    old = {name: value.detach().clone() for name, value in masked.named_parameters()}
    gate = torch.ones(4, 22)
    gate[:, 0] = 0
    report = compensate(masked, {INTERMEDIATE: gate}, calibration, "bad")
    assert report.left_alone == [f"model.layers.{index}.mlp.down_proj" for index in range(4)]
    assert report.after == report.before
    assert all(torch.equal(value, old[name]) for name, value in masked.named_parameters())


@pytest.mark.parametrize("name", METHODS)
def test_in_half_precision_the_error_does_not_rise(build_llama, calibration, name):
    source = build_llama().to(torch.bfloat16)
    (report,) = prune_one_shot(source, COLUMNS, calibration, PruneConfig("taylor", name, num_shots=1)).compensation
    assert all(report.after[module] <= report.before[module] for module in report.before)


def test_too_few_tokens_are_warned_of_and_do_no_harm_on_them(build_llama):
    ids = torch.randint(3, 40, (1, 9), generator=torch.Generator().manual_seed(3))
    few = Calibration([{"input_ids": ids, "labels": ids}])
    with pytest.warns(UserWarning, match="calibration text has 9 tokens, fewer than the 22 inputs of mlp.down_proj"):
        pruning = prune_one_shot(
            build_llama(), {"intermediate_size": 13}, few, PruneConfig("taylor", "least_squares", num_shots=1)
        )
    (report,) = pruning.compensation
    assert all(report.after[name] <= report.before[name] for name in report.before)


@pytest.mark.parametrize(
    "method, message",
    [
        ("nothing", "`compensation` must be one of none, bias, least_squares, least_squares_bias, but it is 'nothing'"),
        ("none:damping=1", "Compensation 'none' has no option 'damping=1'"),
        (
            "bias:damping=1",
            "Compensation 'bias' has no option 'damping=1'.*defaults: towards=module, store=",
        ),
        ("least_squares:damping=-1", "`damping` of `Compensation 'least_squares'` must be at least 0, but it is -1"),
        ("least_squares:damping=much", "Option 'damping' of compensation 'least_squares' must be a float"),
        ("least_squares:towards=heaven", "Option 'towards' of `compensation` must be one of module, source"),
    ],
)
def test_bad_choices_are_refused_before_any_forward(build_llama, calibration, method, message, monkeypatch):
    monkeypatch.setattr(ShearingLlamaForCausalLM, "forward", lambda *args, **kwargs: pytest.fail("a forward ran"))
    with pytest.raises(ValueError, match=message):
        prune_one_shot(build_llama(), TARGET, calibration, PruneConfig(compensation=method))


def test_soft_gates_and_bad_numbers_are_refused(build_llama, calibration):
    masked = ShearingLlamaForCausalLM.from_model(build_llama()).eval()
    with pytest.raises(ValueError, match="must be 0 or 1 for compensation.*Harden them"):
        compensate(masked, {INTERMEDIATE: torch.full((4, 22), 0.5)}, calibration)
    with torch.no_grad():
        masked.model.layers[1].mlp.up_proj.weight[3] = float("inf")
    gate = torch.ones(4, 22)
    gate[:, 0] = 0
    with pytest.raises(ValueError, match="The inputs of model.layers.1.mlp.down_proj are not finite"):
        compensate(masked, {INTERMEDIATE: gate}, calibration)


def test_families_that_could_not_hold_the_result_are_refused(calibration):
    sizes = {name: TINY_SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "head_dim")}
    counts = {"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3}
    source = MistralForCausalLM(MistralConfig(**sizes, **counts))
    target = {"intermediate_size": 13}
    with pytest.raises(ValueError, match="needs one on o_proj and down_proj, which no config of the family 'mistral'"):
        prune_one_shot(source, target, calibration, PruneConfig("taylor", "bias"))
    report = prune_one_shot(
        source, target, calibration, PruneConfig("taylor", "least_squares:towards=source", 1)
    ).compensation[0]
    assert sum(report.after.values()) < sum(report.before.values())
    source = Gemma2ForCausalLM(Gemma2Config(**sizes, **counts))
    with pytest.raises(ValueError, match="towards=source fits what .* in the family 'gemma2' that is normalised"):
        prune_one_shot(source, target, calibration, PruneConfig("taylor", "least_squares:towards=source"))
    report = prune_one_shot(source, target, calibration, PruneConfig("taylor", "least_squares", 1)).compensation[0]
    assert sum(report.after.values()) < sum(report.before.values())


def test_removed_hidden_dimensions_are_made_up_for_by_what_reads_and_what_writes(build_llama, calibration):
    source = build_llama()
    plain, same, mended = (
        prune_one_shot(source, {"hidden_size": 9}, calibration, PruneConfig("taylor", method, num_shots=1))
        for method in ("none", "least_squares", "least_squares:towards=source,holds_out=false")
    )
    assert not same.compensation[0].before
    assert plain.kept == mended.kept
    (report,) = mended.compensation
    assert {name.split(".")[-1] for name in report.before} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    ids = calibration.batches[0]["input_ids"]
    with torch.no_grad():
        gaps = [float((found.model(ids).logits - source(ids).logits).square().mean()) for found in (plain, mended)]
    assert gaps[1] < 0.9 * gaps[0]
