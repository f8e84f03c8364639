"""Models that optimum wraps for another engine (ONNX Runtime, OpenVINO) keep transformers' calls: one engine for both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch


class OptimumEngine:
    """What the measurements ask of an engine, answered by a model of optimum."""

    def __init__(self, model):
        self.model = model

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        ids = torch.tensor([list(tokens)])
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float().numpy()

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        ids = torch.tensor([list(prompt)])
        done = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        return done[0, len(prompt) :].tolist()

    def tokenize(self, text: str) -> None:
        """Takes ids only."""

    def write_dequantized(self, output: Path) -> None:
        """Has no way to."""
