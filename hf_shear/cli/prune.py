"""``hf-shear prune``: choose what to keep at once, by scores, and cut."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .. import runs
from ..core import UsageError, check_parents, duration_text
from ..core.defaults import ALLOCATION, COMPENSATION, FORMS, NUM_SHOTS, default_criterion_words

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ..shapes import PerLayerShape, TargetShape

SUMMARY = "Choose what to keep at once, by scores on calibration text, and cut."
EXAMPLE = "hf-shear prune path/to/llama --data_dir text --intermediate_size 5504 --output_dir pruned"
POSITIONAL = ("model_name_or_path",)
MAKES_FOLDER = True


@dataclass(kw_only=True)
class Arguments(runs.TargetArguments, runs.DataArguments):
    """What is pruned, to which shape, by which scores."""

    model_name_or_path: str = field(metadata={"help": "A plain checkpoint of a supported family."})
    output_dir: str = field(metadata={"help": "Folder to make; it must not exist."})
    criterion: list[str] = field(
        default_factory=default_criterion_words,
        metadata={"help": "Scores of the units; also by kind: activation layer=loss_rise"},
    )
    compensation: str = field(
        default=COMPENSATION, metadata={"help": "Update of what remains, under any criterion; or none."}
    )
    allocation: str = field(
        default=ALLOCATION,
        metadata={"help": "uniform; or, to --target_num_parameters, global or adaptive: layers differ in width"},
    )
    units: list[str] | None = field(
        default=None, metadata={"help": "Kinds that global and adaptive remove: key_value_head intermediate ..."}
    )
    form: str = field(default=FORMS[0], metadata={"help": "Of uneven layers: padded with zeros, or nemotron_nas."})
    num_shots: int = field(default=NUM_SHOTS, metadata={"help": "Steps in which units are removed, each scored anew."})
    protect: str = field(default="", metadata={"help": "Layers that stay, such as first:4,last:2 or 0,7."})
    calibration_batches: int = field(default=16, metadata={"help": "Batches behind scores and compensation."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto",
        metadata={"help": "To compute in. auto: the checkpoint's, or float32 on a processor that lacks it."},
    )
    eval_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Held-out tokens per domain that judge both models. Default: 8192; of over two domains 16384 in all."
        },
    )
    batch_size: int = field(default=8, metadata={"help": "Samples of a batch."})
    seed: int = field(default=42, metadata={"help": "Of the calibration batches, or of the random choice."})
    dry_run: bool = runs.dry_run_field()

    def __post_init__(self):
        super().__post_init__()
        check_parents("output_dir", self.output_dir)
        if Path(self.output_dir).exists():
            raise UsageError(f"`output_dir` {self.output_dir!r} exists. Name a folder that does not.")
        runs.config_from_flags(self)


def run(arguments: Arguments) -> None:
    """Judge the source, score, cut, save, judge the result."""
    import torch

    from ..pruning import make_plan, prune_one_shot
    from ..report import comparison_table
    from ..shapes import ModelShape, PerLayerShape, as_family, family_named
    from ..sources import dtype_note, in_dtype, ready_to_compute
    from ..training import ShearTrainingArguments
    from .engine_rows import engine_warnings

    opened = runs.open_model(arguments)
    print(*opened.notes, sep="\n", end="\n" if opened.notes else "")
    config, tokenizer = opened.config, opened.load_tokenizer()
    if arguments.as_family is not None:
        config = as_family(config, family_named(arguments.as_family, "`as_family`: "))
    target = _target(arguments, config)
    choices = runs.config_from_flags(arguments)
    make_plan(config, target, choices)  # refuses before anything is loaded
    result = target.padded(config) if isinstance(target, PerLayerShape) else target
    runs.check_result(arguments.output_dir, opened.location, config, result, tokenizer, arguments.as_family)
    args = ShearTrainingArguments(
        arguments.output_dir,
        report_to="none",
        seed=arguments.seed,
        per_device_eval_batch_size=arguments.batch_size,
        per_device_train_batch_size=arguments.batch_size,
    )
    num_samples = arguments.calibration_batches * arguments.batch_size
    read = num_samples * arguments.max_length
    data = runs.pack(arguments, runs.read_domains(arguments, args), tokenizer, config, num_samples)
    if arguments.dry_run:
        judging = sum(map(len, data.judged.values())) * arguments.max_length
        work = runs.pruning_work(config, judging, read, arguments.max_length)
        runs.tell_costs({name: one.flops for name, one in work.items()}, config, args, arguments.max_length)
        return
    started = time.perf_counter()
    model = opened.load_model()
    stored = model.dtype
    source = ready_to_compute(
        model, args.device, None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    )
    print(*filter(None, [dtype_note(stored, source.dtype), _time_note(config, data, read, arguments)]), sep="\n")
    judged = runs.judge(source, data.judged, args, with_samples=True, compute_dtype=source.dtype)
    judged |= {"dtype": str(stored).removeprefix("torch.")}
    begun = time.perf_counter()
    print(f"Held-out loss of the source: {judged['mean']:.4f} ({duration_text(begun - started)}).")
    text = data.calibration(arguments.batch_size, arguments.calibration_batches, arguments.seed)
    pruning = prune_one_shot(source, target, text, choices, release_source=True)
    seconds = {"pruning": time.perf_counter() - begun}
    commands = runs.commands_for(opened.name)
    pruning.save(arguments.output_dir, tokenizer, stored, seed=arguments.seed, commands=commands)
    seconds["export"] = time.perf_counter() - begun - seconds["pruning"]
    cut = runs.judge(in_dtype(pruning.model, stored), data.judged, args, with_samples=True)  # as it was saved
    seconds["total"] = time.perf_counter() - started
    results = runs.pruning_results(judged, cut, pruning, args, seconds, commands)
    results = runs.save_results(arguments.output_dir, results)
    print()
    print(comparison_table(results))
    print(f"Wrote {arguments.output_dir}: {ModelShape.from_config(pruning.model.config).sizes_text()}.")
    print(pruning.cost.text(pruning.model.config).capitalize() + f", {duration_text(seconds['pruning'])}.")
    if pruning.uneven:
        print(
            f"{pruning.num_parameters:,} parameters of a budget of {pruning.budget:,};"
            f" {pruning.num_padded_parameters:,} with the zeros that pad narrower layers to that shape."
        )
    for line in engine_warnings(arguments.output_dir):
        print(line)
    if not pruning.uneven:
        print(
            f"Recover it with: hf-shear recover {arguments.model_name_or_path} --pruned {arguments.output_dir} --data_dir"
            f" {arguments.data_dir} --output_dir RECOVERED"
        )


def _time_note(config: PretrainedConfig, data: runs.DomainData, read: int, arguments: Arguments) -> str:
    """What is ahead, before any of it has begun."""
    judging = sum(map(len, data.judged.values())) * arguments.max_length
    share = runs.judging_share(config, judging, read, arguments.max_length)
    return (
        f"Calibration reads {read:,} tokens. Both models are judged on {judging:,} held-out tokens, {share:.0%} of the"
        " FLOPs (`eval_tokens`)."
    )


def _target(arguments: Arguments, config: PretrainedConfig) -> TargetShape | PerLayerShape | int:
    """The shape; or the budget, where layers may differ in width."""
    from ..pruning.allocation import resolve_allocation

    budget = arguments.target_num_parameters
    target, reasons = runs.choose_target(
        arguments, config, per_layer=True
    )  # checks that one way to name a target is used
    if budget is not None and resolve_allocation(arguments.allocation).uneven:
        print(f"Target: at most {budget:,} parameters, allocation {arguments.allocation}")
        return budget
    print("\n".join(filter(None, (reasons, f"Target: {target}"))))
    return target
