"""What a model of a shape may cost, and what it does cost: parameters, FLOPs, memory, time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from transformers import PretrainedConfig

from ..core import UsageError
from ..shapes import ModelShape, count_parameters, forward_flops_per_token

LIMITS = {
    "max_parameters": "num_parameters",
    "max_flops": "flops_per_token",
    "max_memory": "memory_bytes",
    "max_latency": "latency_ms",
}
"""Each limit of a ``ShapeBudget``, and the cost that it bounds."""
UNITS = {
    "num_parameters": "parameters",
    "flops_per_token": "FLOPs per token",
    "memory_bytes": "bytes",
    "latency_ms": "ms per token",
}


@dataclass(frozen=True, kw_only=True)
class ShapeBudget:
    """Limits that a shape must keep, one or several.

    Attributes:
        max_parameters: all parameters, embeddings included, tied weights counted once.
        max_flops: of one forward pass for each token, at ``context`` tokens.
        max_memory: bytes of the weights and of the key/value cache of ``batch_size`` sequences of ``context`` tokens, both
            in ``dtype``.
        max_latency: milliseconds per token of decoding, measured on the model's device (``hf_shear.search.latency``) after
            ``context`` tokens, ``batch_size`` sequences at once.
        context: tokens of a sequence.
        batch_size: sequences at once.
        dtype: of weights and cache, as they will be served.
    """

    max_parameters: int | None = None
    max_flops: float | None = None
    max_memory: float | None = None
    max_latency: float | None = None
    context: int = 1024
    batch_size: int = 1
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self):
        if not self.limits:
            raise UsageError(f"A budget needs a limit, but none was given. Give one of {', '.join(LIMITS)}.")
        for name in (*LIMITS, "context", "batch_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not value > 0):
                raise UsageError(f"`{name}` must be above 0, but it is {value!r}.")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that were given, by the cost that they bound."""
        return {cost: getattr(self, name) for name, cost in LIMITS.items() if getattr(self, name) is not None}

    def costs(self, config: PretrainedConfig, shape: ModelShape) -> dict[str, float]:
        """What a model of this shape costs; its latency is left to a measurement."""
        parameters = count_parameters(config, shape)
        return {
            "num_parameters": parameters,
            "flops_per_token": forward_flops_per_token(config, self.context, shape),
            "memory_bytes": (parameters + self._cached_numbers(shape)) * self.dtype.itemsize,
        }

    def _cached_numbers(self, shape: ModelShape) -> int:
        """Keys and values of all layers."""
        width = shape.num_key_value_heads * shape.head_dim
        return 2 * shape.num_hidden_layers * width * self.context * self.batch_size

    def used(self, costs: Mapping[str, float]) -> float:
        """The largest cost as a share of its limit: at most 1 where all limits are kept."""
        return max(costs[name] / limit for name, limit in self.limits.items() if name in costs)

    def scaled(self, factor: float) -> ShapeBudget:
        """With every limit times a factor."""
        limits = {name: getattr(self, name) for name in LIMITS}
        return replace(self, **{name: factor * limit for name, limit in limits.items() if limit is not None})

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return found | {"dtype": str(self.dtype).removeprefix("torch.")}


def cost_text(name: str, value: float) -> str:
    """A cost for people."""
    if name == "latency_ms":
        return f"{value:.2f} {UNITS[name]}"
    return f"{value:,.0f} {UNITS[name]}" if value < 1e9 else f"{value:.3g} {UNITS[name]}"
