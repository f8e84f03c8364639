"""Make the recovery runs that a scaling law is fitted to: sizes x fractions removed x checkpoints, each with a control.

    python -m examples.research.family.train_family --data_dir TEXT --output_dir family
    python -m examples.research.p2_law --family family --data_dir TEXT --output model_cards/scaling_law/NAME.json
    python -m examples.research.p2_law_page

Every member of the family is pruned in one shot to each of `--fractions`, and trained on at a constant learning rate, with
evaluations on the way. The control is the member itself, unpruned, on the same tokens in the same order: an under-trained
source goes on learning, and L - L0 is only the damage of pruning if L0 goes on as well. Runs are kept one by one: a call
goes on where the last one stopped, and adds members of the family that were not there before. `--small` is a few steps
of each, to see that everything works.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path

import torch

from hf_shear import PruneConfig, ShearTrainer, ShearTrainingArguments, prune_one_shot
from hf_shear.core import collect_versions, write_results
from hf_shear.data import load_domains
from hf_shear.runs.domain_data import prepare_domain_data
from hf_shear.scaling_law import Case, RecoveryRun, with_control
from hf_shear.shapes import SHAPE_NAMES, count_parameters, shape_for_budget
from hf_shear.sources import open_source
from hf_shear.training import plan_evaluations

from .provenance import BEFORE, code_digest, code_record, with_record

logger = logging.getLogger("p2_law")

CONTROL = 0.0
"""The fraction removed of a run that continues the unpruned source."""
REFERENCE_SIZE = 128
"""Hidden size that `--learning_rate` is for; it falls as 1 / hidden size, as the family's own did."""
WARMUP_STEPS = 10
SMALL = {"num_tokens": 16_384, "num_checkpoints": 4, "eval_tokens": 2_048, "calibration_samples": 8}


def parse(command_line: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--family", type=Path, required=True, help="folder of examples/research/family/train_family.py")
    parser.add_argument("--data_dir", help="text per domain; default: the standard library's, as for the family")
    parser.add_argument("--text_field", default="text", help="field or column that holds the text (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the runs")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.15, 0.25, 0.35])
    parser.add_argument("--num_tokens", type=int, default=2_048_000, help="of each run (%(default)s)")
    parser.add_argument("--num_checkpoints", type=int, default=40, help="evaluations of each run (%(default)s)")
    parser.add_argument("--eval_tokens", type=int, default=8_192, help="held-out tokens per domain (%(default)s)")
    parser.add_argument(
        "--learning_rate", type=float, default=1e-3, help=f"at hidden size {REFERENCE_SIZE} (%(default)s)"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="samples per step (%(default)s)")
    parser.add_argument("--max_length", type=int, default=256, help="tokens per sample (%(default)s)")
    parser.add_argument("--criterion", default="taylor", help="what is kept (%(default)s)")
    parser.add_argument("--calibration_samples", type=int, default=32, help="to score on (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="a few steps of each run")
    options = parser.parse_args(command_line)
    if options.small:
        vars(options).update(SMALL)
    if CONTROL in options.fractions:
        parser.error("`--fractions` are of pruned models; the control is always run.")
    return options


def todays_code() -> str:
    """Digest of the code that makes the runs."""
    return code_digest("examples.research.p2_law", ("FamilyRuns", "parse"))


class FamilyRuns:
    """The runs of one call: what they share, and the results so far."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.sources = sorted((path.parent for path in options.family.glob("*/source.json")), key=lambda p: int(p.name))
        if not self.sources:
            raise SystemExit(f"{options.family} has no finished member: each is a folder with a source.json.")
        paths = ("family", "data_dir", "text_field", "output")
        settings = {name: value for name, value in vars(options).items() if name not in paths}
        self.results = {"settings": settings, "runs": [], "code": [], "versions": collect_versions()}
        if options.output.is_file():
            self.results = json.loads(options.output.read_text(encoding="utf-8"))
            kept = self.results["settings"]
            changed = [name for name in settings if name != "fractions" and kept[name] != settings[name]]
            if changed:
                raise SystemExit(
                    f"{options.output} holds runs of other settings ({', '.join(changed)}). Name another file."
                )
            kept["fractions"] = sorted({*kept["fractions"], *settings["fractions"]})
            self.results.setdefault("code", [BEFORE])
        self.data = self._data()

    def _data(self):
        """One split, packing and order for all members: they share a tokenizer."""
        options, source = self.options, self.sources[0]
        opened = open_source("source", source)
        tokenizer = opened.load_tokenizer()
        if options.data_dir:
            domains = load_domains(options.data_dir, options.text_field)
        else:
            from examples.embedded.stdlib_domains import stdlib_domains

            domains = stdlib_domains()
        held_out_fraction = json.loads((source / "source.json").read_text())["arguments"]["held_out_fraction"]
        return prepare_domain_data(
            domains, tokenizer, opened.config, max_length=options.max_length,
            held_out_fraction=held_out_fraction, eval_tokens=options.eval_tokens,
        )  # fmt: skip

    def run_all(self) -> None:
        """Every run that is not there yet, the controls first."""
        for source in self.sources:
            for fraction in (CONTROL, *self.options.fractions):
                key = {"source": source.name, "fraction": fraction}
                if not any(key.items() <= run.items() for run in self.results["runs"]):
                    self.results["runs"].append(key | self.run(source, fraction))
                    self.results["code"] = with_record(self.results["code"], code_record(todays_code()))
                    write_results(self.options.output, self.results)
                    last = self.results["runs"][-1]
                    logger.info(f"{key}: {last['start_loss']:.4f} -> {last['losses'][-1]:.4f}, {last['seconds']:.0f} s")

    def run(self, source: Path, fraction: float) -> dict:
        """Prune, train, evaluate on the way."""
        start = time.perf_counter()
        model = open_source("source", source).load_model(torch.float32)
        size, hidden_size = count_parameters(model.config), model.config.hidden_size
        if fraction != CONTROL:
            model = self.pruned(model, fraction)
        with tempfile.TemporaryDirectory() as folder:
            trainer = ShearTrainer(model, self.arguments(folder, hidden_size), self.data.train, self.data.judged)
            # The samples that training evaluates on.
            judged = self.judged(plan_evaluations(trainer.args, len(self.data.judged)).samples_per_domain)
            start_loss = trainer.evaluate(judged)["eval_loss"]
            trainer.train()
        rows = [row for row in trainer.state.log_history if "eval_loss" in row and "num_tokens" in row]
        pruned_size = count_parameters(model.config)
        return {
            "num_parameters": size,
            "num_pruned_parameters": pruned_size,
            "fraction_removed": 1 - pruned_size / size,
            "shape": {name: getattr(model.config, name) for name in SHAPE_NAMES},
            "source_tokens": json.loads((source / "source.json").read_text())["tokens"],
            "start_loss": start_loss,
            "tokens": [row["num_tokens"] for row in rows],
            "losses": [row["eval_loss"] for row in rows],
            "eval_tokens": rows[-1]["eval_tokens"],
            "learning_rate": trainer.args.learning_rate,
            "device": trainer.args.device.type,
            "seconds": time.perf_counter() - start,
        }

    def judged(self, num_samples: int) -> dict:
        """The first samples of each domain that is judged."""
        return {name: data.select(range(min(num_samples, len(data)))) for name, data in self.data.judged.items()}

    def pruned(self, model, fraction: float):
        """The model cut in one shot to the shape that this library picks for the fraction."""
        options = self.options
        num_batches = -(-options.calibration_samples // options.batch_size)
        calibration = self.data.calibration(options.batch_size, num_batches, options.seed)
        target = shape_for_budget(model.config, fraction_kept=1 - fraction, balance="proportional").shape
        # No compensation, one shot: as the published curves.
        return prune_one_shot(model, target, calibration, PruneConfig(options.criterion, "none", num_shots=1)).model

    def arguments(self, folder: str, hidden_size: int) -> ShearTrainingArguments:
        """A constant rate, the same domains throughout, and evaluations of the same samples at the same steps."""
        options = self.options
        steps = options.num_tokens // (options.batch_size * options.max_length)
        return ShearTrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=2 * options.batch_size, eval_strategy="steps",
            eval_steps=max(1, steps // options.num_checkpoints), eval_token_share=1.0, dynamic_batches=False,
            learning_rate=options.learning_rate * REFERENCE_SIZE / hidden_size, lr_scheduler_type="constant_with_warmup",
            warmup_steps=min(WARMUP_STEPS, steps // 4), save_strategy="no", logging_strategy="no", report_to="none",
            disable_tqdm=True, seed=options.seed,
        )  # fmt: skip


def law_runs(results: dict, controls: bool = True) -> list[RecoveryRun]:
    """The runs of a results file for the law: against their controls, or against the source as it was."""
    control = {run["source"]: run for run in results["runs"] if run["fraction"] == CONTROL}
    runs = []
    for run in results["runs"]:
        if run["fraction"] == CONTROL or run["source"] not in control:
            continue
        mine = control[run["source"]]
        case = Case(run["num_parameters"], run["fraction_removed"], mine["start_loss"], run["num_pruned_parameters"],
                    run["source_tokens"])  # fmt: skip
        name = f"{run['source']} -{run['fraction']:.0%}"
        made = RecoveryRun(name, case, run["tokens"], run["losses"])
        runs.append(with_control(made, mine["tokens"], mine["losses"]) if controls else made)
    return runs


def main(command_line: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    FamilyRuns(parse(command_line)).run_all()


if __name__ == "__main__":
    main()
