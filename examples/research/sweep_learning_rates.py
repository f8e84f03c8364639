"""Find the best learning rate of shearing and of each baseline, by one sweep for all.

    python -m examples.research.sweep_learning_rates --output_dir sweep --rates 2e-3 4e-3 8e-3 -- --config my_run.yaml

Every rate is one run of examples/shear.py, in which all arms train at that rate. The best rate of an arm is the one
with the lowest mean held-out loss; all arms are chosen on the same text. Writes <output_dir>/learning_rates.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from hf_shear.core import collect_versions, read_results
from hf_shear.runs import RESULTS_NAME

from .shared import EXAMPLES

SHEAR = EXAMPLES / "shear.py"


def sweep(output_dir: Path, rates: list[float], flags: list[str]) -> dict[str, dict[float, float]]:
    """Mean held-out loss by arm and rate; the arm "recovered" is the sheared model."""
    losses: dict[str, dict[float, float]] = {}
    for rate in rates:
        folder = output_dir / f"rate-{rate:g}"
        if not (folder / RESULTS_NAME).is_file():
            command = [sys.executable, str(SHEAR), *flags, "--learning_rate", str(rate), "--output_dir", str(folder)]
            same = json.dumps({name: rate for name in ("random", "taylor", "scratch")})
            resume = ["--resume"] if (folder / "stages.json").is_file() else []
            subprocess.run([*command, "--baseline_learning_rates", same, *resume], check=True)
        results = read_results(folder / RESULTS_NAME)
        arms = {"recovered": results["recovered"], **results["baselines"]}
        for name, record in arms.items():
            losses.setdefault(name, {})[rate] = record["mean"]
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("flags", nargs="*", help="flags of examples/shear.py, after --")
    arguments = parser.parse_args()
    losses = sweep(arguments.output_dir, arguments.rates, arguments.flags)
    best = {name: min(by_rate, key=by_rate.get) for name, by_rate in losses.items()}
    result = {"best": best, "losses": losses, "flags": arguments.flags, "versions": collect_versions()}
    (arguments.output_dir / "learning_rates.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    for name, by_rate in losses.items():
        row = "  ".join(f"{rate:g}: {loss:.4f}{'*' if rate == best[name] else ' '}" for rate, loss in by_rate.items())
        print(f"{name:10s} {row}")
    edge = [name for name, rate in best.items() if rate in (min(arguments.rates), max(arguments.rates))]
    if edge:
        print(f"The best rate of {', '.join(edge)} lies at the edge of the sweep: widen it.")


if __name__ == "__main__":
    main()
