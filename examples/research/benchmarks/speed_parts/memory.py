"""Peak memory of every kind of step, each in a process of its own."""

from __future__ import annotations

import argparse
import resource
import sys

import torch

from .model_sizes import Size
from .training_steps import PLAIN, make_arms, random_batches
from .workers import run_worker

MEMORY_STEPS = 3  # the peak is reached in the second step, when the optimizer's moments exist
MEBIBYTE = 2**20


def measure_memory(args: argparse.Namespace, arguments: list[str]) -> dict:
    """Bytes at the peak of a few steps, and masked / plain."""
    worker = [*arguments, "--worker", "memory", "--worker_arm"]
    peaks = {name: run_worker(args, [*worker, name]) for name in (PLAIN, *args.arms)}
    ratio = {name: peaks[name]["peak_bytes"] / peaks[PLAIN]["peak_bytes"] for name in args.arms}
    return {"counter": "max_memory_allocated" if args.device != "cpu" else "ru_maxrss", **peaks, "ratio": ratio}


def memory_of_arm(args: argparse.Namespace, size: Size) -> dict[str, int]:
    """Peak bytes of this process (on a GPU: of its tensors), and what they were before there was a model."""
    on_cpu = args.device == "cpu"
    before = peak_resident_bytes() if on_cpu else 0
    (arm,) = make_arms(args, size, [args.worker_arm], MEMORY_STEPS)
    batches = random_batches(args, size.vocab_size)
    for _ in range(MEMORY_STEPS):
        arm.step(next(batches))
    peak = peak_resident_bytes() if on_cpu else torch.cuda.max_memory_allocated(args.device)
    return {"peak_bytes": peak, "before_model_bytes": before}


def peak_resident_bytes() -> int:
    """Greatest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


def memory_table(memory: dict) -> list[str]:
    """Lines to print."""
    lines = [f"Peak memory, MiB ({memory['counter']}, a process of its own for each)"]
    for name in (PLAIN, *memory["ratio"]):
        peak, before = (memory[name][key] / MEBIBYTE for key in ("peak_bytes", "before_model_bytes"))
        ratio = f"x plain {memory['ratio'][name]:.3f}" if name in memory["ratio"] else ""
        lines.append(f"  {name:<18}{peak:10.0f}   of which {before:.0f} before there was a model   {ratio}")
    return lines
