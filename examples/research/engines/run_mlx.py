"""Run a checkpoint in MLX (its CPU build on Linux), with mlx-lm, which reads a Hugging Face checkpoint as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm import convert, load
from mlx_lm.generate import generate_step

from .runner import run

BITS = {"int8": 8, "int4": 4}
GROUP = 32  # weights of a row that share a scale


class Mlx:
    def __init__(self, path: Path):
        self.path = path
        # The code that it trusts is the config class that lies beside a nemotron-nas.
        self.model, tokenizer = load(str(path), tokenizer_config={"trust_remote_code": True})
        self.eos_token_ids = set(tokenizer.eos_token_ids)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return np.array(self.model(mx.array([list(tokens)]))[0].astype(mx.float32))

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        found = []
        for token, _ in generate_step(mx.array(list(prompt)), self.model, max_tokens=new_tokens):
            found.append(int(token))
            if found[-1] in self.eos_token_ids:
                break
        return found

    def tokenize(self, text: str) -> None:
        """Takes ids only."""

    def write_dequantized(self, output: Path) -> None:
        of_transformers = not type(self.model).__module__.endswith("nemotron-nas")
        if self.path.name in BITS and of_transformers:
            convert(str(self.path), str(output), dequantize=True)


def open_engine(checkpoint: Path, precision: str, folder: Path) -> Mlx:
    path = checkpoint
    if precision in BITS:
        path = folder / precision
        convert(
            str(checkpoint),
            str(path),
            quantize=True,
            q_bits=BITS[precision],
            q_group_size=GROUP,
            trust_remote_code=True,
        )
    return Mlx(path)


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    run(["mlx", "mlx-lm", "transformers"], open_engine)
