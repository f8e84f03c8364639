"""Host memory of the commands that slice a checkpoint in several shards: `hf-shear prune` and `hf-shear export`.

    python -m examples.research.benchmarks.shard_memory                # CPU: Llama-2-7B's sizes in bfloat16; 25 GB of disk
    python -m examples.research.benchmarks.shard_memory --model 410m   # a minute
    python -m examples.research.benchmarks.shard_memory --model small  # seconds; says nothing about memory
    python -m examples.research.benchmarks.shard_memory --from_report examples/research/benchmarks/reports/shard-memory.json

A synthetic Llama with random weights is written one shard at a time, once as a plain checkpoint and, with masks in a
shard of their own, once as a masked one; `prune` cuts the first by magnitude, `export` the second by its masks, each in
a process of its own. Prints tables, then one JSON object as its last line. Nothing is downloaded. Linux only: it reads
/proc. README.md beside this file says how to read the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_shear import MaskSettings, ShearingLlamaConfig, TargetShape
from hf_shear.cli.main import main as hf_shear
from hf_shear.core import collect_versions
from hf_shear.criteria.coupled_weights import BLOCK
from hf_shear.masks import ShearingMasks
from hf_shear.shapes import SHAPE_NAMES, ModelShape, count_parameters

from ..shared import EXAMPLES, ROOT
from .export_memory import KEPT_SHARE, resident_bytes_from_now_on, status_bytes
from .speed_parts.report import commit, cpu_name

SIZES = (*SHAPE_NAMES, "vocab_size")
MODELS = {
    "small": (64, 4, 4, 2, 128, 1536),
    "410m": (1024, 32, 16, 8, 2816, 16000),
    "1b": (2048, 22, 32, 4, 5632, 32000),
    "3b": (3072, 28, 24, 8, 8192, 32000),
    "7b": (4096, 32, 32, 32, 11008, 32000),
}
CALCULATED = {
    "Llama-2-7B": MODELS["7b"],
    "Llama-3.1-8B": (4096, 32, 32, 8, 14336, 128256),
    "Llama-2-13B": (5120, 40, 40, 40, 13824, 32000),
    "Llama-2-70B": (8192, 80, 64, 8, 28672, 32000),
    "Llama-3.1-70B": (8192, 80, 64, 8, 28672, 128256),
}
PRUNE, EXPORT = COMMANDS = ("prune", "export")
ANY_TARGET = "prune, any target"
MIN_SHARDS = 4
LIMIT = 1.2  # of the model: what a command may need
BFLOAT16_BYTES, FLOAT32_BYTES = 2, 4
BLOCK_COPIES = 4  # of a block of a weight in float32, while scores are summed
WORKER_SECONDS = 3600
GIGABYTE = 10**9
MODULE = "examples.research.benchmarks.shard_memory"
TOKENIZER = EXAMPLES / "embedded" / "model"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="7b", help="sizes of the synthetic source")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="what is measured")
    parser.add_argument("--num_shards", type=int, default=MIN_SHARDS, help="of the source, at least")
    parser.add_argument(
        "--work_dir", type=Path, help="where checkpoints are written for the while; default: a temporary folder"
    )
    parser.add_argument("--report", type=Path, help="write the JSON object to this file too")
    parser.add_argument("--from_report", type=Path, help="measure nothing: print the tables of a report")
    parser.add_argument("--worker", nargs=2, metavar=("COMMAND", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


# ---- the synthetic checkpoints --------------------------------------------------------------------------------------


def source_config(sizes: tuple[int, ...]) -> LlamaConfig:
    """A Llama with untied embeddings in bfloat16."""
    return LlamaConfig(**dict(zip(SIZES, sizes, strict=True)), tie_word_embeddings=False, dtype="bfloat16")


def target_sizes(config: LlamaConfig) -> dict[str, int]:
    """About ``KEPT_SHARE`` of the width and depth of everything but layers."""
    groups = max(round(config.num_key_value_heads * KEPT_SHARE), 1)
    heads = groups * config.num_attention_heads // config.num_key_value_heads
    return {
        "hidden_size": heads * config.head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": round(config.intermediate_size * KEPT_SHARE),
    }


def write_checkpoints(folder: Path, config: LlamaConfig, num_shards: int) -> None:
    """``folder/plain`` and ``folder/masked``, whose shards are those of the first and one of masks."""
    plain, masked = folder / "plain", folder / "masked"
    for path in (plain, masked):
        path.mkdir(parents=True)
        AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(path)
    with torch.device("meta"):
        state = LlamaForCausalLM(config).state_dict()
    total = sum(weight.numel() for weight in state.values()) * BFLOAT16_BYTES
    shards = [[]]
    for name, weight in state.items():
        filled = sum(state[other].numel() for other in shards[-1]) * BFLOAT16_BYTES
        if shards[-1] and filled + weight.numel() * BFLOAT16_BYTES > total / num_shards:
            shards.append([])
        shards[-1].append(name)
    files, generator = {}, torch.Generator().manual_seed(0)
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: _random(state[name].shape, generator) for name in names}, plain / file, {"format": "pt"})
        files |= dict.fromkeys(names, file)
        os.link(plain / file, masked / file)
    _write_index(plain, config, files, total)

    target = TargetShape.from_source(config, **target_sizes(config))
    masks = ShearingMasks(ModelShape.from_config(config), target, MaskSettings())
    start = {f"masks.{name}": values for name, values in masks.start_parameters().items()}
    save_file(start, masked / "masks.safetensors", {"format": "pt"})
    masked_config = ShearingLlamaConfig.from_source(config, target, MaskSettings())
    masked_config.mask_phase = asdict(masks.phase)
    masked_config.architectures = ["ShearingLlamaForCausalLM"]
    masked_bytes = sum(values.nbytes for values in start.values())
    _write_index(masked, masked_config, files | dict.fromkeys(start, "masks.safetensors"), total + masked_bytes)


def _random(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    values = torch.empty(shape, dtype=torch.bfloat16)
    return values.fill_(1) if values.dim() == 1 else values.normal_(0, 0.02, generator=generator)


def _write_index(folder: Path, config: LlamaConfig, files: dict[str, str], total: int) -> None:
    config.save_pretrained(folder)
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_text(folder: Path) -> None:
    """A few lines: magnitude looks at weights alone, but the command wants text."""
    folder.mkdir()
    lines = [f"line {number} of a text that nobody reads" for number in range(2000)]
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join("\n".join(lines[i : i + 50]) for i in range(0, 2000, 50)))


# ---- in a process of its own ----------------------------------------------------------------------------------------


def command_line(command: str, folder: Path, config: LlamaConfig) -> list[str]:
    """What a user types behind ``hf-shear``."""
    if command == EXPORT:
        return ["export", str(folder / "masked"), "--output_dir", str(folder / EXPORT)]
    flags = [word for name, size in target_sizes(config).items() for word in (f"--{name}", str(size))]
    text = ["--data_dir", str(folder / "text"), "--max_length", "64", "--calibration_batches", "1"]
    cheapest = ["--criterion", "magnitude", "--compensation", "none", "--num_shots", "1"]
    return ["prune", str(folder / "plain"), *text, *cheapest, *flags, "--output_dir", str(folder / PRUNE)]


def worker(args: argparse.Namespace) -> None:
    """Run one command in this process, and print how far its memory rose."""
    command, folder = args.worker[0], Path(args.worker[1])
    words = command_line(command, folder, source_config(MODELS[args.model]))
    before = resident_bytes_from_now_on()
    start = time.perf_counter()
    code = hf_shear(words)
    seconds, peak = time.perf_counter() - start, status_bytes("VmHWM")
    if code != 0:
        raise RuntimeError(f"hf-shear {' '.join(words)} ended with {code}")
    written = _weight_bytes(folder / command)
    print(
        json.dumps(
            {"before_bytes": before, "extra_peak_bytes": peak - before, "written_bytes": written, "seconds": seconds}
        )
    )


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, dict]:
    """Write the checkpoints and measure each command."""
    config = source_config(MODELS[args.model])
    write_checkpoints(folder, config, args.num_shards)
    write_text(folder / "text")
    shards = list((folder / "plain").glob("*.safetensors"))
    found = {"model_bytes": _weight_bytes(folder / "plain"), "shards": len(shards)}
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_DATASETS_CACHE": str(folder / "cache")}
    for command in args.commands:
        words = [
            sys.executable,
            "-m",
            MODULE,
            "--model",
            args.model,
            "--worker",
            command,
            str(folder),
        ]
        done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=WORKER_SECONDS)
        if done.returncode != 0:
            raise RuntimeError(f"The measurement of {command!r} failed:\n{done.stderr}")
        measured = json.loads(done.stdout.splitlines()[-1])
        measured["peak_over_model"] = measured["extra_peak_bytes"] / found["model_bytes"]
        found[command] = measured | {"calculated": calculated(config)[command]}
    return found


# ---- what is calculated ---------------------------------------------------------------------------------------------


def calculated(config: LlamaConfig) -> dict[str, float]:
    """Peak over the model's bytes, from its sizes; and of a prune to any target (``ANY_TARGET``), an upper bound.

    prune: all weights have been read for the scores, beside the float32 copies of a block; then the largest module is
    cut while all is there, with its cut rows and the product with its mask beside it. export: each weight is read when
    it is cut, so that the result is all there is at the end, beside one module.
    """
    source = _bytes(config)
    sizes = {name: getattr(config, name) for name in SIZES} | target_sizes(config)
    sliced = LlamaConfig(**sizes, head_dim=config.head_dim, tie_word_embeddings=False)
    module, cut = _largest_module(config), _largest_module(sliced)
    blocks = BLOCK_COPIES * min(BLOCK, module // BFLOAT16_BYTES) * FLOAT32_BYTES
    return {
        PRUNE: 1 + max(blocks, 2 * cut) / source,
        ANY_TARGET: 1 + max(blocks, 2 * module) / source,
        EXPORT: (_bytes(sliced) + module) / source,
    }


def _largest_module(config: LlamaConfig) -> int:
    return max(config.vocab_size, config.intermediate_size) * config.hidden_size * BFLOAT16_BYTES


def _bytes(config: LlamaConfig) -> int:
    return count_parameters(config) * BFLOAT16_BYTES


# ---- what is printed ------------------------------------------------------------------------------------------------


def measured_table(report: dict) -> str:
    """Markdown: one row per command."""
    lines = [
        "| command | model, GB | shards | written, GB | peak, GB | peak / model | calculated | seconds |",
        "|---" * 8 + "|",
    ]
    found = report["measured"]
    for command in [command for command in COMMANDS if command in found]:
        row = found[command]
        gigabytes = [size / GIGABYTE for size in (found["model_bytes"], row["written_bytes"], row["extra_peak_bytes"])]
        lines.append(
            f"| `hf-shear {command}` | {gigabytes[0]:.2f} | {found['shards']} | {gigabytes[1]:.2f} | {gigabytes[2]:.2f} |"
            f" {row['peak_over_model']:.2f} | {row['calculated']:.2f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def calculated_table() -> str:
    """Markdown: one row per model."""
    columns = {PRUNE: "prune", ANY_TARGET: "prune, any target, at most", EXPORT: "export"}
    lines = [
        f"| model | GB | {' | '.join(f'{title}: peak / model | GB' for title in columns.values())} |",
        "|---" * 8 + "|",
    ]
    for name, sizes in CALCULATED.items():
        config = source_config(sizes)
        size, shares = _bytes(config) / GIGABYTE, calculated(config)
        cells = " | ".join(f"{shares[column]:.2f} | {shares[column] * size:.1f}" for column in columns)
        lines.append(f"| {name} | {size:.1f} | {cells} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict | None:
    """Measure; print tables, then JSON."""
    args = parse_arguments(arguments)
    if args.worker:
        return worker(args)
    if args.from_report:
        report = json.loads(args.from_report.read_text(encoding="utf-8"))
    else:
        with tempfile.TemporaryDirectory(dir=args.work_dir) as folder:
            measured = measure(args, Path(folder))
        report = {
            "benchmark": "shard_memory",
            "environment": {
                "machine": platform.machine(), "cpu": cpu_name(), "cpu_cores": os.cpu_count(),
                "month": time.strftime("%Y-%m"), "versions": collect_versions(), "commit": commit(),
            },
            "model": args.model,
            "sizes": dict(zip(SIZES, MODELS[args.model], strict=True)),
            "measured": measured,
        }  # fmt: skip
    print(measured_table(report), calculated_table(), sep="\n\n")
    if args.report:
        args.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))
    return report


if __name__ == "__main__":
    main()
