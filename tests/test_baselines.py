"""Baselines are what they were published as, whatever one-shot pruning does by default."""

from __future__ import annotations

import pytest
import torch

from hf_shear import ShearingLlamaForCausalLM, slice_model
from hf_shear.data import Calibration
from hf_shear.pruning import score_units
from hf_shear.pruning.allocation import uniform_gates
from hf_shear.runs.baselines import baseline_model

TARGET = {"hidden_size": 12, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 13}


@pytest.mark.parametrize("name", ["taylor", "random"])
def test_units_are_chosen_at_once_and_weights_left_as_they_are(build_llama, name):
    masked = ShearingLlamaForCausalLM.from_model(build_llama(), TARGET).eval()
    ids = torch.randint(3, 40, (8, 12), generator=torch.Generator().manual_seed(3))
    found, _ = baseline_model(name, masked, [{"input_ids": ids, "labels": ids}], seed=5, micro_batch_size=4)
    calibration = Calibration.from_batches([{"input_ids": ids, "labels": ids}], 4, seed=5)
    kinds = [kind.name for kind in masked.masks.constrained]
    gates = uniform_gates(score_units(masked, name, calibration, kinds), masked.masks.kinds, {})
    wanted, _ = slice_model(masked, gates)
    assert all(torch.equal(weight, wanted.state_dict()[key]) for key, weight in found.state_dict().items())


def test_scratch_has_the_targets_shape_and_weights_of_its_own(build_llama):
    masked = ShearingLlamaForCausalLM.from_model(build_llama(), TARGET).eval()
    ids = torch.randint(3, 40, (2, 12), generator=torch.Generator().manual_seed(3))
    one, other = (baseline_model("scratch", masked, [{"input_ids": ids, "labels": ids}], 5, 2)[0] for _ in range(2))
    assert {name: getattr(one.config, name) for name in TARGET} == TARGET and not one.config.mlp_bias
    assert all(torch.equal(weight, other.state_dict()[key]) for key, weight in one.state_dict().items())


def test_an_unknown_baseline_is_refused(build_llama):
    with pytest.raises(
        ValueError, match="Unknown baseline 'magnitude'; there are random, taylor, llm_surgeon, scratch"
    ):
        baseline_model("magnitude", ShearingLlamaForCausalLM.from_model(build_llama(), TARGET), [], 0, 1)
