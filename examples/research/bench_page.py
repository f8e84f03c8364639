"""The benches of model_cards/bench.md: run, made again in part, and the page.

    python -m examples.research.bench_page run STORIES260K TINYSTORIES      # what is missing (about an hour of one core)
    python -m examples.research.bench_page confirm STORIES260K TINYSTORIES  # a run of each, after a change of code
    python -m examples.research.bench_page page                             # the page, from what is kept

Targets, methods and settings: examples/research/configs/bench.yaml. Every number on the page comes from
model_cards/bench/*.json; a test rebuilds the page and compares.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from hf_shear.core import write_text_atomically
from hf_shear.report import bench_markdown
from hf_shear.runs.bench import BENCH_NAME

from . import bench
from .provenance import MadeAgain, confirm, stale_note
from .shared import RESEARCH, ROOT, few_colours

CONFIG = RESEARCH / "configs" / "bench.yaml"
RESULTS = ROOT / "model_cards" / "bench"
PAGE = ROOT / "model_cards" / "bench.md"
LEFT_OUT = ("command",)  # names folders of a machine

INTRODUCTION = """# Ways of pruning, compared

By `examples/research/bench.py`: every method at the same target, on the same calibration text for each seed, with the
same training tokens. How methods are written: [comparing.md](../examples/docs/comparing.md). "best" is the lowest
mean loss after recovery; "tie": 0 is in the 95 % interval of the differences from it, paired by seed. The source is
stories260K on TinyStories; [main_job.md](main_job.md) compares the default with its rivals on others, each at its own
learning rate. Seconds and peaks were measured on a machine that others used, too: they tell orders of magnitude. What did
not help: [tried.md](tried.md)."""
COMMAND = "python -m examples.research.bench_page run STORIES260K TINYSTORIES"


def page() -> str:
    """The page's text."""
    parts = [INTRODUCTION]
    for path in sorted(RESULTS.glob("*.json")):
        note = path.with_suffix(".md")
        results = json.loads(path.read_text(encoding="utf-8"))
        parts.append(f"## {path.stem}")
        if stale := stale_note(results.get("code"), bench.todays_code(), COMMAND):
            parts.append(stale)
        if note.is_file():
            parts.append(note.read_text(encoding="utf-8").strip())
        parts.append(bench_markdown(results).strip())
        parts.append(f"![Held-out loss before and after recovery, by method](bench/{path.stem}.png)")
    return "\n\n".join(parts) + "\n"


def flags(name: str, stories: list[str], folder: Path, **changes) -> list[str]:
    """The command line of one bench."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    own = config["benches"][name]
    given = config["settings"] | own["target"] | own.get("settings", {}) | {"methods": own["methods"]} | changes
    given |= {"source": stories[0], "data_dir": stories[1], "output_dir": folder}
    words = []
    for flag, value in given.items():
        words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return words


def kept(name: str) -> dict:
    """The results of a bench."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def keep(name: str, results: dict) -> None:
    text = json.dumps({key: value for key, value in results.items() if key not in LEFT_OUT}, indent=1)
    write_text_atomically(RESULTS / f"{name}.json", text + "\n")


def run(name: str, stories: list[str]) -> None:
    """Run what is missing of a bench, and keep its results and its picture."""
    folder = Path("benches") / name
    bench.main(flags(name, stories, folder))
    keep(name, json.loads((folder / BENCH_NAME).read_text(encoding="utf-8")))
    shutil.copyfile(folder / "bench.png", RESULTS / f"{name}.png")
    few_colours(RESULTS / f"{name}.png")


def made_again(name: str, stories: list[str], was: dict) -> Iterator[MadeAgain]:
    """One run of a bench: its losses before and after recovery."""
    with tempfile.TemporaryDirectory() as folder:
        bench.main(flags(name, stories, Path(folder), methods=[was["method"]], seeds=[was["seed"]]))
        (now,) = json.loads((Path(folder) / BENCH_NAME).read_text(encoding="utf-8"))["runs"]
    yield f"{name}, {was['method']}", *([run[when]["mean"] for when in ("before", "after")] for run in (was, now))


def confirm_bench(name: str, stories: list[str]) -> None:
    """By its first run."""
    results = kept(name)
    confirm(results, bench.todays_code(), made_again(name, stories, results["runs"][0]))
    keep(name, results)


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "confirm", "page"))
    parser.add_argument("stories", nargs="*", help="stories260K and TinyStories")
    parser.add_argument("--benches", nargs="+", help="only these (default: all)")
    options = parser.parse_args(command_line)
    if options.what != "page":
        if len(options.stories) != 2:
            parser.error(f"{options.what} needs STORIES260K TINYSTORIES.")
        for name in options.benches or yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["benches"]:
            {"run": run, "confirm": confirm_bench}[options.what](name, options.stories)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
