"""Distillation from the source: the divergence between teacher and student, token by token.

Legend: n tokens, V vocabulary, k stored teacher logits per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import UsageError, check_ranges

FORWARD_KL, REVERSE_KL = "forward_kl", "reverse_kl"
DIVERGENCES = (FORWARD_KL, REVERSE_KL)


@dataclass(frozen=True)
class DistillationSettings:
    """What is added to the cross-entropy, and how it is weighted:
    ``(1 - weight) * cross-entropy + weight * temperature^2 * KL``.

    The factor ``temperature^2`` keeps the size of the gradients the same at every temperature (Hinton et al.,
    arXiv 1503.02531, section 2).

    Attributes:
        divergence: "forward_kl", KL(teacher || student), or "reverse_kl", KL(student || teacher) (arXiv 2306.08543).
        temperature: divides the logits of both.
        weight: share of the divergence in the loss; 1 leaves the cross-entropy out.
    """

    divergence: str = FORWARD_KL
    temperature: float = 1.0
    weight: float = 0.5

    def __post_init__(self):
        if self.divergence not in DIVERGENCES:
            raise UsageError(
                f"`distillation` must be 'none', {' or '.join(map(repr, DIVERGENCES))}, but it is {self.divergence!r}."
            )
        check_ranges({"distillation_temperature": self.temperature, "distillation_weight": self.weight})


def divergence(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """KL divergence of each token, [n], in nats, float32.

    Args:
        student, teacher: [n, V] logarithms of probabilities over the same outcomes.
        kind: "forward_kl" or "reverse_kl".
    """
    first, second = (teacher, student) if kind == FORWARD_KL else (student, teacher)
    return F.kl_div(second, first, reduction="none", log_target=True).sum(dim=-1)


def log_probs(logits: Tensor, temperature: float) -> Tensor:
    """Logarithms of the probabilities at a temperature, float32."""
    return F.log_softmax(logits.float() / temperature, dim=-1)


def top_k_log_probs(logits: Tensor, temperature: float, top_k: int) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens, and the rest as one outcome.

    Returns:
        [n, k + 1] logarithms of probabilities, the last of all other tokens together; [n, k] token ids.
    """
    scaled = logits.float() / temperature
    ids = scaled.topk(top_k, dim=-1).indices
    return outcomes_log_probs(scaled, ids), ids


def outcomes_log_probs(scaled: Tensor, ids: Tensor) -> Tensor:
    """Logarithms of the probabilities of the tokens ``ids`` [n, k] and, last, of all other tokens together: [n, k + 1].

    Merging outcomes can only lower a divergence, and a student that equals its teacher still has divergence 0.

    Args:
        scaled: [n, V] logits over the temperature.
    """
    total = scaled.logsumexp(dim=-1, keepdim=True)
    rest = scaled.scatter(-1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([scaled.gather(-1, ids), rest], dim=-1) - total
