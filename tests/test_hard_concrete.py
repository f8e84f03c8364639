"""The hard-concrete gate: published values, the reference's own numbers, and draws that match their distribution."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_shear.masks.hard_concrete import PAPER_LOG_ALPHA_BOUND, closed_probability, sample_gates, soft_gates

# log_alpha, P(z = 0), P(z = 1), deterministic value, E[z]: five digits, computed outside of this project
KNOWN_GATES = [
    (4.60517, 0.00202, 0.95287, 0.99603, 0.98688),
    (0.0, 0.16818, 0.16818, 0.5, 0.5),
    (-4.60517, 0.95287, 0.00202, 0.00397, 0.01312),
]
REFERENCE_SHAPES = {"head": (5, 8), "intermediate": (5, 172), "layer": (5,), "hidden": (64,)}


def reference_log_alpha(phase, shape):
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return (4 * torch.sin(0.7 * index + phase) + 0.5).float().reshape(shape)


@pytest.mark.parametrize("log_alpha, closed, opened, soft, mean", KNOWN_GATES)
def test_known_values(log_alpha, closed, opened, soft, mean):
    score = torch.tensor(log_alpha, dtype=torch.float64)
    assert closed_probability(score).item() == pytest.approx(closed, abs=5e-6)
    # The distribution is symmetric: a gate of score -a is 1 as often as one of score a is 0.
    assert closed_probability(-score).item() == pytest.approx(opened, abs=5e-6)
    assert soft_gates(score).item() == pytest.approx(soft, abs=5e-6)


@pytest.mark.parametrize("log_alpha, closed, opened, soft, mean", KNOWN_GATES)
def test_mean_and_point_masses_by_integration(log_alpha, closed, opened, soft, mean):
    # 200,000 midpoints of (0, 1): each point mass is right to one cell, 5e-6.
    uniform = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    gates = sample_gates(torch.tensor(log_alpha, dtype=torch.float64), uniform)
    assert (gates == 0).double().mean().item() == pytest.approx(closed, abs=1.1e-5)
    assert (gates == 1).double().mean().item() == pytest.approx(opened, abs=1.1e-5)
    assert gates.mean().item() == pytest.approx(mean, abs=1.1e-5)


@given(log_alpha=st.floats(-3, 3), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_share_of_closed_draws_is_the_closed_probability(log_alpha, seed):
    num_draws = 40_000
    uniform = torch.rand(num_draws, generator=torch.Generator().manual_seed(seed))
    score = torch.full((num_draws,), log_alpha)
    expected = closed_probability(score[:1]).item()
    standard_error = math.sqrt(expected * (1 - expected) / num_draws)  # at most .0025
    share = (sample_gates(score, uniform) == 0).float().mean().item()
    # Five standard errors: 20 examples fail by chance about once in 90,000 runs.
    assert abs(share - expected) < 5 * standard_error


@given(log_alpha=st.floats(-50, 50), uniform=st.floats(0, 1))
@settings(deadline=None)
def test_gates_stay_between_0_and_1_and_finite_even_for_uniforms_of_exactly_0_and_1(log_alpha, uniform):
    score = torch.tensor([log_alpha], requires_grad=True)
    gate = sample_gates(score, torch.tensor([uniform]))
    gate.sum().backward()
    assert 0 <= gate.item() <= 1
    assert math.isfinite(score.grad.item()) and score.grad.item() >= 0


def test_closed_probability_is_clamped_away_from_0_and_1():
    scores = torch.tensor([100.0, -100.0], dtype=torch.float64)
    assert closed_probability(scores).tolist() == [1e-6, 1 - 1e-6]


def test_the_paper_bound_limits_expected_sparsity():
    bound = torch.tensor(PAPER_LOG_ALPHA_BOUND)
    assert closed_probability(bound).item() == pytest.approx(0.0020, abs=5e-5)
    assert closed_probability(-bound).item() == pytest.approx(0.9529, abs=5e-5)


def test_open_gates_take_a_gradient_towards_their_score():
    score = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    uniform = torch.tensor([0.4], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda value: sample_gates(value, uniform), score)
    assert torch.autograd.gradcheck(closed_probability, score)
    assert torch.autograd.gradcheck(soft_gates, score)


def test_functions_keep_the_dtype():
    for dtype in (torch.float32, torch.float64):
        score = torch.zeros(3, dtype=dtype)
        assert sample_gates(score, torch.full((3,), 0.5, dtype=dtype)).dtype == dtype
        assert closed_probability(score).dtype == soft_gates(score).dtype == dtype


@pytest.fixture(scope="module")
def reference(shared_data):
    path = shared_data / "reference" / "l0_module_target_shape.json"
    return json.loads(path.read_text())["cases"]["target_model_eval_target"]


@pytest.mark.parametrize("phase, name", list(enumerate(REFERENCE_SHAPES)))
def test_reference_scores(reference, phase, name):
    assert list(reference["expected_score"]) == list(REFERENCE_SHAPES)  # the order gives each its phase
    log_alpha = reference_log_alpha(phase, REFERENCE_SHAPES[name])
    expected = torch.tensor(reference["expected_score"][name]).reshape(log_alpha.shape)
    torch.testing.assert_close(1 - closed_probability(log_alpha), expected, rtol=0, atol=2e-7)
    sparsity = torch.tensor(reference["expected_sparsity"][name])
    torch.testing.assert_close(closed_probability(log_alpha).mean(-1).reshape(-1), sparsity, rtol=0, atol=2e-7)


@pytest.mark.parametrize("phase, name", list(enumerate(REFERENCE_SHAPES)))
def test_reference_draws(reference, phase, name):
    log_alpha = reference_log_alpha(phase, REFERENCE_SHAPES[name])
    index = torch.arange(log_alpha.numel(), dtype=torch.float64)
    uniform = 0.05 + 0.9 * torch.frac(0.6180339887 * (index + 1))
    gates = sample_gates(log_alpha, uniform.float().reshape(log_alpha.shape))
    expected = torch.tensor(reference["sample_z"][name]).reshape(log_alpha.shape)
    assert ((expected == 0) == (gates == 0)).all()
    assert ((expected == 1) == (gates == 1)).all()
    torch.testing.assert_close(gates, expected, rtol=0, atol=2e-6)
