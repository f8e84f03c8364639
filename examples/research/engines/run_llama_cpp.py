"""Run a checkpoint in llama.cpp: convert it to GGUF, quantise it, load it with llama-cpp-python.

The converter comes with llama.cpp's sources; CONVERT_HF_TO_GGUF names it (a path to convert_hf_to_gguf.py).
Its folder and the `gguf-py` beside it, newer than the published gguf, must be on PYTHONPATH; measure.py puts them there.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from .runner import run

CONVERTER = Path(os.environ["CONVERT_HF_TO_GGUF"])
CONTEXT = 512  # tokens; keys and values are cached in float32 (the default, float16, moves logits by .01 deviations)
FLOATS = {"f32", "f16", "bf16"}
CONVERTED = {*FLOATS, "q8_0"}  # what the converter writes itself
UNCHANGED = {
    "llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3,
}  # fmt: skip
QUANTIZED = {"q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}


def convert(checkpoint: Path, output: Path, outtype: str) -> None:
    """Checkpoint -> GGUF, as ``python convert_hf_to_gguf.py CHECKPOINT --outfile OUTPUT --outtype OUTTYPE`` does.

    It runs in this process, because its imports take longer than its work on a small model.
    """
    own_words = sys.argv
    sys.argv = [str(CONVERTER), str(checkpoint), "--outfile", str(output), "--outtype", outtype]
    try:
        runpy.run_path(str(CONVERTER), run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise RuntimeError(f"the converter ended with {error.code}") from error
    finally:
        sys.argv = own_words


def quantize(source: Path, output: Path, file_type: int) -> None:
    """GGUF in float -> GGUF in blocks; what ``llama-quantize`` does."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, 1
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(output).encode(), ctypes.byref(parameters))
    if failed:
        raise RuntimeError(f"llama_model_quantize returned {failed}")


class LlamaCpp:
    def __init__(self, path: Path, checkpoint: Path):
        self.path, self.checkpoint = path, checkpoint
        self.model = llama_cpp.Llama(
            str(path), n_ctx=CONTEXT, logits_all=True, n_threads=1, n_threads_batch=1, verbose=False,
            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
        )  # fmt: skip

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        self.model.reset()
        self.model.eval(tokens)
        return np.array(self.model.scores[: len(tokens)], dtype=np.float32)

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        self.model.reset()
        found = []
        for token in self.model.generate(prompt, temp=0.0, repeat_penalty=1.0):
            found.append(int(token))
            if len(found) == new_tokens or token == self.model.token_eos():
                return found
        return found

    def tokenize(self, text: str) -> list[int]:
        return self.model.tokenize(text.encode(), add_bos=True)

    def write_dequantized(self, output: Path) -> None:
        if self.path.stem not in FLOATS:
            write_dequantized(self.path, self.checkpoint, output)


def write_dequantized(path: Path, checkpoint: Path, output: Path) -> None:
    """The weights of a GGUF file under their Hugging Face names. Families whose weights GGUF changes are left out.

    GGUF interleaves the two halves of each query and key head of a Llama (and Mistral), because its rotary embedding turns
    neighbours; this is undone.
    """
    if json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["model_type"] not in UNCHANGED:
        return  # before transformers reads the config: a nemotron-nas has a class of its own beside it
    config = AutoConfig.from_pretrained(checkpoint)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    model = AutoModelForCausalLM.from_config(config).float()
    names = gguf.get_tensor_name_map(UNCHANGED[config.model_type], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    state = {}
    for name, parameter in model.named_parameters():
        stored = tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))]
        values = torch.tensor(gguf.dequantize(stored.data, stored.tensor_type)).reshape(parameter.shape)
        module = name.split(".")[-2]
        if module in heads and UNCHANGED[config.model_type] == gguf.MODEL_ARCH.LLAMA:
            parts = values.reshape(heads[module], -1, 2, *values.shape[1:])
            values = parts.swapaxes(1, 2).reshape(parameter.shape)
        state[name] = values
    model.load_state_dict(state, strict=not config.tie_word_embeddings)
    model.generation_config = GenerationConfig.from_pretrained(checkpoint)
    model.save_pretrained(output)


def open_engine(checkpoint: Path, precision: str, folder: Path) -> LlamaCpp:
    path = folder / f"{precision}.gguf"
    if precision in CONVERTED:
        convert(checkpoint, path, precision)
    else:
        float_path = folder / "f32.gguf"
        if not float_path.exists():
            convert(checkpoint, float_path, "f32")
        quantize(float_path, path, QUANTIZED[precision])
    return LlamaCpp(path, checkpoint)


if __name__ == "__main__":
    run(["llama_cpp_python", "transformers"], open_engine)
