"""Measurements in processes of their own, which print one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

from ...shared import ROOT

SPEED = "examples.research.benchmarks.speed"


class DoesNotFit(RuntimeError):
    """A model, its optimizer and its activations need more memory than the GPU has."""


def run_worker(args: argparse.Namespace, arguments: list[str], num_processes: int = 1) -> dict:
    """Run the command with ``arguments`` in a new process, or in several that torchrun starts.

    Returns:
        The JSON object that the first process printed as its last line.

    Raises:
        DoesNotFit: it ran out of the GPU's memory.
        RuntimeError: it failed otherwise; what it wrote is in the message.
    """
    launcher = []
    if num_processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    command = [sys.executable, *launcher, "-m", SPEED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(args, num_processes), cwd=ROOT)
    if done.returncode != 0:
        if "OutOfMemoryError" in done.stderr:
            raise DoesNotFit(last_line(done.stderr, "OutOfMemoryError"))
        raise RuntimeError(f"The measurement `{' '.join(arguments)}` failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def environment(args: argparse.Namespace, num_processes: int) -> dict[str, str]:
    """Of a worker: as many GPUs as processes (a Trainer takes all it sees), and its share of the threads."""
    variables = dict(os.environ)
    if args.device.startswith("cuda") and num_processes == 1:
        visible = variables.get("CUDA_VISIBLE_DEVICES")
        _, _, index = args.device.partition(":")
        variables["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(index or 0)] if visible else index or "0"
    if args.threads is not None:
        variables["OMP_NUM_THREADS"] = str(args.threads)
    return variables


def last_line(text: str, word: str) -> str:
    """The last line that has the word."""
    return [line.strip() for line in text.splitlines() if word in line][-1]
