"""Run a checkpoint in CTranslate2, through its converter for transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import ctranslate2
import numpy as np

from .runner import run


class CTranslate2:
    def __init__(self, folder: Path, pieces: list[str]):
        self.generator = ctranslate2.Generator(str(folder), intra_threads=1)
        self.pieces, self.ids = pieces, {piece: number for number, piece in enumerate(pieces)}

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return np.array(self.generator.forward_batch([list(tokens)]), dtype=np.float32)[0]

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        results = self.generator.generate_batch(
            [[self.pieces[token] for token in prompt]], beam_size=1, sampling_topk=1, max_length=new_tokens,
            include_prompt_in_result=False, return_end_token=True,
        )  # fmt: skip
        return list(results[0].sequences_ids[0])

    def tokenize(self, text: str) -> None:
        """Takes ids only."""

    def write_dequantized(self, output: Path) -> None:
        """Has no way to."""


def open_engine(checkpoint: Path, precision: str, folder: Path) -> CTranslate2:
    output = folder / precision
    converter = ctranslate2.converters.TransformersConverter(str(checkpoint))
    converter.convert(str(output), quantization=precision, force=True)
    return CTranslate2(output, json.loads((output / "vocabulary.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    run(["ctranslate2", "transformers"], open_engine)
