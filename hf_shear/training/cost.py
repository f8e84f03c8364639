"""What a run will cost, told before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import PreTrainedModel
from transformers.trainer_utils import IntervalStrategy

from ..distillation.teachers import OFFLOADED, ON_DEVICE, STORED
from ..masks import MaskSchedule, ShearingMasks
from .arguments import ShearTrainingArguments
from .memory import estimate_memory
from .memory_setup import TeachingSetup, TrainingSetup

STEERING_SAMPLES = 16
"""Least samples of each domain that an evaluation reads to change domain weights: losses of fewer are mostly noise."""

MOST_EVALUATIONS = 10
"""Evaluations of a training, if ``eval_steps`` is not given and they are paid for."""


@dataclass(frozen=True)
class EvaluationPlan:
    """The evaluations of a training.

    Attributes:
        steps: after which one happens.
        samples_per_domain: held-out samples that each reads; all of a domain that has fewer.
        steers: whether they change domain weights, for which losses of the source are measured first, unless given.
        asked_for: whether the steps are the user's.
    """

    steps: list[int]
    samples_per_domain: int
    steers: bool
    asked_for: bool

    def num_passes(self, args: ShearTrainingArguments) -> int:
        """Evaluations with the one for reference losses, where they are measured."""
        return len(self.steps) + (self.steers and not args.reference_losses)


def plan_evaluations(args: ShearTrainingArguments, num_domains: int) -> EvaluationPlan:
    """When to evaluate on how much text, so that all of it costs ``eval_token_share`` of the training tokens.

    A small budget makes evaluations few, not small: each that steers reads ``STEERING_SAMPLES`` samples of a domain or
    more. There are as many as are paid for, up to ``MOST_EVALUATIONS``, at equal distances from the start and the end,
    where none could steer any more. The evaluation for reference losses is charged also where they are given: another
    stage has paid for it. Where not even one is paid for, weights stay as they are, and evaluations, of fewer
    samples, only draw a curve. ``eval_steps`` stands, whatever it costs.

    Args:
        args: with ``max_steps`` (``set_steps``).
        num_domains: that are evaluated on.
    """
    if args.eval_strategy == IntervalStrategy.NO:
        return EvaluationPlan([], 0, False, False)
    budget = args.eval_token_share * args.max_steps * args.samples_per_step() / max(num_domains, 1)
    if not args.has_planned_evaluations:
        steps, steers = _asked_steps(args), args.dynamic_batches
        samples = int(budget / max(len(steps) + steers, 1))
        return EvaluationPlan(steps, max(samples, STEERING_SAMPLES if steers else 1), steers, True)
    steers = args.dynamic_batches and budget >= 2 * STEERING_SAMPLES
    wanted = int(budget / STEERING_SAMPLES) - 1 if steers else int(budget)
    wanted = min(wanted, MOST_EVALUATIONS)
    steps = sorted({round(args.max_steps * number / (wanted + 1)) for number in range(1, wanted + 1)} - {0})
    steps = [step for step in steps if step >= args.eval_delay]
    return EvaluationPlan(steps, max(int(budget / (len(steps) + steers or 1)), 1), steers and bool(steps), False)


def _asked_steps(args: ShearTrainingArguments) -> list[int]:
    """Steps at which transformers evaluates by itself: the last one always."""
    if args.eval_strategy != IntervalStrategy.STEPS:
        return [args.max_steps]
    assert args.eval_steps is not None
    every = int(args.eval_steps if args.eval_steps >= 1 else math.ceil(args.eval_steps * max(args.max_steps, 1)))
    return [step for step in range(every, args.max_steps, every) if step >= args.eval_delay] + [args.max_steps]


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
    more: dict[str, Any] = {}
    if state.distributed_type == DistributedType.DEEPSPEED:
        deepspeed: Any = state.deepspeed_plugin
        config = deepspeed.deepspeed_config
        zero = config.get("zero_optimization", {})
        if config.get("bf16", {}).get("enabled") is True:
            dtype = "bfloat16"
        if deepspeed.zero_stage > 0:
            more["backend"] = f"zero{deepspeed.zero_stage}"
            more["offload"] = zero.get("offload_optimizer", {}).get("device", "none") != "none"
            if isinstance(zero.get("reduce_bucket_size"), int):  # else absent, or "auto" until DeepSpeed has started
                more["reduce_bucket_size"] = zero["reduce_bucket_size"]
    elif state.distributed_type == DistributedType.FSDP:
        fsdp: Any = state.fsdp_plugin
        more |= {"backend": "fsdp2", "offload": bool(fsdp.cpu_offload)}
    return setup_of(args, sample_length, dtype, frozen=args.recovery.frozen_setup(model), teaching=teaching, **more)


def setup_of(args: ShearTrainingArguments, sample_length: int, dtype: str = "float32", **more: Any) -> TrainingSetup:
    """What the arguments alone say of the memory of a step; ``more`` are fields of ``TrainingSetup``."""
    own: dict[str, Any] = {
        "weight_dtype": dtype,
        "autocast": dtype == "float32" and (args.bf16 or args.fp16),
        "activation_checkpointing": bool(args.activation_checkpointing),
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "backend": "ddp" if args.world_size > 1 else "single",
        "num_devices": args.world_size,
    }
    return TrainingSetup(args.train_batch_size, sample_length, **own | more)


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
        f" {args.max_steps:,} steps of {args.samples_per_step()} x {sample_length} tokens ({args.world_size}"
        f" process{'es' * (args.world_size != 1)} x {args.train_batch_size} samples x"
        f" {args.gradient_accumulation_steps} accumulated)"
    ]
    if masks is not None and schedule is not None:
        hardening = schedule.hardening_steps
        lines.append(
            f"  masks: {masks.settings.method}, {sum(p.numel() for p in masks.log_alpha.values()):,} units towards"
            f" {masks.target}; " + (f"hardened over the last {hardening} steps" if hardening else "never hardened")
        )
    if held_out and args.eval_strategy != IntervalStrategy.NO:
        lines += _evaluation_lines(args, sample_length, held_out)
    return "\n".join([*lines, f"  {memory}"])


def _evaluation_lines(args: ShearTrainingArguments, sample_length: int, held_out: Mapping[str, int]) -> list[str]:
    plan = plan_evaluations(args, len(held_out))
    trained, lines = args.max_steps * args.samples_per_step() * sample_length, []
    if plan.steps:
        used = sum(min(plan.samples_per_domain, size) for size in held_out.values()) * sample_length
        share = used * plan.num_passes(args) / trained
        lines.append(
            f"  evaluation: {len(plan.steps)} x {used:,} held-out tokens"
            + (f" and {used:,} for reference losses" if plan.num_passes(args) > len(plan.steps) else "")
            + f", {share:.1%} of the training tokens"
        )
        if plan.asked_for and share > args.eval_token_share * 1.001:
            lines[0] += (
                f": more than `eval_token_share` ({args.eval_token_share:.1%}), since `eval_steps` asks for it; without"
                " `eval_steps` there are as many as are paid for"
            )
    if args.dynamic_batches and not plan.steers and len(held_out) > 1:
        one = 2 * STEERING_SAMPLES * len(held_out) * sample_length / trained
        lines.append(
            f"  domain weights stay as they are: losses to steer by, of {STEERING_SAMPLES} samples of each domain, and"
            f" their references would cost {one:.1%} of the training tokens, more than `eval_token_share`"
            f" ({args.eval_token_share:.1%}). More tokens, a larger share or `eval_steps` lets them change."
        )
    return lines


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MiB"
