"""Teachers: the model whose predictions a student learns, on the student's device or brought there layer by layer."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..core import UsageError
from ..core.defaults import TEACHER_PLACEMENTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ON_DEVICE, OFFLOADED, STORED = TEACHER_PLACEMENTS
_AFTER_THE_HEAD = ("final_logit_softcapping", "logits_scaling", "logit_scale")
_DIGEST_VALUES = 64  # of each tensor, evenly spaced: training changes all of them


class Teacher:
    """A frozen causal language model that gives last hidden states, and a head to make logits of them in chunks.

    Args:
        model: with the student's vocabulary. It is put into evaluation mode and never trained.
        placement: "device" keeps the whole of it on the student's device; "cpu" keeps its weights in the host's memory
            and copies each layer to the device when it runs (accelerate's ``cpu_offload``). The head, which runs once for
            every chunk of tokens, is on the device either way.
        device: of the student.

    Attributes:
        digest: tells its weights from those of another teacher (``sampled_digest``).

    Raises:
        ValueError: an unknown placement, or not a plain model of transformers.
    """

    def __init__(self, model: PreTrainedModel, placement: str = ON_DEVICE, device: str | torch.device = "cpu"):
        if placement not in (ON_DEVICE, OFFLOADED):
            raise UsageError(f"`teacher_placement` of a model must be 'device' or 'cpu', but it is {placement!r}.")
        from transformers import PreTrainedModel

        if not isinstance(model, PreTrainedModel):
            raise UsageError(
                f"`teacher` must be a causal language model of transformers, but it is {type(model).__name__}. Merge"
                " adapters first (`merge_and_unload`)."
            )
        model.requires_grad_(False).eval()
        self.model, self.placement, self.digest = model, placement, sampled_digest(model)
        head = model.get_output_embeddings()
        assert head is not None, "a causal language model has a head"
        self.head, self.device = head, torch.device(device)
        movable: Any = model  # whose `to` is wrapped
        if placement == OFFLOADED:
            from accelerate import cpu_offload

            # The head keeps its weight when a tied embedding's is taken away: hooks are on the base model alone.
            movable.to("cpu")
            cpu_offload(model.base_model, execution_device=self.device)
            self.head.to(self.device)
        elif not getattr(model, "is_quantized", False):  # those are on their device since they were loaded
            movable.to(self.device)

    @torch.no_grad()
    def hidden_states(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """[b, S, d] last hidden states, after the last norm."""
        inputs = {"input_ids": input_ids} | ({} if position_ids is None else {"position_ids": position_ids})
        return self.model.base_model(**inputs, use_cache=False).last_hidden_state

    @torch.no_grad()
    def logits(self, input_ids: Tensor, position_ids: Tensor | None = None, autocast=nullcontext) -> Tensor:
        """[b, S, V] logits."""
        with autocast():
            return self.head(self.hidden_states(input_ids, position_ids))


def check_teacher(student: PretrainedConfig, teacher: PretrainedConfig, num_positions: int | None = None) -> None:
    """Refuse a teacher whose predictions are not over the student's vocabulary, or that can not read its samples.

    Args:
        student, teacher: configurations; no weights are needed.
        num_positions: tokens of a sample.

    Raises:
        ValueError: says what differs.
    """
    if student.vocab_size != teacher.vocab_size:
        raise UsageError(
            f"The teacher's vocabulary has {teacher.vocab_size} entries, the student's {student.vocab_size}: token"
            " probabilities can not be compared. Distil from the model that was pruned, or from one with its tokenizer."
        )
    for role, config in (("student", student), ("teacher", teacher)):
        found = [name for name in _AFTER_THE_HEAD if getattr(config, name, None) not in (None, 1, 1.0)]
        if found:
            raise UsageError(
                f"The {role} changes its logits behind the head ({', '.join(found)}), which distillation, that works on"
                " the head's own output, would miss. Leave `distillation` at 'none' for it."
            )
    positions = getattr(teacher, "max_position_embeddings", None)
    if num_positions is not None and positions is not None and num_positions > positions:
        raise UsageError(
            f"Samples have {num_positions} tokens, but the teacher has {positions} positions. Pack with a smaller"
            " `max_length`."
        )


def check_same_tokens(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, vocab_size: int | None = None
) -> None:
    """Refuse a teacher whose token ids mean other texts.

    Args:
        student, teacher: tokenizers.
        vocab_size: of the models. Tokens with larger ids do not count: no text may give them.

    Raises:
        ValueError: names a token that differs.
    """
    own, other = (
        {token: number for token, number in tokenizer.get_vocab().items() if vocab_size is None or number < vocab_size}
        for tokenizer in (student, teacher)
    )
    differing = sorted(token for token in own.keys() | other.keys() if own.get(token) != other.get(token))
    if differing:
        first = differing[0]
        raise UsageError(
            f"Teacher and student have different vocabularies: {len(differing)} tokens differ, the first is {first!r}"
            f" (student: {own.get(first)}, teacher: {other.get(first)}). Distil from the model that was pruned, or from"
            " one with its tokenizer."
        )


@torch.no_grad()
def sampled_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and up to 64 values in float32 of each tensor; the same in whatever dtype holds them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().flatten()
        values = values[:: max(len(values) // _DIGEST_VALUES, 1)][:_DIGEST_VALUES]
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()
