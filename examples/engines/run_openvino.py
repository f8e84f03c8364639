"""Run a checkpoint in OpenVINO, through optimum-intel's exporter. Weights are compressed by NNCF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from runner import run

# Without a hint, OpenVINO computes in the precision that the machine is fastest in (bfloat16 on some).
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            "INFERENCE_NUM_THREADS": "1"}  # fmt: skip
WEIGHTS = {
    "f32": None,
    "int8": OVWeightQuantizationConfig(bits=8),
    "int4": OVWeightQuantizationConfig(bits=4, group_size=32, sym=True, ratio=1.0),
}


class OpenVino:
    def __init__(self, model: OVModelForCausalLM):
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


def open_engine(checkpoint: Path, precision: str, folder: Path) -> OpenVino:
    model = OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, load_in_8bit=False, quantization_config=WEIGHTS[precision], ov_config=SETTINGS
    )
    return OpenVino(model)


if __name__ == "__main__":
    run(["openvino", "optimum-intel", "nncf", "transformers"], open_engine)
