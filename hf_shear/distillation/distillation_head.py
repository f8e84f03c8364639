"""Losses in place of logits: cross-entropy and divergence computed inside the output head, some tokens at a time.

Logits of b x S tokens over a vocabulary of 128k would be the largest tensors of a training step, three times over
(student, teacher, their gradients). Here no more than ``MAX_CHUNK_LOGITS`` of each exist at once, and the backward
pass computes a chunk's again. Chunks are of tokens, their number set by the vocabulary: a token's own row of logits is
small, and a chunk of the vocabulary would need every logit twice in the forward pass alone.

The head's own forward does it, so that whatever wraps the model (DDP, DeepSpeed ZeRO-3, FSDP2) sees its weight used
where it expects it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..core import IGNORED_LABEL
from .distillation import DistillationSettings, divergence, log_probs, outcomes_log_probs

MAX_CHUNK_LOGITS = 2**25
"""Logits of one chunk: 128 MiB in float32."""


@dataclass
class DistillationTarget:
    """What one forward of the student is compared with.

    Attributes:
        labels: [b, S] token ids; ``IGNORED_LABEL`` where nothing is predicted.
        vocab_size: of student and teacher.
        settings: the divergence, its temperature and weight.
        teacher_hidden, teacher_head: [b, S, d] last hidden states of a teacher, and its head; or
        teacher_log_probs, teacher_ids: [b, S, k + 1] and [b, S, k], stored before (``store_teacher_logits``).
            Without either, there is nothing to compare with, and the divergence is 0.
    """

    labels: Tensor
    vocab_size: int
    settings: DistillationSettings
    teacher_hidden: Tensor | None = None
    teacher_head: Callable[[Tensor], Tensor] | None = None
    teacher_log_probs: Tensor | None = None
    teacher_ids: Tensor | None = None


class DistillationHead(nn.Module):
    """Mixed into the class of a model's output head; ``make_distilling`` does it.

    While ``distillation_target`` is set, its forward returns [2]: the sums over tokens of the cross-entropy and of the
    divergence, in nats. While ``gives_hidden_states`` is True, it returns what it is given. Else it returns logits, as the
    stock head does.
    """

    distillation_target: DistillationTarget | None = None
    gives_hidden_states: bool = False

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Of the stock head."""
        return super().forward(hidden_states)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.gives_hidden_states:
            return hidden_states
        target = self.distillation_target
        if target is None:
            return super().forward(hidden_states)
        return distillation_sums(super().forward, hidden_states, target)


def make_distilling(head: nn.Module) -> nn.Module:
    """Give an output head the forward of :class:`DistillationHead`; weight, names and hooks stay as they are."""
    if not isinstance(head, DistillationHead):
        head.__class__ = type(type(head).__name__, (DistillationHead, type(head)), {"__module__": __name__})
    return head


def make_plain(head: nn.Module) -> nn.Module:
    """Undo ``make_distilling``."""
    if isinstance(head, DistillationHead):
        head.__class__ = type(head).__mro__[2]
    return head


def distillation_sums(
    head: Callable[[Tensor], Tensor],
    hidden_states: Tensor,
    target: DistillationTarget,
    max_chunk_logits: int = MAX_CHUNK_LOGITS,
) -> Tensor:
    """[2]: sums over the predicted tokens of the cross-entropy and of the divergence, in nats, float32.

    Args:
        head: hidden states [n, d] -> logits [n, V].
        hidden_states: [b, S, d] last hidden states of the student.
        target: what they are compared with; token i predicts label i + 1.
        max_chunk_logits: most logits of one chunk.
    """
    labels = target.labels[:, 1:].flatten()
    columns = [_rows(hidden_states), labels]
    if target.teacher_hidden is not None:
        columns.append(_rows(target.teacher_hidden))
    elif target.teacher_log_probs is not None and target.teacher_ids is not None:
        columns += [_rows(target.teacher_log_probs), _rows(target.teacher_ids)]
    size = max(1, max_chunk_logits // target.vocab_size)
    sums = partial(_chunk_sums, head, target)
    if len(labels) <= size:
        return sums(*columns)
    chunks = zip(*(column.split(size) for column in columns), strict=True)
    return torch.stack([checkpoint(sums, *chunk, use_reentrant=False) for chunk in chunks]).sum(dim=0)


def _rows(tensor: Tensor) -> Tensor:
    """[b, S, x] -> [b * (S - 1), x]: what is said of the next token, which the last one of a sample does not have."""
    return tensor[:, :-1].flatten(0, 1)


def _chunk_sums(head, target: DistillationTarget, hidden: Tensor, labels: Tensor, *teacher: Tensor) -> Tensor:
    settings = target.settings
    logits = head(hidden).float()
    cross_entropy = F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED_LABEL)
    if not teacher:
        return torch.stack([cross_entropy, torch.zeros_like(cross_entropy)])
    if len(teacher) == 1:
        assert target.teacher_head is not None
        with torch.no_grad():
            teacher_log_probs = log_probs(target.teacher_head(teacher[0]), settings.temperature)
        student_log_probs = log_probs(logits, settings.temperature)
    else:
        teacher_log_probs = teacher[0].float().log_softmax(dim=-1)  # sums to 1 again after rounding to float16
        student_log_probs = outcomes_log_probs(logits / settings.temperature, teacher[1])
    distance = divergence(student_log_probs, teacher_log_probs, settings.divergence)
    return torch.stack([cross_entropy, (distance * (labels != IGNORED_LABEL)).sum()])
