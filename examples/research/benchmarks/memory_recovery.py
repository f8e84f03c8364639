"""Memory of ways of recovery, predicted against measured: frozen weights, adapters, and a teacher.

    python -m examples.research.benchmarks.memory_recovery  # CPU: a model of 2 million
    python -m examples.research.benchmarks.memory_recovery --models 160m --max_length 2048  # one GPU

Prints a table, then one JSON object as its last line; the command line is that of memory.py. The teacher has an MLP twice
as wide. Random tokens, random weights, nothing is downloaded. An offloaded teacher is calculated only: on a CPU its weights
have nowhere to go.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from dataclasses import replace

import torch
from transformers import LlamaForCausalLM

from hf_shear.distillation import DistillationSettings, Teacher
from hf_shear.distillation.teachers import ON_DEVICE, STORED
from hf_shear.training import recovery_method
from hf_shear.training.distilling import Distiller
from hf_shear.training.memory import estimate_memory
from hf_shear.training.memory_recovery import TeachingSetup
from hf_shear.training.memory_setup import TrainingSetup

from . import memory
from .memory_models import build_model, environment
from .speed_parts.training_steps import PLAIN, random_batches

METHODS, TEACHINGS = ("full", "lora", "norms_and_biases"), ("none", ON_DEVICE, STORED)
TOP_K = 32  # stored logits per position


def measured_row(
    args: argparse.Namespace, model: str, dtype: str, checkpointing: bool, method: str, teaching: str
) -> dict:
    """Predicted and measured peak of one way to recover one model."""
    arm = memory.arm_arguments(args, model, dtype, checkpointing)
    estimate = estimate_memory(memory.build_config(memory.MODELS[model], PLAIN), setup_of(arm, method, teaching))
    peak = memory.peak_bytes(lambda: run_steps(arm, method, teaching), args.device)
    return {
        "model": model,
        "dtype": dtype,
        "activation_checkpointing": checkpointing,
        "method": method,
        "teacher": teaching,
        "predicted_bytes": estimate.peak,
        "measured_bytes": peak,
        "error": estimate.peak / peak - 1,
        "moment": estimate.moment,
        "parts": estimate.device,
    }


def setup_of(arm: argparse.Namespace, method: str, teaching: str) -> TrainingSetup:
    """The way of recovery as the estimate takes it; adapters are counted on a model without storage."""
    setup = memory.setup_of(arm)
    if method != "full":
        model = prepared(build_model(argparse.Namespace(**vars(arm) | {"device": "meta"}), PLAIN), method)
        setup = replace(setup, frozen=recovery_method(method).frozen_setup(model))
    if teaching != "none":
        teacher = teacher_config(arm) if teaching == ON_DEVICE else None
        setup = replace(setup, teaching=TeachingSetup(teacher, teaching, top_k=TOP_K))
    return setup


def prepared(model: LlamaForCausalLM, method: str) -> torch.nn.Module:
    """The model with frozen weights or adapters, as recovery makes it."""
    return recovery_method(method).prepare(model)


def teacher_config(arm: argparse.Namespace):
    """The student's config with twice its MLP."""
    wide = argparse.Namespace(**vars(arm) | {"intermediate_size": 2 * arm.intermediate_size, "device": "meta"})
    return build_model(wide, PLAIN).config


def run_steps(arm: argparse.Namespace, method: str, teaching: str) -> None:
    """A model, and its teacher, from their making to the end of the second step."""
    student = build_model(arm, PLAIN)
    model = prepared(student, method)
    mixed = arm.dtype == "mixed"
    distiller = make_distiller(arm, student, teaching) if teaching != "none" else None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    for _, input_ids in zip(range(memory.STEPS), random_batches(arm, arm.vocab_size), strict=False):
        if distiller is None:
            loss = memory.forward_loss(model, input_ids, mixed)
        else:
            loss = distilled_loss(model, distiller, input_ids, teaching == STORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def make_distiller(arm: argparse.Namespace, student: LlamaForCausalLM, teaching: str) -> Distiller:
    """With a random teacher, or none where logits are stored."""
    device = torch.device(arm.device)
    teacher = None
    if teaching == ON_DEVICE:
        with device:
            teacher = Teacher(LlamaForCausalLM(teacher_config(arm)), device=device)
    mixed = arm.dtype == "mixed"
    autocast = (lambda: torch.autocast(device.type, torch.bfloat16)) if mixed else contextlib.nullcontext
    distiller = Distiller(DistillationSettings(), student, teacher, autocast)
    distiller.start()
    return distiller


def distilled_loss(model: torch.nn.Module, distiller: Distiller, input_ids: torch.Tensor, stored: bool) -> torch.Tensor:
    """The loss as a trainer computes it."""
    inputs = {"input_ids": input_ids, "labels": input_ids}
    if stored:
        batch, length = input_ids.shape
        inputs["teacher_log_probs"] = torch.full((batch, length * (TOP_K + 1)), -3.0, dtype=torch.float16)
        inputs["teacher_ids"] = torch.arange(TOP_K).repeat(batch, length)
        inputs = {name: tensor.to(input_ids.device) for name, tensor in inputs.items()}
    distiller.set_target(inputs)
    with distiller.autocast():
        outputs = model(input_ids=input_ids, use_cache=False)
    loss = distiller.loss(outputs, input_ids)
    distiller.clear_target()
    return loss


def print_rows(rows: list[dict], args: argparse.Namespace) -> None:
    """Predicted against measured."""
    print(f"\nPeak of a step of {args.batch_size} x {args.max_length} tokens, MiB")
    heading = f"  {'model':<6}{'dtype':<9}{'checkpointing':<15}{'method':<18}{'teacher':<9}"
    print(heading + f"{'predicted':>10}{'measured':>10}{'error':>8}")
    for row in rows:
        predicted, peak = (row[key] / memory.MEBIBYTE for key in ("predicted_bytes", "measured_bytes"))
        print(
            f"  {row['model']:<6}{row['dtype']:<9}{'yes' if row['activation_checkpointing'] else 'no':<15}"
            f"{row['method']:<18}{row['teacher']:<9}{predicted:10.1f}{peak:10.1f}{row['error']:8.1%}"
        )
    print(f"  greatest error: {max(abs(row['error']) for row in rows):.1%}")


def report_table(rows: list[dict]) -> str:
    """Markdown for examples/docs/memory.md: predicted / measured MiB, a column for each place of the teacher."""
    lines = ["| method | dtype | checkpointing | no teacher | on the device | stored logits |", "|---" * 6 + "|"]
    for method in METHODS:
        for dtype, words in (("float32", "float32"), ("mixed", "bf16 autocast")):
            for checkpointing in (False, True):
                key = {"method": method, "dtype": dtype, "activation_checkpointing": checkpointing}
                cells = [cell(row) for row in rows if key.items() <= row.items()]
                lines.append(f"| {method} | {words} | {'yes' if checkpointing else 'no'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(row: dict) -> str:
    """Predicted / measured, in MiB."""
    return " / ".join(f"{row[key] / memory.MEBIBYTE:.1f}" for key in ("predicted_bytes", "measured_bytes"))


def main(arguments: list[str] | None = None) -> None:
    """Measure every way; print a table, then JSON."""
    args = memory.parse_arguments(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    models = args.models if args.device.startswith("cuda") else args.models[:1]
    rows = [
        measured_row(args, model, dtype, checkpointing, method, teaching)
        for model in models
        for dtype in args.dtypes
        for checkpointing in (False, True)
        for method in METHODS
        for teaching in TEACHINGS
    ]
    print_rows(rows, args)
    facts = {"benchmark": "memory_recovery", "environment": environment(args), "arguments": vars(args)}
    print(json.dumps(facts | {"measured": rows}))


if __name__ == "__main__":
    main()
