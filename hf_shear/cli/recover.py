"""``hf-shear recover``: train a pruned model back, one of ``hf-shear learn`` or from anywhere; or several nested sizes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .. import runs
from ..core import UsageError
from . import learn

if TYPE_CHECKING:
    from ..training import ShearTrainingArguments

SUMMARY = "Train a pruned model back: all weights, LoRA, norms and biases; with or without a teacher."
EXAMPLE = "hf-shear recover path/to/llama --output_dir sheared --data_dir text --distillation forward_kl"
POSITIONAL = ("model_name_or_path",)
TRAINS = True
REFUSED = learn.REFUSED | {
    "resume": "this verb always goes on; leave it out",
    "overwrite": "this verb always goes on; leave it out",
}


@dataclass(kw_only=True)
class Arguments(learn.Arguments):
    """As for ``hf-shear learn``, and where to start."""

    pruned: str | None = field(
        default=None, metadata={"help": "Start from this plain checkpoint, in place of one of `hf-shear learn`."}
    )
    mask_tokens: int | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]  # a number in a run
        default=None,
        metadata={"help": "Of --sizes: learn which units the largest keeps. Else that of `hf-shear learn`."},
    )
    sizes: str | None = field(
        default=None,
        metadata={"help": "Train several nested sizes in one run: 0.75,0.5,0.35."},
    )
    size_teacher: str = field(
        default="none",
        metadata={"help": "Of --sizes. largest: the smaller sizes learn from it, too.", "choices": ("none", "largest")},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.sizes is None and self.size_teacher != "none":
            raise UsageError(f"`size_teacher` {self.size_teacher!r} is of `sizes`, which are not given. Leave it out.")
        if self.sizes is not None:
            runs.read_sizes(self.sizes)

    @property
    def is_pruned(self) -> bool:
        """Whether ``pruned`` is given."""
        return self.pruned is not None


def run(pipeline: Arguments, args: ShearTrainingArguments) -> None:
    """Go on with the run in ``output_dir``, or start one from ``pruned``: recovery, baselines if asked for, report."""
    from ..report import require_matplotlib

    started = time.perf_counter()
    if args.named_output_dir is None:
        raise UsageError("`output_dir` is needed. Give the folder of the run that `hf-shear learn` made, or a new one.")
    require_matplotlib()  # for the report; now, not after the training
    if pipeline.sizes is not None:
        _recover_sizes(pipeline, args, started)
        return
    if pipeline.dry_run:
        adopts = pipeline.pruned is not None
        run = _adopting(pipeline, args) if adopts else _learned(pipeline, args)[0]
        run.tell_costs()
        return
    run, learned = _adopted(pipeline, args) if pipeline.pruned is not None else _learned(pipeline, args)
    run = runs.with_teacher_logits(run)
    recovered = run.stage("recovery", runs.recover, learned)
    runs.conclude(run, learned, recovered, started)
    if args.process_index == 0:
        folder = run.folder.path
        print(f"\nWrote {folder}/recovered, a plain checkpoint, and {folder}/report.html.")
        print(f"Publish it with: hf-shear push {folder} YOUR_NAME/MODEL_NAME --private")


def _recover_sizes(pipeline: Arguments, args: ShearTrainingArguments, started: float) -> None:
    """Cut the largest size, rank its units, train all sizes, report."""
    run = runs.open_nested_run(pipeline, args)
    if pipeline.dry_run:
        run.tell_costs()
        return
    run.stage("source", runs.judge_source)
    run = runs.with_teacher_logits(run)
    cut = runs.prune_or_learn(run)
    ranked = run.stage("ranking", runs.rank_sizes, cut)
    recovered = run.stage("recovery", runs.recover_sizes, cut, ranked)
    runs.conclude_sizes(run, cut, ranked, recovered, started)


def _learned(pipeline: Arguments, args: ShearTrainingArguments) -> tuple[runs.Run, dict]:
    """The run of ``hf-shear learn``, and its record."""
    if runs.finished_stages(args.output_dir) is None:
        raise UsageError(
            f"`output_dir` must be the folder of `hf-shear learn`, but {args.output_dir!r} holds no run. Name that folder,"
            " or start from a pruned checkpoint with `--pruned`."
        )
    target = {} if runs.target_flags(pipeline) else runs.target_of_run(args.output_dir)
    masks = pipeline.mask_tokens
    if masks is None:
        masks = runs.settings_of_run(args.output_dir).get("mask_tokens", learn.Arguments.mask_tokens)
    run = runs.open_run(replace(pipeline, **target, mask_tokens=masks, resume=True), args)
    learned = run.folder.records.get("mask_learning")
    if learned is None:
        raise UsageError(
            f"The run in {str(run.folder.path)!r} has no pruned model yet. Finish `hf-shear learn` first, or start from"
            " another pruned checkpoint in another folder with `--pruned`."
        )
    return run, learned


def _adopted(pipeline: Arguments, args: ShearTrainingArguments) -> tuple[runs.Run, dict]:
    """A run from a checkpoint that is pruned already, and the record of that."""
    run = _adopting(pipeline, args)
    run.stage("source", runs.judge_source)
    return run, run.stage(runs.STARTING_POINT, runs.adopt, pipeline.pruned)


def _adopting(pipeline: Arguments, args: ShearTrainingArguments) -> runs.Run:
    masks = pipeline.mask_tokens or learn.Arguments.mask_tokens  # none are learned
    return runs.open_adopting_run(replace(pipeline, mask_tokens=masks), args)
