"""Run a checkpoint in ONNX Runtime, through optimum's ONNX exporter, and quantised by ONNX Runtime's own tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime import SessionOptions
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from optimum.onnxruntime import ORTModelForCausalLM
from runner import run

BLOCK = 32  # weights of a row that share a scale, in int4


class OnnxRuntime:
    def __init__(self, model: ORTModelForCausalLM):
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


def open_engine(checkpoint: Path, precision: str, folder: Path) -> OnnxRuntime:
    exported = folder / "f32"
    if not exported.exists():
        ORTModelForCausalLM.from_pretrained(checkpoint, export=True).save_pretrained(exported)
    if precision != "f32":
        quantized = folder / precision
        quantized.mkdir(exist_ok=True)
        for path in exported.iterdir():
            if path.suffix == ".json":
                (quantized / path.name).write_bytes(path.read_bytes())
        source, output = exported / "model.onnx", quantized / "model.onnx"
        if precision == "int8":
            quantize_dynamic(source, output, weight_type=QuantType.QInt8)
        else:
            quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=BLOCK, is_symmetric=True)
            quantizer.process()
            quantizer.model.save_model_to_file(str(output))
        exported = quantized
    options = SessionOptions()
    options.intra_op_num_threads = 1
    return OnnxRuntime(ORTModelForCausalLM.from_pretrained(exported, session_options=options))


if __name__ == "__main__":
    run(["onnxruntime", "onnx", "optimum-onnx", "transformers"], open_engine)
