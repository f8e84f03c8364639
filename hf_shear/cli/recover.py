"""``hf-shear recover``: train a pruned model of ``hf-shear learn`` back to strength."""

from __future__ import annotations

import time
from dataclasses import replace

from .. import runs
from ..training import ShearTrainingArguments
from . import learn

SUMMARY = "Train a pruned model back: all weights, LoRA, norms and biases; with or without a teacher."
EXAMPLE = "hf-shear recover path/to/llama --output_dir sheared --data_dir text --distillation forward_kl"
POSITIONAL = ("model_name_or_path",)
OTHERS = (ShearTrainingArguments,)
REFUSED = learn.REFUSED | {"resume": "this verb always goes on", "overwrite": "this verb always goes on"}
Arguments = learn.Arguments


def run(pipeline: Arguments, args: ShearTrainingArguments) -> None:
    """Go on with the run in ``output_dir``: recovery, baselines if asked for, and the report."""
    started = time.perf_counter()
    if args.output_dir == "trainer_output":
        raise ValueError("`output_dir` is needed: the folder of the run that `hf-shear learn` made.")
    run = runs.open_run(replace(pipeline, resume=True), args)
    learned = run.folder.finished("mask_learning")
    if learned is None:
        raise ValueError(f"The run in {str(run.folder.path)!r} has no pruned model yet. Finish `hf-shear learn` first.")
    run = runs.with_teacher_logits(run)
    recovered = run.stage("recovery", runs.recover, learned)
    runs.conclude(run, learned, recovered, started)
