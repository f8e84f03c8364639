"""Compare ways of recovery at equal tokens and at equal FLOPs, from the same pruned models.

    python -m examples.research.compare_seeds --output_dir seeds -- --stop_after mask_learning --config CONFIG
    python -m examples.research.compare_recovery --runs seeds/seed-0 seeds/seed-1 seeds/seed-2 --source LLAMA \\
        --data_dir TEXT --budgets 100000 400000 --sweep --output recovery.json -- --config CONFIG

Each of `--runs` is a run of examples/shear.py (`--stop_after mask_learning` is enough) whose `pruned` model every arm
starts from. Without `--source` and `--data_dir` it is the embedded model on text from Python's own library, as there.
Flags after `--` are those of examples/shear.py. `--sweep` tries learning rates at the first budget on the first run, each
time more on the side of the best until that lies between two others; later calls with the same `--output` take the best.
Results are kept run by run: a call goes on where the last one stopped.
"""

import argparse
import json
import math
import tempfile
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from examples.embedded.stdlib_domains import stdlib_domains
from hf_shear import ShearTrainer, ShearTrainingArguments, runs
from hf_shear.core import collect_versions, write_results
from hf_shear.shapes import ModelShape, count_parameters, training_flops_per_token
from hf_shear.sources import open_source
from hf_shear.training import TrainingDivergedError, num_trainable, recovery_method
from hf_shear.training.adapters import peft_config_from

from .provenance import BEFORE, code_digest, code_record, with_record
from .shared import EXAMPLES, best_rate, next_rates

EMBEDDED = str(EXAMPLES / "embedded" / "model")
ARMS = {
    "full": {},
    "lora": {"recovery_method": "lora"},
    "norms_and_biases": {"recovery_method": "norms_and_biases"},
    "distilled": {"distillation": "forward_kl"},
    "distilled_only": {"distillation": "forward_kl", "distillation_weight": 1.0},
    "distilled_reverse": {"distillation": "reverse_kl"},
    "lora_distilled": {"recovery_method": "lora", "distillation": "forward_kl"},
}
RATES = {"full": 1, "lora": 4, "norms_and_biases": 8, "distilled": 1, "lora_distilled": 4}
"""A sweep starts at these multiples of the config's rate. Other arms take the rate of the arm they resemble."""
LIKE = {"distilled_only": "distilled", "distilled_reverse": "distilled"}


def todays_code() -> str:
    """Digest of the code that makes the numbers."""
    return code_digest("examples.research.compare_recovery", ("Comparison",))


class Comparison:
    """The runs of one call: what they share, and the results so far."""

    def __init__(self, options, pipeline, args):
        self.options, self.pipeline, self.args = options, pipeline, args
        opened = open_source("source", options.source)
        self.source, tokenizer = opened.config, opened.load_tokenizer()
        pipeline = replace(pipeline, data_dir=options.data_dir)
        domains = runs.load_text(pipeline) if options.data_dir else stdlib_domains()
        self.data = runs.pack(pipeline, domains, tokenizer, self.source)
        self.peft_config = {"r": options.rank, "lora_alpha": 2 * options.rank, "target_modules": "all-linear"}
        self.path = Path(options.output)
        empty = {"runs": [], "sweep": [], "versions": collect_versions()}
        self.results = json.loads(self.path.read_text()) if self.path.is_file() else empty
        self.results["setup"] = self.setup()
        self.results.setdefault("code", [BEFORE] if self.results["runs"] else [])

    def setup(self) -> dict:
        """What every arm shares."""
        config = open_source("runs", self.options.runs[0] / "pruned").config
        models = {"source": self.source, "pruned": config}
        return {
            **{name: ModelShape.from_config(one).to_dict() for name, one in models.items()},
            "num_parameters": {name: count_parameters(one) for name, one in models.items()},
            "mask_tokens": self.learned(self.options.runs[0])["tokens"],
            "domains": self.data.domains,
            "train_tokens": sum(map(len, self.data.train.values())) * self.pipeline.max_length,
            "eval_tokens": sum(map(len, self.data.judged.values())) * self.pipeline.max_length,
            "max_length": self.pipeline.max_length,
            "samples_per_step": self.args.samples_per_step(),
            "lora_rank": self.options.rank,
        }

    @lru_cache(maxsize=1)  # noqa: B019 one object a process
    def learned(self, run: Path) -> dict:
        return json.loads((run / "stages.json").read_text(encoding="utf-8"))["mask_learning"]

    def flops_per_token(self, arm: str, run: Path) -> float:
        config, settings = open_source("runs", run / "pruned").config, ARMS[arm]
        method, adapters = recovery_method(settings.get("recovery_method", "full")), 0
        if method.adapts:
            adapted = method.prepare(AutoModelForCausalLM.from_config(config), peft_config_from(self.peft_config))
            adapters = num_trainable(adapted)
        teacher = self.source if "distillation" in settings else None
        return training_flops_per_token(config, self.pipeline.max_length, not method.trains_all, adapters, teacher)

    def trainer(self, arm: str, run: Path, num_tokens: int, rate: float, folder: str) -> ShearTrainer:
        model = open_source("runs", run / "pruned").load_model(torch.float32)
        settings = dict(ARMS[arm])
        if settings.get("recovery_method") == "lora":
            settings["peft_config"] = self.peft_config
        teacher = None
        if "distillation" in settings:
            teacher = open_source("source", self.options.source).load_model(torch.float32)
        args = replace(
            self.args, output_dir=folder, num_tokens=num_tokens, learning_rate=rate, disable_tqdm=True,
            save_strategy="no", reference_losses=self.learned(run)["reference_losses"],
            mixture_weights=self.learned(run)["mixture_weights"], **settings,
        )  # fmt: skip
        return ShearTrainer(model, args, self.data.train, self.data.steering, teacher=teacher)

    def run(self, arm: str, run: Path, num_tokens: int, rate: float) -> dict:
        """Train and judge one arm."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(arm, run, num_tokens, rate, folder)
            start = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - start
            record = runs.judge(trainer.accelerator.unwrap_model(trainer.model), self.data.judged, self.args)
        return {
            "arm": arm, "tokens": trainer.tokens_seen(), "learning_rate": rate, "loss": record["loss"],
            "mean": record["mean"], "seconds": seconds, "trained_parameters": num_trainable(trainer.model),
        }  # fmt: skip

    def sweep(self, arms) -> None:
        """Try rates of each arm until the best lies between two others."""
        for arm in arms:
            rates = [self.args.learning_rate * RATES[arm]]
            while rates:
                for rate in rates:
                    self.try_rate(arm, rate)
                rates = next_rates({row["learning_rate"]: row["mean"] for row in self.swept(arm)})

    def swept(self, arm: str) -> list[dict]:
        """What the sweep has found of an arm."""
        return [row for row in self.results["sweep"] if row["arm"] == LIKE.get(arm, arm)]

    def try_rate(self, arm: str, rate: float) -> None:
        if any(row["learning_rate"] == rate for row in self.swept(arm)):
            return
        try:
            record = self.run(arm, self.options.runs[0], self.options.budgets[0], rate)
        except TrainingDivergedError:
            record = {"arm": arm, "tokens": self.options.budgets[0], "learning_rate": rate, "mean": None}
        self.results["sweep"].append(record)
        self.keep()
        print(f"{arm} at {rate:g}: {record['mean'] or 'diverged'}", flush=True)

    def keep(self) -> None:
        """Write what there is, and which code made it."""
        self.results["code"] = with_record(self.results["code"], code_record(todays_code()))
        write_results(self.path, self.results)

    def rate(self, arm: str) -> float:
        rows = self.swept(arm)
        if not rows:
            raise ValueError(f"No learning rate of {arm!r} yet: call with `--sweep` first.")
        return best_rate({row["learning_rate"]: row["mean"] for row in rows})

    def compare(self, arms) -> None:
        for budget in self.options.budgets:
            for seed, run in enumerate(self.options.runs):
                flops = budget * self.flops_per_token("full", run)
                for arm in arms:
                    cost = self.flops_per_token(arm, run)
                    for equal, num_tokens in (("tokens", budget), ("flops", math.floor(flops / cost))):
                        if arm == "full" and equal == "flops":
                            continue  # the same run
                        key = {"budget": budget, "equal": equal, "run": seed}
                        if any(row["arm"] == arm and key.items() <= row.items() for row in self.results["runs"]):
                            continue
                        record = self.run(arm, run, num_tokens, self.rate(arm))
                        self.results["runs"].append(key | record | {"flops": cost * record["tokens"]})
                        self.keep()
                        print(f"{arm} {key}: {record['mean']:.4f} ({record['tokens']:,} tokens)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--source", default=EMBEDDED)
    parser.add_argument("--data_dir", help="default: text of Python's own library")
    parser.add_argument("--budgets", type=int, nargs="+", required=True)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--rank", type=int, default=8, help="of LoRA")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--output", required=True)
    parser.add_argument("flags", nargs="*", help="flags of examples/shear.py, after --")
    options = parser.parse_args()
    flags = ["--model_name_or_path", options.source, *options.flags]
    pipeline, args = runs.parse_arguments((runs.PipelineArguments, ShearTrainingArguments), flags)
    comparison = Comparison(options, pipeline, args)
    if options.sweep:
        comparison.sweep([arm for arm in options.arms if arm in RATES])
    comparison.compare(options.arms)


if __name__ == "__main__":
    main()
