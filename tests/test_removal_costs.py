"""Costs of a model's units by the LLM Surgeon, and the criteria that rank by them."""

from __future__ import annotations

import copy
from importlib import import_module

import pytest
import torch

from hf_shear import PruneConfig, ShearingLlamaForCausalLM, prune_one_shot
from hf_shear.calibration import ShortCalibrationWarning, stream_curvature
from hf_shear.calibration.factors import damped
from hf_shear.criteria import resolve_criterion
from hf_shear.criteria.llm_surgeon import removal_costs
from hf_shear.data import Calibration
from hf_shear.masks import ATTENTION, HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, MLP, QUERY_HEAD, SUB_LAYERS

COLUMNS = {"num_key_value_heads": 2, "num_attention_heads": 6, "intermediate_size": 13}
HEAD_DIM, GROUP = 4, 12  # columns of o_proj


@pytest.fixture
def calibration():
    ids = torch.randint(3, 40, (12, 24), generator=torch.Generator().manual_seed(3))
    return Calibration.from_batches([{"input_ids": ids, "labels": ids}], 4, seed=5)


@pytest.fixture
def masked(build_llama):
    return ShearingLlamaForCausalLM.from_model(build_llama(), COLUMNS).eval()


def brute_cost(weight, gram, gradients, columns):
    """1/2 tr(G W_S (M_SS)^-1 W_S^T), M the whole inverse."""
    middle = torch.linalg.inv(torch.linalg.inv(gram)[columns][:, columns])
    part = weight.detach()[:, columns].double()
    return float(0.5 * torch.trace(gradients @ part @ middle @ part.t()))


def test_units_are_their_columns(masked, calibration):
    costs = removal_costs(masked, calibration)
    curvature = dict(stream_curvature(masked, calibration.batches))
    for index, layer in enumerate(masked.model.layers):
        factors = {
            name: (damped(curvature[index].inputs[name].gram), damped(curvature[index].gradients[name].gram))
            for name in curvature[index].inputs
        }
        down, o = layer.mlp.down_proj.weight, layer.self_attn.o_proj.weight
        down_factors, o_factors = factors["mlp.down_proj"], factors["self_attn.o_proj"]
        for neuron in (0, 7, 21):
            expected = brute_cost(down, *down_factors, [neuron])
            assert float(costs[INTERMEDIATE][index, neuron]) == pytest.approx(expected, rel=1e-6)
        for group in range(3):
            expected = brute_cost(o, *o_factors, list(range(group * GROUP, (group + 1) * GROUP)))
            assert float(costs[KEY_VALUE_HEAD][index, group]) == pytest.approx(expected, rel=1e-6)
            for head in range(3):
                start = group * GROUP + head * HEAD_DIM
                expected = brute_cost(o, *o_factors, list(range(start, start + HEAD_DIM)))
                assert float(costs[QUERY_HEAD][index, group, head]) == pytest.approx(expected, rel=1e-6)
        assert float(costs[ATTENTION][index]) == pytest.approx(brute_cost(o, *o_factors, list(range(36))), rel=1e-6)
        assert float(costs[MLP][index]) == pytest.approx(brute_cost(down, *down_factors, list(range(22))), rel=1e-6)
    torch.testing.assert_close(costs[LAYER], costs[ATTENTION] + costs[MLP])


def test_a_group_costs_more_than_each_of_its_heads_and_updates_only_help(masked, calibration):
    with_update, without = (removal_costs(masked, calibration, update, damping=0.0) for update in (True, False))
    for costs in (with_update, without):
        heads = costs[QUERY_HEAD].amax(-1)
        assert bool((costs[KEY_VALUE_HEAD] >= heads * (1 - 1e-6)).all())
    for kind in (KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE):
        assert bool((with_update[kind] <= without[kind] * (1 + 1e-6)).all())
    for kind in (KEY_VALUE_HEAD, INTERMEDIATE):  # not only a little, on random weights
        assert float(with_update[kind].sum()) < 0.95 * float(without[kind].sum())
    torch.testing.assert_close(with_update[LAYER], without[LAYER])  # nothing is left to update


@pytest.mark.parametrize("criterion", ["llm_surgeon", "llm_surgeon:gradients=false", "kobd", "kobd:gradients=false"])
def test_criteria_do_not_depend_on_batches_or_passes_and_leave_the_model_alone(masked, calibration, criterion):
    state = copy.deepcopy(masked.state_dict())
    score = resolve_criterion(criterion)
    expected = score(masked, calibration)
    whole = Calibration([{name: torch.cat([b[name] for b in calibration.batches]) for name in calibration.batches[0]}])
    more = ":" if ":" not in criterion else ","
    streamed = resolve_criterion(criterion + more + "layers_per_pass=1,activation_checkpointing=true,store=cpu")
    for found in (score(masked, whole), streamed(masked, calibration)):
        assert found.keys() == expected.keys() == set(score.ranks)
        for kind, values in expected.items():
            shape = (4,) if kind in SUB_LAYERS else masked.masks.kinds[kind].mask_shape
            assert values.shape == shape
            torch.testing.assert_close(found[kind], values, rtol=1e-3, atol=1e-9)
    assert all(torch.equal(value, state[name]) for name, value in masked.state_dict().items())


def test_costs_of_a_pruned_model_are_those_of_its_slice(build_llama, calibration):
    """Closed units, hidden dimensions and layers take no part: several shots work on the full size."""
    source = build_llama()
    sliced = prune_one_shot(
        source,
        {"hidden_size": 12, "num_key_value_heads": 2, "num_attention_heads": 6, "intermediate_size": 13},
        calibration,
        PruneConfig("taylor", "none", num_shots=1),
    )
    kept, masked = sliced.kept, ShearingLlamaForCausalLM.from_model(source).eval()
    gates = {HIDDEN: torch.zeros(18), KEY_VALUE_HEAD: torch.zeros(4, 3), INTERMEDIATE: torch.zeros(4, 22)}
    gates[HIDDEN][kept.hidden] = 1
    for index in range(4):
        gates[INTERMEDIATE][index, kept.intermediate[index]] = 1
        gates[KEY_VALUE_HEAD][index, kept.key_value_heads[index]] = 1
    with masked.use_gates(gates):
        found = removal_costs(masked, calibration, damping=0.0)
    expected = removal_costs(ShearingLlamaForCausalLM.from_model(sliced.model).eval(), calibration, damping=0.0)
    for kind in (INTERMEDIATE, KEY_VALUE_HEAD):
        values = found[kind]
        assert bool((values[gates[kind] == 0] == 0).all())
        torch.testing.assert_close(values[gates[kind] != 0].view(4, -1), expected[kind], rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(found[MLP], expected[MLP], rtol=1e-3, atol=1e-9)


def test_a_closed_layer_costs_nothing(masked, calibration):
    with masked.use_gates({LAYER: torch.tensor([1.0, 0, 1, 1])}):
        costs = removal_costs(masked, calibration)
    assert float(costs[LAYER][1]) == 0 and bool((costs[LAYER][[0, 2, 3]] > 0).all())


def test_a_dead_neuron_costs_nothing_and_goes_first(build_llama, calibration):
    source = build_llama()
    with torch.no_grad():
        source.model.layers[1].mlp.up_proj.weight[4] = 0
    masked = ShearingLlamaForCausalLM.from_model(source).eval()
    for name in ("llm_surgeon", "kobd"):
        scores = resolve_criterion(name)(masked, calibration)[INTERMEDIATE]
        assert float(scores[1, 4]) == 0 and int((scores == 0).sum()) == 1
        kept = prune_one_shot(
            source, {"intermediate_size": 21}, calibration, PruneConfig(name, "least_squares", num_shots=1)
        ).kept
        assert 4 not in kept.intermediate[1]


def test_compensated_pruning_reaches_the_target_in_shots(build_llama, calibration):
    pruning = prune_one_shot(
        build_llama(), COLUMNS, calibration, PruneConfig("llm_surgeon", "least_squares", num_shots=3)
    )
    assert {name: getattr(pruning.model.config, name) for name in COLUMNS} == COLUMNS
    for report in pruning.compensation:
        assert all(report.after[name] <= report.before[name] for name in report.before)


def test_short_text_is_told_and_damped(masked):
    ids = torch.randint(3, 40, (1, 20), generator=torch.Generator().manual_seed(3))
    with pytest.warns(ShortCalibrationWarning, match="20 tokens, fewer than the 36 inputs"):
        costs = removal_costs(masked, Calibration([{"input_ids": ids, "labels": ids}]))
    assert bool((costs[INTERMEDIATE] > 0).all())
    removal_costs(masked, Calibration([{"input_ids": ids, "labels": ids}]), update=False)  # inverts nothing: no warning


def test_a_model_that_gives_nan_is_refused_with_the_layer(build_llama, calibration):
    source = build_llama()
    with torch.no_grad():
        source.model.layers[2].mlp.up_proj.weight[4] = float("nan")
    masked = ShearingLlamaForCausalLM.from_model(source).eval()
    with pytest.raises(ValueError, match="inputs of model.layers.2.mlp.down_proj, is not finite"):
        removal_costs(masked, calibration, gradients=False)
    with pytest.raises(ValueError, match="The loss of calibration batch 0 is not finite"):
        removal_costs(masked, calibration)


@pytest.mark.parametrize(
    "criterion, compensation, num_streams",
    [
        ("llm_surgeon", "least_squares", 2),
        ("llm_surgeon", "bias", 2),
        ("llm_surgeon:layers_per_pass=2", "least_squares", 4),  # that holds two layers at once, not all
        ("llm_surgeon:gradients=false", "least_squares", 4),
        ("kobd", "least_squares", 4),
    ],
)
def test_inputs_are_collected_once_for_costs_and_update(
    build_llama, calibration, monkeypatch, criterion, compensation, num_streams
):
    """Two shots; the result is the same to the last bit as where each collects for itself."""
    streaming, pruning = (import_module(f"hf_shear.{name}") for name in ("calibration.layer_stream", "pruning.prune"))
    calls, stream = [], streaming.LayerStream
    monkeypatch.setattr(streaming, "LayerStream", lambda *args: calls.append(1) or stream(*args))

    def pruned():
        calls.clear()
        return prune_one_shot(build_llama(), COLUMNS, calibration, PruneConfig(criterion, compensation, num_shots=2))

    shared = pruned()
    assert len(calls) == num_streams
    compensate = pruning.compensate
    monkeypatch.setattr(
        pruning, "compensate", lambda *args: compensate(*args[:5])
    )  # without the inputs that are shared
    alone = pruned()
    assert len(calls) == 4 and shared.compensation == alone.compensation
    assert all(
        torch.equal(weight, alone.model.state_dict()[name]) for name, weight in shared.model.state_dict().items()
    )


@pytest.mark.slow
def test_on_a_trained_model_costs_rank_better_than_taylor(shared_data):
    """The pilot's ordering: curvature costs with least squares below Taylor with least squares."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "models" / "stories260K"
    source, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = (shared_data / "data" / "tinystories" / "sample_2MiB.txt").read_text(encoding="utf-8")[:200_000]
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    ids = ids[: len(ids) // 256 * 256].view(-1, 256)
    calibration = Calibration.from_batches([{"input_ids": ids[:64], "labels": ids[:64]}], 8)

    def loss(criterion):
        target = {"intermediate_size": 120}
        pruned = prune_one_shot(source, target, calibration, PruneConfig(criterion, "least_squares", num_shots=1)).model
        with torch.no_grad():
            return float(pruned(input_ids=ids[-64:], labels=ids[-64:]).loss)

    assert loss("llm_surgeon") < loss("taylor") - 0.1
