"""What choosing and compensating cost: every pass over calibration text, as operations and as tokens of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from ..core import count_over_ranks, counted_flops
from ..data import Calibration
from ..shapes import training_flops_per_token


@dataclass
class CalibrationCost:
    """Operations of all shots, of this process until ``over_ranks``.

    Attributes:
        num_tokens: of the calibration text.
        sample_length: of its samples.
        scores, compensation: operations (a multiply-add is two) of choosing, and of compensation.
    """

    num_tokens: int
    sample_length: int
    scores: int = 0
    compensation: int = 0

    @classmethod
    def on(cls, calibration: Calibration) -> CalibrationCost:
        """Nothing yet, on this text."""
        return cls(calibration.num_tokens, max(batch["input_ids"].shape[1] for batch in calibration.batches))

    @contextmanager
    def charge(self, what: str) -> Iterator[None]:
        """Add what runs within to ``scores`` or to ``compensation``."""
        with counted_flops() as counted:
            yield
        setattr(self, what, getattr(self, what) + counted.total)

    def over_ranks(self, device: torch.device | str) -> None:
        """Sum over the ranks: what each of them read and computed."""
        for name in ("num_tokens", "scores", "compensation"):
            setattr(self, name, count_over_ranks(getattr(self, name), device))

    @property
    def flops(self) -> int:
        """Of scores and compensation together."""
        return self.scores + self.compensation

    def training_tokens(self, config: PretrainedConfig) -> int:
        """Training tokens of a model that cost as much."""
        return round(self.flops / training_flops_per_token(config, self.sample_length))

    def to_dict(self, config: PretrainedConfig) -> dict[str, Any]:
        """As the provenance record has it, ``config`` being of the pruned model."""
        return {
            "num_tokens": self.num_tokens,
            "sample_length": self.sample_length,
            "flops": {"scores": self.scores, "compensation": self.compensation},
            "training_tokens": self.training_tokens(config),
        }

    def text(self, config: PretrainedConfig) -> str:
        """One line, ``config`` being of the pruned model."""
        return (
            f"calibration: {self.num_tokens:,} tokens, {self.flops:.1e} FLOPs ="
            f" {self.training_tokens(config):,} training tokens of the pruned model"
        )
