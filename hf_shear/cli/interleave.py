"""``hf-shear interleave``: prune and train by turns, under one optimizer and one learning-rate schedule."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .. import runs
from ..core import StoppedBySignal, UsageError, content_of
from ..core.defaults import COMPENSATION, NUM_STAGES, PRUNING_SHARE, default_criterion_words

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ..runs.run_time import Work
    from ..shapes import TargetShape
    from ..sources import Source
    from ..training import ShearTrainingArguments

SUMMARY = "Prune in stages and train in between, on one budget of tokens."
EXAMPLE = "hf-shear interleave path/to/llama --data_dir text --hidden_size 2048 --num_tokens 1000000 --output_dir out"
POSITIONAL = ("model_name_or_path",)
TRAINS = True
REFUSED = {name: "give --num_tokens" for name in ("max_steps", "num_train_epochs")} | {
    "push_to_hub": "use hf-shear push OUT REPO_ID",
    "recovery_method": "all weights are trained between the stages; leave it out",
}
PRUNED, SOURCE = "pruned", "source"
"""The result's folder, as of every run, and the record of the source, which a run that goes on does not judge again."""


@dataclass(kw_only=True)
class Arguments(runs.TargetArguments, runs.DataArguments):
    """What is pruned, to which shape, by which scores, in how many stages."""

    model_name_or_path: str = field(metadata={"help": "A plain checkpoint."})
    criterion: list[str] = field(
        default_factory=default_criterion_words,
        metadata={"help": "Scores of the units; also by kind: activation layer=loss_rise"},
    )
    compensation: str = field(
        default=COMPENSATION,
        metadata={"help": "Update of what remains, at every stage, under any criterion; or none."},
    )
    num_stages: int = field(default=NUM_STAGES, metadata={"help": "Times that units are removed, each scored anew."})
    pruning_share: float = field(default=PRUNING_SHARE, metadata={"help": "Of the steps, in which units are removed."})
    calibration_batches: int = field(default=16, metadata={"help": "Batches of a step's size behind the scores."})
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in --output_dir."})
    live_page: bool = runs.live_page_field()
    dry_run: bool = runs.dry_run_field()

    def __post_init__(self):
        super().__post_init__()
        runs.config_from_flags(self, num_shots=self.num_stages)


@dataclass(frozen=True)
class _Followed:
    """What the live page reads of this run."""

    folder: runs.RunFolder
    source: Source
    target: TargetShape
    work: dict[str, Work]
    flops_per_token: float
    stop_after: None = None

    def planned(self) -> dict[str, Work]:
        return self.work

    def training_flops(self, config: PretrainedConfig) -> float:
        return self.flops_per_token


def run(arguments: Arguments, args: ShearTrainingArguments) -> None:
    """Judge the source, prune and train by turns, cut, save to <output_dir>/pruned, judge and report."""
    import torch
    from accelerate import PartialState

    from ..data import Calibration
    from ..pruning import make_plan, prune_interleaved
    from ..pruning.interleave import pruning_steps
    from ..runs.live_page import LivePage
    from ..runs.run_time import BY_TURNS, PASSES_TO_PRUNE, Work
    from ..shapes import ModelShape, forward_flops_per_token, training_flops_per_token
    from ..training import check_mask_options
    from .engine_rows import engine_warnings

    check_mask_options(args)
    if args.num_tokens is None or args.named_output_dir is None:
        raise UsageError(
            "`num_tokens` and `output_dir` are needed: the budget of all stages together, and a folder. Give both."
        )
    folder = Path(args.output_dir) / PRUNED
    if folder.exists():
        raise UsageError(f"`output_dir` {args.output_dir!r} holds a finished run. Name another folder.")
    resumes = arguments.resume and folder.parent.is_dir() and bool(content_of(folder.parent))
    opened = runs.open_model(arguments)
    config, tokenizer = opened.config, opened.load_tokenizer()
    target, reasons = runs.choose_target(arguments, config)
    choices = runs.config_from_flags(arguments, num_shots=arguments.num_stages)
    make_plan(config, target, choices)  # these refuse before anything is loaded
    runs.check_result(args.output_dir, opened.location, config, target, tokenizer, arguments.as_family)
    domains = runs.read_domains(arguments, args)
    pruning_steps(args.steps_for_tokens(args.num_tokens, arguments.max_length), choices)
    settings = runs.run_settings(arguments, target, args) | runs.read_checkpoints(arguments, opened)
    run_folder = runs.RunFolder(args.output_dir, resumes, settings=settings, dry=arguments.dry_run)
    PartialState().print("\n".join(filter(None, (*opened.notes, reasons, f"Target: {target}"))))
    data = runs.pack(arguments, domains, tokenizer, config)
    runs.require_same_text(run_folder, data)
    read = arguments.num_stages * arguments.calibration_batches * args.samples_per_step() * arguments.max_length
    flops = training_flops_per_token(config, arguments.max_length)  # of the source: an upper bound
    work = {"scores": PASSES_TO_PRUNE * read * flops, "training": args.num_tokens * flops}
    if arguments.dry_run:
        runs.tell_costs(work, config, args, arguments.max_length, {"training": config})
        return
    checkpoint = run_folder.last_checkpoint(".") if resumes else None
    if arguments.resume and checkpoint is None:
        PartialState().print(f"There is no whole checkpoint in {args.output_dir!r}: training begins at its first step.")
    started = time.perf_counter()
    read = sum(map(len, data.judged.values())) * arguments.max_length
    judging = read * forward_flops_per_token(config, arguments.max_length)
    stages = {SOURCE: Work(0.0, judging), BY_TURNS: Work(sum(work.values()), judging)}
    followed, live = _Followed(run_folder, opened, target, stages, flops), LivePage(arguments.live_page)
    with live.stage(followed, SOURCE):
        judged = run_folder.stage(SOURCE, lambda: runs.judge_checkpoint(opened, data.judged, args))
    PartialState().print(f"Held-out loss of the source: {judged['mean']:.4f}.")
    drawn = data.calibration(args.samples_per_step(), arguments.calibration_batches, args.seed)
    source = opened.load_model(torch.float32)  # AdamW loses small steps in others
    text = Calibration.from_batches(drawn.batches, args.train_batch_size, args.seed)
    begun = time.perf_counter()
    try:
        with live.stage(followed, BY_TURNS):
            found = prune_interleaved(
                source, target, text, choices, args, data.train, data.steering, resume_from_checkpoint=checkpoint,
                watch=live.watch,
            )  # fmt: skip
    except StoppedBySignal as stop:
        stop.advice = f"To go on: the same command{'' if arguments.resume else ' with `--resume`'}."
        raise
    dtype = getattr(config, "dtype", None)
    dtype = dtype if dtype != torch.float32 else None
    trained = time.perf_counter()
    commands = runs.commands_for(opened.name)
    found.save(
        folder, tokenizer, dtype, seed=args.seed, commands=commands, interleaved={"tokens": found.trainer.tokens_seen()}
    )
    seconds = {"pruning": trained - begun, "export": time.perf_counter() - trained}
    record = runs.judge_checkpoint(folder, data.judged, args)
    seconds["total"] = time.perf_counter() - started
    if args.process_index == 0:
        results = runs.interleaving_results(judged, record, found, args, seconds, commands)
        print(f"\n{runs.draw_report(Path(args.output_dir), results)}")
        print(f"Wrote {folder}: {ModelShape.from_config(found.model.config).sizes_text()}.")
        for line in engine_warnings(folder):
            print(line)
