"""Distillation inside :class:`~hf_shear.training.ShearTrainer`: the teacher's part of every training forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..core import UsageError, predicted_tokens
from ..data import TEACHER_COLUMNS, first_sample
from ..distillation import (
    TEACHER_IDS,
    TEACHER_LOG_PROBS,
    DistillationSettings,
    DistillationTarget,
    Teacher,
    check_teacher,
    check_teacher_logits,
)
from ..distillation.distillation_head import make_distilling, make_plain
from ..distillation.teachers import STORED
from ..modeling import ShearingMixin
from .arguments import ShearTrainingArguments
from .memory_setup import TeachingSetup
from .part import Part


class Distiller(Part):
    """Sets the student's head to compute losses, and adds up what is logged of them.

    Args:
        settings: divergence, temperature, weight.
        student: plain, masked, or with adapters.
        teacher: a model; None where the samples carry stored teacher logits.
        autocast: makes the context manager in which the teacher runs.
        reduce: (tensor, "sum" or "mean") -> the same over processes; needed if there are several.
        reduction: "sum" where a step's loss is the sum over processes, "mean" where each divides by its own tokens.
        device: of the training.
    """

    name = "distillation"

    def __init__(
        self,
        settings: DistillationSettings,
        student: PreTrainedModel,
        teacher: Teacher | None,
        autocast: Callable,
        reduce: Callable[[Tensor, str], Tensor] = lambda tensor, reduction: tensor,
        reduction: str = "sum",
        device: str | torch.device = "cpu",
    ):
        self.settings, self.teacher, self.autocast = settings, teacher, autocast
        self.reduce, self.reduction, self.device = reduce, reduction, device
        self.vocab_size = student.config.vocab_size
        self.head: Any = student.get_output_embeddings()  # whose class is changed while a training lasts
        self.sums: Tensor | None = None  # [cross-entropy, divergence] since the last log, nats per token of a step
        self.logged_at = 0

    def start(self) -> None:
        """Give the student the head that computes losses, and add up anew."""
        make_distilling(self.head)
        self.sums, self.logged_at = None, 0

    def end(self) -> None:
        """Give the student its stock head back."""
        make_plain(self.head)

    def set_target(self, inputs: dict[str, Tensor]) -> None:
        """Take the teacher's columns out of a batch, or run the teacher, and set what the next forward compares with."""
        stored = {name: inputs.pop(name) for name in TEACHER_COLUMNS if name in inputs}
        target = DistillationTarget(inputs["labels"], self.vocab_size, self.settings)
        if self.teacher is None:
            batch, length = inputs["input_ids"].shape
            target.teacher_log_probs = stored[TEACHER_LOG_PROBS].view(batch, length, -1)
            target.teacher_ids = stored[TEACHER_IDS].view(batch, length, -1)
        else:
            read = {name: inputs[name] for name in ("input_ids", "position_ids") if name in inputs}
            with self.autocast():
                target.teacher_hidden = self.teacher.hidden_states(**read)
            target.teacher_head = self.teacher.head
        self.head.distillation_target = target

    def clear_target(self) -> None:
        """Let the head give logits again."""
        self.head.distillation_target = None

    def loss(self, outputs, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The training loss of one micro-batch, normalised like transformers' own: by the tokens of the whole step."""
        sums = outputs["logits"]
        count = num_items_in_batch if num_items_in_batch is not None else predicted_tokens(labels).sum().clamp(min=1)
        means = sums / count
        detached = means.detach()
        self.sums = detached.clone() if self.sums is None else self.sums + detached
        return self.weighted(means)

    def weighted(self, means: Tensor) -> Tensor:
        """The loss of cross-entropy and divergence, [2]."""
        weight, temperature = self.settings.weight, self.settings.temperature
        return (1 - weight) * means[0] + weight * temperature**2 * means[1]

    def log_entries(self, step: int) -> dict[str, float]:
        """Mean cross-entropy and divergence since the last call, nats per token."""
        num_steps, self.logged_at = max(step - self.logged_at, 1), step
        if self.sums is None:
            return {}
        cross_entropy, distance = (self.reduce(self.sums, self.reduction) / num_steps).tolist()
        self.sums = None
        return {"cross_entropy": cross_entropy, "divergence": distance}

    def teaching_setup(self, sample: Mapping) -> TeachingSetup | None:
        """What the memory of a step depends on: the teacher, or the stored logits of a training sample."""
        if self.teacher is None:
            return TeachingSetup(None, STORED, top_k=len(sample[TEACHER_IDS]) // len(sample["input_ids"]))
        head = self.teacher.head.weight
        return TeachingSetup(self.teacher.model.config, self.teacher.placement, head.element_size())

    def state_dict(self) -> dict[str, Any]:
        """What processes have added up since the last log, as a mean over them."""
        sums = None if self.sums is None else self.reduce(self.sums, "mean").tolist()
        return {"sums": sums, "logged_at": self.logged_at}

    def own_state_dict(self) -> dict[str, Any]:
        """What this process has added up."""
        return {"sums": None if self.sums is None else self.sums.tolist()}

    def load_state_dict(self, state: dict[str, Any], own: dict[str, Any], same_processes: bool) -> None:
        """Go on adding up: each process from its own sum, or from the mean where their number is another."""
        sums = own.get("sums", state["sums"]) if same_processes else state["sums"]
        self.sums = None if sums is None else torch.tensor(sums, device=self.device)
        self.logged_at = state["logged_at"]


def computing_of(trainer) -> dict[str, Any]:
    """How a trainer computes, as far as a ``Distiller`` must know it: its last arguments, by name."""
    reduction = "sum" if trainer.args.average_tokens_across_devices else "mean"
    autocast, device = trainer.accelerator.autocast, trainer.args.device
    return {"autocast": autocast, "reduce": trainer.reduce, "reduction": reduction, "device": device}


def make_distiller(
    args: ShearTrainingArguments,
    student: PreTrainedModel,
    teacher: Teacher | PreTrainedModel | None,
    train_dataset: Mapping | None,
    sample_length: int,
    **computing: Any,
) -> Distiller | None:
    """The distiller that arguments, teacher and data ask for, or None.

    Args:
        computing: as ``computing_of`` gives it.

    Raises:
        ValueError: a teacher without distillation or the other way round, or both a teacher and stored logits; a teacher
            of another vocabulary, or that shares weights with the student; logits stored at another temperature, over
            another vocabulary, or not for all domains.
    """
    settings = args.distillation_settings()
    if settings is None:
        if teacher is not None:
            raise UsageError("`teacher` is given, but `distillation` is 'none'. Set `distillation`, or leave it out.")
        return None
    domains = train_dataset or {}
    stored = [name for name, dataset in domains.items() if TEACHER_COLUMNS.keys() & set(first_sample(dataset))]
    if teacher is None and not stored:
        raise UsageError(
            f"`distillation={settings.divergence!r}` needs a teacher: give `teacher=`, the model that was pruned, or train"
            " on samples that `hf_shear.distillation.store_teacher_logits` made (data sets; streams carry none)."
        )
    if teacher is not None and stored:
        raise UsageError("`teacher` is given, and `train_dataset` carries stored teacher logits. Give one of the two.")
    if stored:
        check_teacher_logits(domains, settings.temperature, student.config.vocab_size, sample_length)
    if teacher is not None:
        _check_own_weights(student, teacher.model if isinstance(teacher, Teacher) else teacher)
        teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher, device=args.device)
        check_teacher(student.config, teacher.model.config, sample_length or None)
    return Distiller(settings, student, teacher, **computing)


def _check_own_weights(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Refuse a teacher that is the student, which it would freeze, or that draws masks."""
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise UsageError("`teacher` shares weights with the model that is trained. Load it a second time.")
    if isinstance(teacher, ShearingMixin):
        raise UsageError("`teacher` has masks. Give the plain model that was pruned, or a sliced one.")
