"""Build model_cards/shearing.md, and the table in the README, from the results that runs wrote.

    python -m examples.research.results_page  # rebuild from model_cards/results
    python -m examples.research.results_page --add stories260k seeds/seed-0/results.json seeds/seed-1/results.json ...
    python -m examples.research.results_page --add_sweep stories260k sweep/learning_rates.json

Every number on the page comes from those files; a test rebuilds the page and compares.
"""

import argparse
import json
from pathlib import Path

from hf_shear.core import read_results
from hf_shear.publishing.local_paths import publishable
from hf_shear.report import spread_table

from .compare_seeds import todays_code
from .provenance import BEFORE, stale_note
from .shared import ROOT, mean_and_spread, put_between

RESULTS = ROOT / "model_cards" / "results"
PAGE = ROOT / "model_cards" / "shearing.md"
README = ROOT / "README.md"
MARKS = "<!-- results: start -->", "<!-- results: end -->"
LEFT_OUT = ("history", "baseline_history", "sizes", "kept")  # long, and not on the page
SWEEP_NAME = "learning_rates.json"
FAMILY = "family-"  # begins the names of settings that show another family than Llama; they are not in the README


def settings(recipes: bool = False) -> dict[str, list[dict]]:
    """Results by setting, in order of the seeds; with ``recipes`` those that compare recipes, without baselines."""
    folders = sorted(path for path in RESULTS.iterdir() if path.is_dir() and path.name.startswith("recipe-") == recipes)
    runs = {folder.name: [read_results(path) for path in folder.glob("seed-*.json")] for folder in folders}
    return {name: sorted(results, key=lambda run: run["seed"]) for name, results in runs.items()}


def add(name: str, paths: list[Path]) -> None:
    """Keep the results of one setting."""
    (RESULTS / name).mkdir(parents=True, exist_ok=True)
    for path in paths:
        results = {key: value for key, value in read_results(path).items() if key not in LEFT_OUT}
        results = publishable(results)
        text = json.dumps(results, indent=1)
        (RESULTS / name / f"seed-{results['seed']}.json").write_text(text + "\n", encoding="utf-8")


def add_sweep(name: str, path: Path) -> None:
    """Keep the losses of a sweep over learning rates (not its flags, which name folders of a machine)."""
    sweep = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: sweep[key] for key in ("best", "losses", "versions")}
    (RESULTS / name / SWEEP_NAME).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def sweep_table(sweep: dict) -> str:
    """Mean held-out loss by arm and learning rate; the best of an arm is bold."""
    rates = sorted({rate for losses in sweep["losses"].values() for rate in losses}, key=float)
    lines = ["| arm | " + " | ".join(f"{float(rate):g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for arm, losses in sweep["losses"].items():
        best = min(losses, key=losses.get)
        cells = [f"**{losses[rate]:.3f}**" if rate == best else f"{losses[rate]:.3f}" if rate in losses else ""
                 for rate in rates]  # fmt: skip
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page() -> str:
    """The page's text."""
    parts = [(RESULTS / "introduction.md").read_text(encoding="utf-8").rstrip()]
    for name, runs in settings().items():
        note = RESULTS / f"{name}.md"
        first = runs[0]
        shapes = [", ".join(f"{key} {value}" for key, value in first[which]["shape"].items())
                  for which in ("source", "recovered")]  # fmt: skip
        seconds = ", ".join(f"{run['seconds']['total']:.0f}" for run in runs)
        parts.append(f"## {name}")
        if stale := note_of(name, runs):
            parts.append(stale)
        if note.is_file():
            parts.append(note.read_text(encoding="utf-8").strip())
        parts.append(f"Source: {shapes[0]}.\n\nTarget, reached exactly: {shapes[1]}.")
        parts.append(f"```text\n{spread_table(runs, width=100)}\n```")
        parts.append(f"Seconds of each whole run, baselines included: {seconds}.")
        parts.append(f"Passes over the training text in recovery, seed {first['seed']}: {passes(first)}.")
        if (RESULTS / name / SWEEP_NAME).is_file():
            sweep = json.loads((RESULTS / name / SWEEP_NAME).read_text(encoding="utf-8"))
            parts.append(
                "Sweep of learning rates (one run each, seed 42), by `examples/research/sweep_learning_rates.py`:"
            )
            parts.append(sweep_table(sweep))
    if settings(recipes=True):
        note = (RESULTS / "recipes.md").read_text(encoding="utf-8").strip()
        parts += ["## Recipes of mask learning", *recipes_notes(), note, recipes_table()]
    return "\n\n".join(parts) + "\n"


def note_of(name: str, runs: list[dict]) -> str:
    """Whether the code has moved since a setting was run; "" if not."""
    records = [one for run in runs for one in run.get("code", [BEFORE])]
    unique = list({one["digest"]: one for one in records}.values())
    return stale_note(unique, todays_code(), f"python -m examples.research.compare_seeds, for {name}")


def recipes_notes() -> list[str]:
    """One note for all recipes whose code has moved."""
    stale = [name for name, runs in settings(recipes=True).items() if note_of(name, runs)]
    runs = [run for name in stale for run in settings(recipes=True)[name]]
    return [note_of(", ".join(name.removeprefix("recipe-") for name in stale), runs)] if stale else []


def passes(run: dict) -> str:
    """Passes per domain of one run's recovery."""
    return ", ".join(f"{name} {count:.2f}" for name, count in run["passes"]["recovery"].items())


def recipes_table() -> str:
    """One row per recipe: mean held-out loss after the cut and at the end, over the seeds."""
    lines = ["| recipe | seeds | after the cut | recovered |", "|---|---|---|---|"]
    for name, runs in settings(recipes=True).items():
        cut, end = (mean_and_spread([run[arm]["mean"] for run in runs]) for arm in ("pruned", "recovered"))
        lines.append(f"| {name.removeprefix('recipe-')} | {len(runs)} | {cut} | {end} |")
    return "\n".join(lines)


def readme_table() -> str:
    """One row per setting: mean held-out loss of each arm over the seeds."""
    arms = ["source", "recovered", "taylor", "random", "scratch"]
    lines = ["| run | seeds | kept | " + " | ".join(arms) + " |", "|---" * (len(arms) + 3) + "|"]
    for name, runs in settings().items():
        if name.startswith(FAMILY) or not set(runs[0]["baselines"]) >= set(arms[2:]):
            continue
        cells = []
        for arm in arms:
            means = [(run[arm] if arm in run else run["baselines"][arm])["mean"] for run in runs]
            cells.append(f"{means[0]:.3f}" if arm == "source" else mean_and_spread(means))
        kept = runs[0]["recovered"]["num_parameters"] / runs[0]["source"]["num_parameters"]
        label = f"{name} (older code)" if note_of(name, runs) else name
        lines.append(f"| {label} | {len(runs)} | {kept:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def readme() -> str:
    """The README with today's table between its markers."""
    return put_between(README.read_text(encoding="utf-8"), MARKS, f"\n{readme_table()}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", nargs="+", metavar=("NAME", "RESULTS"), help="keep the results of a setting first")
    parser.add_argument("--add_sweep", nargs=2, metavar=("NAME", "LEARNING_RATES"), help="keep a setting's sweep first")
    arguments = parser.parse_args()
    if arguments.add:
        add(arguments.add[0], [Path(path) for path in arguments.add[1:]])
    if arguments.add_sweep:
        add_sweep(arguments.add_sweep[0], Path(arguments.add_sweep[1]))
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    main()
