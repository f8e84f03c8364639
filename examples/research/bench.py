"""Compare ways of pruning at one target shape, one calibration set and one recovery budget, over several seeds.

    python -m examples.research.bench --source LLAMA --data_dir TEXT --intermediate_size 1024 --recovery_tokens 1000000 \\
        --methods magnitude "taylor+least_squares@5" "flap layer=loss_rise" learned interleaved:stages=5:taylor \\
        --seeds 0 1 2 --learning_rate 1e-3 --output_dir bench

Methods are written as in hf_shear/runs/bench_method.py. Writes OUT/bench.json after every run, and a call goes on where
the last one stopped; at the end OUT/bench.md, OUT/bench.csv and OUT/bench.png. `--help` lists these arguments and those of
transformers.TrainingArguments; `--config FILE.yaml` sets any of them.
"""

import sys
from pathlib import Path

from hf_shear import ShearTrainingArguments, runs
from hf_shear.core import DEBUG, run_command_line, write_text_atomically
from hf_shear.report import bench_csv, bench_markdown, plot_bench, require_matplotlib

from .provenance import BEFORE, code_digest, code_record, with_record

TOKENS = "give --recovery_tokens"
NOT_HERE = {name: TOKENS for name in ("num_tokens", "max_steps", "num_train_epochs")} | {"seed": "give --seeds"}


def todays_code() -> str:
    """Digest of the code that makes a bench's numbers."""
    return code_digest("examples.research.bench", ("main",))


def main(words: list[str]) -> None:
    arguments, args = runs.parse_arguments((runs.BenchArguments, ShearTrainingArguments), words, refused=NOT_HERE)
    require_matplotlib()
    bench, folder = runs.Bench(arguments, args), Path(args.output_dir)
    before = bench.results.setdefault("code", [BEFORE] if bench.results["runs"] else [])
    done = {(run["method"], run["seed"]) for run in bench.results["runs"]}
    if any((method.text, seed) not in done for method in bench.methods for seed in arguments.seeds):
        bench.results["code"] = with_record(before, code_record(todays_code()))
    results = bench.run(tell=lambda text: print(text, flush=True))
    table = bench_markdown(results)
    write_text_atomically(folder / "bench.md", table)
    write_text_atomically(folder / "bench.csv", bench_csv(results))
    plot_bench(results, folder / "bench.png")
    print(table)


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(run_command_line("bench.py", lambda: main([word for word in given if word != DEBUG]), DEBUG in given))
