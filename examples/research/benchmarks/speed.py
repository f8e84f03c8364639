"""Speed of mask learning: against plain training and activation-level masks, data, evaluation, memory, scaling.

    python -m examples.research.benchmarks.speed  # CPU: 14 million parameters
    python -m examples.research.benchmarks.speed --models 160m 1.3b 7b --dtype mixed --max_length 2048  # GPU: what fits

Prints tables, then one JSON object as its last line. Random tokens, random weights, nothing is downloaded.
README.md beside this file says how to read the numbers.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers.utils import is_flash_attn_2_available, logging

from .speed_parts.memory import measure_memory, memory_of_arm, memory_table
from .speed_parts.model_sizes import SIZE_NAMES, SIZES, Size
from .speed_parts.real_trainer import measure_trainer, trainer_table
from .speed_parts.report import environment, judge, targets_table, write_report
from .speed_parts.sampler import SAMPLER_SIZES, measure_sampler, sampler_table
from .speed_parts.scaling import measure_scaling, scaling_table, scaling_worker
from .speed_parts.step_time import measure_steps, steps_table
from .speed_parts.training_steps import ARMS, PLAIN
from .speed_parts.workers import DoesNotFit, run_worker

PARTS = ("steps", "memory", "trainer", "scaling", "sampler")
TABLES = {"steps": steps_table, "memory": memory_table, "trainer": trainer_table, "scaling": scaling_table}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked against what is installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SIZES, help="sizes; default: 14m on CPU, 160m and 1.3b on a GPU")
    for name in SIZE_NAMES[:-1]:
        parser.add_argument(f"--{name}", type=int, help="in place of the model's")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), help="masked steps to compare with plain"
    )
    parser.add_argument("--rounds", type=int, default=30, help="each times every kind of step once")
    parser.add_argument("--warmup_steps", type=int, default=3, help="steps of each kind that are not counted")
    parser.add_argument("--batch_size", type=int, default=8, help="sequences of a micro-batch")
    parser.add_argument("--max_length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "mixed"), default="float32",
        help="of weights and computation; mixed = float32 weights under bfloat16 autocast, as `bf16=True` in a Trainer",
    )  # fmt: skip
    parser.add_argument("--attention", choices=("sdpa", "flash_attention_2", "eager"), default="sdpa")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile every model")
    parser.add_argument(
        "--liger", action="store_true", help="rotary embedding and SwiGLU of liger-kernel in every model"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>")
    parser.add_argument("--threads", type=int, help="CPU threads of a process; default: torch's own choice")
    parser.add_argument("--trainer_steps", type=int, help="default: the fewest that default evaluations fit into")
    parser.add_argument("--domains", type=int, default=7, help="domains of the trainer's data")
    parser.add_argument("--scaling_steps", type=int, default=20, help="steps timed in every launch")
    parser.add_argument("--scaling_rounds", type=int, default=3, help="launches of every number of processes")
    parser.add_argument("--sampler_sizes", nargs="+", type=int, default=list(SAMPLER_SIZES), help="samples of the data")
    parser.add_argument("--sampler_batches", type=int, default=200, help="batches timed for each size")
    parser.add_argument("--report", type=Path, help="write the JSON to this file, and a page beside it")
    parser.add_argument("--worker", choices=("memory", "trainer", "scaling"), help=argparse.SUPPRESS)
    parser.add_argument("--worker_arm", choices=(PLAIN, *ARMS), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.models = args.models or (["160m", "1.3b"] if args.device.startswith("cuda") else ["14m"])
    for problem in missing(args):
        parser.error(problem)
    return args


def missing(args: argparse.Namespace) -> list[str]:
    """What is asked for and can not be had here, with the way out."""
    on_gpu, problems = args.device.startswith("cuda"), []
    if on_gpu and not torch.cuda.is_available():
        problems.append(f"--device {args.device}, but torch sees no GPU; use --device cpu")
    if args.attention == "flash_attention_2" and not (on_gpu and is_flash_attn_2_available()):
        problems.append("--attention flash_attention_2 needs a GPU and the package flash-attn; use --attention sdpa")
    if args.attention == "flash_attention_2" and args.dtype == "float32":
        problems.append("--attention flash_attention_2 computes in half precision; add --dtype mixed or bfloat16")
    if args.liger and not (on_gpu and importlib.util.find_spec("liger_kernel")):
        problems.append("--liger needs a GPU and the package liger-kernel: pip install 'hf-shear[liger]'")
    if args.compile and on_gpu and not importlib.util.find_spec("triton"):
        problems.append("--compile needs the package triton on a GPU; leave --compile out")
    if args.compile and not on_gpu and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        problems.append("--compile needs a C++ compiler on a CPU (g++ or clang++); leave --compile out")
    return problems


def size_of(args: argparse.Namespace, name: str) -> Size:
    """The sizes of a model, with those of the command line in their place."""
    given = {field: getattr(args, field) for field in SIZE_NAMES[:-1] if getattr(args, field) is not None}
    return replace(SIZES[name], **given)


def measure_model(args: argparse.Namespace, arguments: list[str], name: str) -> dict:
    """All parts that are about a model; those that it is too large for say so."""
    size, arguments = size_of(args, name), [*arguments, "--models", name]
    if args.device.startswith("cuda"):
        arguments += ["--device", "cuda"]  # all that a worker sees is the GPU that it is to use
    measures = {  # workers first: on a GPU no other model is there yet
        "memory": lambda: measure_memory(args, arguments),
        "trainer": lambda: run_worker(args, [*arguments, "--worker", "trainer"]),
        "scaling": lambda: measure_scaling(args, arguments),
        "steps": lambda: measure_steps(args, size),
    }
    result = {}
    for part, measure in measures.items():
        if part not in args.parts:
            continue
        try:
            result[part] = measure()
        except (DoesNotFit, torch.OutOfMemoryError) as error:
            result[part] = {"did_not_fit": str(error).splitlines()[0]}
        gc.collect()
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return result | {"targets": judge(args, result)}


def work(args: argparse.Namespace) -> dict:
    """What a process of its own measures."""
    size = size_of(args, args.models[0])
    if "LOCAL_RANK" in os.environ and args.device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if args.worker == "memory":
        return memory_of_arm(args, size)
    return measure_trainer(args, size) if args.worker == "trainer" else scaling_worker(args, size)


def tables(result: dict) -> list[str]:
    """All lines to print, out of the JSON alone."""
    arguments = result["arguments"]
    where = result["environment"]["gpu"] or f"{result['environment']['cpu']}, not run on a GPU"
    lines = []
    for name, parts in result["models"].items():
        lines += [f"{name} on {where}, {arguments['dtype']}, {arguments['attention']}", ""]
        for part, table in TABLES.items():
            if part in parts:
                fits = "did_not_fit" not in parts[part]
                lines += [*(table(parts[part]) if fits else [f"{part}: did not fit, {parts[part]['did_not_fit']}"]), ""]
        lines += [*targets_table(parts["targets"]), ""]
    return [*lines, *sampler_table(result["sampler"])] if "sampler" in result else lines[:-1]


def main(arguments: list[str] | None = None) -> None:
    """Measure what is asked for; print tables, then JSON."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse_arguments(arguments)
    logging.set_verbosity_error()  # advice to users of real models
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.worker:
        done = work(args)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(done), flush=True)
        return
    given = {name: value for name, value in vars(args).items() if name not in ("worker", "worker_arm", "report")}
    result = {"benchmark": "speed", "environment": environment(args), "arguments": given}
    result["models"] = {name: measure_model(args, arguments, name) for name in args.models}
    if "sampler" in args.parts:
        result["sampler"] = measure_sampler(args.sampler_sizes, args.sampler_batches)
    lines = tables(result)
    if args.report:
        write_report(args.report, result, arguments, lines)
    print("\n".join(lines))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
