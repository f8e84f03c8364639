"""Make the fresh recovery runs that judge the predictors of hf_shear.scaling_law, one by one in the order of a design.

    python -m examples.research.law_runs --data_dir SEVEN_DOMAINS --stories STORIES260K TINYSTORIES --output FILE
    python -m examples.research.law_runs --smollm SMOLLM2_135M WIKITEXT2 --output FILE   # the true held-out source
    python -m examples.research.law_runs --data_dir ... --stories ... --output FILE --confirm  # after a change of code

The design is registered in model_cards/scaling_law/registered.md. Every source is trained at the same two rates, so that
size and rate are crossed. The control of a run is its unpruned source at the same rate, schedule, order and tokens.
Checkpoints are equally far apart in ln D, and denser at the end. Runs are kept one by one: a call goes on where the last
one stopped. A member of the family that is not there is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback

from hf_shear import PruneConfig, ShearTrainer, ShearTrainingArguments, prune_one_shot
from hf_shear.core import collect_versions, write_results
from hf_shear.data import load_domains
from hf_shear.runs import cut_learned_masks, masked_arm, prepare_domain_data
from hf_shear.shapes import count_parameters, shape_for_budget
from hf_shear.sources import open_source
from hf_shear.training import evaluate_domains

from .provenance import MadeAgain, code_digest, code_record, confirm, with_record
from .shared import RESEARCH

logger = logging.getLogger("law_runs")

CONTROL = "control"
ONE_SHOT, LEARNED = "one_shot", "learned_masks"
CONSTANT, LATE_DECAY = "constant", "late_decay"
FAMILY, STORIES, SMOLLM = ("64", "96", "128", "192"), "stories260K", "smollm2-135m"
RATES = (1.5e-3, 5e-4)
"""Peak rates of every source but SmolLM2."""
FRACTIONS = (0.25, 0.6, 0.1, 0.4)
CHECKPOINTS = (0.03, 0.045, 0.065, 0.09, 0.125, 0.17, 0.24, 0.33, 0.46, 0.6, 0.7, 0.8, 0.87, 0.94, 1.0)
"""Shares of the steps."""
DECAY_SHARE = 0.3  # of the steps, at the end of a late decay, linearly to 0
WARMUP_STEPS = 4
MASK_STEPS = 20  # of learned masks, before the cut


@dataclass(frozen=True)
class Arm:
    """One run of the design; its fields are its key."""

    source: str
    rate: float
    schedule: str
    cut: str
    fraction: float


@dataclass(frozen=True)
class Setting:
    """How the runs of one kind of source are trained."""

    num_tokens: int
    batch_size: int
    max_length: int
    eval_tokens: int
    calibration_samples: int = 16


SMALL = Setting(98_304, 4, 256, 2_048)
"""96 steps of 1,024 tokens."""
LARGE = Setting(100_352, 4, 256, 4_096)
"""Of SmolLM2-135M: 98 steps of 1,024 tokens."""


def design() -> list[Arm]:
    """The arms of the small sources, at most 60, in an order that is balanced wherever it stops."""
    small, first, second = (STORIES, *FAMILY[:3]), RATES[0], RATES[1]
    arms = [_arm(name, first, fraction) for fraction in (0.0, *FRACTIONS) for name in small]
    arms += [_arm(name, second, fraction) for fraction in (0.0, *FRACTIONS[:2]) for name in small]
    arms += [_arm(name, first, f, LATE_DECAY) for name in ("64", "128") for f in (0.0, *FRACTIONS[:2])]
    arms += [Arm(name, first, CONSTANT, LEARNED, FRACTIONS[0]) for name in FAMILY[:3]]
    arms += [_arm(name, second, fraction) for fraction in FRACTIONS[2:] for name in small]
    return arms + [_arm(FAMILY[3], rate, fraction) for rate in RATES for fraction in (0.0, *FRACTIONS)]


def _arm(source: str, rate: float, fraction: float, schedule: str = CONSTANT) -> Arm:
    return Arm(source, rate, schedule, ONE_SHOT if fraction else CONTROL, fraction)


def smollm_design() -> list[Arm]:
    """Two fractions of SmolLM2-135M, and their control."""
    return [_arm(SMOLLM, 1e-4, fraction) for fraction in (0.0, 0.1, 0.3)]


class Checkpoints(TrainerCallback):
    """Held-out losses at the design's checkpoints."""

    def __init__(self, judged: Mapping[str, Dataset], setting: Setting, num_steps: int):
        self.judged, self.setting = judged, setting
        self.steps = sorted({round(share * num_steps) for share in CHECKPOINTS})
        self.tokens: list[int] = []
        self.losses: list[float] = []

    def judge(self, model) -> float:
        """Mean held-out loss over the domains, nats per token."""
        losses, _ = evaluate_domains(model, dict(self.judged), 2 * self.setting.batch_size)
        return sum(losses.values()) / len(losses)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step in self.steps:
            was_training = model.training
            self.tokens.append(state.global_step * self.setting.batch_size * self.setting.max_length)
            self.losses.append(self.judge(model))
            model.train(was_training)


class Source:
    """A source and its text."""

    def __init__(self, path: Path, data_dir: str, text_field: str, setting: Setting):
        self.path, self.data_dir, self.text_field, self.setting = path, data_dir, text_field, setting

    @cached_property
    def opened(self):
        return open_source("source", self.path)

    @cached_property
    def data(self):
        domains, tokenizer = load_domains(self.data_dir, self.text_field), self.opened.load_tokenizer()
        data = prepare_domain_data(
            domains, tokenizer, self.opened.config, max_length=self.setting.max_length, held_out_fraction=0.1,
            eval_tokens=self.setting.eval_tokens,
        )  # fmt: skip
        samples = -(-self.setting.eval_tokens // self.setting.max_length)
        judged = {name: rows.select(range(min(samples, len(rows)))) for name, rows in data.judged.items()}
        return data, judged

    def model(self):
        return self.opened.load_model(torch.float32)

    def run(self, arm: Arm) -> dict:
        """Cut, train, judge on the way."""
        start, setting = time.perf_counter(), self.setting
        data, judged = self.data
        model = self.model()
        size = count_parameters(model.config)
        if arm.cut != CONTROL:
            model = self.cut(model, arm)
        steps = setting.num_tokens // (setting.batch_size * setting.max_length)
        checkpoints = Checkpoints(judged, setting, steps)
        start_loss = checkpoints.judge(model)
        self.train(model, arm.rate, arm.schedule, steps, [checkpoints])
        pruned = count_parameters(model.config)
        return {
            "num_parameters": size, "num_pruned_parameters": pruned, "fraction_removed": 1 - pruned / size,
            "start_loss": start_loss, "tokens": checkpoints.tokens, "losses": checkpoints.losses,
            "seconds": time.perf_counter() - start,
        }  # fmt: skip

    def cut(self, model, arm: Arm):
        """The default one-shot cut with compensation, or one by learned masks."""
        setting, (data, _) = self.setting, self.data
        target = shape_for_budget(model.config, fraction_kept=1 - arm.fraction, balance="proportional").shape
        batches = -(-setting.calibration_samples // setting.batch_size)
        calibration = data.calibration(setting.batch_size, batches, 0)
        if arm.cut == ONE_SHOT:
            return prune_one_shot(model, target, calibration, PruneConfig()).model
        masked, stage = masked_arm(model, target, 0, calibration.batches)
        trained = self.train(masked, arm.rate, CONSTANT, MASK_STEPS, [], **stage)
        return cut_learned_masks(trained, "least_squares", calibration, model)[0]

    def train(self, model, rate: float, schedule: str, steps: int, callbacks: list, **changes):
        """Train in place; the trained model."""
        setting, options = self.setting, {"lr_scheduler_type": "constant_with_warmup"}
        if schedule == LATE_DECAY:
            decay = round(DECAY_SHARE * steps)
            stable = steps - decay - WARMUP_STEPS
            options = {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_stable_steps": stable, "num_decay_steps": decay, "decay_type": "linear"},
            }
        with tempfile.TemporaryDirectory() as folder:
            args = ShearTrainingArguments(
                folder, max_steps=steps, per_device_train_batch_size=setting.batch_size, eval_strategy="no",
                dynamic_batches=False, learning_rate=rate, warmup_steps=WARMUP_STEPS, save_strategy="no",
                logging_strategy="no", report_to="none", disable_tqdm=True, shape_gap_tolerance=1.0,
                min_swapped_units=0, seed=0, **(options | changes),
            )  # fmt: skip
            trainer = ShearTrainer(model, args, self.data[0].train, None, callbacks=callbacks)
            trainer.train()
        return trainer.accelerator.unwrap_model(trainer.model)


def todays_code() -> str:
    """Digest of the code that makes the runs."""
    return code_digest("examples.research.law_runs", ("Source", "design"))


def make_runs(arms: list[Arm], sources: Mapping[str, Source], output: Path) -> None:
    """Every arm that is not there yet."""
    results = {"settings": {name: asdict(source.setting) for name, source in sources.items()}, "runs": [], "code": []}
    results["versions"] = collect_versions()
    if output.is_file():
        results = json.loads(output.read_text(encoding="utf-8"))
        results["settings"] |= {name: asdict(source.setting) for name, source in sources.items()}
    for arm in arms:
        if arm.source not in sources:
            logger.warning(f"{arm.source} is not there; left out: {asdict(arm)}")
        elif not any(asdict(arm).items() <= run.items() for run in results["runs"]):
            results["runs"].append(asdict(arm) | sources[arm.source].run(arm))
            results["code"] = with_record(results["code"], code_record(todays_code()))
            write_results(output, results)
            logger.info(f"{asdict(arm)}: {results['runs'][-1]['seconds']:.0f} s")  # no losses: they are not read yet


def confirm_runs(sources: Mapping[str, Source], output: Path) -> None:
    """By the first pruned run of each small source that has runs."""
    results = json.loads(output.read_text(encoding="utf-8"))
    names = {run["source"] for run in results["runs"]} - {SMOLLM}

    def made_again() -> Iterator[MadeAgain]:
        for name in sorted(names):
            arm = next(arm for arm in design() if arm.source == name and arm.cut == ONE_SHOT)
            (kept,) = (run for run in results["runs"] if asdict(arm).items() <= run.items())
            yield name, *([run["start_loss"], *run["losses"]] for run in (kept, sources[name].run(arm)))

    confirm(results, todays_code(), made_again(), names, sources)
    write_results(output, results)


def main(command_line: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--data_dir", help="seven domains of text, for the family")
    parser.add_argument("--stories", nargs=2, metavar=("MODEL", "TEXT"), help="stories260K and its text")
    parser.add_argument("--smollm", nargs=2, metavar=("MODEL", "TEXT"), help="SmolLM2-135M and its text")
    parser.add_argument("--family", type=Path, default=RESEARCH / "family" / "models", help="%(default)s")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the runs")
    parser.add_argument("--confirm", action="store_true", help="make one run of each small source again, and compare")
    options = parser.parse_args(command_line)
    sources = {}
    if options.data_dir:
        members = [name for name in FAMILY if (options.family / name / "source.json").is_file()]
        sources |= {name: Source(options.family / name, options.data_dir, "text", SMALL) for name in members}
    if options.stories:
        sources[STORIES] = Source(Path(options.stories[0]), options.stories[1], "text", SMALL)
    if options.smollm:
        sources[SMOLLM] = Source(Path(options.smollm[0]), options.smollm[1], "text", LARGE)
    if options.confirm:
        confirm_runs(sources, options.output)
        return
    arms = smollm_design() if options.smollm else design()
    make_runs(arms, sources, options.output)


if __name__ == "__main__":
    main()
