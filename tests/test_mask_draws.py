"""Training draws of masks: what they depend on, their distribution, budget and noise, and gradients through them."""

import pytest
import torch
from mask_helpers import METHODS, assert_same_gates, differs_everywhere, make_masks

from hf_shear.masks import INTERMEDIATE, MaskPhase
from hf_shear.masks.hard_concrete import closed_probability


def noisy(step=0, micro_batch=0):
    return MaskPhase(optimizer_step=step, micro_batch=micro_batch, noise_scale=0.5, temperature=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_draw_depends_on_seed_and_step_alone(method):
    first, second = make_masks(method=method, log_alpha=0), make_masks(method=method, log_alpha=0)
    first.phase, second.phase = noisy(step=5), noisy(step=5, micro_batch=3)
    second.rank = 2
    torch.manual_seed(1)
    drawn = first.sample()
    torch.manual_seed(2)
    torch.rand(3)
    assert_same_gates(first.sample(), drawn)
    assert_same_gates(second.sample(), drawn)
    second.phase = noisy(step=6)
    assert differs_everywhere(second.sample(), drawn)
    other_seed = make_masks(method=method, log_alpha=0, seed=43)
    other_seed.phase = noisy(step=5)
    assert differs_everywhere(other_seed.sample(), drawn)


@pytest.mark.parametrize("method", METHODS)
def test_per_micro_batch_draws_differ_by_micro_batch_and_rank(method):
    draws = []
    for rank in (0, 1):
        masks = make_masks(method=method, log_alpha=0, draw="per_micro_batch")
        masks.rank = rank
        for micro_batch in (0, 1):
            masks.phase = noisy(5, micro_batch)
            draws.append(masks.sample())
    for index, left in enumerate(draws):
        assert all(differs_everywhere(left, right) for right in draws[:index])
    masks.phase = noisy(5, 1)
    assert_same_gates(masks.sample(), draws[-1])


def test_draws_leave_the_global_generator_alone():
    masks = make_masks(log_alpha=0)
    masks.phase = noisy()
    torch.manual_seed(9)
    expected = torch.rand(4)
    torch.manual_seed(9)
    masks.sample()
    assert torch.equal(torch.rand(4), expected)


def test_hard_concrete_draws_close_as_often_as_their_probability_says():
    masks = make_masks(method="hard_concrete", log_alpha=0)
    num_draws = 2000
    closed = {name: torch.zeros(parameter.shape) for name, parameter in masks.log_alpha.items()}
    for step in range(num_draws):
        masks.phase = MaskPhase(optimizer_step=step)
        for name, gates in masks.sample().items():
            closed[name] += gates == 0
    deviations = []
    for name, parameter in masks.log_alpha.items():
        expected = closed_probability(parameter.detach())
        standard_error = (expected * (1 - expected) / num_draws).sqrt()
        deviations.append(((closed[name] / num_draws - expected) / standard_error).flatten())
    deviations = torch.cat(deviations)
    # 158 gates, each within 4.5 standard errors (about .001 to .011); together their mean square is 1 +- .11.
    assert deviations.abs().max() < 4.5
    assert abs(deviations.square().mean() - 1) < 0.5


def test_training_mode_draws_and_evaluation_mode_does_not():
    masks = make_masks(method="hard_concrete", log_alpha=0)
    masks.phase = noisy(3)
    assert_same_gates(masks.train()(), masks.sample())
    assert_same_gates(masks.eval()(), masks.deterministic())


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_relaxed_draws_meet_the_budget_of_the_warmup_exactly(progress):
    masks = make_masks(log_alpha=0)
    masks.phase = MaskPhase(budget_progress=progress, temperature=0.3, noise_scale=0.7)
    for name, gates in masks.sample().items():
        kind = masks.kinds[name]
        budget = kind.num_units - progress * (kind.num_units - kind.num_kept)
        torch.testing.assert_close(gates.sum(-1), torch.full(kind.rows, budget), rtol=1e-5, atol=1e-5)


def test_logistic_noise_moves_relaxed_gates_by_its_scale():
    masks = make_masks(log_alpha=0)
    masks.phase = MaskPhase(temperature=0.4)
    quiet = masks.sample()
    assert_same_gates(quiet, masks.sample())
    gaps = []
    for scale in (0.0, 0.1, 1.0):
        masks.phase = MaskPhase(temperature=0.4, noise_scale=scale)
        gaps.append((masks.sample()[INTERMEDIATE] - quiet[INTERMEDIATE]).abs().mean().item())
    assert gaps[0] == 0 and 0.001 < gaps[1] < gaps[2] / 2


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_every_score(method):
    masks = make_masks(method=method, log_alpha=0)
    masks.phase = noisy(1)
    for name, gates in masks.sample().items():
        (gradient,) = torch.autograd.grad((gates * torch.rand_like(gates)).sum(), masks.log_alpha[name])
        assert torch.isfinite(gradient).all() and (gradient != 0).any(), name
