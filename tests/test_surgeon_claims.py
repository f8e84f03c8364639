"""What the LLM Surgeon's claims are made of: equal shares removed, updates that are what they are called."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from examples.research.claims import surgeon_arms as arms
from hf_shear.data import Calibration


@pytest.fixture
def study(build_llama):
    """A source with 8 heads in 4 groups, and text."""
    source = build_llama(
        hidden_size=32, num_attention_heads=8, num_key_value_heads=4, head_dim=4, intermediate_size=48, vocab_size=40
    )
    ids = torch.randint(3, 40, (8, 16), generator=torch.Generator().manual_seed(0))
    text = Calibration([{"input_ids": ids, "labels": ids}])
    return SimpleNamespace(source=lambda: copy.deepcopy(source), calibration=lambda seed: text, settings={})


def linear_weights(model) -> int:
    return sum(linear.weight.numel() for linear in arms.decoder_linears(model).values())


@pytest.mark.parametrize("fraction", [0.2, 0.3, 0.5])
def test_units_take_the_share_of_the_linear_weights_that_was_asked_for(study, fraction):
    whole = linear_weights(study.source())
    left = linear_weights(arms.prune_units(study, fraction, 0, "magnitude", "none").model)
    per_neuron = 3 * 32 * study.source().config.num_hidden_layers
    assert abs(left - (1 - fraction) * whole) <= per_neuron / 2


def test_the_joint_update_is_least_squares_and_the_independent_one_is_not(study):
    name = "model.layers.0.self_attn.o_proj.weight"  # below it nothing is pruned: both see the source's activations
    weights = {joint: arms.units_updated_once(study, 0.3, 0, joint).state_dict()[name] for joint in (True, False)}
    plain, compensated = (
        arms.prune_units(study, 0.3, 0, "llm_surgeon", compensation).model.state_dict()[name]
        for compensation in ("none", "least_squares:holds_out=false")
    )
    assert weights[True].shape == plain.shape
    # damping is a share of the mean over all inputs in one and over the kept ones in the other
    torch.testing.assert_close(weights[True], compensated, rtol=0, atol=2e-3)
    assert (weights[False] - compensated).abs().max() > 0.01
    assert (weights[False] - plain).abs().max() > 0.01


def test_the_config_may_say_what_one_shot_removes():
    settings = {"removed_per_shot": {"rows_and_columns": 0.05}}
    assert arms.shots_of(settings, "rows_and_columns", 0.3) == 6
    assert arms.shots_of(settings, "units", 0.3) == 1
    assert arms.shots_of({}, "rows_and_columns", 0.3) == 1
