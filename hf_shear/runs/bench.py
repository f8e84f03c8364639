"""The bench: k methods at one target, one calibration set a seed, one recovery budget, in one environment.

Every run is pruning, judging, recovering, judging. Its record is written when it ends, and a later call goes on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..compensation import resolve_compensation
from ..core import StoppedBySignal, UsageError, collect_versions, lock_folder, read_json_object, sign, write_results
from ..data import Calibration
from ..pruning import PruneConfig, make_plan, prune_interleaved, prune_one_shot, pruning_steps
from ..shapes import count_parameters
from ..slicing import check_saves
from ..sources import on_device, open_source, read_generation_config
from ..training import ShearTrainer, ShearTrainingArguments, check_mask_options
from .bench_method import INTERLEAVED, LEARNED, ONE_SHOT, BenchMethod
from .domain_data import DomainData
from .learned_arm import masked_arm
from .learned_cut import cut_learned_masks
from .origin import run_command
from .peak_memory import peak_memory
from .pipeline_arguments import DataArguments, TargetArguments
from .report import judge
from .stages import pack, read_domains
from .target_choice import choose_target

BENCH_NAME = "bench.json"
_COMPARED = (
    "recovery_tokens", "max_length", "eval_tokens", "held_out_fraction", "text_field", "skip_unreadable",
    "skip_null_text", "parse_special_tokens",
)  # fmt: skip
"""Arguments that a bench which goes on must share with what it has done."""


@dataclass(kw_only=True)
class BenchArguments(TargetArguments, DataArguments):
    """What is compared, on what."""

    source: str = field(metadata={"help": "A plain checkpoint."})
    methods: list[str] = field(metadata={"help": "Such as taylor 'flap layer=loss_rise+least_squares@5' learned."})
    eval_tokens: int = field(  # pyright: ignore[reportIncompatibleVariableOverride]  # the same for every method
        default=16_384, metadata={"help": "Held-out tokens per domain behind the results."}
    )
    recovery_tokens: int = field(default=150_000, metadata={"help": "Training tokens of every method, masks included."})
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Of calibration draw, masks and training."}
    )
    calibration_batches: int = field(default=8, metadata={"help": "Batches of calibration text, the same for all."})
    calibration_batch_size: int = field(default=8, metadata={"help": "Samples of each."})

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"`seeds` must be different numbers, but they are {self.seeds}.")
        if self.as_family is not None:
            raise UsageError("`as_family` is not for the bench: its methods are compared in the family of the source.")
        for text in self.methods:
            BenchMethod.parse(text)


@dataclass
class Pruned:
    """What a method made before recovery.

    Attributes:
        model: plain.
        tokens: of training that were spent on it.
        trained_through: whether nothing is left to recover.
        num_parameters: of the kept units.
    """

    model: PreTrainedModel
    tokens: int = 0
    trained_through: bool = False
    num_parameters: int | None = None


class Bench:
    """All runs of one call.

    Args:
        arguments, args: as parsed; ``args.output_dir`` holds the results.

    Raises:
        ValueError: a method, the target or the text does not fit, or another process writes to ``output_dir``; before
            anything is trained.
    """

    def __init__(self, arguments: BenchArguments, args: ShearTrainingArguments):
        if args.world_size > 1:
            raise UsageError("The bench runs in one process: memory and seconds of several would not compare.")
        self.arguments, self.args = arguments, args
        self.methods = [BenchMethod.parse(text) for text in arguments.methods]
        if any(method.kind in (LEARNED, INTERLEAVED) for method in self.methods):
            check_mask_options(args)
        self.source = open_source("source", arguments.source)
        config = self.source.config
        self.target, _ = choose_target(arguments, config)
        self._check_methods(config)
        self.tokenizer = self.source.load_tokenizer()
        check_saves(args.output_dir)
        read_generation_config(self.source.location)  # refused now if training could not go on with it
        domains = read_domains(arguments, args)
        self.data: DomainData = pack(arguments, domains, self.tokenizer, config)
        self.path = Path(args.output_dir) / BENCH_NAME
        self._lock = lock_folder(args.output_dir)  # while this object lives
        self.results = self._open(config)
        sign(self._lock)

    def _check_methods(self, config) -> None:
        steps = self.args.steps_for_tokens(self.arguments.recovery_tokens, self.arguments.max_length)
        for method in self.methods:
            resolve_compensation(method.config.compensation).check(config)
            if method.kind in (ONE_SHOT, INTERLEAVED):
                make_plan(
                    config, count_parameters(config, self.target) if method.is_uneven else self.target, method.config
                )
            if method.kind == INTERLEAVED:
                pruning_steps(steps, method.config)

    def _open(self, config) -> dict:
        given, args = self.arguments, self.args
        settings = {"target_shape": self.target.to_dict()} | {name: getattr(given, name) for name in _COMPARED}
        settings |= {
            "calibration_tokens": given.calibration_batches * given.calibration_batch_size * given.max_length,
            "learning_rate": args.learning_rate, "samples_per_step": args.samples_per_step(),
        }  # fmt: skip
        if not self.path.is_file():
            return {"settings": settings, "target_parameters": count_parameters(config, self.target), "runs": []}
        results = read_json_object(self.path, needs=["settings", "runs"])
        if results["settings"] != settings:
            changed = {name: (results["settings"].get(name), value) for name, value in settings.items()
                       if results["settings"].get(name) != value}  # fmt: skip
            raise UsageError(
                f"`output_dir` {str(self.path.parent)!r} holds a bench with other settings (before, now): {changed}. Give"
                " the same ones, or another folder."
            )
        return results

    def run(self, tell: Callable[[str], None] = lambda text: None) -> dict:
        """Do the runs that are not done yet, seed by seed; returns the results, which are written after each."""
        if "source" not in self.results:
            self.results["source"] = judge(self.load_source(), self.data.judged, self.args)
        done = {(run["method"], run["seed"]) for run in self.results["runs"]}
        for seed in self.arguments.seeds:
            for method in self.methods:
                if (method.text, seed) in done:
                    continue
                try:
                    record = self.run_method(method, seed)
                except StoppedBySignal as stop:
                    stop.done, stop.advice = (
                        f" in seed {seed}, {method.text}",
                        "The same command goes on with that run.",
                    )
                    raise
                self.results["runs"].append(record)
                self.results |= {"versions": collect_versions(), "command": run_command()}
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_results(self.path, self.results)
                before = "-" if record["before"] is None else f"{record['before']['mean']:.4f}"
                tell(f"seed {seed}, {method.text}: {before} -> {record['after']['mean']:.4f}")
        return self.results

    def load_source(self) -> PreTrainedModel:
        """The source in float32, in which all are pruned and trained."""
        return on_device(self.source.load_model(torch.float32), self.args.device)

    @cached_property
    def _reference_losses(self) -> dict[str, float]:
        return self.results["source"]["loss"]

    def calibration(self, seed: int) -> Calibration:
        """The text that every method of a seed is given."""
        arguments = self.arguments
        return self.data.calibration(arguments.calibration_batch_size, arguments.calibration_batches, seed)

    def run_method(self, method: BenchMethod, seed: int) -> dict:
        """Prune, judge, recover, judge."""
        calibration = self.calibration(seed)
        source = self.load_source()
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            args = replace(self.args, output_dir=folder, seed=seed, save_strategy="no", disable_tqdm=True,
                           reference_losses=self._reference_losses)  # fmt: skip
            with peak_memory(args.device) as pruning:
                pruned = getattr(self, f"_{method.kind}")(method, source, calibration, args)
            seconds = {"pruning": time.perf_counter() - start}
            del source
            before = None if pruned.trained_through else _losses(judge(pruned.model, self.data.judged, args))
            left, start = self.arguments.recovery_tokens - pruned.tokens, time.perf_counter()
            tokens, recovery = 0, None
            if not pruned.trained_through:
                with peak_memory(args.device) as recovery:
                    trainer = self._train(pruned.model, args, left)
                model = trainer.accelerator.unwrap_model(trainer.model)
                assert isinstance(model, PreTrainedModel)
                tokens, pruned.model = trainer.tokens_seen(), model
            seconds["recovery"] = time.perf_counter() - start
            after = judge(pruned.model, self.data.judged, args)
        return {
            "method": method.text, "seed": seed, "uneven": method.is_uneven, "before": before, "after": _losses(after),
            "num_parameters": pruned.num_parameters or after["num_parameters"], "seconds": seconds,
            "peak_bytes": {"pruning": pruning.num_bytes, "recovery": recovery and recovery.num_bytes},
            "tokens": {"pruning": pruned.tokens, "recovery": tokens, "calibration": calibration.num_tokens},
        }  # fmt: skip

    def _train(self, model: PreTrainedModel, args: ShearTrainingArguments, num_tokens: int, **changes) -> ShearTrainer:
        args = replace(args, num_tokens=num_tokens, **changes)
        trainer = ShearTrainer(model, args, self.data.train, self.data.steering)
        trainer.train()
        return trainer

    def _one_shot(self, method: BenchMethod, source, calibration: Calibration, args) -> Pruned:
        target = self.results["target_parameters"] if method.is_uneven else self.target
        found = prune_one_shot(source, target, calibration, method.config)
        return Pruned(found.model, num_parameters=found.num_parameters if method.is_uneven else None)

    def _scratch(self, method: BenchMethod, source, calibration: Calibration, args) -> Pruned:
        choices = PruneConfig("random", "none", num_shots=1)
        config = prune_one_shot(source, self.target, calibration, choices).model.config
        torch.manual_seed(args.seed)
        return Pruned(on_device(type(source)(config), args.device))

    def _interleaved(self, method: BenchMethod, source, calibration: Calibration, args) -> Pruned:
        found = prune_interleaved(
            source, self.target, calibration, method.config, replace(args, num_tokens=self.arguments.recovery_tokens),
            self.data.train, self.data.steering, restart_moments=method.options["restart"],
        )  # fmt: skip
        return Pruned(found.model, found.trainer.tokens_seen(), trained_through=True)

    def _learned(self, method: BenchMethod, source, calibration: Calibration, args) -> Pruned:
        options = dict(method.options)
        num_tokens = round(options.pop("share") * self.arguments.recovery_tokens)
        masked, stage = masked_arm(source, self.target, args.seed, calibration.batches, **options)
        trainer = self._train(masked, args, num_tokens, **stage)
        model, _, _ = cut_learned_masks(trainer.masked_model, method.config.compensation, calibration, source)
        return Pruned(model, trainer.tokens_seen())


def _losses(record: dict) -> dict:
    return {name: record[name] for name in ("loss", "mean")}
