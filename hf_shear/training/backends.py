"""What runs the processes of a launch, and what is refused because it would go wrong silently."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import Trainer

from ..core import UsageError, check_ranges, read_json_object, read_yaml_mapping

_DEEPSPEED_SECTIONS = ("optimizer", "scheduler")


def backend_name(trainer: Trainer) -> str:
    """ "one process", "DDP", "DeepSpeed ZeRO-2", "FSDP2", ..."""
    if trainer.is_deepspeed_enabled:
        plugin: Any = trainer.accelerator.state.deepspeed_plugin
        return f"DeepSpeed ZeRO-{plugin.zero_stage}"
    if trainer.is_fsdp_enabled:
        return f"FSDP{getattr(trainer.accelerator.state.fsdp_plugin, 'fsdp_version', 1)}"
    return "DDP" if trainer.args.world_size > 1 else "one process"


def check_launch(num_processes: int) -> None:
    """Raise ValueError if several processes were asked for, and each of them takes itself for the only one."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if num_processes == 1 and started > 1:
        raise UsageError(
            f"{started} processes were launched, but each takes itself for the only one, since there is no GPU. Give"
            " `--use_cpu` to the script, or launch one process."
        )
    asked = launched_processes() if num_processes == 1 else None
    if asked is not None and asked > 1:
        raise UsageError(
            f"`accelerate launch` was asked for {asked} processes, but this is the only one: without GPUs, and with"
            " `--cpu`, it starts one silently. On CPUs launch with `--multi_gpu --num_processes N` and give `--use_cpu`"
            " to the script, or with `torchrun --nproc_per_node N`; or ask for one process."
        )


def check_accelerator(args) -> None:
    """Raise ValueError for FSDP without an accelerator, before anything is loaded."""
    if _wants_fsdp(args) and args.device.type == "cpu":
        raise UsageError(
            "FSDP was asked for, but this process has no accelerator: without one nothing would be sharded. Launch FSDP on"
            " GPUs, or use DDP or DeepSpeed."
        )


def _wants_fsdp(args) -> bool:
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_backend(trainer: Trainer, learns_masks: bool) -> None:
    """Raise ValueError for launches that would not do what they say; call it before training.

    Args:
        trainer: constructed, not yet training.
        learns_masks: whether its model has masks.
    """
    args, accelerator = trainer.args, trainer.accelerator
    if _wants_fsdp(args) and accelerator.distributed_type.value != "FSDP":
        raise UsageError(
            f"FSDP was asked for, but accelerate runs {accelerator.distributed_type.value}: without GPUs it falls back"
            " silently, and nothing is sharded. Launch FSDP on GPUs, or use DDP or DeepSpeed."
        )
    if trainer.is_fsdp_enabled:
        _check_fsdp(accelerator.state.fsdp_plugin)
    parallelism = getattr(accelerator, "parallelism_config", None)
    sizes = {name: getattr(parallelism, f"{name}_size", 1) or 1 for name in ("tp", "cp", "sp")} if parallelism else {}
    split = [name for name, size in sizes.items() if size > 1]
    if split or getattr(trainer, "is_distributed_loading_by_transformers", False):
        raise UsageError(
            f"The model is split by {' and '.join(split) or 'a distributed_config'}, but every process here draws samples"
            " of its own: parts of one model would see different ones. Use DDP, DeepSpeed ZeRO or FSDP2."
        )
    if trainer.is_deepspeed_enabled:
        plugin: Any = accelerator.state.deepspeed_plugin
        _check_deepspeed(plugin.deepspeed_config, args, learns_masks)
    if learns_masks and "fp16" in (accelerator.mixed_precision, "fp16" if args.fp16 else ""):
        raise UsageError(
            "fp16 (`fp16=True`, or `accelerate launch --mixed_precision fp16`) scales the loss, and with it the gradients"
            " of masks, whose optimizer is not part of that."
            " Learn masks with `bf16=True`, or in float32."
        )


def check_optimizer(optimizer, model) -> None:
    """Refuse a user's optimizer that holds masks: they have one of their own, and would step twice."""
    masks = {id(parameter) for parameter in model.masks.parameters()}
    if any(id(parameter) in masks for group in optimizer.param_groups for parameter in group["params"]):
        raise UsageError(
            "`optimizers` holds parameters of the masks, which have an optimizer of their own and would step twice. Call"
            " `model.take_masks_apart()` before you collect `model.parameters()`."
        )


def _check_fsdp(plugin) -> None:
    if getattr(plugin, "fsdp_version", 1) != 2:
        raise UsageError(
            "FSDP version 1 flattens parameters, which masks that scale single weights can not see through. Set"
            " `fsdp_version: 2` (examples/accelerate/fsdp2.yaml)."
        )
    for name in ("cpu_ram_efficient_loading", "cpu_offload"):
        if getattr(plugin, name, None):
            raise UsageError(
                f"FSDP's `{name}` moves parameters to where masks do not follow, and is not supported. Switch it off, or"
                " use DeepSpeed ZeRO-3 with offload (examples/accelerate/zero3.yaml)."
            )


def keep_masks_float32(trainer: Trainer) -> None:
    """Let FSDP2 compute in half precision, but leave losses as they are (float32) and add up gradients in float32."""
    if not trainer.is_fsdp_enabled or trainer.accelerator.mixed_precision != "bf16":
        return
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin: Any = trainer.accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=None
    )


def _check_deepspeed(config: dict, args, learns_masks: bool) -> None:
    for section in _DEEPSPEED_SECTIONS:
        if section in config:
            raise UsageError(
                f"The DeepSpeed config has a section {section!r}, which would replace what the training arguments say"
                " (rates, betas, weight decay without norms and biases, resuming at a changed rate). Remove it from the"
                " config, and set `learning_rate`, `weight_decay`, `lr_scheduler_type` and so on in the arguments."
            )
    if not learns_masks:
        return
    if args.clip_masks:
        raise UsageError(
            "`clip_masks=True` clips weights and masks by one common norm, but DeepSpeed clips the weights itself, before"
            " masks take part. Leave it out, or use DDP or FSDP for the paper's exact clipping."
        )
    if config.get("fp16", {}).get("enabled") is True:
        raise UsageError(
            "The DeepSpeed config enables `fp16`, which scales the loss, and with it the gradients of masks, whose"
            " optimizer is not part of that. Use `bf16` or `torch_autocast` in its place."
        )


def launched_processes() -> int | None:
    """Processes that ``accelerate launch`` was asked for, if it is the parent of this process and says so; else None."""
    import psutil  # comes with accelerate

    try:
        parent = psutil.Process().parent()
        command = parent.cmdline() if parent is not None else []
    except psutil.Error:  # not ours to look at, or gone: then it is not known
        return None
    if not any(Path(word).name in ("accelerate", "accelerate-launch") for word in command[:3]):
        return None
    return _asked_for(command)


def _asked_for(command: list[str]) -> int | None:
    """The value of --num_processes in a command line of accelerate, or of the file that --config_file names."""
    config_file = None
    for index, word in enumerate(command):
        name, _, value = word.partition("=")
        value = value or (command[index + 1] if index + 1 < len(command) else "")
        if name in ("--num_processes", "--num-processes"):
            return int(value)
        if name in ("--config_file", "--config-file"):
            config_file = value
        if word.endswith(".py"):
            break  # what follows belongs to the script
    if config_file is None or not Path(config_file).is_file():
        return None
    what = "`--config_file` of accelerate,"
    if config_file.endswith(".json"):
        content = read_json_object(config_file, what)
    else:
        content, _ = read_yaml_mapping(config_file, what)
    number: Any = content.get("num_processes")
    if number is not None:
        check_ranges({"num_processes": number})
    return number
