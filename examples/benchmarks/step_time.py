"""What masks cost: a mask-learning step against a plain training step, their memory, and the sampler's cost per batch.

    python examples/benchmarks/step_time.py                                                # CPU: 14 million parameters
    python examples/benchmarks/step_time.py --preset 1b --dtype bfloat16 --max_length 2048     # one GPU

Prints tables, then one JSON object as its last line. Random tokens, random weights, nothing is downloaded.
README.md beside this file says how to read the numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers
from torch.utils.data import BatchSampler, RandomSampler
from transformers import LlamaConfig, LlamaForCausalLM

from hf_shear import DynamicBatchSampler, MaskSettings, ShearingLlamaConfig, ShearingLlamaForCausalLM, TargetShape
from hf_shear.masks import MASK_METHODS, MaskSchedule
from hf_shear.shapes import SHAPE_NAMES
from hf_shear.training.mask_optimization import WEIGHTS, parameter_groups

MODEL_SIZES = (*SHAPE_NAMES, "vocab_size")
PRESETS = {  # few vocabulary entries where the model is small, as embeddings carry no folded masks
    "5m": (256, 6, 8, 4, 704, 4096),
    "14m": (384, 8, 8, 4, 1024, 4096),
    "160m": (768, 12, 12, 6, 3072, 32000),
    "1b": (2048, 22, 32, 4, 5632, 32000),
}
PLAIN = "plain"
PARTS = ("steps", "memory", "sampler")
LEARNING_RATE = 1e-4
MEMORY_STEPS = 3  # the peak is reached in the second step, when the optimizer's moments exist
MEBIBYTE = 2**20
MIN_TOKENS = 2048  # of a micro-batch: masks are folded into weights, so that fewer tokens make them look dear

SAMPLER_SIZES = (10**4, 10**5, 10**6, 10**7, 10**8)
SAMPLER_DOMAINS = 7  # as in RedPajama
SAMPLER_BATCH_SIZE = 256  # the global batch of the paper
RANDOM_SAMPLER_LIMIT = 10**7  # torch's RandomSampler makes a Python list as long as the data: 4 GB for 1e8 samples


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, with the preset's sizes filled in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, help="model size; default: 14m on CPU, 1b on a GPU")
    for name in MODEL_SIZES:
        parser.add_argument(f"--{name}", type=int, help="in place of the preset's")
    parser.add_argument("--method", choices=(*MASK_METHODS, "both"), default="both", help="kind of masks")
    parser.add_argument("--pairs", type=int, default=30, help="rounds; each times every kind of step once")
    parser.add_argument("--warmup_steps", type=int, default=3, help="steps of each kind that are not counted")
    parser.add_argument("--batch_size", type=int, default=8, help="sequences of a micro-batch")
    parser.add_argument("--max_length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "mixed"), default="float32",
        help="of weights and computation; mixed = float32 weights under bfloat16 autocast, as `bf16=True` in a Trainer",
    )  # fmt: skip
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--sampler_sizes", nargs="+", type=int, default=list(SAMPLER_SIZES), help="samples of the data")
    parser.add_argument("--sampler_batches", type=int, default=200, help="batches timed for each size")
    parser.add_argument("--memory_arm", choices=(PLAIN, *MASK_METHODS), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.preset = args.preset or ("1b" if args.device.startswith("cuda") else "14m")
    for name, size in zip(MODEL_SIZES, PRESETS[args.preset], strict=True):
        if getattr(args, name) is None:
            setattr(args, name, size)
    return args


# ---- the models and their steps -------------------------------------------------------------------------------------


class Arm:
    """One kind of training step: a model, its optimizer, and its masks if it has any."""

    def __init__(self, args: argparse.Namespace, name: str, total_steps: int):
        self.args, self.name, self.steps_done = args, name, 0
        self.schedule = None if name == PLAIN else mask_schedule(name, total_steps)
        self.model = build_model(args, name)
        # Fused AdamW is the Trainer's default, and the fastest: nothing hides the masks' share of a step.
        groups = parameter_groups(self.model, set(), 0.0, mask_learning_rate=0.05, multiplier_rate=1.0)
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.weights = [p for g in self.optimizer.param_groups if g["role"] == WEIGHTS for p in g["params"]]

    def step(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Forward, backward, clip, AdamW; for masks as ShearTrainer does it. Returns the loss, on the device."""
        if self.schedule is not None:
            self.model.set_mask_phase(self.schedule.at(self.steps_done))
        mixed = self.args.dtype == "mixed"
        with torch.autocast(input_ids.device.type, torch.bfloat16) if mixed else contextlib.nullcontext():
            outputs = self.model(input_ids=input_ids, labels=input_ids, use_cache=False)
        penalty = getattr(outputs, "lagrangian_loss", None)
        (outputs.loss if penalty is None else outputs.loss + penalty).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.schedule is not None:
            self.model.masks.clamp_log_alpha()
        self.steps_done += 1
        return outputs.loss.detach()


def arm_names(args: argparse.Namespace) -> list[str]:
    """The plain step and the masked ones that are compared with it."""
    return [PLAIN, *(MASK_METHODS if args.method == "both" else (args.method,))]


def mask_schedule(method: str, total_steps: int) -> MaskSchedule:
    """All of mask learning within the timed steps: annealing, noise and hardening, or the Lagrangian's warm-up."""
    if method == "hard_concrete":
        return MaskSchedule(total_steps, budget_warmup_steps=total_steps // 5)
    return MaskSchedule(total_steps, hardening_steps=total_steps // 5, start_noise=0.3)


def build_model(args: argparse.Namespace, name: str) -> LlamaForCausalLM:
    """A plain or a masked model in training mode, of the same sizes, with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{size: getattr(args, size) for size in MODEL_SIZES},
        max_position_embeddings=args.max_length,
        tie_word_embeddings=True,
    )
    with torch.device(args.device):
        if name == PLAIN:
            model = LlamaForCausalLM(config)
        else:
            settings = MaskSettings.paper() if name == "hard_concrete" else MaskSettings(method=name)
            masked_config = ShearingLlamaConfig.from_source(config, half_of_every_size(config), settings)
            model = ShearingLlamaForCausalLM(masked_config)
    if args.gradient_checkpointing:
        # The second name is all that transformers before 5.23 knows, and what later releases warn of.
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable()
        else:
            model.gradient_checkpointing_enable()
    return model.to(torch.bfloat16 if args.dtype == "bfloat16" else torch.float32).train()


def weights_of(model: LlamaForCausalLM) -> list[torch.nn.Parameter]:
    """Its parameters without those of masks."""
    return [parameter for name, parameter in model.named_parameters() if not name.startswith("masks.")]


def half_of_every_size(config: LlamaConfig) -> TargetShape:
    """Half the units of each of the five kinds, so that every kind of mask is learned."""
    groups = max(config.num_key_value_heads // 2, 1)
    group_size = max(config.num_attention_heads // config.num_key_value_heads // 2, 1)
    return TargetShape.from_source(
        config,
        hidden_size=config.hidden_size // 2,
        num_hidden_layers=max(config.num_hidden_layers // 2, 1),
        num_attention_heads=groups * group_size,
        num_key_value_heads=groups,
        intermediate_size=config.intermediate_size // 2,
    )


def random_batches(args: argparse.Namespace) -> Iterator[torch.Tensor]:
    """Random token ids [batch_size, max_length] without end, from a few batches made beforehand."""
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch_size, args.max_length)
    batches = [torch.randint(args.vocab_size, shape, generator=generator).to(args.device) for _ in range(4)]
    while True:
        yield from batches


# ---- (a) time -------------------------------------------------------------------------------------------------------


def measure_steps(args: argparse.Namespace) -> dict:
    """Seconds of every kind of step, and the ratio of masked to plain in the same round.

    Rounds start with another kind each, so that none always runs in the other's cache or just after its garbage.
    """
    names = arm_names(args)
    arms = [Arm(args, name, args.warmup_steps + args.pairs) for name in names]
    batches = random_batches(args)
    seconds, cpu_seconds = ({name: [] for name in names} for _ in range(2))
    for round_number in range(args.warmup_steps + args.pairs):
        input_ids = next(batches)
        turn = round_number % len(arms)
        for arm in arms[turn:] + arms[:turn]:
            wall, cpu = time_call(lambda arm=arm, batch=input_ids: arm.step(batch), args.device)
            if round_number >= args.warmup_steps:
                seconds[arm.name].append(wall)
                cpu_seconds[arm.name].append(cpu)
    result = {
        "tokens": args.batch_size * args.max_length,
        "pairs": args.pairs,
        "num_parameters": sum(parameter.numel() for parameter in weights_of(arms[0].model)),
        "num_mask_parameters": sum(parameter.numel() for parameter in arms[1].model.masks.parameters()),
        "seconds": {name: quartiles(values) for name, values in seconds.items()},
        "ratio": {name: quartiles(ratios(seconds[name], seconds[PLAIN])) for name in names[1:]},
    }
    if args.device == "cpu":  # time of this process alone: programs that share the machine count for less
        result["cpu_time_ratio"] = {
            name: quartiles(ratios(cpu_seconds[name], cpu_seconds[PLAIN])) for name in names[1:]
        }
    return result


def time_call(call: Callable[[], object], device: str) -> tuple[float, float]:
    """(wall, CPU) seconds of a call, the device's work included."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    """Quotients of the values of the same round."""
    return [top / bottom for top, bottom in zip(numerators, denominators, strict=True)]


def quartiles(values: list[float]) -> dict[str, float]:
    """Median, lower and upper quartile."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


# ---- (b) memory -----------------------------------------------------------------------------------------------------


def measure_memory(args: argparse.Namespace, arguments: list[str]) -> dict:
    """Bytes at the peak of a few steps, every kind of step in a process of its own."""
    names = arm_names(args)
    peaks = {}
    for name in names:
        command = [sys.executable, os.fspath(Path(__file__).resolve()), *arguments, "--memory_arm", name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"The memory measurement of {name!r} failed:\n{done.stderr}")
        peaks[name] = json.loads(done.stdout.splitlines()[-1])
    ratio = {name: peaks[name]["peak_bytes"] / peaks[PLAIN]["peak_bytes"] for name in names[1:]}
    return {"counter": "max_memory_allocated" if args.device != "cpu" else "ru_maxrss", **peaks, "ratio": ratio}


def memory_of_arm(args: argparse.Namespace) -> dict[str, int]:
    """Peak bytes of this process (on a GPU: of its tensors), and what they were before there was a model."""
    on_cpu = args.device == "cpu"
    before = peak_resident_bytes() if on_cpu else 0
    arm = Arm(args, args.memory_arm, MEMORY_STEPS)
    batches = random_batches(args)
    for _ in range(MEMORY_STEPS):
        arm.step(next(batches))
    peak = peak_resident_bytes() if on_cpu else torch.cuda.max_memory_allocated(args.device)
    return {"peak_bytes": peak, "before_model_bytes": before}


def peak_resident_bytes() -> int:
    """Greatest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


# ---- (c) the sampler ------------------------------------------------------------------------------------------------


def measure_sampler(sizes: list[int], num_batches: int) -> dict:
    """Cost of the next batch as the data grows; a batch of every size in turn, so that noise hits all sizes alike."""
    streams = {("dynamic", size): dynamic_batches(size) for size in sizes}
    streams |= {("random", size): shuffled_batches(size) for size in sizes if size <= RANDOM_SAMPLER_LIMIT}
    first = {key: time_call(lambda stream=stream: next(stream), "cpu")[0] for key, stream in streams.items()}
    later = {key: [] for key in streams}
    for _ in range(num_batches):
        for key, stream in streams.items():
            later[key].append(time_call(lambda stream=stream: next(stream), "cpu")[0])
    rows = {
        sampler: {
            str(size): {"first_batch_seconds": first[kind, size], "batch_seconds": statistics.median(later[kind, size])}
            for kind, size in streams
            if kind == sampler
        }
        for sampler in ("dynamic", "random")
    }
    medians = [row["batch_seconds"] for row in rows["dynamic"].values()]
    return {
        "samples_per_batch": SAMPLER_BATCH_SIZE,
        "domains": SAMPLER_DOMAINS,
        **rows,
        "slowest_over_fastest": max(medians) / min(medians),
    }


def dynamic_batches(num_samples: int) -> Iterator[list[int]]:
    """Batches of a DynamicBatchSampler over equal domains, each committed as a training loop does it."""
    domain_sizes = {f"domain_{index}": max(num_samples // SAMPLER_DOMAINS, 1) for index in range(SAMPLER_DOMAINS)}
    sampler = DynamicBatchSampler(domain_sizes, SAMPLER_BATCH_SIZE)
    for batch in sampler:
        sampler.commit()
        yield batch


def shuffled_batches(num_samples: int) -> Iterator[list[int]]:
    """Batches of torch's RandomSampler, pass after pass."""
    sampler = BatchSampler(RandomSampler(range(num_samples)), SAMPLER_BATCH_SIZE, drop_last=True)
    while True:
        yield from sampler


# ---- what is printed ------------------------------------------------------------------------------------------------


def environment(args: argparse.Namespace) -> dict:
    """Hardware, month, versions and commit: what a reader needs to judge the numbers."""
    on_gpu = args.device.startswith("cuda")
    return {
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(args.device) if on_gpu else None,
        "month": time.strftime("%Y-%m"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit(),
    }


def cpu_name() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """Commit of this file's repository, "+" where files differ from it; None outside of one or without git."""
    command = ["git", "-C", os.fspath(Path(__file__).resolve().parent), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def print_steps(steps: dict) -> None:
    """Table of (a)."""
    print(f"\nSeconds per step of {steps['tokens']} tokens; medians over {steps['pairs']} rounds [quartiles]")
    for name, values in steps["seconds"].items():
        line = f"  {name:<14}{as_text(values, '.4f'):<28}"
        if name in steps["ratio"]:
            line += f"x plain {as_text(steps['ratio'][name], '.3f')}"
            if "cpu_time_ratio" in steps:
                line += f"   in CPU time {as_text(steps['cpu_time_ratio'][name], '.3f')}"
        print(line)
    if steps["tokens"] < MIN_TOKENS:
        print(f"  Fewer than {MIN_TOKENS} tokens: masks weigh more than in real training.")


def print_memory(memory: dict) -> None:
    """Table of (b)."""
    print(f"\nPeak memory, MiB ({memory['counter']}, a process of its own for each)")
    for name in (PLAIN, *memory["ratio"]):
        peak, before = (memory[name][key] / MEBIBYTE for key in ("peak_bytes", "before_model_bytes"))
        ratio = f"x plain {memory['ratio'][name]:.3f}" if name in memory["ratio"] else ""
        print(f"  {name:<14}{peak:10.0f}   of which {before:.0f} before there was a model   {ratio}")


def print_sampler(sampler: dict) -> None:
    """Table of (c)."""
    print(f"\nSampler, microseconds per batch of {sampler['samples_per_batch']} (first batch: milliseconds)")
    print(f"  {'samples':>12}{'dynamic':>12}{'first':>12}{'RandomSampler':>16}{'first':>12}")
    for size, row in sampler["dynamic"].items():
        cells = [f"{row['batch_seconds'] * 1e6:12.0f}{row['first_batch_seconds'] * 1e3:12.2f}"]
        if size in sampler["random"]:
            row = sampler["random"][size]
            cells.append(f"{row['batch_seconds'] * 1e6:16.0f}{row['first_batch_seconds'] * 1e3:12.2f}")
        print(f"  {int(size):>12,}{''.join(cells)}")
    print(f"  slowest size / fastest size: {sampler['slowest_over_fastest']:.2f}")


def as_text(values: dict[str, float], form: str) -> str:
    """median [lower quartile, upper quartile]"""
    return f"{values['median']:{form}} [{values['lower_quartile']:{form}}, {values['upper_quartile']:{form}}]"


def main(arguments: list[str] | None = None) -> None:
    """Measure what is asked for; print tables, then JSON."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse_arguments(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.memory_arm:
        print(json.dumps(memory_of_arm(args)))
        return
    given = {name: value for name, value in vars(args).items() if name != "memory_arm"}
    result = {"benchmark": "step_time", "environment": environment(args), "arguments": given}
    if "memory" in args.parts:  # first: on a GPU no other model is there yet
        result["memory"] = measure_memory(args, arguments)
    if "steps" in args.parts:
        result["steps"] = measure_steps(args)
    if "sampler" in args.parts:
        result["sampler"] = measure_sampler(args.sampler_sizes, args.sampler_batches)
    print(f"{args.preset} on {result['environment']['gpu'] or result['environment']['cpu']}, {args.dtype}")
    for part, show in (("steps", print_steps), ("memory", print_memory), ("sampler", print_sampler)):
        if part in result:
            show(result[part])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
