"""A study: the arms of one claim on one source, made from the library's parts and kept one by one."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from examples.embedded.stdlib_domains import stdlib_domains
from hf_shear import PruneConfig, ShearTrainer, ShearTrainingArguments, prune_one_shot
from hf_shear.core.counted_flops import counted_flops
from hf_shear.data import Calibration, load_domains
from hf_shear.runs import cut_learned_masks, judge, masked_arm, prepare_domain_data
from hf_shear.shapes import TargetShape, training_flops_per_token
from hf_shear.sources import Source, open_source
from hf_shear.training import SampleLosses, TrainingDivergedError, evaluate_samples, plan_evaluations

from ..provenance import BEFORE, code_record, with_record
from ..shared import EXAMPLES, RESEARCH, best_rate, next_rates
from .claim_results import EMBEDDED, STORIES, Claim, SourceResults, code_of, read, write


def settings_of(config: Path, source: str, small: bool = False) -> dict:
    """A config's settings for one source: its own over the common ones, those of ``small`` over all."""
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings = content["settings"] | content["sources"][source]
    return settings | content["small"] if small else settings


def sources_of(config: Path, stories: Sequence | None, data_dir: str | None) -> dict[str, tuple]:
    """Checkpoint and text, by name, of a config's sources that are given; the embedded model needs no text.

    Args:
        stories: stories260K and its text.
        data_dir: text of the seven domains, for members of the family.
    """
    found = {}
    for name in yaml.safe_load(config.read_text(encoding="utf-8"))["sources"]:
        if name == EMBEDDED:
            found[name] = EXAMPLES / "embedded" / "model", None
        elif name == STORIES and stories:
            found[name] = tuple(stories)
        elif name != STORIES and data_dir:
            found[name] = RESEARCH / "family" / "models" / name.rpartition("-")[2], data_dir
    return found


class Study:
    """Arms of one claim on one source, kept one by one: a call goes on where the last one stopped.

    Args:
        claim: whose arms.
        name: of the source.
        path: of its checkpoint.
        data_dir: text per domain; None: the embedded model's own.
        settings: of the claim's config, for this source.
        output: JSON file of the claim.

    Raises:
        ValueError: ``output`` holds runs of this source with other settings.
    """

    def __init__(self, claim: Claim, name: str, path: str | Path, data_dir: str | None, settings: dict, output: Path):
        self.claim, self.name, self.path, self.data_dir, self.output = claim, name, path, data_dir, output
        self.settings = settings
        kept = read(output)["sources"].get(name, {"settings": settings, "runs": []})
        changed = sorted(k for k in settings | kept["settings"] if settings.get(k) != kept["settings"].get(k))
        if changed == ["seeds"] and settings["seeds"][: len(kept["settings"]["seeds"])] == kept["settings"]["seeds"]:
            changed = []  # seeds that follow those that are kept
        if changed:
            raise ValueError(
                f"{output} holds runs of {name!r} with other settings ({', '.join(changed)}). Delete them there, or give"
                " another `--output`."
            )
        self.runs: list[dict] = kept["runs"]
        self._references: dict[int, dict[str, SampleLosses]] = {}

    def __getattr__(self, name: str):
        """Settings by name."""
        try:
            return self.__dict__["settings"][name]
        except KeyError:
            raise AttributeError(f"Neither a study nor the config has {name!r}.") from None

    # What arms are made from

    @cached_property
    def code(self) -> str:
        """Digest of the code that makes the arms."""
        return code_of(self.claim)

    @cached_property
    def opened(self) -> Source:
        """The source's checkpoint, found and checked."""
        if not Path(self.path).is_dir():
            raise SystemExit(f"{self.path} is not there: examples/research/family/README.md says how to make it.")
        return open_source("path", self.path)

    @cached_property
    def config(self) -> PretrainedConfig:
        """Of the source."""
        return self.opened.config

    def flops_per_token(self, model: PreTrainedModel | None = None) -> float:
        """Of training, forward and backward: a pruned model's; without a model the source's."""
        return training_flops_per_token(self.config if model is None else model.config, self.max_length)

    @cached_property
    def tokenizer(self):
        return self.opened.load_tokenizer()

    @cached_property
    def data(self):
        """Packed text of the source's tokenizer, split by document."""
        return prepare_domain_data(
            stdlib_domains() if self.data_dir is None else load_domains(self.data_dir), self.tokenizer, self.config,
            max_length=self.max_length, held_out_fraction=self.settings.get("held_out_fraction", 0.1),
            eval_tokens=self.eval_tokens,
        )  # fmt: skip

    def source(self) -> PreTrainedModel:
        """A fresh copy of the source, in float32."""
        return self.opened.load_model(torch.float32)

    def target(self, **sizes: int) -> TargetShape:
        """The config's target shape, or another one."""
        return TargetShape.from_dict(self.config, sizes or self.settings["target"])

    def calibration(self, seed: int) -> Calibration:
        """A draw of calibration text."""
        return self.data.calibration(self.batch_size, self.calibration_batches, seed)

    @cached_property
    def source_losses(self) -> dict[str, float]:
        """The source's own losses on what every model is judged by."""
        return self.run({"arm": "source", "seed": 0}, lambda: self.judged(self.source()))["loss"]

    def reference_losses(self, num_samples: int) -> dict[str, SampleLosses]:
        """The source's own losses on the samples that a training evaluates on; domain weights follow the difference."""
        if num_samples not in self._references:
            samples = self.data.first_steering(num_samples)
            self._references[num_samples] = evaluate_samples(self.source(), samples, 2 * self.batch_size)
        return self._references[num_samples]

    # Arms

    def run(self, key: dict, make: Callable[[], dict]) -> dict:
        """The record of one arm: the kept one, or made now and kept."""
        for run in self.runs:
            if key.items() <= run.items():
                return run
        if self.settings.get("sweep_rates") and any(_judged_in_one_piece(run) for run in self.runs):
            raise ValueError(
                f"{self.output} holds swept runs of {self.name!r} that were judged in one piece: rates are now chosen on"
                " one half of the text and reported on the other. Give another `--output`."
            )
        start = time.perf_counter()
        record = make()
        if shared := key.keys() & record.keys():
            raise ValueError(f"What was measured must not be named as the arm's key is: {sorted(shared)}.")
        record = key | record
        record["run_seconds"] = time.perf_counter() - start
        self.runs.append(record)
        kept = read(self.output)
        sources = kept["sources"] | {self.name: {"settings": self.settings, "runs": self.runs}}
        before = kept.get("code", [BEFORE] if any(own["runs"] for own in kept["sources"].values()) else [])
        write(self.output, sources, with_record(before, code_record(self.code)))
        mean = record.get("mean", math.nan)
        number = "diverged, " if mean is None else "" if math.isnan(mean) else f"{mean:.4f}, "
        print(f"{self.claim.name}, {self.name}: {key}: {number}{record['run_seconds']:.0f} s", flush=True)
        return record

    def tune(self, key: dict, make: Callable[[float, int], dict], start: float) -> float:
        """An arm on all seeds at the learning rate with the lowest mean loss, which is returned.

        One seed is a weak judge of neighbours. So the first seed sweeps, and all seeds run at ``start``, at the rate
        that the sweep found, and, until the lowest mean lies between two rates of the sweep, at what it finds then.

        Args:
            make: the record for a learning rate and a seed.
            start: the rate to try first, and the only one without the setting ``sweep_rates``.
        """

        def attempt(rate: float, seed: int) -> dict:
            try:
                return make(rate, seed)
            except TrainingDivergedError:
                return {"mean": None, "tokens": 0}

        def run_at(rates: Iterable[float], seeds: Sequence[int]) -> None:
            for rate in rates:
                for seed in seeds:
                    self.run(key | {"rate": rate, "seed": seed}, lambda rate=rate, seed=seed: attempt(rate, seed))

        found, first, wanted = SourceResults(self.name, self.settings, self.runs), self.seeds[:1], [start]
        while True:
            while wanted:
                run_at(wanted, first)
                wanted = next_rates(found.sweep(**key)) if self.sweep_rates else []
            run_at({start, best_rate(found.sweep(**key))}, self.seeds[1:])
            best = found.tuned(**key)[0]["rate"]
            wanted = next_rates(found.sweep(**key), best) if self.sweep_rates else []
            if not wanted:
                return best

    def judged(self, model: PreTrainedModel) -> dict:
        """Held-out loss per domain and their mean, parameters, shape.

        Where rates are swept, the first half of each domain's judged samples chooses between them (``mean_choice``), and
        only the second is reported.
        """
        chooses, reported = halves(self.data.judged) if self.settings.get("sweep_rates") else ({}, self.data.judged)
        with tempfile.TemporaryDirectory() as folder:
            args = self._arguments(folder, 1, 0, learning_rate=0.0)
            found = judge(model, reported, args)
            choice = {"mean_choice": judge(model, chooses, args)["mean"]} if chooses else {}
        return {name: found[name] for name in ("loss", "mean", "num_parameters", "shape")} | choice

    def train(self, model: PreTrainedModel, num_tokens: int, seed: int, **changes) -> tuple[PreTrainedModel, dict]:
        """Train in place on ``num_tokens``; the model, and its tokens and passes over each domain."""
        trainer = self._trained(model, num_tokens, seed, **changes)
        return trainer.accelerator.unwrap_model(trainer.model), _facts(trainer)

    def _trained(self, model: PreTrainedModel, num_tokens: int, seed: int, **changes) -> ShearTrainer:
        with tempfile.TemporaryDirectory() as folder:
            args = self._arguments(folder, num_tokens, seed, **changes)
            args.set_steps(self.max_length)
            plan, references = plan_evaluations(args, len(self.data.steering)), {}
            if plan.steers:
                found = self.reference_losses(plan.samples_per_domain)
                args = replace(args, reference_losses={name: losses.mean for name, losses in found.items()})
                references = {name: losses.sums for name, losses in found.items()}
            trainer = ShearTrainer(
                model,
                args,
                self.data.train,
                self.data.steering,
                reference_samples=references or None,
            )
            trainer.train()
        return trainer

    def learn(
        self, target: TargetShape, num_tokens: int, seed: int, options: dict | None = None, compensation: str = "none",
        **changes,
    ) -> tuple[PreTrainedModel, dict]:  # fmt: skip
        """Learn masks on ``num_tokens`` and cut; the pruned model, and facts of the stage.

        Beside those of ``train`` the ``gap`` of the expected shape from the target before the cut, at its worst size, and
        the ``expected_shapes`` of the evaluations: the share of the stage's tokens, and the sizes that masks expect then;
        and the ``start_flops`` of matrix products in the masks' start and in the cut, as they were counted.

        Args:
            options: masks, start and weights, as in ``hf_shear.runs.masked_arm``.
            compensation: of the cut.
            changes: of the training arguments.
        """
        source, calibration = self.source(), self.calibration(seed)
        with counted_flops() as start:
            masked, stage = masked_arm(source, target, seed, calibration.batches, **(options or {}))
        trainer = self._trained(masked, num_tokens, seed, **(stage | changes))
        masked, facts = trainer.accelerator.unwrap_model(trainer.model), _facts(trainer)
        with counted_flops() as cut:
            model, _, _ = cut_learned_masks(masked, compensation, calibration, source)
        facts["start_flops"] = float(start.total + cut.total)
        facts["gap"] = max(trainer.mask_report["gap"].values())
        rows = [row for row in trainer.stage_record("training")["sizes"] if "expected_shape" in row]
        facts["expected_shapes"] = [(row["num_tokens"] / facts["tokens"], row["expected_shape"]) for row in rows]
        return model, facts

    def prune(self, target: TargetShape, seed: int, **options) -> PreTrainedModel:
        """The source pruned in one shot, or several."""
        return prune_one_shot(self.source(), target, self.calibration(seed), PruneConfig(**options)).model

    def scratch(self, target: TargetShape, seed: int) -> PreTrainedModel:
        """Random weights of the target's shape."""
        config = self.prune(target, seed, criterion="random", compensation="none", num_shots=1).config
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))

    def _arguments(self, folder: str, num_tokens: int, seed: int, **changes) -> ShearTrainingArguments:
        own = dict(
            num_tokens=num_tokens, per_device_train_batch_size=self.batch_size, eval_strategy="steps",
            per_device_eval_batch_size=2 * self.batch_size, warmup_steps=0.05,
            lr_scheduler_type="cosine", save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
            shape_gap_tolerance=1.0, min_swapped_units=0, seed=seed,
        )  # fmt: skip
        if "learning_rate" not in changes:
            own["learning_rate"] = self.learning_rate
        return ShearTrainingArguments(folder, **(own | changes))


def _judged_in_one_piece(run: Mapping[str, Any]) -> bool:
    return "rate" in run and run.get("mean") is not None and "mean_choice" not in run


def halves(judged: Mapping[str, Dataset]) -> tuple[dict[str, Dataset], dict[str, Dataset]]:
    """The first and the second half of each domain's samples, which come from other documents but for one at the border.

    Raises:
        ValueError: a domain has a single sample.
    """
    single = [name for name, samples in judged.items() if len(samples) < 2]
    if single:
        raise ValueError(f"`eval_tokens` gives {', '.join(single)} a single sample: none to choose rates by. Raise it.")
    at = {name: len(samples) // 2 for name, samples in judged.items()}
    first = {name: samples.select(range(at[name])) for name, samples in judged.items()}
    return first, {name: samples.select(range(at[name], len(samples))) for name, samples in judged.items()}


def _facts(trainer: ShearTrainer) -> dict:
    """Of a finished stage: what the pages of the claims tell."""
    facts = trainer.stage_record("training")
    return {"tokens": facts["tokens"], "passes": facts["passes"]}
