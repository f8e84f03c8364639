"""What frozen weights save of a training step's memory, and what a teacher adds to it.

Legend as in ``memory.py``: d hidden size, V vocabulary, T tokens of a forward on one device, k stored tokens per position.

A linear layer with a frozen weight keeps no input for the backward pass, and a norm with a frozen weight none of its
normed values, but adapters beside a linear layer keep its input themselves. Weights that autocast has cast are kept either
way: the gradient passes through them. All counts were compared with measured peaks (examples/docs/memory.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PretrainedConfig

from ..core import UsageError
from ..distillation.distillation_head import MAX_CHUNK_LOGITS
from ..distillation.teacher_logits import bytes_per_token
from ..distillation.teachers import OFFLOADED, ON_DEVICE, STORED
from ..shapes import ModelShape, count_parameters

if TYPE_CHECKING:
    from .memory_setup import ModelParts, TrainingSetup

FLOAT32 = 4  # bytes

QUANTISED_BYTES = {"8bit": 1.0, "4bit": 0.5 + FLOAT32 / 64}
"""Of a weight of a linear layer in the blocks, by bitsandbytes; in 4 bits there is a float32 scale for every 64."""

DISTILLATION_LOGITS, STORED_FORWARD_LOGITS = 7, 5
"""Float32 tensors of one chunk's logits at once: in the forward pass the logits, their log-softmax for the cross-entropy,
those of student and teacher, and three inside the divergence; in the backward pass as many. Stored logits, of k tokens
only, leave five in the forward pass: the logits, that log-softmax, and three copies on the way to k + 1 outcomes."""


@dataclass(frozen=True)
class FrozenSetup:
    """That a part of the parameters is trained, the rest frozen.

    Attributes:
        num_trained: parameters that are trained: those of all adapters, or norms and biases.
        adapters: whether they are adapters, which are in float32 beside the model's own parameters, and taken to be on all
            linear layers of the blocks.
        adapter_width: ranks of one layer's adapters, added up; 0 where they have none.
        quantize: "none", "8bit" or "4bit", of the frozen linear layers.
    """

    num_trained: int
    adapters: bool = False
    adapter_width: int = 0
    quantize: str = "none"

    def __post_init__(self):
        if self.quantize not in ("none", *QUANTISED_BYTES):
            raise UsageError(
                f"`quantize` must be one of none, {', '.join(QUANTISED_BYTES)}, but it is {self.quantize!r}."
            )


@dataclass(frozen=True)
class TeachingSetup:
    """Distillation, as far as memory depends on it.

    Attributes:
        teacher: config of the teacher; None if its logits are stored.
        placement: where the teacher is: "device", "cpu" or "stored".
        teacher_bytes: of one of its weights.
        top_k: stored logits per position.
    """

    teacher: PretrainedConfig | None
    placement: str = ON_DEVICE
    teacher_bytes: int = 4
    top_k: int = 32

    def __post_init__(self):
        if (self.teacher is None) != (self.placement == STORED):
            raise UsageError(
                f"`placement` must be 'stored' without a teacher and 'device' or 'cpu' with one, but it is"
                f" {self.placement!r}."
            )


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


def chunk_logits(sizes: ModelParts, setup: TrainingSetup) -> int:
    """Logits of one chunk of distillation, in elements."""
    rows = max(1, MAX_CHUNK_LOGITS // sizes.vocabulary)
    return min(setup.tokens, rows) * sizes.vocabulary


def logits_bytes(sizes: ModelParts, setup: TrainingSetup) -> tuple[int, int]:
    """Bytes of logits in the forward and in the loss's backward pass of a distillation."""
    assert setup.teaching is not None
    one = chunk_logits(sizes, setup) * FLOAT32
    forward = DISTILLATION_LOGITS if setup.teaching.teacher is not None else STORED_FORWARD_LOGITS
    return forward * one, DISTILLATION_LOGITS * one


def teacher_parts(setup: TrainingSetup) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes on the device and on the host, in every moment of a step, because of the teacher."""
    teaching = setup.teaching
    if teaching is None:
        return {}, {}
    if teaching.teacher is None:
        return {"teacher": setup.tokens * bytes_per_token(teaching.top_k)}, {}
    whole = count_parameters(teaching.teacher) * teaching.teacher_bytes
    if teaching.placement == OFFLOADED:  # the head stays on the device
        return {"teacher": _head(teaching.teacher) * teaching.teacher_bytes}, {"teacher": whole}
    return {"teacher": whole}, {}


def teacher_forward(setup: TrainingSetup) -> dict[str, float]:
    """Bytes while the teacher runs: the inside of a layer, and offloaded the greatest of its weights, its embedding."""
    teaching = setup.teaching
    assert teaching is not None and teaching.teacher is not None
    shape = ModelShape.from_config(teaching.teacher)
    inside = setup.tokens * (4 * shape.hidden_size + 3 * shape.intermediate_size) * teaching.teacher_bytes
    brought = _head(teaching.teacher) * teaching.teacher_bytes if teaching.placement == OFFLOADED else 0
    return {"workspace": inside + brought}


def hidden_of_both(sizes: ModelParts, setup: TrainingSetup) -> float:
    """Bytes of the last hidden states that the head compares: the student's and the teacher's, each with a copy."""
    assert setup.teaching is not None
    teacher = setup.teaching.teacher
    width = sizes.hidden + (ModelShape.from_config(teacher).hidden_size if teacher is not None else 0)
    return 2 * setup.tokens * width * FLOAT32


def _head(config: PretrainedConfig) -> int:
    return config.vocab_size * ModelShape.from_config(config).hidden_size
