"""What every claim's script is made of: sources, text, arms that are kept one by one, verdicts, a page.

A claim's script declares ``CLAIM``, ``runs(study)`` (its arms), ``checks(source)`` (what must hold), ``table(source)`` and
``draw(source, axes)``, where ``source`` is a ``SourceResults``; and ends with ``main(sys.modules[__name__])``.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_shear import ShearTrainer, ShearTrainingArguments, prune_one_shot
from hf_shear.data import Calibration, load_domains
from hf_shear.recovery import Teacher
from hf_shear.reporting import collect_versions, require_matplotlib, write_results
from hf_shear.runs import cut_learned_masks, judge, masked_arm, prepare_domain_data
from hf_shear.shapes import TargetShape
from hf_shear.training import evaluate_domains
from hf_shear.training.cost import evaluation_samples_per_domain

EXAMPLES = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(EXAMPLES))

from spreads import HELD, mean_and_spread, state_of  # noqa: E402
from spreads import LOST as LOST  # noqa: E402  (these four for the scripts of the claims)
from spreads import TIE as TIE  # noqa: E402
from spreads import percent as percent  # noqa: E402
from spreads import spread_of as spread_of  # noqa: E402

CONFIGS = EXAMPLES / "claims" / "configs"
RESULTS = EXAMPLES.parent / "model_cards" / "claims"
SMALL_FOLDER = Path("claims_small")
STORIES = "stories260k"
"""Name of the source that is given by ``--stories``."""

WORKS = {
    "sheared_llama": ("Sheared LLaMA", "2310.06694"),
    "llm_surgeon": ("LLM Surgeon", "2312.17244"),
    "p2_law": ("P2 law", "2411.10272"),
    "beyond": ("Beyond them", None),
}


@dataclass(frozen=True)
class Claim:
    """A headline claim.

    Attributes:
        name: of the script, its config, its results and its page; ``WORK_NUMBER_...``.
        statement: what is claimed, in one sentence.
        section: where the work says so, or "".
        note: what is different here, and why the outcome may be as it is; part of the page.
    """

    name: str
    statement: str
    section: str = ""
    note: str = ""

    @property
    def work(self) -> str:
        """A key of ``WORKS``."""
        return next(work for work in WORKS if self.name.startswith(work))

    @property
    def number(self) -> int:
        """Among the claims of its work."""
        return int(self.name.removeprefix(self.work + "_").partition("_")[0])


class Check(NamedTuple):
    """One comparison that must hold: what, and HELD, TIE or LOST."""

    text: str
    state: str


@dataclass(frozen=True)
class SourceResults:
    """Everything that was measured on one source.

    Attributes:
        settings: of the config, as they applied.
        runs: a record per arm: the key's entries beside what was measured.
    """

    name: str
    settings: dict[str, Any]
    runs: list[dict]

    def select(self, **key) -> list[dict]:
        """Runs whose key has these entries, by seed."""
        found = [run for run in self.runs if all(run.get(name) == value for name, value in key.items())]
        return sorted(found, key=lambda run: run["seed"])

    def values(self, field: str, **key) -> list[float]:
        """A measured number of the runs with this key."""
        return [run[field] for run in self.select(**key)]


def compare(text: str, lower: Sequence[float], higher: Sequence[float]) -> Check:
    """Whether the mean of ``lower`` is below that of ``higher``, with both in the text."""
    return Check(f"{text}: {mean_and_spread(lower)} against {mean_and_spread(higher)}", state_of(lower, higher))


def verdict(checks: Sequence[Check]) -> str:
    """held: all checks; not held: none; else partly. A tie is no success."""
    held = sum(check.state == HELD for check in checks)
    return HELD if held == len(checks) else "partly" if held else LOST


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


class Study:
    """Arms of one claim on one source, kept one by one: a call goes on where the last one stopped.

    Args:
        claim: whose arms.
        name: of the source.
        path: of its checkpoint.
        data_dir: text per domain.
        settings: of the claim's config, for this source.
        output: JSON file of the claim.

    Raises:
        ValueError: ``output`` holds runs of this source with other settings.
    """

    def __init__(self, claim: Claim, name: str, path: str | Path, data_dir: str, settings: dict, output: Path):
        self.claim, self.name, self.path, self.data_dir, self.output = claim, name, path, data_dir, output
        self.settings = settings
        kept = read(output)["sources"].get(name, {"settings": settings, "runs": []})
        if kept["settings"] != settings:
            changed = sorted(k for k in settings | kept["settings"] if settings.get(k) != kept["settings"].get(k))
            raise ValueError(
                f"{output} holds runs of {name!r} with other settings ({', '.join(changed)}). Delete them there, or give"
                " another `--output`."
            )
        self.runs: list[dict] = kept["runs"]
        self._references: dict[int, dict[str, float]] = {}

    def __getattr__(self, name: str):
        """Settings by name."""
        try:
            return self.__dict__["settings"][name]
        except KeyError:
            raise AttributeError(f"Neither a study nor the config has {name!r}.") from None

    # What arms are made from

    @cached_property
    def tokenizer(self):
        return AutoTokenizer.from_pretrained(self.path)

    @cached_property
    def data(self):
        """Packed text of the source's tokenizer, split by document."""
        return prepare_domain_data(
            load_domains(self.data_dir), self.tokenizer, AutoConfig.from_pretrained(self.path),
            max_length=self.max_length, held_out_fraction=self.settings.get("held_out_fraction", 0.1),
            eval_tokens=self.eval_tokens,
        )  # fmt: skip

    def source(self) -> PreTrainedModel:
        """A fresh copy of the source, in float32."""
        return AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32)

    def target(self, **sizes: int) -> TargetShape:
        """The config's target shape, or another one."""
        return TargetShape.from_dict(AutoConfig.from_pretrained(self.path), sizes or self.settings["target"])

    def calibration(self, seed: int, num_batches: int | None = None) -> Calibration:
        """A draw of calibration text."""
        batches = self.data.calibration(self.batch_size, num_batches or self.calibration_batches, seed)
        return Calibration(list(batches), seed)

    @cached_property
    def source_losses(self) -> dict[str, float]:
        """The source's own losses on what every model is judged by."""
        return self.run({"arm": "source", "seed": 0}, lambda: self.judged(self.source()))["loss"]

    def reference_losses(self, num_samples: int) -> dict[str, float]:
        """The source's own losses on the samples that a training evaluates on; domain weights follow the difference."""
        if num_samples not in self._references:
            samples = self.data.first_held_out(num_samples)
            self._references[num_samples], _ = evaluate_domains(self.source(), samples, 2 * self.batch_size)
        return self._references[num_samples]

    # Arms

    def run(self, key: dict, make: Callable[[], dict]) -> dict:
        """The record of one arm: the kept one, or made now and kept."""
        for run in self.runs:
            if key.items() <= run.items():
                return run
        start = time.perf_counter()
        record = make()
        if shared := key.keys() & record.keys():
            raise ValueError(f"What was measured must not be named as the arm's key is: {sorted(shared)}.")
        record = key | record
        record["run_seconds"] = time.perf_counter() - start
        self.runs.append(record)
        results = read(self.output)
        results["sources"][self.name] = {"settings": self.settings, "runs": self.runs}
        results["versions"] = collect_versions()
        self.output.parent.mkdir(parents=True, exist_ok=True)
        write_results(self.output, results)
        number = f"{record['mean']:.4f}, " if "mean" in record else ""
        print(f"{self.claim.name}, {self.name}: {key}: {number}{record['run_seconds']:.0f} s", flush=True)
        return record

    def judged(self, model: PreTrainedModel) -> dict:
        """Held-out loss per domain and their mean, parameters, shape."""
        with tempfile.TemporaryDirectory() as folder:
            found = judge(model, self.data.judged, self._arguments(folder, 1, 0, learning_rate=0.0))
        return {name: found[name] for name in ("loss", "mean", "num_parameters", "shape")}

    def train(
        self, model: PreTrainedModel, num_tokens: int, seed: int, teacher: PreTrainedModel | None = None, **changes
    ) -> tuple[PreTrainedModel, dict]:
        """Train in place on ``num_tokens``; the model, and facts of the stage (tokens, history, passes, sizes, weights)."""
        with tempfile.TemporaryDirectory() as folder:
            args = self._arguments(folder, num_tokens, seed, **changes)
            on_device = None if teacher is None else Teacher(teacher, "device", args.device)

            def trainer_with(args):
                return ShearTrainer(model, args, self.data.train, self.data.held_out, teacher=on_device)

            samples = evaluation_samples_per_domain(trainer_with(args))
            trainer = trainer_with(replace(args, reference_losses=self.reference_losses(samples)))
            trainer.train()
            facts = trainer.stage_record("training")
        facts = {name: facts[name] for name in ("tokens", "history", "sizes", "passes", "mixture_weights")}
        return trainer.accelerator.unwrap_model(trainer.model), facts | {"mask_report": trainer.mask_report}

    def learn(
        self, target: TargetShape, num_tokens: int, seed: int, compensation: str = "none", options: dict | None = None,
        **changes,
    ) -> tuple[PreTrainedModel, dict]:  # fmt: skip
        """Learn masks on ``num_tokens`` and cut; the pruned model, and facts of the stage.

        Args:
            options: masks, start and weights, as in ``hf_shear.runs.masked_arm``.
            changes: of the training arguments.
        """
        source, calibration = self.source(), self.calibration(seed)
        masked, stage = masked_arm(source, target, seed, calibration.batches, **(options or {}))
        masked, facts = self.train(masked, num_tokens, seed, **(stage | changes))
        model, _, _ = cut_learned_masks(masked, compensation, calibration, source)
        return model, facts

    def prune(self, target: TargetShape, seed: int, **options) -> PreTrainedModel:
        """The source pruned in one shot, or several."""
        return prune_one_shot(self.source(), target, self.calibration(seed), **options).model

    def scratch(self, target: TargetShape, seed: int) -> PreTrainedModel:
        """Random weights of the target's shape."""
        config = self.prune(target, seed, criterion="random", compensation="none", num_shots=1).config
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))

    def _arguments(self, folder: str, num_tokens: int, seed: int, **changes) -> ShearTrainingArguments:
        own = dict(
            num_tokens=num_tokens, per_device_train_batch_size=self.batch_size, eval_strategy="steps", eval_steps=0.1,
            per_device_eval_batch_size=2 * self.batch_size, warmup_steps=0.05,
            lr_scheduler_type="cosine", save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
            eval_token_share=0.2, shape_gap_tolerance=1.0, seed=seed,
        )  # fmt: skip
        if "learning_rate" not in changes:
            own["learning_rate"] = self.learning_rate
        return ShearTrainingArguments(folder, **(own | self.settings.get("training", {}) | changes))


def read(path: Path) -> dict:
    """Kept results; empty ones where there are none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"sources": {}}


def results_of(path: Path) -> list[SourceResults]:
    """Per source, what a claim's results file holds."""
    return [
        SourceResults(name, *(kept[k] for k in ("settings", "runs"))) for name, kept in read(path)["sources"].items()
    ]


def read_settings(claim: Claim, source: str, small: bool) -> dict:
    """The claim's config for one source: its own entries over the common ones, those of ``small`` over all."""
    config = yaml.safe_load((CONFIGS / f"{claim.name}.yaml").read_text(encoding="utf-8"))
    settings = config["settings"] | config["sources"][source]
    return settings | config["small"] if small else settings


def parse(claim: Claim, command_line: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=claim.statement, allow_abbrev=False)
    parser.add_argument("--data_dir", help="text of the seven domains, a folder each; for the family's members")
    parser.add_argument("--stories", nargs=2, metavar=("MODEL", "TEXT"), help="stories260K and TinyStories")
    parser.add_argument("--small", action="store_true", help="minutes: fewer tokens and seeds; proves nothing")
    parser.add_argument("--output", type=Path, help=f"folder (default: model_cards/claims; --small: {SMALL_FOLDER})")
    options = parser.parse_args(command_line)
    if options.data_dir is None and options.stories is None:
        parser.error("give --data_dir, --stories, or both: each is measured on its own source.")
    options.output = options.output or (SMALL_FOLDER if options.small else RESULTS)
    return options


def sources_of(claim: Claim, options: argparse.Namespace) -> list[tuple[str, str | Path, str]]:
    """Name, checkpoint and text of the sources that were asked for and that the config has."""
    config = yaml.safe_load((CONFIGS / f"{claim.name}.yaml").read_text(encoding="utf-8"))
    found = []
    for name in config["sources"]:
        if name == STORIES and options.stories:
            found.append((name, *options.stories))
        elif name != STORIES and options.data_dir:
            found.append((name, EXAMPLES / "family" / "models" / name.rpartition("-")[2], options.data_dir))
    if not found:
        raise SystemExit(f"{claim.name} is measured on {', '.join(config['sources'])}; give what that needs (--help).")
    return found


def draw(module, path: Path) -> None:
    """The claim's picture: a panel per source."""
    require_matplotlib()
    from matplotlib.figure import Figure

    sources = results_of(path)
    figure = Figure(figsize=(6.0 * len(sources), 4.2), layout="constrained")
    for axes, source in zip(figure.subplots(1, len(sources), squeeze=False)[0], sources, strict=True):
        axes.set_title(source.name, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        module.draw(source, axes)
    figure.savefig(path.with_suffix(".png"), dpi=110)


def main(module, command_line: Sequence[str] | None = None) -> None:
    """Run a claim's script."""
    from claims_page import claim_page

    options = parse(module.CLAIM, command_line)
    path = options.output / f"{module.CLAIM.name}.json"
    for name, checkpoint, data_dir in sources_of(module.CLAIM, options):
        settings = read_settings(module.CLAIM, name, options.small)
        study = Study(module.CLAIM, name, checkpoint, data_dir, settings, path)
        module.runs(study)
    draw(module, path)
    path.with_suffix(".md").write_text(claim_page(module, results_of(path)), encoding="utf-8")
    for source in results_of(path):
        for check in module.checks(source):
            print(f"{source.name}: {check.state}: {check.text}")
