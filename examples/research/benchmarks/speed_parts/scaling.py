"""Weak scaling: ShearTrainer in one process and in several, each with micro-batches of the same size."""

from __future__ import annotations

import argparse
import gc
import statistics

import torch

from .model_sizes import Size
from .real_trainer import train
from .timing import as_text, quartiles
from .training_steps import ACTIVATION_MASKS, PLAIN
from .workers import run_worker


def process_counts(device: str) -> list[int]:
    """Numbers of processes to compare: 1 and 2 on a CPU; on GPUs one process for each, up to all of them."""
    if not device.startswith("cuda"):
        return [1, 2]
    gpus = torch.cuda.device_count()
    return sorted({1, min(2, gpus), gpus})


def measure_scaling(args: argparse.Namespace, arguments: list[str]) -> dict:
    """Tokens per second of each number of processes, and its quotient by as many times that of one.

    Every round starts all numbers of processes anew, in turn; efficiency is formed within a round.
    """
    counts = process_counts(args.device)
    if len(counts) == 1:
        return {"not_measured": "there is one GPU"}
    rounds = []
    for number in range(args.scaling_rounds):
        order = counts if number % 2 == 0 else counts[::-1]
        rounds.append({n: run_worker(args, [*arguments, "--worker", "scaling"], n) for n in order})
    arms = list(rounds[0][1]["tokens_per_second"])
    rate = {arm: {n: [done[n]["tokens_per_second"][arm] for done in rounds] for n in counts} for arm in arms}
    efficiency = {
        arm: {str(n): quartiles([many / (n * one) for many, one in zip(by[n], by[1], strict=True)]) for n in counts[1:]}
        for arm, by in rate.items()
    }
    return {
        "rounds": args.scaling_rounds,
        "steps": args.scaling_steps,
        "tokens_per_process_and_step": args.batch_size * args.max_length,
        "backend": rounds[0][counts[-1]]["backend"],
        "tokens_per_second": {arm: {str(n): quartiles(by[n]) for n in counts} for arm, by in rate.items()},
        "efficiency": efficiency,
    }


def scaling_worker(args: argparse.Namespace, size: Size) -> dict:
    """In each of the processes: the rate of plain and of masked training, by this process's clock."""
    rates, masked = {}, [name for name in args.arms if name != ACTIVATION_MASKS]
    for arm in [PLAIN, *masked[:1]]:
        trainer = train(args, size, arm, args.warmup_steps + args.scaling_steps, evaluate=False)
        seconds = statistics.median(trainer.step_seconds[args.warmup_steps :])
        rates[arm] = trainer.args.samples_per_step() * args.max_length / seconds
        del trainer
        gc.collect()  # a trainer and its model refer to each other
    several = torch.distributed.is_initialized()
    return {"tokens_per_second": rates, "backend": torch.distributed.get_backend() if several else None}


def scaling_table(result: dict) -> list[str]:
    """Lines to print."""
    if "not_measured" in result:
        return [f"Scaling: not measured, {result['not_measured']}"]
    lines = [
        f"ShearTrainer in several processes ({result['backend']}), {result['tokens_per_process_and_step']} tokens each;"
        f" tokens/s over {result['rounds']} launches [quartiles]"
    ]
    for arm, by_count in result["tokens_per_second"].items():
        for count, values in by_count.items():
            line = f"  {arm:<18}{count:>3} x {as_text(values, ',.0f'):<28}"
            if count in result["efficiency"][arm]:
                line += f"efficiency {as_text(result['efficiency'][arm][count], '.2f')}"
            lines.append(line)
    return lines
