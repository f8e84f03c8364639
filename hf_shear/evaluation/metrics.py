"""Metrics of `evaluate` over documents: perplexity and bits per byte, with intervals. They need no network.

    metric = Perplexity()
    metric.add_batch(nats=losses.nats, num_tokens=losses.num_tokens)   # or add(), document by document
    metric.compute()   # {"loss": ..., "perplexity": ..., "loss_interval": [low, high], ...}

This module needs the package `evaluate`; nothing else of hf_shear.evaluation imports it before it is used.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..core import MissingExtraError
from .intervals import NUM_RESAMPLES, RESAMPLE_SEED, ratio_of_sums
from .perplexity import perplexity

try:
    import datasets
    import evaluate
except ImportError as error:
    raise MissingExtraError("Metrics need the package `evaluate`: pip install 'hf-shear[eval]'") from error

_OPTIONS = """
    num_resamples (int), seed (int): of the 95 % bootstrap over documents; may be given to `compute`.
Intervals are None for a single document."""


class _DocumentMetric(evaluate.Metric):
    """A ratio of sums over documents, kept in memory: nothing goes to a cache on disk."""

    _description: str
    _inputs_description: str
    _features: dict[str, str]

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **options: Any):
        super().__init__(config_name, keep_in_memory, **options)

    def _info(self) -> evaluate.MetricInfo:
        features = {name: datasets.Value(dtype) for name, dtype in self._features.items()}
        return evaluate.MetricInfo(
            description=self._description,
            citation="",
            inputs_description=self._inputs_description + _OPTIONS,
            features=datasets.Features(features),
        )


class Perplexity(_DocumentMetric):
    """Loss in nats per token, and its exponential, over all tokens of all documents.

    Only models of one tokenizer compare by it; `BitsPerByte` compares all.
    """

    _description = "Perplexity: exp of the token-weighted mean loss, with an interval over documents."
    _inputs_description = """
Args:
    nats (list of float): sum of the token losses of each document.
    num_tokens (list of int): tokens predicted in each document.
Returns:
    loss, loss_interval (nats per token), perplexity, perplexity_interval, num_documents, num_tokens.
Options:"""
    _features = {"nats": "float64", "num_tokens": "int64"}

    def _compute(self, nats, num_tokens, num_resamples: int = NUM_RESAMPLES, seed: int = RESAMPLE_SEED) -> dict:
        loss, interval = ratio_of_sums(nats, num_tokens, num_resamples, seed)
        return {
            "loss": loss,
            "loss_interval": interval,
            "perplexity": perplexity(loss),
            "perplexity_interval": None if interval is None else [perplexity(bound) for bound in interval],
            "num_documents": len(nats),
            "num_tokens": int(np.sum(num_tokens)),
        }


class BitsPerByte(_DocumentMetric):
    """Bits that a model spends on a UTF-8 byte of the text: compares whatever the tokenizers."""

    _description = "Bits per UTF-8 byte, with an interval over documents."
    _inputs_description = """
Args:
    nats (list of float): sum of the token losses of each document, over all its tokens.
    num_bytes (list of int): UTF-8 bytes of each document.
Returns:
    bits_per_byte, bits_per_byte_interval, num_documents, num_bytes.
Options:"""
    _features = {"nats": "float64", "num_bytes": "int64"}

    def _compute(self, nats, num_bytes, num_resamples: int = NUM_RESAMPLES, seed: int = RESAMPLE_SEED) -> dict:
        bits, interval = ratio_of_sums(np.asarray(nats) / math.log(2), num_bytes, num_resamples, seed)
        return {
            "bits_per_byte": bits,
            "bits_per_byte_interval": interval,
            "num_documents": len(nats),
            "num_bytes": int(np.sum(num_bytes)),
        }
