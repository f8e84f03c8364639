"""Compare ways of recovery at equal tokens and at equal FLOPs, from the same pruned models.

    python examples/compare_recovery.py --runs seeds/seed-0 seeds/seed-1 seeds/seed-2 --source LLAMA --data_dir TEXT \\
        --budgets 100000 400000 --output recovery.json -- --config examples/configs/stories260k.yaml

Each of `--runs` is a run of examples/shear.py (`--stop_after mask_learning` is enough) whose `pruned` model every arm
starts from. Flags after `--` are those of examples/shear.py. `--sweep` tries learning rates at the first budget on the
first run, and later calls with the same `--output` take the best. Results are kept run by run: a call goes on where the
last one stopped.
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
from shear import PipelineArguments
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_shear import ShearTrainer, ShearTrainingArguments, runs
from hf_shear.data import load_domains
from hf_shear.recovery import num_trainable, prepare_recovery, training_flops_per_token
from hf_shear.recovery.adapters import peft_config_from
from hf_shear.reporting import collect_versions, write_results

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
"""Rates of a sweep: these multiples of the config's, times FACTORS. Others take that of the arm they resemble."""
FACTORS = (0.5, 1.0, 2.0)
LIKE = {"distilled_only": "distilled", "distilled_reverse": "distilled"}


class Comparison:
    """The runs of one call: what they share, and the results so far."""

    def __init__(self, options, pipeline, args):
        self.options, self.pipeline, self.args = options, pipeline, args
        self.source = AutoConfig.from_pretrained(options.source)
        tokenizer = AutoTokenizer.from_pretrained(options.source)
        self.data = runs.pack(pipeline, load_domains(options.data_dir), tokenizer, self.source)
        self.peft_config = {"r": options.rank, "lora_alpha": 2 * options.rank, "target_modules": "all-linear"}
        self.path = Path(options.output)
        empty = {"runs": [], "sweep": [], "versions": collect_versions()}
        self.results = json.loads(self.path.read_text()) if self.path.is_file() else empty

    @lru_cache(maxsize=1)  # noqa: B019 one object a process
    def learned(self, run: Path) -> dict:
        return json.loads((run / "stages.json").read_text(encoding="utf-8"))["mask_learning"]

    def flops_per_token(self, arm: str, run: Path) -> float:
        config, settings = AutoConfig.from_pretrained(run / "pruned"), ARMS[arm]
        method = settings.get("recovery_method", "full")
        adapters = 0
        if method == "lora":
            adapted = prepare_recovery(
                AutoModelForCausalLM.from_config(config), method, peft_config_from(self.peft_config)
            )
            adapters = num_trainable(adapted)
        teacher = self.source if "distillation" in settings else None
        return training_flops_per_token(config, self.pipeline.max_length, method, adapters, teacher)

    def trainer(self, arm: str, run: Path, num_tokens: int, rate: float, folder: str) -> ShearTrainer:
        model = AutoModelForCausalLM.from_pretrained(run / "pruned", dtype=torch.float32)
        settings = dict(ARMS[arm])
        if settings.get("recovery_method") == "lora":
            settings["peft_config"] = self.peft_config
        teacher = None
        if "distillation" in settings:
            teacher = AutoModelForCausalLM.from_pretrained(self.options.source, dtype=torch.float32)
        args = replace(
            self.args, output_dir=folder, num_tokens=num_tokens, learning_rate=rate, disable_tqdm=True,
            save_strategy="no", reference_losses=self.learned(run)["reference_losses"],
            mixture_weights=self.learned(run)["mixture_weights"], **settings,
        )  # fmt: skip
        return ShearTrainer(model, args, self.data.train, self.data.held_out, teacher=teacher)

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
        run, budget = self.options.runs[0], self.options.budgets[0]
        for arm in arms:
            for factor in FACTORS:
                rate = self.args.learning_rate * RATES[arm] * factor
                if not any(row["arm"] == arm and row["learning_rate"] == rate for row in self.results["sweep"]):
                    self.results["sweep"].append(self.run(arm, run, budget, rate))
                    write_results(self.path, self.results)

    def rate(self, arm: str) -> float:
        rows = [row for row in self.results["sweep"] if row["arm"] == LIKE.get(arm, arm)]
        if not rows:
            raise ValueError(f"No learning rate of {arm!r} yet: call with `--sweep` first.")
        return min(rows, key=lambda row: row["mean"])["learning_rate"]

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
                        write_results(self.path, self.results)
                        print(f"{arm} {key}: {record['mean']:.4f} ({record['tokens']:,} tokens)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--budgets", type=int, nargs="+", required=True)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--rank", type=int, default=8, help="of LoRA")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--output", required=True)
    parser.add_argument("flags", nargs="*", help="flags of examples/shear.py, after --")
    options = parser.parse_args()
    pipeline, args = runs.parse_arguments((PipelineArguments, ShearTrainingArguments), options.flags)
    comparison = Comparison(options, pipeline, args)
    if options.sweep:
        comparison.sweep([arm for arm in options.arms if arm in RATES])
    comparison.compare(options.arms)


if __name__ == "__main__":
    main()
