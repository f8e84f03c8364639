"""Run examples/shear.py over several seeds and print means, spreads and wins.

    python -m examples.research.compare_seeds --output_dir seeds --seeds 0 1 2 -- --config my_run.yaml

Flags after `--` go to examples/shear.py. A seed whose results are there already is not run again. With
`--stop_after mask_learning` among the flags there are no results yet: each `<output_dir>/seed-N/pruned` is what
examples/research/compare_recovery.py starts from.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from hf_shear.core import read_results, write_results
from hf_shear.report import spread_table
from hf_shear.runs import RESULTS_NAME

from .provenance import code_digest, code_record
from .shared import EXAMPLES

SHEAR = EXAMPLES / "shear.py"


def todays_code() -> str:
    """Digest of the code that makes the numbers of a run of examples/shear.py."""
    return code_digest("examples.shear", ("main",))


def run_seeds(output_dir: Path, seeds: list[int], flags: list[str]) -> list[dict]:
    """Results per seed, from runs in <output_dir>/seed-N; none of seeds that were stopped before they had any."""
    for seed in seeds:
        folder = output_dir / f"seed-{seed}"
        if (folder / RESULTS_NAME).is_file():
            continue
        resume = ["--resume"] if (folder / "stages.json").is_file() else []
        command = [sys.executable, str(SHEAR), *flags, "--seed", str(seed), "--output_dir", str(folder), *resume]
        made = code_record(todays_code())
        subprocess.run(command, check=True)
        if (folder / RESULTS_NAME).is_file():
            results = read_results(folder / RESULTS_NAME)
            write_results(folder / RESULTS_NAME, results | {"code": [made]})
    paths = [output_dir / f"seed-{seed}" / RESULTS_NAME for seed in seeds]
    return [read_results(path) for path in paths if path.is_file()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("flags", nargs="*", help="flags of examples/shear.py, after --")
    arguments = parser.parse_args()
    results = run_seeds(arguments.output_dir, arguments.seeds, arguments.flags)
    if not results:
        print(f"No seed has results yet: every run was stopped before its end. Runs: {arguments.output_dir}/seed-*.")
        return
    table = spread_table(results)
    (arguments.output_dir / "table.txt").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
