"""What a model family is: the parts that differ from a Llama's, as data.

A family that fits has decoder layers of attention and MLP that both add to one residual stream, RMS norms, an ``o_proj``
that reads the heads and a ``down_proj`` that reads the neurons. The rest is in its row of ``shapes/family_table.py``.

In a mixture of experts the MLP is a router (``mlp.gate``) and experts whose weights lie in one tensor per projection.

Legend: d hidden size, H query heads, KV key/value heads, D head_dim, ff MLP width (of one expert), E experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import transformers
from transformers import PretrainedConfig

from ..core import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # importing it takes seconds, which a config does not need

HIDDEN, HEADS, GROUPS, NEURONS, EXPERTS = "hidden", "heads", "key_value_heads", "intermediate", "experts"
"""What an axis of a weight stands for: d, H * D, KV * D, ff, E."""

ATTENTION_OUTPUT, MLP_OUTPUT = OUTPUT_PROJECTIONS = ("self_attn.o_proj", "mlp.down_proj")
"""Names within a decoder layer of what writes to the residual stream: its columns are heads, and neurons."""

Axis = str | tuple[str, ...]  # a tuple: parts of a fused projection, one behind the other

SEPARATE_ATTENTION: dict[str, tuple[Axis, ...]] = {
    "q_proj": (HEADS, HIDDEN),
    "k_proj": (GROUPS, HIDDEN),
    "v_proj": (GROUPS, HIDDEN),
    "o_proj": (HIDDEN, HEADS),
}
FUSED_ATTENTION: dict[str, tuple[Axis, ...]] = {
    "qkv_proj": ((HEADS, GROUPS, GROUPS), HIDDEN),
    "o_proj": (HIDDEN, HEADS),
}
SEPARATE_MLP: dict[str, tuple[Axis, ...]] = {
    "gate_proj": (NEURONS, HIDDEN),
    "up_proj": (NEURONS, HIDDEN),
    "down_proj": (HIDDEN, NEURONS),
}
FUSED_MLP: dict[str, tuple[Axis, ...]] = {"gate_up_proj": ((NEURONS, NEURONS), HIDDEN), "down_proj": (HIDDEN, NEURONS)}
MIXTURE: dict[str, tuple[Axis, ...]] = {
    "gate": (EXPERTS, HIDDEN),
    "experts.gate_up_proj": (EXPERTS, (NEURONS, NEURONS), HIDDEN),
    "experts.down_proj": (EXPERTS, HIDDEN, NEURONS),
}
UNGATED_MLP: dict[str, tuple[Axis, ...]] = {"up_proj": (NEURONS, HIDDEN), "down_proj": (HIDDEN, NEURONS)}

ALWAYS = "always"
"""In place of a config's flag: these modules have a bias in every model of the family."""

ATTENTION_BIAS = {name: "attention_bias" for name in SEPARATE_ATTENTION}
MLP_BIAS = {name: "mlp_bias" for name in SEPARATE_MLP}


@dataclass(frozen=True)
class Family:
    """One family. The defaults are a Llama's.

    Attributes:
        model_type: of its configs.
        config_name, model_name: classes of transformers.
        attention, mlp: axes of the weights of a layer's projections, by module name; of the experts of a mixture by the
            names of their module and their parameter.
        biases: the config's flag (or ``ALWAYS``) that gives a projection a bias, by module name.
        pre_norms: norms of a layer that read the residual stream.
        post_norms: norms of a layer that read what attention, then what the MLP, writes, before it is added.
        head_norms: norms over head_dim inside attention, whose weights no shearing changes.
        wide_head_norms: norms over all query heads, and over all key heads, together: heads can not be removed.
        norm_offset: added to a norm's weight before it scales (1 in Gemma).
        norm_scales_in_float32: the weight multiplies before the norm's output is cast to the model's dtype.
        scaled_embedding: embeddings are multiplied by sqrt(d).
        mlp_width: the config's field for ff.
        routing_weights_sum_to_one: the config's flag (or ``ALWAYS``) that divides the weights of the experts that a token
            is routed to by their sum; None where there are no experts.
        required: values that fields of the config must have; with others it describes a model that does not fit.
    """

    model_type: str
    config_name: str
    model_name: str
    attention: dict[str, tuple[Axis, ...]] = field(default_factory=lambda: SEPARATE_ATTENTION)
    mlp: dict[str, tuple[Axis, ...]] = field(default_factory=lambda: SEPARATE_MLP)
    biases: dict[str, str] = field(default_factory=dict)
    pre_norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    post_norms: tuple[str, ...] = ()
    head_norms: tuple[str, ...] = ()
    wide_head_norms: tuple[str, ...] = ()
    norm_offset: float = 0.0
    norm_scales_in_float32: bool = False
    scaled_embedding: bool = False
    mlp_width: str = "intermediate_size"
    routing_weights_sum_to_one: str | None = None
    required: dict[str, Any] = field(default_factory=dict)

    @property
    def config_class(self) -> type[PretrainedConfig]:
        """The stock config class."""
        return getattr(transformers, self.config_name)

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """The stock causal language model."""
        return getattr(transformers, self.model_name)

    @property
    def has_experts(self) -> bool:
        """Whether its MLPs are mixtures of experts, which are removed in place of neurons."""
        return any(EXPERTS in axes for axes in self.mlp.values())

    @property
    def fixed_sizes(self) -> tuple[str, ...]:
        """Numbers of heads that a target shape can not reduce."""
        return ("num_attention_heads", "num_key_value_heads") if self.wide_head_norms else ()

    def projections(self) -> Iterator[tuple[str, tuple[Axis, ...]]]:
        """Name and axes of the weight of every projection of a layer."""
        yield from self.attention.items()
        yield from self.mlp.items()

    def axes(self, name: str) -> tuple[Axis | None, ...]:
        """What the axes of a parameter stand for, by its name in the model; None: kept whole.

        A bias has the first of its weight's.
        """
        module, parameter = name.split(".")[-2:]
        if module == "experts":
            return self.mlp[f"{module}.{parameter}"]
        if module in ("embed_tokens", "lm_head"):
            return None, HIDDEN
        if module == "norm" or module in self.pre_norms or module in self.post_norms:
            return (HIDDEN,)
        if module in self.head_norms or module in self.wide_head_norms:
            return (None,)
        return (self.attention | self.mlp)[module]

    def has_bias(self, module: str, config: PretrainedConfig) -> bool:
        """Whether a projection has a bias under this config."""
        flag = self.biases.get(module)
        return flag == ALWAYS or (flag is not None and bool(getattr(config, flag)))

    def routing_weights_sum_to_one_in(self, config: PretrainedConfig) -> bool:
        """Whether the weights of the experts that a token is routed to sum to 1 under this config."""
        flag = self.routing_weights_sum_to_one
        return flag == ALWAYS or (flag is not None and bool(getattr(config, flag)))

    def unused_norms(self, config: PretrainedConfig, attention: bool, mlp: bool) -> set[str]:
        """Norms that have nothing to do in a layer without its attention, or without its MLP.

        Where the bias of o_proj or down_proj stays, so does a norm behind it.
        """
        unused = set() if attention else {*self.head_norms, *self.wide_head_norms}
        for place, (present, write) in enumerate(((attention, "o_proj"), (mlp, "down_proj"))):
            if not present:
                unused |= {*self.pre_norms[place : place + 1]}
                unused |= set() if self.has_bias(write, config) else {*self.post_norms[place : place + 1]}
        return unused

    def attention_parameters(self, config: PretrainedConfig, sizes: Mapping[str, float], head_dim: int) -> float:
        """Parameters of a layer's attention and its norms; arguments as in ``layer_parameters``. 0 heads: none."""
        if sizes[HEADS] == 0:
            return self._left_of("o_proj", config, sizes)
        count = len(self.head_norms) * head_dim + (sizes[HEADS] + sizes[GROUPS] if self.wide_head_norms else 0)
        return count + self._sub_layer_parameters(self.attention, config, sizes)

    def mlp_parameters(self, config: PretrainedConfig, sizes: Mapping[str, float]) -> float:
        """Parameters of a layer's MLP and its norms; arguments as in ``layer_parameters``. 0 neurons, or experts: none."""
        if sizes[EXPERTS if self.has_experts else NEURONS] == 0:
            return self._left_of("down_proj", config, sizes)
        return self._sub_layer_parameters(self.mlp, config, sizes)

    def _sub_layer_parameters(
        self, projections: dict[str, tuple[Axis, ...]], config: PretrainedConfig, sizes: Mapping[str, float]
    ) -> float:
        count = (bool(self.pre_norms) + bool(self.post_norms)) * sizes[HIDDEN]
        for name, axes in projections.items():
            count += _size(axes, sizes) + self.has_bias(name, config) * _length(axes[0], sizes)
        return count

    def _left_of(self, write: str, config: PretrainedConfig, sizes: Mapping[str, float]) -> float:
        """Parameters of a removed sub-layer that stay: the bias that it wrote, and a norm behind it."""
        return self.has_bias(write, config) * (1 + bool(self.post_norms)) * sizes[HIDDEN]

    def layer_parameters(self, config: PretrainedConfig, sizes: Mapping[str, float], head_dim: int) -> float:
        """Parameters of one layer.

        Args:
            sizes: d, H * D, KV * D, ff, and of a mixture E, by ``HIDDEN``, ``HEADS``, ``GROUPS``, ``NEURONS``,
                ``EXPERTS``; may be fractions.
        """
        count = (len(self.pre_norms) + len(self.post_norms)) * sizes[HIDDEN] + len(self.head_norms) * head_dim
        if self.wide_head_norms:
            count += sizes[HEADS] + sizes[GROUPS]
        for name, axes in self.projections():
            count += self.has_bias(name, config) * _length(axes[0], sizes)
        return count + self.layer_matrix_parameters(sizes)

    def layer_matrix_parameters(self, sizes: Mapping[str, float]) -> float:
        """Parameters of the projections of one layer, without biases; arguments as above."""
        return sum(_size(axes, sizes) for _, axes in self.projections())

    def layer_active_parameters(self, config: PretrainedConfig, sizes: Mapping[str, float]) -> float:
        """As ``layer_matrix_parameters``, of what one token passes: of the experts only those that it is routed to."""
        if not self.has_experts:
            return self.layer_matrix_parameters(sizes)
        per_expert = {name: axes for name, axes in self.mlp.items() if name != "gate"}
        idle = sizes[EXPERTS] - config.num_experts_per_tok
        return self.layer_matrix_parameters(sizes) - idle * sum(_size(axes[1:], sizes) for axes in per_expert.values())


def _length(axis: Axis, sizes: Mapping[str, float]) -> float:
    return sum(sizes[part] for part in axis) if isinstance(axis, tuple) else sizes[axis]


def _size(axes: tuple[Axis, ...], sizes: Mapping[str, float]) -> float:
    return math.prod(_length(axis, sizes) for axis in axes)


@cache
def _by_config_class() -> dict[type[PretrainedConfig], Family]:
    from .family_table import FAMILIES

    return {family.config_class: family for family in FAMILIES.values()}


def supported_model_types() -> list[str]:
    """The ``model_type`` of every family that can be sheared."""
    return sorted(family.model_type for family in _by_config_class().values())


def check_supported_source(config: PretrainedConfig) -> None:
    """Refuse a source of a family that masks are not known to be exact for."""
    family = find_family(config)
    if family is None or type(config) is not family.config_class:
        raise UsageError(
            f"The source has model_type {config.model_type!r}, which can not be sheared. Supported model types:"
            f" {', '.join(supported_model_types())}. Give one of them; to add a family: `hf-shear docs families`."
        )


def family_named(model_type: str, where: str = "") -> Family:
    """The family of a ``model_type``; ``where`` begins the message.

    Raises:
        ValueError: it is not supported.
    """
    supported = supported_model_types()
    if model_type not in supported:
        raise UsageError(f"{where}The model_type must be one of {', '.join(supported)}, but it is {model_type!r}.")
    return next(family for family in _by_config_class().values() if family.model_type == model_type)


def family_of(config: PretrainedConfig) -> Family:
    """The family of a stock or masked config.

    Raises:
        UsageError: it is not supported.
    """
    family = find_family(config)
    if family is None:
        raise UsageError(
            f"The config must be of a supported family (model_type: {', '.join(supported_model_types())}), but it is a "
            f"{type(config).__name__} (model_type {getattr(config, 'model_type', None)!r}). To add a family: "
            "`hf-shear docs families`."
        )
    return family


def find_family(config: PretrainedConfig) -> Family | None:
    """The family of a stock or masked config; None if it is not supported.

    A subclass counts as its base only if it is a masked config of ours: other subclasses may change what is computed.
    """
    for base in type(config).__mro__:
        family = _by_config_class().get(base)
        if family is not None:
            return family if config.model_type in (family.model_type, f"hf_shear_{family.model_type}") else None
    return None
