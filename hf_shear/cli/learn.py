"""``hf-shear learn``: learn masks towards a shape, and cut the model to it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .. import runs

if TYPE_CHECKING:
    from ..training import ShearTrainingArguments

SUMMARY = "Learn which units to keep, and cut the model to exactly your shape."
EXAMPLE = "hf-shear learn path/to/llama --data_dir text --intermediate_size 5504 --output_dir sheared"
POSITIONAL = ("model_name_or_path",)
Arguments = runs.PipelineArguments
TRAINS = True
TOKENS = "give --mask_tokens and --recovery_tokens"
REFUSED = {name: TOKENS for name in ("num_tokens", "max_steps", "num_train_epochs")} | {
    "push_to_hub": "use hf-shear push OUT REPO_ID",
    "stop_after": "the verb says it; leave it out",
}


def run(pipeline: Arguments, args: ShearTrainingArguments) -> None:
    """Judge the source, learn masks, export to <output_dir>/pruned."""
    from .engine_rows import engine_warnings

    opened = runs.open_run(replace(pipeline, stop_after="mask_learning"), args)
    if pipeline.dry_run:
        opened.tell_costs()
        return
    opened.stage("source", runs.judge_source)
    opened = runs.with_teacher_logits(opened)
    learned = opened.stage("mask_learning", runs.learn_masks)
    if args.process_index == 0:
        shape = opened.target.sizes_text()
        print(f"{opened.folder.path / 'pruned'}: {shape}; held-out loss {learned['model']['mean']:.3f}")
        for line in engine_warnings(opened.folder.path / "pruned"):
            print(line)
        same = "the same flags" + (f" and --output_dir {opened.folder.path}" if args.named_output_dir is None else "")
        print(f"Recover it with: hf-shear recover {pipeline.model_name_or_path} and {same}")
