"""What a run will cost, told before it starts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from ..distillation.teachers import OFFLOADED, ON_DEVICE, STORED
from ..masks import MaskSchedule, ShearingMasks
from .arguments import ShearTrainingArguments
from .memory import estimate_memory
from .memory_recovery import TeachingSetup
from .memory_setup import TrainingSetup
from .progress import tell


def num_evaluations(args: ShearTrainingArguments) -> int:
    """Evaluations that happen during training."""
    if args.eval_strategy == IntervalStrategy.NO:
        return 0
    if args.eval_strategy != IntervalStrategy.STEPS:
        return 1
    every = args.eval_steps if args.eval_steps >= 1 else math.ceil(args.eval_steps * args.max_steps)
    return math.ceil(args.max_steps / int(every))  # transformers evaluates after the last step, too


def evaluation_samples_per_domain(args: ShearTrainingArguments, num_domains: int) -> int:
    """Held-out samples per domain and evaluation that ``eval_token_share`` pays for; at least one.

    The budget is eval_token_share x training tokens over all evaluations (with the one for reference losses, where
    they are to be measured) and over the domains, each of which gets the same number.

    Args:
        args: with ``max_steps`` (``set_steps``).
        num_domains: that are evaluated on.
    """
    samples = args.eval_token_share * args.max_steps * args.samples_per_step()
    return max(int(samples / max(_all_evaluations(args), 1) / num_domains), 1)


def _all_evaluations(args: ShearTrainingArguments) -> int:
    return num_evaluations(args) + measures_references(args)


def measures_references(args: ShearTrainingArguments) -> bool:
    """Whether training begins with an evaluation of the model as it comes."""
    return args.dynamic_batches and not args.reference_losses


def training_setup(
    args: ShearTrainingArguments,
    model: PreTrainedModel,
    sample_length: int,
    state: AcceleratorState,
    teaching: TeachingSetup | None = None,
) -> TrainingSetup:
    """What the memory of a training step depends on.

    Args:
        args: of the training.
        model: that is trained, with its adapters.
        sample_length: tokens of a sample.
        state: of the accelerator.
        teaching: of a distillation.

    Raises:
        ValueError: the model's weights have a dtype that memory is not calculated for.
    """
    weights = (p for name, p in model.named_parameters() if p.is_floating_point() and not name.startswith("masks."))
    dtype = str(next(weights).dtype).removeprefix("torch.")
    backend, more = "ddp" if args.world_size > 1 else "single", {}
    if state.distributed_type == DistributedType.DEEPSPEED:
        deepspeed: Any = state.deepspeed_plugin
        config = deepspeed.deepspeed_config
        zero = config.get("zero_optimization", {})
        if config.get("bf16", {}).get("enabled") is True:
            dtype = "bfloat16"
        if deepspeed.zero_stage > 0:
            backend = f"zero{deepspeed.zero_stage}"
            more["offload"] = zero.get("offload_optimizer", {}).get("device", "none") != "none"
            if isinstance(zero.get("reduce_bucket_size"), int):  # else absent, or "auto" until DeepSpeed has started
                more["reduce_bucket_size"] = zero["reduce_bucket_size"]
    elif state.distributed_type == DistributedType.FSDP:
        fsdp: Any = state.fsdp_plugin
        backend, more["offload"] = "fsdp2", bool(fsdp.cpu_offload)
    return TrainingSetup(
        args.train_batch_size,
        sample_length,
        weight_dtype=dtype,
        autocast=dtype == "float32" and (args.bf16 or args.fp16),
        activation_checkpointing=bool(args.activation_checkpointing),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        backend=backend,
        num_devices=args.world_size,
        frozen=args.recovery.frozen_setup(model),
        teaching=teaching,
        **more,
    )


def memory_line(
    args: ShearTrainingArguments,
    model: PreTrainedModel,
    sample_length: int,
    state: AcceleratorState,
    teaching: TeachingSetup | None = None,
) -> str:
    """The estimate in one line, or why there is none (a model of another family, an uncommon dtype).

    The arguments are those of ``training_setup``.
    """
    try:
        setup = training_setup(args, model, sample_length, state, teaching)
        estimate = estimate_memory(model.config, setup)
    except ValueError as error:
        return f"memory per device: not estimated. {error}"
    sharing = "one device" if setup.num_devices == 1 else f"{setup.num_devices} devices"
    if setup.backend != "single":
        sharing = f"{setup.backend} on {sharing}"
    text = ", ".join(f"{name} {_gib(value)}" for name, value in estimate.device.items())
    line = f"memory per device with AdamW, {sharing}, about {_gib(estimate.peak)} ({estimate.moment}): {text}"
    counted = _counted(setup, args.recovery.trained)
    line += f" ({'; '.join(counted)})" if counted else ""
    return line + (f"; on the host {_gib(sum(estimate.host.values()))}" if estimate.host else "")


def _counted(setup: TrainingSetup, trained: str) -> list[str]:
    """What the estimate takes into account of a way of recovery, in words."""
    found = []
    if setup.frozen is not None:
        frozen = "" if setup.frozen.quantize == "none" else f", the frozen ones in {setup.frozen.quantize}"
        found.append(f"{setup.frozen.num_trained:,} parameters of {trained} are trained{frozen}")
    if setup.teaching is not None:
        where = {ON_DEVICE: "the teacher on the device", OFFLOADED: "the teacher offloaded", STORED: "stored logits"}
        found.append(f"{where[setup.teaching.placement]}, the student's logits in chunks")
    return found


def cost_report(
    args: ShearTrainingArguments,
    sample_length: int,
    held_out: Mapping[str, int],
    memory: str,
    masks: ShearingMasks | None = None,
    schedule: MaskSchedule | None = None,
) -> str:
    """Tokens, steps, evaluation and memory, in a few lines.

    Args:
        args: of the training, with ``max_steps``.
        sample_length: tokens of a sample.
        held_out: samples of each domain to evaluate on.
        memory: ``memory_line``.
        masks, schedule: if masks are learned.
    """
    per_step = args.samples_per_step() * sample_length
    lines = [
        f"{'Training' if masks is None else 'Mask learning'}: {args.max_steps * per_step:,} tokens in"
        f" {args.max_steps:,} steps of {args.samples_per_step()} x {sample_length} tokens ({args.world_size} process(es) x"
        f" {args.train_batch_size} samples x {args.gradient_accumulation_steps} accumulated)"
    ]
    if masks is not None and schedule is not None:
        hardening = schedule.hardening_steps
        lines.append(
            f"  masks: {masks.settings.method}, {sum(p.numel() for p in masks.log_alpha.values()):,} units towards"
            f" {masks.target}; " + (f"hardened over the last {hardening} steps" if hardening else "never hardened")
        )
    if held_out and num_evaluations(args):
        per_domain = evaluation_samples_per_domain(args, len(held_out))
        used = sum(min(per_domain, size) for size in held_out.values()) * sample_length
        total = used * _all_evaluations(args)
        lines.append(
            f"  evaluation: {num_evaluations(args)} x {used:,} held-out tokens"
            + (f" and {used:,} for reference losses" if measures_references(args) else "")
            + f", {total / (args.max_steps * per_step):.1%} of the training tokens"
        )
    return "\n".join([*lines, f"  {memory}"])


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MiB"


class CostCallback(TrainerCallback):
    """Prints the cost report when training starts, and warns of evaluations that cost more than their share.

    Args:
        report: makes the report.
        num_domains: that are evaluated on.
    """

    def __init__(self, report: Callable[[], str], num_domains: int):
        self.report, self.num_domains = report, num_domains

    def on_train_begin(self, args: ShearTrainingArguments, state, control, **kwargs):
        if state.is_world_process_zero:
            tell(args, self.report())
        num_domains = self.num_domains
        if num_domains and num_evaluations(args) and evaluation_samples_per_domain(args, num_domains) == 1:
            share = num_domains * _all_evaluations(args) / (args.max_steps * args.samples_per_step())
            if share > args.eval_token_share * 1.001:
                warnings.warn(
                    f"Even one held-out sample per domain spends {share:.1%} of the training tokens on evaluation, more"
                    f" than `eval_token_share` ({args.eval_token_share:.1%}). Evaluate less often (`eval_steps`), or"
                    " raise `eval_token_share` to silence this.",
                    UserWarning,
                    stacklevel=2,
                )
