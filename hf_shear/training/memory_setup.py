"""How a model is trained and what it consists of, as far as memory depends on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from ..core import UsageError, check_ranges
from ..core.defaults import MASKED_PREFIX
from ..distillation.teachers import ON_DEVICE, STORED
from ..masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, unit_kinds
from ..shapes import ModelShape, count_parameters

BACKENDS = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
FLOAT32 = 4  # bytes

QUANTISED_BYTES = {"8bit": 1.0, "4bit": 0.5 + FLOAT32 / 64}
"""Of a weight of a linear layer in the blocks, by bitsandbytes; in 4 bits there is a float32 scale for every 64."""


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


@dataclass(frozen=True)
class TrainingSetup:
    """How a model is trained, as far as memory depends on it.

    Attributes:
        micro_batch_size: sequences of one forward on one device.
        sequence_length: tokens of a sequence.
        weight_dtype: "float32" or "bfloat16", of weights, gradients, and AdamW's moments where no backend keeps others.
        autocast: bfloat16 arithmetic on float32 weights (``bf16=True``).
        activation_checkpointing: each layer's inside is computed again in the backward pass.
        gradient_accumulation_steps: above 1, gradients are there during the forward, too.
        backend: one of ``BACKENDS``; "fsdp2" wraps each layer and frees it after its forward.
        num_devices: N, over which the backend shards.
        offload: optimizer (and with it ZeRO's gradients, FSDP's shards of everything) in the host's memory.
        reduce_bucket_size: DeepSpeed's (its default), in elements.
        frozen: what is trained where not all weights are; None for all.
        teaching: the teacher of a distillation; None for none.

    Raises:
        ValueError: a value is not one of the allowed ones, or the backend can not do what is asked for.
    """

    micro_batch_size: int
    sequence_length: int
    weight_dtype: str = "float32"
    autocast: bool = False
    activation_checkpointing: bool = False
    gradient_accumulation_steps: int = 1
    backend: str = "single"
    num_devices: int = 1
    offload: bool = False
    reduce_bucket_size: int = 500_000_000
    frozen: FrozenSetup | None = None
    teaching: TeachingSetup | None = None

    def __post_init__(self):
        check_ranges(self)
        if self.backend not in BACKENDS:
            raise UsageError(f"`backend` must be one of {', '.join(BACKENDS)}, but it is {self.backend!r}.")
        if self.weight_dtype not in DTYPE_BYTES:
            raise UsageError(
                f"`weight_dtype` must be one of {', '.join(DTYPE_BYTES)}, but it is {self.weight_dtype!r}."
            )
        if self.offload and self.backend in ("single", "ddp"):
            raise UsageError(
                f"`offload=True` needs a backend that can offload, but `backend` is {self.backend!r}. On one device, use"
                " 'zero2' with `num_devices=1`."
            )
        if self.autocast and self.weight_dtype != "float32":
            raise UsageError(
                f"`autocast=True` is for float32 weights, but `weight_dtype` is {self.weight_dtype!r}. Leave one of the"
                " two out."
            )
        if self.backend == "single" and self.num_devices > 1:
            raise UsageError(
                f"`backend='single'` is one device, but `num_devices` is {self.num_devices}. Use 'ddp', or a backend that"
                " shards."
            )

    @property
    def tokens(self) -> int:
        """T, tokens of one forward on one device."""
        return self.micro_batch_size * self.sequence_length

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight."""
        return DTYPE_BYTES[self.weight_dtype]

    @property
    def compute_bytes(self) -> int:
        """Bytes of one result of a matrix product."""
        return 2 if self.autocast else self.weight_bytes

    @property
    def stream_bytes(self) -> int:
        """Bytes of one value of the residual stream, which has the embedding's dtype; FSDP2 gathers in autocast's."""
        return self.compute_bytes if self.backend == "fsdp2" else self.weight_bytes

    @property
    def is_zero(self) -> bool:
        """Whether the backend is DeepSpeed's."""
        return self.backend.startswith("zero")

    @property
    def shards_weights(self) -> bool:
        """Whether a device holds its part of the weights only."""
        return self.backend in ("zero3", "fsdp2")


class ModelParts:
    """Sizes and parameter counts of the parts of a model.

    Args:
        config: of the model, without adapters.
        frozen: what is trained of it, if not all.
    """

    def __init__(self, config: PretrainedConfig, frozen: FrozenSetup | None = None):
        shape = ModelShape.from_config(config)
        if shape.num_experts is not None:
            raise UsageError("The memory of a mixture of experts has not been measured, so it is not estimated.")
        self.hidden, self.layers = shape.hidden_size, shape.num_hidden_layers
        self.heads, self.neurons = shape.num_attention_heads, shape.intermediate_size
        self.queries, self.keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
        self.vocabulary, self.tied = config.vocab_size, config.tie_word_embeddings
        self.total = count_parameters(config, shape)
        self.embedding = self.vocabulary * self.hidden
        self.outside_layers = self.embedding * (1 if self.tied else 2)
        self.layer = (self.total - self.outside_layers - self.hidden) // self.layers
        self.trained = self.total if frozen is None else frozen.num_trained
        self.adapters = frozen.num_trained if frozen is not None and frozen.adapters else 0
        masked = _masked_units(config, shape)
        self.masks = sum(masked.values())
        writes = HIDDEN in masked or LAYER in masked
        self.masks_hidden = HIDDEN in masked
        self.masked_output = self.hidden * self.queries * (writes or bool({KEY_VALUE_HEAD, QUERY_HEAD} & set(masked)))
        self.masked_down = self.hidden * self.neurons * (writes or INTERMEDIATE in masked)

    @property
    def products(self) -> int:
        """Weights of one layer's products."""
        return self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.neurons)

    @property
    def cast_weights(self) -> int:
        """Weights of one layer that autocast casts and the backward pass keeps: all products', masked ones apart."""
        return self.products - self.masked_output - self.masked_down

    def trained_bytes(self, weight_bytes: int) -> int:
        """Bytes of one trained value: adapters are in float32 beside weights of any dtype."""
        return FLOAT32 if self.adapters else weight_bytes


def _masked_units(config: PretrainedConfig, shape: ModelShape) -> dict[str, int]:
    """Number of masks of each kind that is learned."""
    if not config.model_type.startswith(MASKED_PREFIX):  # a class of theirs would bring all model code with it
        return {}
    masked: Any = config
    kinds = unit_kinds(shape, masked.resolved_target()).values()
    return {kind.name: math.prod(kind.mask_shape) for kind in kinds if not kind.frozen}
