"""Milliseconds per token of decoding with transformers: measured on a few models with random weights, predicted for others.

Each model takes turns with the source, round by round, so that the machine's drift does not count: what is kept is the
ratio to the source within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..core import FailedError, UsageError, tracked
from ..evaluation import SpeedProtocol, measure_speed
from ..shapes import ModelShape, TargetShape, config_for_shape, count_attention, count_mlp, family_of
from .budget import ShapeBudget

NEW_TOKENS = 16
LARGEST_MISS = 0.2
"""Of a measured latency: where the fit misses one by more, noise or something else than sizes decides."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds per token of one decoding step, over rounds."""

    median: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """As JSON has it."""
        return asdict(self)


class LatencyModel:
    """Latency of any shape, from some that are measured: c0 + c1 d V + L (c2 + c3 a + c4 m), no c below 0.

    d is the hidden size, V the vocabulary, L the layers; a and m are the parameters of a layer's attention and MLP.

    Args:
        model: the source, on the device and in the dtype that are measured.
        budget: gives context and batch size.
        shapes: to measure and fit, other than the source.

    Raises:
        FailedError: the fit misses a measurement by more than a fifth, so that it tells nothing.
    """

    _source_rounds: tuple[float, ...] = ()

    def __init__(self, model: PreTrainedModel, budget: ShapeBudget, shapes: Sequence[TargetShape]):
        self.model = model
        self.protocol = SpeedProtocol(
            batch_size=budget.batch_size, prompt_length=budget.context, new_tokens=NEW_TOKENS, rounds=5
        )
        source = ModelShape.from_config(model.config)
        measured = {shape: self.measure(shape) for shape in tracked(shapes, "Latency", unit="shape")}
        rows = np.array([self._features(shape) for shape in (source, *measured)])
        taken = np.array([self.source_ms, *(latency.median for latency in measured.values())])
        scale = rows.max(axis=0)
        self._costs = nnls(rows / scale / taken[:, None], np.ones(len(taken)))[0] / scale  # relative errors
        misses = np.abs(rows @ self._costs / taken - 1)
        if misses.max() > LARGEST_MISS:
            raise FailedError(
                f"The latencies of {len(measured)} shapes cannot be told from their sizes: a fit misses one by"
                f" {misses.max():.0%}. Other processes, or a clock that changes, hide them. Free the machine, raise"
                " `context` or `batch_size`, or limit parameters or FLOPs instead."
            )

    def measure(self, shape: ModelShape) -> Latency:
        """Of a model of the shape with random weights."""
        config = config_for_shape(self.model.config, shape)
        with torch.device(self.model.device):
            other = family_of(config).model_class(config).eval()
        nn.Module.to(other, self.model.dtype)
        found = measure_speed(self.model, other, self.protocol)
        source = 1e3 * self.protocol.batch_size / found["source"]["decode_tokens_per_second"]
        self._source_rounds = (*self._source_rounds, source)
        ratio = found["decode_ratio"]
        return Latency(*(source / ratio[name] for name in ("median", "high", "low")))

    @property
    def source_ms(self) -> float:
        """Of the source, over all that was measured."""
        return statistics.median(self._source_rounds)

    def _features(self, shape: ModelShape) -> list[float]:
        config, depth = self.model.config, shape.num_hidden_layers
        attention = count_attention(
            config, shape.hidden_size, shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        )
        mlp = count_mlp(config, shape.hidden_size, shape.intermediate_size)
        return [1.0, shape.hidden_size * config.vocab_size, depth, depth * attention, depth * mlp]

    def __call__(self, shape: ModelShape) -> float:
        """Milliseconds per token."""
        return float(np.dot(self._features(shape), self._costs))


def shapes_to_time(config: PretrainedConfig) -> list[TargetShape]:
    """What a ``LatencyModel`` is fitted to: half and three quarters of each size alone, and half of all together."""
    source = ModelShape.from_config(config)
    parts = [
        ("hidden_size",),
        ("num_hidden_layers",),
        ("intermediate_size",),
        ("num_attention_heads", "num_key_value_heads"),
    ]
    parts.append(tuple(source.sizes()))
    found = []
    for part in parts:
        for share in (0.5, 0.75):
            sizes = {name: max(round(share * getattr(source, name)), 1) for name in part}
            try:
                shape = TargetShape.from_source(config, **sizes)
            except UsageError:  # the config's class, or the groups, want other numbers of heads
                continue
            if shape not in found and shape.sizes() != source.sizes():
                found.append(shape)
    return found
