"""What frozen weights save of a training step's memory, and what a teacher adds to it.

Legend as in ``memory.py``: d hidden size, V vocabulary, T tokens of a forward on one device, k stored tokens per position.

A linear layer with a frozen weight keeps no input for the backward pass, and a norm with a frozen weight none of its
normed values, but adapters beside a linear layer keep its input themselves. Weights that autocast has cast are kept either
way: the gradient passes through them. All counts were compared with measured peaks (examples/docs/memory.md).
"""

from __future__ import annotations

from transformers import PretrainedConfig

from ..distillation.distillation_head import MAX_CHUNK_LOGITS
from ..distillation.teacher_logits import bytes_per_token
from ..distillation.teachers import OFFLOADED
from ..shapes import ModelShape, count_parameters
from .memory_setup import FLOAT32, QUANTISED_BYTES, ModelParts, TeachingSetup, TrainingSetup

DISTILLATION_LOGITS, STORED_FORWARD_LOGITS = 7, 5
"""Float32 tensors of one chunk's logits at once: in the forward pass the logits, their log-softmax for the cross-entropy,
those of student and teacher, and three inside the divergence; in the backward pass as many. Stored logits, of k tokens
only, leave five in the forward pass: the logits, that log-softmax, and three copies on the way to k + 1 outcomes."""


def weights_of(sizes: ModelParts, setup: TrainingSetup) -> float:
    """Bytes of all weights, unsharded: frozen ones perhaps quantised, and adapters."""
    whole, frozen = sizes.total * setup.weight_bytes, setup.frozen
    if frozen is None:
        return whole
    if frozen.quantize != "none":
        whole -= sizes.layers * sizes.products * (setup.weight_bytes - QUANTISED_BYTES[frozen.quantize])
    return whole + sizes.adapters * FLOAT32


def norm_bytes(sizes: ModelParts, setup: TrainingSetup, consumers: int) -> int:
    """Bytes per token that a norm and its ``consumers`` (linear layers with frozen weights) keep of their inputs."""
    stream = FLOAT32 * sizes.hidden
    if not sizes.adapters:  # the norm's weight is trained: the normed values, in the dtype of the stream
        return stream + setup.stream_bytes * sizes.hidden
    copies = consumers if setup.stream_bytes > setup.compute_bytes else min(consumers, 1)  # autocast casts for each
    return stream + copies * setup.compute_bytes * sizes.hidden


def layer_bytes(sizes: ModelParts, setup: TrainingSetup) -> int:
    """Bytes per token that one layer with frozen weights keeps."""
    assert setup.frozen is not None
    attention = 2 * sizes.queries + 2 * sizes.keys  # rotated q and k, v, the output
    mlp = (4 if sizes.adapters else 3) * sizes.neurons  # gate, silu(gate), up; their product for the adapter
    cast = sizes.queries if sizes.adapters and setup.autocast else 0  # the adapter's own copy of attention's output
    norms = norm_bytes(sizes, setup, consumers=3) + norm_bytes(sizes, setup, consumers=2)
    inside = attention + mlp + cast + setup.frozen.adapter_width
    return norms + setup.compute_bytes * inside + FLOAT32 * sizes.heads


def chunk_logits(sizes: ModelParts, tokens: int) -> int:
    """Logits of one chunk of distillation, in elements."""
    rows = max(1, MAX_CHUNK_LOGITS // sizes.vocabulary)
    return min(tokens, rows) * sizes.vocabulary


def logits_bytes(sizes: ModelParts, teaching: TeachingSetup, tokens: int) -> tuple[int, int]:
    """Bytes of logits in the forward and in the loss's backward pass of a distillation."""
    one = chunk_logits(sizes, tokens) * FLOAT32
    forward = DISTILLATION_LOGITS if teaching.teacher is not None else STORED_FORWARD_LOGITS
    return forward * one, DISTILLATION_LOGITS * one


def teacher_parts(teaching: TeachingSetup, tokens: int) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes on the device and on the host, in every moment of a step, because of the teacher."""
    if teaching.teacher is None:
        return {"teacher": tokens * bytes_per_token(teaching.top_k)}, {}
    whole = count_parameters(teaching.teacher) * teaching.teacher_bytes
    if teaching.placement == OFFLOADED:  # the head stays on the device
        return {"teacher": _head(teaching.teacher) * teaching.teacher_bytes}, {"teacher": whole}
    return {"teacher": whole}, {}


def teacher_forward(teacher: PretrainedConfig, teaching: TeachingSetup, tokens: int) -> dict[str, float]:
    """Bytes while the teacher runs: the inside of a layer, and offloaded the greatest of its weights, its embedding."""
    shape = ModelShape.from_config(teacher)
    inside = tokens * (4 * shape.hidden_size + 3 * shape.intermediate_size) * teaching.teacher_bytes
    brought = _head(teacher) * teaching.teacher_bytes if teaching.placement == OFFLOADED else 0
    return {"workspace": inside + brought}


def hidden_of_both(sizes: ModelParts, teaching: TeachingSetup, tokens: int) -> float:
    """Bytes of the last hidden states that the head compares: the student's and the teacher's, each with a copy."""
    teacher = teaching.teacher
    width = sizes.hidden + (ModelShape.from_config(teacher).hidden_size if teacher is not None else 0)
    return 2 * tokens * width * FLOAT32


def _head(config: PretrainedConfig) -> int:
    return config.vocab_size * ModelShape.from_config(config).hidden_size
