"""``hf-shear prune``: choose what to keep at once, by scores, and cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from transformers import PretrainedConfig

from .. import runs
from ..core import UsageError, check_parents
from ..modeling import as_family
from ..pruning import PruneConfig, default_criterion_words, make_plan, prune_one_shot
from ..pruning.allocation import resolve_allocation
from ..shapes import ModelShape, TargetShape, family_named
from ..sources import on_device
from ..training import ShearTrainingArguments
from .engine_rows import engine_warnings

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
        default=PruneConfig.compensation, metadata={"help": "Update of what remains, under any criterion; or none."}
    )
    allocation: str = field(
        default=PruneConfig.allocation,
        metadata={"help": "uniform; or, to --target_num_parameters, global or adaptive: layers differ in width"},
    )
    units: list[str] | None = field(
        default=None, metadata={"help": "Kinds that global and adaptive remove: key_value_head intermediate ..."}
    )
    form: str = field(
        default=PruneConfig.form, metadata={"help": "Of uneven layers: padded with zeros, or nemotron_nas."}
    )
    num_shots: int = field(
        default=PruneConfig.num_shots, metadata={"help": "Steps in which units are removed, each scored anew."}
    )
    protect: str = field(default="", metadata={"help": "Layers that stay, such as first:4,last:2 or 0,7."})
    calibration_batches: int = field(default=16, metadata={"help": "Batches behind scores and compensation."})
    batch_size: int = field(default=8, metadata={"help": "Samples of a batch."})
    seed: int = field(default=42, metadata={"help": "Of the calibration batches, or of the random choice."})

    def __post_init__(self):
        super().__post_init__()
        check_parents("output_dir", self.output_dir)
        if Path(self.output_dir).exists():
            raise UsageError(f"`output_dir` {self.output_dir!r} exists. Name a folder that does not.")
        runs.config_from_flags(self)


def run(arguments: Arguments) -> None:
    """Score, cut, save."""
    opened = runs.open_model(arguments)
    print(*opened.notes, sep="\n", end="\n" if opened.notes else "")
    config, tokenizer = opened.config, opened.load_tokenizer()
    if arguments.as_family is not None:
        config = as_family(config, family_named(arguments.as_family, "`as_family`: "))
    target = _target(arguments, config)
    choices = runs.config_from_flags(arguments)
    make_plan(config, target, choices)  # refuses before anything is loaded
    runs.check_result(arguments.output_dir, opened.location, config, target, tokenizer, arguments.as_family)
    args = ShearTrainingArguments(arguments.output_dir, report_to="none")
    data = runs.pack(arguments, runs.read_domains(arguments, args), tokenizer, config)
    source = on_device(opened.load_model(), args.device)
    text = data.calibration(arguments.batch_size, arguments.calibration_batches, arguments.seed)
    pruning = prune_one_shot(source, target, text, choices, release_source=True)
    pruning.save(arguments.output_dir, tokenizer, seed=arguments.seed)
    print(f"Wrote {arguments.output_dir}: {ModelShape.from_config(pruning.model.config).sizes_text()}.")
    print(pruning.cost.text(pruning.model.config).capitalize() + ".")
    if pruning.uneven:
        print(
            f"{pruning.num_parameters:,} parameters of a budget of {pruning.budget:,};"
            f" {pruning.num_padded_parameters:,} with the zeros that pad narrower layers to that shape."
        )
    for line in engine_warnings(arguments.output_dir):
        print(line)


def _target(arguments: Arguments, config: PretrainedConfig) -> TargetShape | int:
    """The shape; or the budget, where layers may differ in width."""
    budget = arguments.target_num_parameters
    target, reasons = runs.choose_target(arguments, config)  # checks that one way to name a target is used
    if budget is not None and resolve_allocation(arguments.allocation).uneven:
        print(f"Target: at most {budget:,} parameters, allocation {arguments.allocation}")
        return budget
    print("\n".join(filter(None, (reasons, f"Target: {target}"))))
    return target
