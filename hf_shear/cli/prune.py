"""``hf-shear prune``: choose what to keep at once, by scores, and cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from .. import runs
from ..compensation import resolve_compensation
from ..data import Calibration
from ..modeling import AutoShearingModelForCausalLM
from ..one_shot import criteria_from_words, prune_one_shot
from ..shapes import SHAPE_NAMES
from ..slicing import provenance_record, save_checkpoint
from ..training import ShearTrainingArguments

SUMMARY = "Choose what to keep at once, by scores on calibration text, and cut."
EXAMPLE = "hf-shear prune path/to/llama --data_dir text --intermediate_size 5504 --output_dir pruned"
POSITIONAL = ("model_name_or_path",)


@dataclass(kw_only=True)
class Arguments(runs.TargetArguments, runs.DataArguments):
    """What is pruned, to which shape, by which scores."""

    model_name_or_path: str = field(metadata={"help": "A plain checkpoint of a supported family."})
    output_dir: str = field(metadata={"help": "Folder to make; it must not exist."})
    criterion: list[str] = field(
        default_factory=lambda: ["taylor"],
        metadata={"help": "Scores of the units; also by kind: activation layer=loss_rise"},
    )
    compensation: str = field(default="none", metadata={"help": "Update of what remains: least_squares, ..."})
    num_shots: int = field(default=1, metadata={"help": "Steps in which units are removed, each scored anew."})
    protect: str = field(default="", metadata={"help": "Layers that stay, such as first:4,last:2 or 0,7."})
    calibration_batches: int = field(default=16, metadata={"help": "Batches behind scores and compensation."})
    batch_size: int = field(default=8, metadata={"help": "Samples of a batch."})
    seed: int = field(default=42, metadata={"help": "Of the calibration batches, or of the random choice."})

    def __post_init__(self):
        if Path(self.output_dir).exists():
            raise ValueError(f"`output_dir` {self.output_dir!r} exists. Name a folder that does not.")
        for name in ("calibration_batches", "batch_size", "num_shots"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but it is {getattr(self, name)}.")
        resolve_compensation(self.compensation)
        criteria_from_words(self.criterion)


def run(arguments: Arguments) -> None:
    """Score, cut, save."""
    path = arguments.model_name_or_path
    config, tokenizer = AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    target, reasons = runs.choose_target(arguments, config)
    print("\n".join(filter(None, (reasons, f"Target: {target}"))))
    args = ShearTrainingArguments(arguments.output_dir, report_to="none")
    source = AutoModelForCausalLM.from_pretrained(path).to(args.device)
    data = runs.pack(arguments, runs.read_domains(arguments, args), tokenizer, config)
    batches = data.calibration(arguments.batch_size, arguments.calibration_batches, arguments.seed)
    pruning = prune_one_shot(
        source, target, Calibration(list(batches), arguments.seed), criteria_from_words(arguments.criterion),
        arguments.compensation, arguments.num_shots, as_family=arguments.as_family, protect=arguments.protect,
    )  # fmt: skip
    pruned = pruning.model
    masked = AutoShearingModelForCausalLM.from_model(source, target, as_family=arguments.as_family)
    provenance = provenance_record(
        masked, pruning.kept, seed=arguments.seed,
        method=" ".join(arguments.criterion), compensation=arguments.compensation, num_shots=arguments.num_shots,
        protect=arguments.protect,
    )  # fmt: skip
    save_checkpoint(pruned, arguments.output_dir, tokenizer, provenance)
    shape = ", ".join(f"{name} {getattr(pruned.config, name)}" for name in SHAPE_NAMES)
    print(f"Wrote {arguments.output_dir}: {shape}.")
