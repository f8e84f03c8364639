"""Host memory of slicing and export: how far it rises above what a process held before, sharded and not.

    python -m examples.research.benchmarks.export_memory  # CPU: 410 million parameters in float32, two processes
    python -m examples.research.benchmarks.export_memory --small  # seconds; says nothing about memory

Prints a table, then one JSON object as its last line. Random weights, nothing is downloaded. Linux only: it reads
/proc. README.md beside this file says how to read the numbers.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from hf_shear import ShearingLlamaConfig, ShearingLlamaForCausalLM, TargetShape, slice_model
from hf_shear.core import collect_versions
from hf_shear.masks import MaskSettings
from hf_shear.slicing import save_checkpoint

from ..shared import ROOT

MODULE = "examples.research.benchmarks.export_memory"

MODEL_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)
DEFAULT_SIZES = (1024, 32, 16, 8, 2816, 16000)
SMALL_SIZES = (64, 4, 4, 2, 128, 256)
# Of the source's sizes, as from Llama-2-7B to 2.7B: 4096 -> 2560 dimensions, 32 -> 20 heads, 11008 -> 6912 neurons.
KEPT_SHARE = 0.625
UNSHARDED, ZERO3, FSDP2 = BACKENDS = ("unsharded", "zero3", "fsdp2")
SLICE, PLAIN = EXPORTS = ("slice", "plain")
WORKER_SECONDS = 1800
MEBIBYTE = 2**20


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, with all sizes filled in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a model of a few hundred kilobytes, to try the command")
    for name in MODEL_SIZES:
        parser.add_argument(f"--{name}", type=int, help="of the source")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS), help="who shards the source")
    parser.add_argument(
        "--exports", nargs="+", choices=EXPORTS, default=list(EXPORTS),
        help="slice: cut a masked model and save it; plain: save a recovered model",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, default=2, help="of a sharded model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of what is written")
    parser.add_argument("--worker", nargs=2, metavar=("BACKEND", "EXPORT"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    for name, size in zip(MODEL_SIZES, SMALL_SIZES if args.small else DEFAULT_SIZES, strict=True):
        if getattr(args, name) is None:
            setattr(args, name, size)
    return args


# ---- in a process of its own ----------------------------------------------------------------------------------------


def measure(args: argparse.Namespace, backend: str, export: str) -> dict[str, int]:
    """Bytes of this process before and at the peak of one export, and of what was exported."""
    model = build_model(args, export)
    layer = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    source = sum(parameter.nbytes for parameter in model.parameters())
    if backend != UNSHARDED:
        model = {ZERO3: shard_by_zero3, FSDP2: shard_by_fsdp2}[backend](model)
    dtype = None if args.dtype == "float32" else getattr(torch, args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        before = resident_bytes_from_now_on()
        start = time.perf_counter()
        if export == SLICE:
            model, _ = slice_model(model, dtype=dtype)
            dtype = None
        save_checkpoint(model, Path(folder) / "out", dtype=dtype)
        seconds, peak = time.perf_counter() - start, status_bytes("VmHWM")
        written = sum(file.stat().st_size for file in Path(folder).glob("out/*.safetensors"))
    return {
        "before_bytes": before,
        "extra_peak_bytes": peak - before,
        "written_bytes": written,
        "source_bytes": source,
        "layer_bytes": layer,
        "embedding_bytes": args.vocab_size * args.hidden_size * 4,
        "seconds": seconds,
    }


def build_model(args: argparse.Namespace, export: str) -> LlamaForCausalLM:
    """A plain or a masked model with untied embeddings and random float32 weights."""
    torch.manual_seed(0)
    config = LlamaConfig(**{size: getattr(args, size) for size in MODEL_SIZES}, tie_word_embeddings=False)
    if export == PLAIN:
        return LlamaForCausalLM(config)
    groups = max(round(config.num_key_value_heads * KEPT_SHARE), 1)
    target = TargetShape.from_source(
        config,
        hidden_size=groups * config.num_attention_heads // config.num_key_value_heads * config.head_dim,
        num_attention_heads=groups * config.num_attention_heads // config.num_key_value_heads,
        num_key_value_heads=groups,
        intermediate_size=round(config.intermediate_size * KEPT_SHARE),
    )
    model = ShearingLlamaForCausalLM(ShearingLlamaConfig.from_source(config, target, MaskSettings()))
    model.take_masks_apart()
    return model


def shard_by_zero3(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """As a DeepSpeed engine of stage 3 holds it; without an optimizer, which takes no part."""
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False  # gloo in its place: it would be compiled for minutes
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    return deepspeed.initialize(model=model, config=config)[0].module


def shard_by_fsdp2(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Decoder layers, then the rest."""
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def resident_bytes_from_now_on() -> int:
    """Resident bytes of this process; its high-water mark starts again from there."""
    gc.collect()
    # Memory that was freed but not given back would hide as much of what comes.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def status_bytes(field: str) -> int:
    """A size in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


# ---- the processes --------------------------------------------------------------------------------------------------


def measure_in_processes(args: argparse.Namespace, arguments: list[str], backend: str, export: str) -> list[dict]:
    """What each process measured, the main one first."""
    num_processes = 1 if backend == UNSHARDED else args.processes
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", MODULE, *arguments, "--worker", backend, export]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_processes)
    ]
    try:
        outputs = [process.communicate(timeout=WORKER_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode != 0:
            raise RuntimeError(f"The measurement of {export!r} with {backend!r} failed:\n{errors}")
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


def worker(args: argparse.Namespace) -> None:
    """Measure in this process, as one of those that the environment names."""
    backend, export = args.worker
    if backend != UNSHARDED:
        dist.init_process_group("gloo")
    print(json.dumps(measure(args, backend, export)))
    if dist.is_initialized():
        dist.destroy_process_group()


def summary(processes: list[dict]) -> dict:
    """The main process against what it writes, the others against the greatest part that is gathered at once."""
    main, *others = processes
    gathered = max(main["layer_bytes"], main["embedding_bytes"])
    record = {"main_extra_over_written": main["extra_peak_bytes"] / main["written_bytes"], "main": main}
    if others:
        most = max(other["extra_peak_bytes"] for other in others)
        record |= {"others_extra_over_gathered": most / gathered, "others": others}
    return record


# ---- what is printed ------------------------------------------------------------------------------------------------


def print_table(results: dict[str, dict[str, dict]]) -> None:
    """A row for every export."""
    print(f"\n{'MiB':<20}{'source':>8}{'layer':>8}{'written':>9}{'main +':>9}{'/ written':>11}{'others +':>10}{'s':>7}")
    for export, backends in results.items():
        for backend, record in backends.items():
            main = record["main"]
            sizes = [main[f"{name}_bytes"] / MEBIBYTE for name in ("source", "layer", "written", "extra_peak")]
            line = "{:8.0f}{:8.1f}{:9.0f}{:9.0f}".format(*sizes) + f"{record['main_extra_over_written']:11.3f}"
            others = [other["extra_peak_bytes"] / MEBIBYTE for other in record.get("others", [])]
            line += f"{max(others):10.0f}" if others else " " * 10
            print(f"{export + ', ' + backend:<20}{line}{main['seconds']:7.1f}")
    print("main +, others +: greatest resident size during slicing and saving, less that before")


def main(arguments: list[str] | None = None) -> None:
    """Measure what is asked for; print a table, then JSON."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse_arguments(arguments)
    if args.worker:
        worker(args)
        return
    results = {
        export: {backend: summary(measure_in_processes(args, arguments, backend, export)) for backend in args.backends}
        for export in args.exports
    }
    environment = {
        "machine": platform.machine(),
        "cpu_cores": os.cpu_count(),
        "month": time.strftime("%Y-%m"),
        "versions": collect_versions(),
    }
    print_table(results)
    given = {name: value for name, value in vars(args).items() if name != "worker"}
    print(json.dumps({"benchmark": "export_memory", "environment": environment, "arguments": given, **results}))


if __name__ == "__main__":
    main()
