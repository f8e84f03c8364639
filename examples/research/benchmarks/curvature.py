"""Time and memory of calibration: least-squares statistics, the LLM Surgeon's, and criteria, against plain passes.

    python -m examples.research.benchmarks.curvature  # CPU: all parts
    python -m examples.research.benchmarks.curvature --parts time --models 1m --criteria taylor  # against forwards
    python -m examples.research.benchmarks.curvature --parts time --models 1.3b --dtype bfloat16 --max_length 2048

Prints tables, then one JSON object as its last line. Random tokens, random weights, nothing is downloaded.
README.md beside this file says how to read the numbers; ../docs/calibration_cost.md shows them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from .curvature_parts.memory_rows import SMALL_MODELS, calculate, calculated_table, measure_memory, measured_table
from .curvature_parts.page import fill_page
from .curvature_parts.timings import measure_time, time_table
from .speed_parts.model_sizes import SIZES
from .speed_parts.report import environment, targets_table

FILES = ("report", "page", "from_report")
PARTS = ("time", "memory", "calculated")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to do")
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["1m", "5m"], help="sizes to time")
    parser.add_argument("--criteria", nargs="+", default=[], metavar="NAME", help="to time against forwards")
    parser.add_argument("--rounds", type=int, default=15, help="each times everything once")
    parser.add_argument("--batches", type=int, default=4, help="batches of the calibration text")
    parser.add_argument("--batch_size", type=int, default=8, help="sequences of a batch")
    parser.add_argument("--max_length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    parser.add_argument("--memory_models", nargs="+", choices=SMALL_MODELS, default=list(SMALL_MODELS))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>; memory is measured on the CPU")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--report", type=Path, help="write the JSON to this file")
    parser.add_argument("--page", type=Path, help="put the tables between the marks of this Markdown page")
    parser.add_argument("--from_report", type=Path, help="measure nothing: take the numbers of this JSON")
    args = parser.parse_args(arguments)
    if args.page and not (args.report or args.from_report):
        parser.error("--page needs --report or --from_report: its numbers are those of a JSON file")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def tables(result: dict) -> list[str]:
    """All lines to print, out of the JSON alone."""
    lines = []
    for name, times in result.get("time", {}).items():
        lines += [
            f"{name}, {times['num_parameters']:,} parameters",
            *time_table(times),
            *targets_table(times["targets"]),
        ]
    lines += measured_table(result["memory"]) if "memory" in result else []
    return lines + (calculated_table(result["calculated"]) if "calculated" in result else [])


def main(arguments: list[str] | None = None) -> None:
    """Do what is asked for; print tables, then JSON."""
    args = parse_arguments(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    result = json.loads(args.from_report.read_text(encoding="utf-8")) if args.from_report else measure(args)
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        args.report.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.page:
        fill_page(args.page, result, (args.report or args.from_report).name)
    print("\n".join(tables(result)))
    print(json.dumps(result))


def measure(args: argparse.Namespace) -> dict:
    """The parts that are asked for."""
    given = {name: value for name, value in vars(args).items() if name not in FILES}
    result = {"benchmark": "curvature", "environment": environment(args), "arguments": given}
    if "time" in args.parts:
        result["time"] = {name: measure_time(args, name) for name in args.models}
    if "memory" in args.parts:
        result["memory"] = measure_memory(args)
    if "calculated" in args.parts:
        result["calculated"] = calculate()
    return result


if __name__ == "__main__":
    main()
