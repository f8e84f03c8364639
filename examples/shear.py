"""Shear a pretrained Llama to the shape you choose: source -> prune -> recover -> evaluate -> compare.

    accelerate launch examples/shear.py
    accelerate launch examples/shear.py --model_name_or_path LLAMA --data_dir TEXT --hidden_size 2048 --output_dir OUT

Without arguments it shears the tiny model in examples/embedded/model on text from Python's own library. `--help` lists
the usual arguments, `--help-all` all, with those of transformers.TrainingArguments; `--config FILE.yaml` sets any of them.
With `--mask_tokens` what to keep is learned in training, as in Sheared LLaMA (`--paper` for the paper's exact method).
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from embedded.stdlib_domains import stdlib_domains

from hf_shear import ShearTrainingArguments, runs
from hf_shear.core import DEBUG, run_command_line
from hf_shear.report import require_matplotlib

EMBEDDED = Path(__file__).resolve().parent / "embedded"
TOKENS = "give --recovery_tokens, and --mask_tokens to learn masks"
NOT_HERE = {
    "num_tokens": TOKENS, "max_steps": TOKENS, "num_train_epochs": TOKENS, "push_to_hub": "use hf-shear push OUT REPO_ID",
}  # fmt: skip


@dataclass(kw_only=True)
class PipelineArguments(runs.ShearArguments):
    """What is sheared, to which shape, on which text, for how long."""

    model_name_or_path: str = field(default=str(EMBEDDED / "model"), metadata={"help": "A plain Llama checkpoint."})


def main(words: list[str] | None = None) -> None:
    started = time.perf_counter()
    pipeline, args = runs.parse_arguments(
        (PipelineArguments, ShearTrainingArguments), words, default_config=EMBEDDED / "shear.yaml",
        unless=["model_name_or_path"], instead=runs.SHAPE_ARGUMENTS, refused=NOT_HERE,
    )  # fmt: skip
    require_matplotlib()
    run = runs.open_run(pipeline, args, default_domains=stdlib_domains)
    if pipeline.dry_run:
        run.tell_costs()
        return

    run.stage("source", runs.judge_source)
    run = runs.with_teacher_logits(run)  # only if --teacher_placement stored
    if pipeline.stop_after == "teacher_logits":
        return
    pruned = runs.prune_or_learn(run)  # at once, or by learned masks: exactly the target's shape, in OUT/pruned
    if pipeline.stop_after in ("pruning", "mask_learning"):
        return
    recovered = run.stage("recovery", runs.recover, pruned)  # OUT/recovered
    if pipeline.stop_after == "recovery":
        return
    runs.conclude(run, pruned, recovered, started)  # baselines, results, report


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(run_command_line("shear.py", lambda: main([word for word in given if word != DEBUG]), DEBUG in given))
