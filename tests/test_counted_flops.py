"""Operations as they run, against those of the formulas, and of torch's own counter; what a pruning records."""

from __future__ import annotations

import pytest
import torch
from masked_llama_helpers import TARGET
from test_families import build
from torch.utils.flop_counter import FlopCounterMode

from hf_shear import PruneConfig, prune_one_shot
from hf_shear.calibration import Moments, stream_curvature
from hf_shear.core import charge_flops, counted_flops
from hf_shear.data import Calibration
from hf_shear.modeling import AutoShearingModelForCausalLM
from hf_shear.shapes import forward_flops_per_token, training_flops_per_token
from hf_shear.shapes.family_table import FAMILIES
from hf_shear.slicing import read_provenance

IDS = torch.randint(3, 40, (3, 16), generator=torch.Generator().manual_seed(0))


def gradients(model):
    model.zero_grad()
    model(IDS, labels=IDS, use_cache=False).loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_forward_and_backward_of_every_family(name, masked):
    model = build(name).eval()
    model = AutoShearingModelForCausalLM.from_model(model) if masked else model
    with torch.no_grad(), counted_flops() as forward:
        model(IDS, use_cache=False)
    assert forward.total / IDS.numel() == pytest.approx(forward_flops_per_token(model.config, 16), rel=0.01)
    with counted_flops() as both:
        gradients(model)
    assert both.total / IDS.numel() == pytest.approx(training_flops_per_token(model.config, 16), rel=0.01)


def test_what_torch_counts():
    model = build("llama").eval()
    model.set_attn_implementation("eager")
    with counted_flops() as own, FlopCounterMode(display=False) as counter:
        gradients(model)
    causal_half = own.total - 3 * IDS.numel() * 2 * sum(
        module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)
    )
    assert causal_half > 0
    assert counter.get_total_flops() == pytest.approx(own.total + causal_half, rel=1e-6)  # torch counts all pairs


def test_frozen_weights_cost_one_backward():
    model = build("llama").eval()
    ids = {"input_ids": IDS, "labels": IDS}
    with counted_flops() as counted:
        list(stream_curvature(model, [ids], ["mlp.down_proj"]))
    statistics = 0
    for layer in model.model.layers:
        for size in (layer.mlp.down_proj.in_features, layer.mlp.down_proj.out_features):
            with counted_flops() as moment:
                Moments.zeros(size).add(torch.ones(IDS.numel(), size))
            statistics += moment.total
    expected = training_flops_per_token(model.config, 16, frozen=True) * IDS.numel()
    assert counted.total - statistics == pytest.approx(expected, rel=0.01)


def test_counters_nest_and_change_nothing():
    model = build("llama").eval()
    plain = gradients(model)
    with counted_flops() as outer:
        with counted_flops() as inner:
            found = gradients(model)
        charge_flops(1000)
    assert outer.total == inner.total + 1000
    assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))
    total = outer.total
    gradients(model)
    charge_flops(1000)
    assert outer.total == total  # nothing counts behind its end


def test_a_pruning_records_its_cost(build_llama, tmp_path):
    batch = {"input_ids": IDS, "labels": IDS}
    source, costs = build_llama(), {}
    for num_batches in (1, 2):
        text = Calibration([batch] * num_batches)
        costs[num_batches] = prune_one_shot(source, TARGET, text, PruneConfig("taylor", "none", num_shots=1)).cost
    forward_backward = training_flops_per_token(source.config, 16, frozen=True)
    assert costs[1].num_tokens == 48 and costs[2].num_tokens == 96
    assert costs[1].scores / 48 == pytest.approx(forward_backward, rel=0.02) and costs[1].compensation == 0
    assert costs[2].scores == 2 * costs[1].scores
    pruning = prune_one_shot(source, TARGET, [batch], PruneConfig("taylor", num_shots=2))
    assert pruning.cost.scores == 2 * costs[1].scores < pruning.cost.flops
    record = read_provenance(pruning.save(tmp_path / "pruned"))["calibration"]
    assert record["flops"] == {"scores": pruning.cost.scores, "compensation": pruning.cost.compensation}
    per_token = training_flops_per_token(pruning.model.config, 16)
    assert record["training_tokens"] == round(pruning.cost.flops / per_token)
    text = pruning.cost.text(pruning.model.config)
    assert text.startswith("calibration: 48 tokens, ") and f" = {record['training_tokens']:,} training tokens" in text
