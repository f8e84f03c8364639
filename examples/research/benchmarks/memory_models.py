"""Models and batches that the benchmarks of memory measure."""

from __future__ import annotations

import argparse
import os
import platform
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from hf_shear import MaskSettings, ShearingLlamaConfig, ShearingLlamaForCausalLM
from hf_shear.shapes import SHAPE_NAMES

from .speed_parts.report import commit, cpu_name
from .speed_parts.training_steps import PLAIN, half_of_every_size

MODEL_SIZES = (*SHAPE_NAMES, "vocab_size")
PRESETS = {  # few vocabulary entries where the model is small, as embeddings carry no folded masks
    "5m": (256, 6, 8, 4, 704, 4096),
    "14m": (384, 8, 8, 4, 1024, 4096),
    "160m": (768, 12, 12, 6, 3072, 32000),
    "1b": (2048, 22, 32, 4, 5632, 32000),
}


def build_model(args: argparse.Namespace, name: str) -> LlamaForCausalLM:
    """A plain or a masked model in training mode, of the same sizes, with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{size: getattr(args, size) for size in MODEL_SIZES},
        max_position_embeddings=args.max_length,
        tie_word_embeddings=True,
    )
    with torch.device(args.device):
        if name == PLAIN:
            model = LlamaForCausalLM(config)
        else:
            settings = MaskSettings.paper() if name == "hard_concrete" else MaskSettings(method=name)
            masked_config = ShearingLlamaConfig.from_source(config, half_of_every_size(config), settings)
            model = ShearingLlamaForCausalLM(masked_config)
    if args.gradient_checkpointing:
        # The second name is all that transformers before 5.23 knows, and what later releases warn of.
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable()
        else:
            model.gradient_checkpointing_enable()
    return model.to(torch.bfloat16 if args.dtype == "bfloat16" else torch.float32).train()


def weights_of(model: LlamaForCausalLM) -> list[torch.nn.Parameter]:
    """Its parameters without those of masks."""
    return [parameter for name, parameter in model.named_parameters() if not name.startswith("masks.")]


def environment(args: argparse.Namespace) -> dict:
    """Hardware, month, versions and commit: what a reader needs to judge the numbers."""
    on_gpu = args.device.startswith("cuda")
    return {
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(args.device) if on_gpu else None,
        "month": time.strftime("%Y-%m"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit(),
    }
