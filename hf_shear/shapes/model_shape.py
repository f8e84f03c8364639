"""The sizes of a model: five names that shearing can reduce, and `head_dim`, which it never changes.

A mixture of experts has a sixth, `num_experts`; its `intermediate_size` is the width of one expert, and stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from transformers import PretrainedConfig

from ..core import SHAPE_NAMES, TARGET_NAMES, UsageError
from .family import family_of

NUM_EXPERTS = "num_experts"


def check_size(name: str, value: Any) -> int:
    """`value` as a plain int. Raises ValueError unless it is an integer (no bool, no float) of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UsageError(f"`{name}` must be an integer, but it is {value!r} ({type(value).__name__}).")
    if value < 1:
        raise UsageError(f"`{name}` must be at least 1, but it is {value}. A model cannot be empty.")
    return int(value)


def check_supported(config: PretrainedConfig) -> None:
    """Raises ValueError if the family of `config` is not supported, or its layers differ in shape."""
    family = family_of(config)
    if getattr(config, "is_heterogeneous", False):
        raise UsageError(
            "The config must give all layers one shape, but its `per_layer_config` gives them different ones."
        )
    for name, value in family.required.items():
        if getattr(config, name) != value:
            raise UsageError(
                f"The {type(config).__name__} must have `{name}` {value!r}, but it is {getattr(config, name)!r}. Models"
                f" with another one can not be sheared. {_FIXES.get(name, '')}".rstrip()
            )


_FIXES = {"output_router_logits": "Load it with output_router_logits=False; the logits are the same."}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of one model. All are counts of 1 or more; heads are a multiple of key/value heads.

    `num_experts` is None where there are none: such a shape has the five sizes alone.

    Raises ValueError on construction when a size is not a positive integer or heads do not divide.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    head_dim: int
    num_experts: int | None = field(default=None, kw_only=True)

    def __post_init__(self):
        for name in (*self.size_names, "head_dim"):
            object.__setattr__(self, name, check_size(name, getattr(self, name)))
        if self.num_attention_heads % self.num_key_value_heads != 0:
            raise UsageError(
                f"`num_attention_heads` ({self.num_attention_heads}) must be a multiple of "
                f"`num_key_value_heads` ({self.num_key_value_heads})."
            )

    def kv_cache_bytes_per_token(self, bytes_per_value: int) -> int:
        """Bytes that one token of one sequence adds to the cache: keys and values of every layer."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * bytes_per_value

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> ModelShape:
        """The shape that `config` describes.

        `num_key_value_heads` and `head_dim` left at None mean what they mean to transformers: as many
        key/value heads as heads, and hidden_size // num_attention_heads.

        Raises:
            ValueError: the family is not supported, or the config's sizes are malformed.
        """
        check_supported(config)
        family = family_of(config)
        sizes: dict[str, Any] = {name: getattr(config, name, None) for name in (*SHAPE_NAMES, "head_dim")}
        sizes["intermediate_size"] = getattr(config, family.mlp_width)
        if family.has_experts:
            sizes[NUM_EXPERTS] = config.num_experts
        if sizes["num_key_value_heads"] is None:
            sizes["num_key_value_heads"] = sizes["num_attention_heads"]
        try:
            if sizes["head_dim"] is None:
                num_heads = check_size("num_attention_heads", sizes["num_attention_heads"])
                sizes["head_dim"] = check_size("hidden_size", sizes["hidden_size"]) // num_heads
            return ModelShape(**sizes)
        except ValueError as error:
            raise UsageError(f"The {type(config).__name__} is malformed: {error}") from error

    @property
    def queries_per_group(self) -> int:
        """g: query heads that share one key/value head (1 in multi-head attention)."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def size_names(self) -> tuple[str, ...]:
        """The names of its sizes: five, and `num_experts` if it has experts."""
        return SHAPE_NAMES if self.num_experts is None else TARGET_NAMES

    def sizes(self) -> dict[str, int]:
        """The sizes by name, without head_dim."""
        return {name: getattr(self, name) for name in self.size_names}

    def sizes_text(self) -> str:
        """The sizes in a line: "hidden_size 64, num_hidden_layers 4, ..."."""
        return ", ".join(f"{name} {size}" for name, size in self.sizes().items())

    def to_dict(self) -> dict[str, int]:
        """The sizes and head_dim, ready for JSON."""
        return {**self.sizes(), "head_dim": self.head_dim}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.to_dict().items())
