"""Divergences and outcomes merged beyond the likeliest tokens, against naive formulas in double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hf_shear.distillation import DistillationSettings
from hf_shear.distillation.distillation import DIVERGENCES, divergence, log_probs, outcomes_log_probs, top_k_log_probs

VOCAB = 11


def random_logits(seed: int, size: int = VOCAB, scale: float = 3.0, tokens: int = 5) -> torch.Tensor:
    return scale * torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed))


def naive(student: torch.Tensor, teacher: torch.Tensor, kind: str, temperature: float = 1.0) -> torch.Tensor:
    """sum p (log p - log q), each token in double precision."""
    q, p = ((logits.double() / temperature).softmax(-1) for logits in (student, teacher))
    p, q = (p, q) if kind == "forward_kl" else (q, p)
    return (p * (p.log() - q.log())).sum(-1)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergence_and_its_gradient_are_those_of_the_formula(kind, temperature):
    student, teacher = random_logits(0).requires_grad_(), random_logits(1)
    found = divergence(log_probs(student, temperature), log_probs(teacher, temperature), kind)
    exact = student.detach().double().requires_grad_()
    expected = naive(exact, teacher, kind, temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-5)


def test_forward_is_teacher_first_as_in_torch():
    student, teacher = log_probs(random_logits(0), 1.0), log_probs(random_logits(1), 1.0)
    expected = F.kl_div(student, teacher.exp(), reduction="none").sum(-1)
    torch.testing.assert_close(divergence(student, teacher, "forward_kl"), expected)
    swapped = F.kl_div(teacher, student.exp(), reduction="none").sum(-1)
    torch.testing.assert_close(divergence(student, teacher, "reverse_kl"), swapped)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(2, 20),
    scale=st.floats(0.1, 30.0),
    kind=st.sampled_from(DIVERGENCES),
    data=st.data(),
)
def test_merged_outcomes_bound_the_divergence_from_below(seed, size, scale, kind, data):
    top_k = data.draw(st.integers(1, size - 1))
    student, teacher = random_logits(seed, size, scale), random_logits(seed + 1, size, scale)
    outcomes, ids = top_k_log_probs(teacher, 1.0, top_k)
    torch.testing.assert_close(outcomes.exp().sum(-1), torch.ones(5))
    merged = divergence(outcomes_log_probs(student, ids), outcomes, kind)
    full = naive(student, teacher, kind)
    assert (merged >= -1e-5).all() and (merged <= full + 1e-4 * (1 + full)).all()
    if top_k == size - 1:
        torch.testing.assert_close(merged.double(), full, rtol=1e-4, atol=1e-4)
    same = divergence(outcomes_log_probs(teacher, ids), outcomes, kind)
    torch.testing.assert_close(same, torch.zeros(5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_gradients_of_merged_outcomes(kind):
    student, teacher = random_logits(0).requires_grad_(), random_logits(1)
    outcomes, ids = top_k_log_probs(teacher, 2.0, 3)
    found = divergence(outcomes_log_probs(student / 2.0, ids), outcomes, kind).sum()
    exact = student.detach().double().requires_grad_()

    def outcome_probabilities(logits):
        p = (logits / 2.0).softmax(-1)
        kept = p.gather(-1, ids)
        return torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1)

    p, q = outcome_probabilities(teacher.double()), outcome_probabilities(exact)
    p, q = (p, q) if kind == "forward_kl" else (q, p)
    expected = (p * (p.log() - q.log())).sum()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,), (wanted,) = torch.autograd.grad(found, student), torch.autograd.grad(expected, exact)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"divergence": "kl"}, "`distillation` must be 'none', 'forward_kl' or 'reverse_kl', but it is 'kl'"),
        ({"temperature": 0.0}, "`distillation_temperature` must be above 0, but it is 0.0"),
        ({"temperature": float("inf")}, "`distillation_temperature` must be a finite number above 0, but it is inf"),
        ({"weight": 0.0}, "leave `distillation` at 'none'"),
        ({"weight": 1.5}, "at most 1, but it is 1.5"),
    ],
)
def test_settings_are_checked(fields, text):
    with pytest.raises(ValueError, match=text):
        DistillationSettings(**fields)
