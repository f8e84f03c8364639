"""The relaxed top-k: an exact sum at every temperature, gradients of the constrained map, its limit, its refusals."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_shear.masks import hard_topk
from hf_shear.masks.relaxed_topk import relaxed_topk


def random_scores(seed, shape, spread, dtype=torch.float32):
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(
    num_units=st.integers(2, 2000),
    share=st.floats(0.001, 0.999),
    temperature=st.floats(0.01, 5.0),
    spread=st.floats(0.0, 5.0),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_rows_sum_to_the_budget(num_units, share, temperature, spread, seed):
    budget = share * num_units
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 2e-4)):
        # The threshold is known to one rounding step of the scores; a gate moves by at most 1 / (4 T) times that.
        gates = relaxed_topk(random_scores(seed, (3, num_units), spread, dtype), budget, temperature)
        assert gates.dtype == dtype and gates.shape == (3, num_units)
        assert (gates >= 0).all() and (gates <= 1).all()
        assert (gates.double().sum(-1) - budget).abs().max() < tolerance * max(budget, 1)


@pytest.mark.parametrize("num_units, num_kept", [(11008, 5504), (4096, 2048), (32, 16), (172, 128)])
def test_rows_of_real_models_sum_to_the_budget_in_float32(num_units, num_kept):
    for temperature in (1.0, 0.2, 0.05):
        gates = relaxed_topk(random_scores(0, (2, num_units), 3.0), num_kept, temperature)
        assert (gates.double().sum(-1) / num_kept - 1).abs().max() < 1e-5


def test_gates_rise_with_scores_and_equal_the_closed_form():
    scores = random_scores(1, (40,), 2.0, torch.float64)
    gates = relaxed_topk(scores, 11.5, 0.7)
    assert (gates.argsort() == scores.argsort()).all()
    # logit(z) - a / T is the same number, -tau / T, for every unit of a row.
    assert (torch.logit(gates) - scores / 0.7).std() < 1e-8


def test_rows_do_not_see_each_other():
    scores = random_scores(2, (4, 3, 9), 1.0)
    together = relaxed_topk(scores, 4.0, 0.3)
    for layer in range(4):
        for group in range(3):
            torch.testing.assert_close(together[layer, group], relaxed_topk(scores[layer, group], 4.0, 0.3))


def test_equal_scores_share_the_budget():
    torch.testing.assert_close(relaxed_topk(torch.zeros(8), 3.0, 0.05), torch.full((8,), 3 / 8))


@pytest.mark.parametrize("budget, temperature", [(0.3, 1.0), (2.0, 0.1), (3.5, 0.5), (4.0, 2.0), (6.7, 0.2)])
def test_gradcheck(budget, temperature):
    scores = random_scores(6, (2, 7), 1.0, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda value: relaxed_topk(value, budget, temperature), scores, atol=1e-4)


@given(num_units=st.integers(2, 200), share=st.floats(0.01, 0.99), temperature=st.floats(0.02, 2.0), seed=st.integers())
@settings(max_examples=40, deadline=None)
def test_gradients_of_a_row_sum_to_zero(num_units, share, temperature, seed):
    seed %= 2**31
    scores = random_scores(seed, (3, num_units), 1.0, torch.float64).requires_grad_()
    upstream = random_scores(seed + 1, (3, num_units), 1.0, torch.float64)
    relaxed_topk(scores, share * num_units, temperature).backward(upstream)
    gradient = scores.grad
    assert torch.isfinite(gradient).all()
    assert (gradient.sum(-1).abs() <= 1e-9 * gradient.abs().sum(-1) + 1e-12).all()


def test_a_gradient_common_to_all_units_moves_nothing():
    scores = random_scores(3, (2, 20), 1.0, torch.float64).requires_grad_()
    relaxed_topk(scores, 6.0, 0.5).sum().backward()
    assert scores.grad.abs().max() < 1e-12


@given(num_units=st.integers(2, 60), num_kept=st.integers(1, 59), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_limit_of_low_temperature_is_the_hard_choice(num_units, num_kept, seed):
    assume(num_kept < num_units)
    scores = torch.randperm(num_units, generator=torch.Generator().manual_seed(seed)).float()
    gates = relaxed_topk(scores, num_kept, 0.02)
    # A row of saturated gates leaves the threshold as free as the sum's rounding (60 x 6e-8) lets it be.
    torch.testing.assert_close(gates, hard_topk(scores, num_kept), rtol=0, atol=1e-5)


def test_temperature_decides_how_soft_the_choice_is():
    scores = random_scores(4, (50,), 1.0)
    entropies = []
    for temperature in (2.0, 0.5, 0.1, 0.02):
        gates = relaxed_topk(scores, 20, temperature).clamp(1e-7, 1 - 1e-7)
        entropies.append(-(gates * gates.log() + (1 - gates) * (1 - gates).log()).sum().item())
    assert entropies == sorted(entropies, reverse=True) and entropies[-1] < 0.2 * entropies[0]


def test_saturated_rows_have_no_gradient_and_no_nan():
    scores = torch.tensor([[1000.0, 990.0, -1000.0, -1010.0], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    gates = relaxed_topk(scores, 2.0, 0.01)
    gates.backward(torch.tensor([[1.0, -2.0, 3.0, 4.0], [1.0, -2.0, 3.0, 4.0]]))
    torch.testing.assert_close(gates.detach(), torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]]))
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[0].abs().max() < 1e-3
    assert scores.grad[1].abs().max() > 1


def test_the_whole_row_is_the_constant_one():
    scores = torch.randn(5, requires_grad=True)
    gates = relaxed_topk(scores, 5, 0.3)
    assert (gates == 1).all() and not gates.requires_grad


@pytest.mark.parametrize("budget", [0, -1.0, 5.01, float("nan")])
def test_budget_outside_of_the_row_is_refused(budget):
    with pytest.raises(ValueError, match=r"`budget` must be in \(0, 5\].*but it is " + str(budget)):
        relaxed_topk(torch.zeros(2, 5), budget, 1.0)


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=f"`temperature` must be positive, but it is {temperature}"):
        relaxed_topk(torch.zeros(2, 5), 2.0, temperature)


@given(num_units=st.integers(1, 40), num_kept=st.integers(0, 40), seed=st.integers(0, 2**31))
@settings(deadline=None)
def test_hard_topk_keeps_the_largest(num_units, num_kept, seed):
    assume(num_kept <= num_units)
    scores = random_scores(seed, (2, 3, num_units), 1.0)
    gates = hard_topk(scores, num_kept)
    assert (gates.sum(-1) == num_kept).all() and ((gates == 0) | (gates == 1)).all()
    smallest_kept = torch.where(gates.bool(), scores, math.inf).amin(-1)
    largest_closed = torch.where(gates.bool(), -math.inf, scores).amax(-1)
    assert (smallest_kept >= largest_closed).all()


def test_hard_topk_breaks_ties_by_the_lower_index():
    assert hard_topk(torch.tensor([0.0, 2.0, 2.0, 2.0, 1.0]), 2).tolist() == [0, 1, 1, 0, 0]
    assert hard_topk(torch.zeros(2, 100), 30)[:, :30].all()
