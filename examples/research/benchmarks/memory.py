"""Memory of training, predicted against measured: plain and mask-learning steps of small models, then larger models.

    python -m examples.research.benchmarks.memory  # CPU: models of 2 to 14 million
    python -m examples.research.benchmarks.memory --models 160m 1b --max_length 2048  # one GPU
    python -m examples.research.benchmarks.memory --parts calculated  # models that are not here at all

Prints tables, then one JSON object as its last line. Random tokens, random weights, nothing is downloaded.
README.md beside this file says how to read the numbers; memory_sharded.py measures several processes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig

from hf_shear import MaskSettings, ShearingLlamaConfig
from hf_shear.shapes import count_parameters
from hf_shear.training.memory import estimate_memory
from hf_shear.training.memory_setup import TrainingSetup

from . import memory_models
from .memory_models import build_model, environment, weights_of
from .speed_parts.training_steps import PLAIN, half_of_every_size, mask_schedule, random_batches

MODELS = {"2m": (192, 4, 6, 3, 512, 2048), **memory_models.PRESETS}  # sizes as in memory_models.py
KINDS = (PLAIN, "relaxed_topk")
DTYPES = ("float32", "mixed", "bfloat16")
PARTS = ("measured", "calculated")
STEPS = 2  # the optimizer's moments exist from the second on
GIGABYTE = 10**9  # as on the boxes of cards; a card has a little more
MEBIBYTE = 2**20

# Sizes as published (hidden, layers, heads, key/value heads, MLP, vocabulary, tied head, head_dim).
LARGE_MODELS = {
    "TinyLlama-1.1B": (2048, 22, 32, 4, 5632, 32000, False),
    "Llama-3.2-1B": (2048, 16, 32, 8, 8192, 128256, True),
    "Llama-2-7B": (4096, 32, 32, 32, 11008, 32000, False),
    "Llama-2-13B": (5120, 40, 40, 40, 13824, 32000, False),
    "Llama-2-70B": (8192, 80, 64, 8, 28672, 32000, False),
}
ONE_CARD = (
    ("float32 weights, bf16 autocast", TrainingSetup(1, 2048, autocast=True)),
    ("bfloat16 weights and moments", TrainingSetup(1, 2048, weight_dtype="bfloat16")),
    (
        "ZeRO-2, bf16, optimizer on the host",
        TrainingSetup(1, 2048, weight_dtype="bfloat16", backend="zero2", offload=True, reduce_bucket_size=50_000_000),
    ),
)
MANY_CARDS = (
    ("DDP, bf16 autocast", TrainingSetup(1, 4096, autocast=True, backend="ddp")),
    ("ZeRO-2, bf16", TrainingSetup(1, 4096, weight_dtype="bfloat16", backend="zero2")),
    ("ZeRO-3, bf16", TrainingSetup(1, 4096, weight_dtype="bfloat16", backend="zero3")),
    ("FSDP2, float32 shards, bf16", TrainingSetup(1, 4096, autocast=True, backend="fsdp2")),
)
CALCULATED = (  # model, number of cards, GB of a card, ways of training
    ("TinyLlama-1.1B", 1, 24, ONE_CARD),
    ("Llama-3.2-1B", 1, 24, ONE_CARD),
    ("Llama-2-7B", 8, 80, MANY_CARDS),
    ("Llama-2-13B", 8, 80, MANY_CARDS),
    ("Llama-2-70B", 8, 80, MANY_CARDS[1:]),
    ("Llama-2-70B", 64, 80, MANY_CARDS[1:]),
)
MAX_MICRO_BATCH = 64  # of the search for the largest that fits


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: 2m 5m 14m on CPU, 160m 1b on a GPU")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default: float32 mixed; as in memory_models.py")
    parser.add_argument("--batch_size", type=int, default=2, help="sequences of a micro-batch")
    parser.add_argument("--max_length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to do")
    args = parser.parse_args(arguments)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.models = args.models or (["160m", "1b"] if args.device.startswith("cuda") else ["2m", "5m", "14m"])
    args.dtypes = args.dtypes or ["float32", "mixed"]
    return args


# ---- measured -------------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> list[dict]:
    """A row for every model, dtype, kind of step, with and without activation checkpointing."""
    rows = []
    for model in args.models:
        for dtype in args.dtypes:
            for checkpointing in (False, True):
                rows += [measured_row(args, model, dtype, checkpointing, kind) for kind in KINDS]
    return rows


def measured_row(args: argparse.Namespace, model: str, dtype: str, checkpointing: bool, kind: str) -> dict:
    """Predicted and measured peak of one way to train one model."""
    arm = arm_arguments(args, model, dtype, checkpointing)
    config = build_config(MODELS[model], kind)
    estimate = estimate_memory(config, setup_of(arm))
    peak = peak_bytes(lambda: run_steps(arm, kind), args.device)
    return {
        "model": model,
        "dtype": dtype,
        "activation_checkpointing": checkpointing,
        "kind": kind,
        "predicted_bytes": estimate.peak,
        "measured_bytes": peak,
        "error": estimate.peak / peak - 1,
        "moment": estimate.moment,
        "parts": estimate.device,
    }


def arm_arguments(args: argparse.Namespace, model: str, dtype: str, checkpointing: bool) -> argparse.Namespace:
    """Arguments as memory_models.py's functions take them."""
    sizes = dict(zip(memory_models.MODEL_SIZES, MODELS[model], strict=True))
    same = {"batch_size": args.batch_size, "max_length": args.max_length, "device": args.device}
    return argparse.Namespace(**sizes, **same, dtype=dtype, gradient_checkpointing=checkpointing)


def setup_of(arm: argparse.Namespace) -> TrainingSetup:
    """The same as the estimate takes it."""
    return TrainingSetup(
        arm.batch_size,
        arm.max_length,
        weight_dtype="bfloat16" if arm.dtype == "bfloat16" else "float32",
        autocast=arm.dtype == "mixed",
        activation_checkpointing=arm.gradient_checkpointing,
    )


def build_config(sizes: tuple, kind: str) -> LlamaConfig:
    """Config of a plain model, or of one with masks towards half of everything."""
    *sizes, tied = sizes if isinstance(sizes[-1], bool) else (*sizes, True)
    config = LlamaConfig(**dict(zip(memory_models.MODEL_SIZES, sizes, strict=True)), tie_word_embeddings=tied)
    if kind == PLAIN:
        return config
    return ShearingLlamaConfig.from_source(config, half_of_every_size(config), MaskSettings(method=kind))


def run_steps(arm: argparse.Namespace, kind: str) -> None:
    """A model from its making to the end of its second step."""
    schedule = None if kind == PLAIN else mask_schedule(kind, STEPS)
    model = build_model(arm, kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)  # masks and multipliers among them
    for step, input_ids in zip(range(STEPS), random_batches(arm, arm.vocab_size), strict=False):
        if schedule is not None:
            model.set_mask_phase(model.masks.strategy.phase(schedule, step))
        forward_loss(model, input_ids, arm.dtype == "mixed").backward()
        torch.nn.utils.clip_grad_norm_(weights_of(model), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def forward_loss(model: torch.nn.Module, input_ids: torch.Tensor, mixed: bool) -> torch.Tensor:
    """The loss. As in a Trainer, nothing else of the output is kept."""
    with torch.autocast(input_ids.device.type, torch.bfloat16) if mixed else contextlib.nullcontext():
        return model(input_ids=input_ids, labels=input_ids, use_cache=False).loss


def peak_bytes(call: Callable[[], None], device: str) -> int:
    """Most bytes of tensors, temporary ones inside operators included, that were there at once during a call."""
    gc.collect()
    if not device.startswith("cuda"):
        return cpu_peak_bytes(call)
    torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)  # the workspace of products comes with the first
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def cpu_peak_bytes(call: Callable[[], None]) -> int:
    """The same on a CPU, where torch's profiler reports every allocation with the sum so far."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
        gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(path)
        with open(path, encoding="utf-8") as file:
            events = [event for event in json.load(file)["traceEvents"] if event.get("name") == "[memory]"]
    events = [event["args"] for event in sorted(events, key=lambda event: event["ts"])]
    before = events[0]["Total Allocated"] - events[0]["Bytes"]  # what earlier calls left in the profiler's sum
    return max(event["Total Allocated"] for event in events) - before


# ---- calculated -----------------------------------------------------------------------------------------------------


def calculate() -> list[dict]:
    """Rows for models that are not here: mask learning towards half of everything, with AdamW."""
    rows = []
    for model, num_cards, card, ways in CALCULATED:
        config = build_config(LARGE_MODELS[model], "relaxed_topk")
        for way, setup in ways:
            for checkpointing in (False, True):
                setup = replace(setup, num_devices=num_cards, activation_checkpointing=checkpointing)
                rows.append(
                    {"model": model, "cards": num_cards, "card_gb": card, "way": way} | calculated(config, setup, card)
                )
    return rows


def calculated(config: LlamaConfig, setup: TrainingSetup, card: int) -> dict:
    """Peak of the smallest micro-batch, without and with accumulated gradients, and the largest that fits."""
    accumulated = replace(setup, gradient_accumulation_steps=2)
    estimate = estimate_memory(config, accumulated)
    fitting = [
        size
        for size in range(1, MAX_MICRO_BATCH + 1)
        if estimate_memory(config, replace(accumulated, micro_batch_size=size)).peak <= card * GIGABYTE
    ]
    return {
        "parameters": count_parameters(config),
        "sequence_length": setup.sequence_length,
        "activation_checkpointing": setup.activation_checkpointing,
        "peak_bytes": estimate_memory(config, setup).peak,
        "accumulating_bytes": estimate.peak,
        "parts": estimate.device,
        "moment": estimate.moment,
        "host_bytes": sum(estimate.host.values()),
        "largest_micro_batch": max(fitting, default=0),
    }


# ---- what is printed ------------------------------------------------------------------------------------------------


def print_measured(rows: list[dict], args: argparse.Namespace) -> None:
    """Predicted against measured."""
    counter = "max_memory_allocated" if args.device.startswith("cuda") else "torch.profiler"
    print(f"\nPeak of a step of {args.batch_size} x {args.max_length} tokens, MiB (measured with {counter})")
    print(
        f"  {'model':<6}{'dtype':<10}{'checkpointing':<15}{'kind':<14}{'predicted':>10}{'measured':>10}{'error':>8}  moment"
    )
    for row in rows:
        predicted, peak = (row[key] / MEBIBYTE for key in ("predicted_bytes", "measured_bytes"))
        print(
            f"  {row['model']:<6}{row['dtype']:<10}{'yes' if row['activation_checkpointing'] else 'no':<15}"
            f"{row['kind']:<14}{predicted:10.1f}{peak:10.1f}{row['error']:8.1%}  {row['moment']}"
        )
    print(f"  greatest error: {max(abs(row['error']) for row in rows):.1%}")


def print_calculated(rows: list[dict]) -> None:
    """What larger models need."""
    print("\nMask learning, calculated: GB per card at micro-batch 1, and the largest micro-batch that fits (0: none)")
    for heading, group in grouped(rows):
        print(f"\n  {heading}")
        print(f"    {'way of training':<38}{'checkpointing':<15}{'GB':>8}{'accumulating':>14}{'host GB':>9}{'fits':>6}")
        for row in group:
            print(
                f"    {row['way']:<38}{'yes' if row['activation_checkpointing'] else 'no':<15}"
                f"{row['peak_bytes'] / GIGABYTE:8.1f}{row['accumulating_bytes'] / GIGABYTE:14.1f}"
                f"{row['host_bytes'] / GIGABYTE:9.1f}{row['largest_micro_batch']:6}"
            )


def grouped(rows: list[dict]) -> Iterator[tuple[str, list[dict]]]:
    """Rows of the same model and cards."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        heading = (
            f"{row['model']} ({row['parameters'] / 1e9:.2f}B) on {row['cards']} x {row['card_gb']} GB,"
            f" sequences of {row['sequence_length']}"
        )
        groups.setdefault(heading, []).append(row)
    yield from groups.items()


def main(arguments: list[str] | None = None) -> None:
    """Do what is asked for; print tables, then JSON."""
    args = parse_arguments(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    result = {"benchmark": "memory", "environment": environment(args), "arguments": vars(args)}
    if "measured" in args.parts:
        result["measured"] = measure(args)
        print_measured(result["measured"], args)
    if "calculated" in args.parts:
        result["calculated"] = calculate()
        print_calculated(result["calculated"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
