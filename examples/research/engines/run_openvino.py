"""Run a checkpoint in OpenVINO, through optimum-intel's exporter. Weights are compressed by NNCF."""

from __future__ import annotations

from pathlib import Path

from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

from .optimum_engine import OptimumEngine
from .runner import run

# Without a hint, OpenVINO computes in the precision that the machine is fastest in (bfloat16 on some).
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            "INFERENCE_NUM_THREADS": "1"}  # fmt: skip
WEIGHTS = {
    "f32": None,
    "int8": OVWeightQuantizationConfig(bits=8),
    "int4": OVWeightQuantizationConfig(bits=4, group_size=32, sym=True, ratio=1.0),
}


def open_engine(checkpoint: Path, precision: str, folder: Path) -> OptimumEngine:
    model = OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, load_in_8bit=False, quantization_config=WEIGHTS[precision], ov_config=SETTINGS
    )
    return OptimumEngine(model)


if __name__ == "__main__":
    run(["openvino", "optimum-intel", "nncf", "transformers"], open_engine)
