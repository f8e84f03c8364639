"""Run a checkpoint in ONNX Runtime, through optimum's ONNX exporter, and quantised by ONNX Runtime's own tools."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime import SessionOptions
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from optimum.onnxruntime import ORTModelForCausalLM

from .optimum_engine import OptimumEngine
from .runner import run

BLOCK = 32  # weights of a row that share a scale, in int4


def open_engine(checkpoint: Path, precision: str, folder: Path) -> OptimumEngine:
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
    return OptimumEngine(ORTModelForCausalLM.from_pretrained(exported, session_options=options))


if __name__ == "__main__":
    run(["onnxruntime", "onnx", "optimum-onnx", "transformers"], open_engine)
