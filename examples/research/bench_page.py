"""Build model_cards/bench.md from the results of examples/research/bench.py.

    python -m examples.research.bench_page  # rebuild from model_cards/bench
    python -m examples.research.bench_page --add stories260k-half bench  # keep a bench's results and picture first

Every number on the page comes from model_cards/bench/*.json; a test rebuilds the page and compares.
"""

import argparse
import json
import shutil
from pathlib import Path

from hf_shear.report import bench_markdown

from .bench import todays_code
from .provenance import stale_note
from .shared import ROOT, few_colours

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
COMMAND = "python -m examples.research.bench"


def page() -> str:
    """The page's text."""
    parts = [INTRODUCTION]
    for path in sorted(RESULTS.glob("*.json")):
        note = path.with_suffix(".md")
        results = json.loads(path.read_text(encoding="utf-8"))
        parts.append(f"## {path.stem}")
        if stale := stale_note(
            results.get("code"), todays_code(), f"{COMMAND} ..., with the settings and methods below"
        ):
            parts.append(stale)
        if note.is_file():
            parts.append(note.read_text(encoding="utf-8").strip())
        parts.append(bench_markdown(results).strip())
        parts.append(f"![Held-out loss before and after recovery, by method](bench/{path.stem}.png)")
    return "\n\n".join(parts) + "\n"


def add(name: str, folder: Path) -> None:
    """Keep the results and the picture of one bench."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    results = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    results = {key: value for key, value in results.items() if key not in LEFT_OUT}
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(folder / "bench.png", RESULTS / f"{name}.png")
    few_colours(RESULTS / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", nargs=2, metavar=("NAME", "FOLDER"), help="keep the results of a bench first")
    arguments = parser.parse_args()
    if arguments.add:
        add(arguments.add[0], Path(arguments.add[1]))
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
