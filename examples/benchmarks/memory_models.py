"""Models and batches that the benchmarks of memory measure."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from hf_shear import MaskSettings, ShearingLlamaConfig, ShearingLlamaForCausalLM, TargetShape
from hf_shear.masks import MaskSchedule
from hf_shear.shapes import SHAPE_NAMES

MODEL_SIZES = (*SHAPE_NAMES, "vocab_size")
PRESETS = {  # few vocabulary entries where the model is small, as embeddings carry no folded masks
    "5m": (256, 6, 8, 4, 704, 4096),
    "14m": (384, 8, 8, 4, 1024, 4096),
    "160m": (768, 12, 12, 6, 3072, 32000),
    "1b": (2048, 22, 32, 4, 5632, 32000),
}
PLAIN = "plain"


def mask_schedule(method: str, total_steps: int) -> MaskSchedule:
    """All of mask learning within the timed steps: annealing, noise and hardening, or the Lagrangian's warm-up."""
    if method == "hard_concrete":
        return MaskSchedule(total_steps, budget_warmup_steps=total_steps // 5)
    return MaskSchedule(total_steps, hardening_steps=total_steps // 5, start_noise=0.3)


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


def half_of_every_size(config: LlamaConfig) -> TargetShape:
    """Half the units of each of the five kinds, so that every kind of mask is learned."""
    groups = max(config.num_key_value_heads // 2, 1)
    group_size = max(config.num_attention_heads // config.num_key_value_heads // 2, 1)
    return TargetShape.from_source(
        config,
        hidden_size=config.hidden_size // 2,
        num_hidden_layers=max(config.num_hidden_layers // 2, 1),
        num_attention_heads=groups * group_size,
        num_key_value_heads=groups,
        intermediate_size=config.intermediate_size // 2,
    )


def random_batches(args: argparse.Namespace) -> Iterator[torch.Tensor]:
    """Random token ids [batch_size, max_length] without end, from a few batches made beforehand."""
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch_size, args.max_length)
    batches = [torch.randint(args.vocab_size, shape, generator=generator).to(args.device) for _ in range(4)]
    while True:
        yield from batches


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


def cpu_name() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """Commit of this file's repository, "+" where files differ from it; None outside of one or without git."""
    command = ["git", "-C", os.fspath(Path(__file__).resolve().parent), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
