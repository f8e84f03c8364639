"""What the numbers were measured on, whether they meet the targets, and the report file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import time
from importlib import metadata
from pathlib import Path

import torch

from .training_steps import ACTIVATION_MASKS

STEP_RATIO_TARGET = 1.05  # at most, on a GPU from TARGET_PARAMETERS on, in bfloat16 arithmetic
TARGET_PARAMETERS = 1e9
DATA_SHARE_TARGET = 0.01  # below
EVAL_SHARE_TARGET = 0.05  # below; evaluations round down to whole samples, so that they stay below the default share
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "liger-kernel", "flash-attn")


def environment(args: argparse.Namespace) -> dict:
    """Hardware, month, versions and commit: what a reader needs to judge the numbers."""
    on_gpu = args.device.startswith("cuda")
    return {
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(args.device) if on_gpu else None,
        "gpus": torch.cuda.device_count() if on_gpu else 0,
        "gpu_bytes": torch.cuda.get_device_properties(args.device).total_memory if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "month": time.strftime("%Y-%m"),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := installed_version(name)) is not None},
        "commit": commit(),
    }


def installed_version(package: str) -> str | None:
    """Version of a package, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


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


def judge(args: argparse.Namespace, result: dict) -> dict[str, dict]:
    """Of each target that was measured: its value, its limit, and whether it is met, or why it says nothing here."""
    targets = {}
    steps, trainer = (result.get(part, {}) for part in ("steps", "trainer"))
    for arm, ratio in steps.get("ratio", {}).items():
        if arm == ACTIVATION_MASKS:  # what masks are compared with
            continue
        reasons = [
            reason
            for reason, applies in (
                ("not on a GPU", args.device.startswith("cuda")),
                ("fewer than 1B parameters", steps["num_parameters"] >= TARGET_PARAMETERS),
                ("not in bfloat16", args.dtype != "float32"),
                ("eager attention", args.attention != "eager"),
            )
            if not applies
        ]
        targets[f"{arm} step / plain step"] = verdict(ratio["median"], STEP_RATIO_TARGET, reasons, or_equal=True)
    if "data_share" in trainer:
        targets["data loading / step time"] = verdict(trainer["data_share"], DATA_SHARE_TARGET)
        targets["evaluation / training tokens"] = verdict(trainer["eval_token_share"], EVAL_SHARE_TARGET)
    return targets


def verdict(value: float, limit: float, reasons: list[str] | None = None, or_equal: bool = False) -> dict:
    """A value against its limit; with reasons the target does not apply, and is neither met nor missed."""
    met = None if reasons else value < limit or (or_equal and value == limit)
    return {"value": value, "limit": limit, "met": met, "does_not_apply": reasons or []}


def targets_table(targets: dict[str, dict]) -> list[str]:
    """Lines to print."""
    lines = ["Targets"] if targets else []
    for name, target in targets.items():
        words = {True: "met", False: "NOT met", None: f"does not apply ({', '.join(target['does_not_apply'])})"}
        lines.append(f"  {name:<34}{target['value']:.4f}  limit {target['limit']}  {words[target['met']]}")
    return lines


def write_report(path: Path, result: dict, arguments: list[str], lines: list[str]) -> None:
    """The JSON at ``path``, and beside it a page that people read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    where = result["environment"]
    facts = {
        "GPU": where["gpu"] or "none: not run on a GPU",
        "Processor": f"{where['cpu']}, {where['cpu_cores']} cores, {where['threads']} thread(s) in use",
        "Month": where["month"],
        "Versions": ", ".join(f"{name} {version}" for name, version in where["versions"].items()),
        "Python": where["python"],
        "Commit": where["commit"] or "not known",
    }
    page = [
        f"# Speed: {', '.join(result['models'])}, {where['month']}",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "```bash",
        f"python -m examples.research.benchmarks.speed {shlex.join(without_report(arguments))}",
        "```",
        "",
        f"All numbers, of which this is the page, are in `{path.name}`.",
        "",
        "```text",
        *(line.rstrip() for line in lines),
        "```",
    ]
    path.with_suffix(".md").write_text("\n".join(page) + "\n", encoding="utf-8")


def without_report(arguments: list[str]) -> list[str]:
    """The command line without where its report goes, which is a matter of the machine."""
    kept = [word for word in arguments if not word.startswith("--report=")]
    if "--report" in kept:
        index = kept.index("--report")
        del kept[index : index + 2]
    return kept
