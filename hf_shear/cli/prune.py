"""``hf-shear prune``: choose what to keep at once, by scores, and cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers import AutoConfig, AutoTokenizer

from .. import runs
from ..importance import prune_one_shot, random_importance, taylor_importance
from ..masks import MaskSettings
from ..modeling import ShearingLlamaForCausalLM
from ..shapes import SHAPE_NAMES
from ..slicing import provenance_record, save_checkpoint
from ..training import ShearTrainingArguments

SUMMARY = "Choose what to keep at once, by scores on calibration text, and cut."
EXAMPLE = "hf-shear prune path/to/llama --data_dir text --intermediate_size 5504 --output_dir pruned"
POSITIONAL = ("model_name_or_path",)


@dataclass(kw_only=True)
class Arguments(runs.TargetArguments, runs.DataArguments):
    """What is pruned, to which shape, by which scores."""

    model_name_or_path: str = field(metadata={"help": "A plain Llama checkpoint."})
    output_dir: str = field(metadata={"help": "Folder to make; it must not exist."})
    criterion: Literal["taylor", "random"] = field(default="taylor", metadata={"help": "Scores of the units."})
    calibration_batches: int = field(default=16, metadata={"help": "Batches behind Taylor scores."})
    batch_size: int = field(default=8, metadata={"help": "Samples of a batch."})
    seed: int = field(default=42, metadata={"help": "Of the calibration batches, or of the random choice."})

    def __post_init__(self):
        if Path(self.output_dir).exists():
            raise ValueError(f"`output_dir` {self.output_dir!r} exists. Name a folder that does not.")
        for name in ("calibration_batches", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but it is {getattr(self, name)}.")


def run(arguments: Arguments) -> None:
    """Score, cut, save."""
    path = arguments.model_name_or_path
    config, tokenizer = AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    target, reasons = runs.choose_target(arguments, config)
    print("\n".join(filter(None, (reasons, f"Target: {target}"))))
    args = ShearTrainingArguments(arguments.output_dir, report_to="none")
    source = ShearingLlamaForCausalLM.from_pretrained(
        path, target_shape=target, mask_settings=MaskSettings(seed=arguments.seed)
    ).to(args.device)
    if arguments.criterion == "random":
        importance = random_importance(source, arguments.seed)
    else:
        data = runs.pack(arguments, runs.read_domains(arguments, args), tokenizer, config)
        batches = list(data.calibration(arguments.batch_size, arguments.calibration_batches, arguments.seed))
        importance = taylor_importance(source, batches, arguments.batch_size)
    pruned, kept = prune_one_shot(source, importance)
    provenance = provenance_record(source, kept, seed=arguments.seed, method=arguments.criterion)
    save_checkpoint(pruned, arguments.output_dir, tokenizer, provenance)
    shape = ", ".join(f"{name} {getattr(pruned.config, name)}" for name in SHAPE_NAMES)
    print(f"Wrote {arguments.output_dir}: {shape}.")
