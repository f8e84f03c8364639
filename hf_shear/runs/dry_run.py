"""``--dry_run``: what a command would cost on this machine, told once all of it was checked; it leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, PretrainedConfig

from ..core import UsageError, duration_text
from ..shapes import ModelShape, config_for_shape, training_flops_per_token
from ..training import ShearTrainingArguments
from ..training.cost import setup_of
from ..training.memory import estimate_memory

MEASURED_LAYERS = 2
MEASURED_SECONDS = 2.0


def tell_costs(
    work: Mapping[str, float],
    config: PretrainedConfig,
    args: ShearTrainingArguments,
    length: int,
    trained: Mapping[str, PretrainedConfig] | None = None,
) -> None:
    """Print the FLOPs of each step and how long they take here, and the memory of what is trained.

    Args:
        work: FLOPs by the name of a step.
        config: of the source, whose speed is measured.
        args: of the training, or of what judges.
        length: tokens of a sample.
        trained: configs of the models that are trained, by the name of the step.
    """
    speed = training_speed(config, args, length)
    if not PartialState().is_main_process:
        return
    column = max(map(len, [*work, "in all"])) + 4
    lines = [
        "",
        "Dry run: all of this was checked, and nothing was written.",
        f"{'':<{column}}{'FLOPs':>10}{'about':>12}",
    ]
    for name, flops in [*work.items(), ("in all", sum(work.values()))]:
        lines.append(f"{name:<{column}}{flops:>10.2g}{duration_text(flops / speed):>12}")
    lines.append(f"At {speed / 1e9:,.3g} GFLOP/s, measured here on random layers of the source's shape.")
    lines.append("Loading, saving, and evaluations while it trains, come on top.")
    lines += [_memory_line(name, trained_config, args, length) for name, trained_config in (trained or {}).items()]
    print("\n".join(lines))


def training_speed(config: PretrainedConfig, args: ShearTrainingArguments, length: int) -> float:
    """FLOP/s of all processes together, in training steps of a few layers with random weights.

    Args:
        config: of the model, of which two layers are made.
        args: the micro-batch, the device, and whether bfloat16 or float16 computes.
        length: tokens of a sample.
    """
    shape = ModelShape.from_config(config)
    small = config_for_shape(config, replace(shape, num_hidden_layers=min(MEASURED_LAYERS, shape.num_hidden_layers)))
    model = AutoModelForCausalLM.from_config(small, dtype=torch.float32).to(args.device).train()
    ids = torch.randint(config.vocab_size, (args.train_batch_size, length), device=args.device)
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None

    def step() -> None:
        with torch.autocast(args.device.type, dtype=half, enabled=half is not None):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        loss.item()  # waits for the device

    step()  # the first one takes longer
    started, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - started < MEASURED_SECONDS:
        step()
        steps += 1
    seconds = (time.perf_counter() - started) / steps
    return args.world_size * ids.numel() * training_flops_per_token(small, length) / seconds


def _memory_line(name: str, config: PretrainedConfig, args: ShearTrainingArguments, length: int) -> str:
    try:
        if args.deepspeed or args.fsdp or not args.recovery.trains_all:
            raise UsageError("The training tells it when it begins.")
        peak = estimate_memory(config, setup_of(args, length)).peak
    except ValueError as error:  # a way of training, or a family, that memory is not calculated for
        return f"Memory of {name}: not estimated. {error}"
    return f"Memory of {name}, per device with AdamW: about {peak / 2**30:.2f} GiB."
