"""``hf-shear export``: a masked checkpoint, an adapter and its base, GGUF or fp8 weights, as a plain checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .. import runs
from ..core import UsageError, check_parents, read_json_object

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ..data import Calibration
    from ..modeling import ShearingModel
    from ..sources import Source

SUMMARY = "Turn a masked checkpoint, an adapter and its base, or a GGUF file into a plain checkpoint."
EXAMPLE = "hf-shear export sheared/mask_learning/checkpoint-500 --output_dir pruned --dtype bfloat16"
POSITIONAL = ("checkpoint",)
MAKES_FOLDER = True


@dataclass(kw_only=True)
class Arguments(runs.DataArguments):
    """What is exported, and where to; text, if what is cut is to be made up for."""

    checkpoint: str = field(
        metadata={"help": "A masked checkpoint, an adapter, a .gguf file, fp8 weights, or names under _orig_mod."}
    )
    output_dir: str = field(metadata={"help": "Folder to make; it must not exist."})
    base: str | None = field(default=None, metadata={"help": "The plain checkpoint that an adapter was trained on."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Of the weights; auto: as they are."}
    )

    compensation: str = field(default="none", metadata={"help": "What makes up for the cut; needs --data_dir."})
    source: str | None = field(
        default=None, metadata={"help": "The model before mask learning, if it moved; for towards=source."}
    )
    calibration_batches: int = field(default=16, metadata={"help": "Batches of text for the compensation."})
    batch_size: int = field(default=8, metadata={"help": "Samples of a batch."})
    seed: int = field(default=42, metadata={"help": "Of the calibration batches."})
    dry_run: bool = runs.dry_run_field("Check everything, and end; nothing is written.")

    def __post_init__(self):
        super().__post_init__()
        reads_source = False
        if self.compensation != "none":
            from ..compensation import resolve_compensation

            reads_source = resolve_compensation(self.compensation).reads_source
            if self.is_adapter:
                raise UsageError("`compensation` is for masks that are cut, but `checkpoint` is an adapter.")
            if self.data_dir is None:
                raise UsageError(f"`compensation={self.compensation!r}` needs text: give `--data_dir`.")
        if self.source is not None and not reads_source:
            raise UsageError(
                f"`source` {self.source!r} is read by a compensation towards it alone, but `compensation` is"
                f" {self.compensation!r}. Give `least_squares:towards=source`, or leave it out."
            )
        check_parents("output_dir", self.output_dir)
        if Path(self.output_dir).exists():
            raise UsageError(f"`output_dir` {self.output_dir!r} exists. Name a folder that does not.")
        if self.base is not None and not self.is_adapter:
            raise UsageError(
                f"`base` is for an adapter, but `checkpoint` {self.checkpoint!r} holds none. Leave it out."
            )
        if self.is_adapter and self.base is None:
            raise UsageError(
                f"`checkpoint` {self.checkpoint!r} is an adapter: give `--base`, the checkpoint it was trained on."
            )

    @property
    def is_adapter(self) -> bool:
        """Whether the checkpoint is an adapter of peft."""
        return (Path(self.checkpoint) / "adapter_config.json").is_file()


def run(arguments: Arguments) -> None:
    """Cut or merge, and save whole or not at all."""
    import torch

    from ..modeling import AutoShearingModelForCausalLM
    from ..slicing import check_saves, provenance_record, save_checkpoint
    from ..sources import open_source, read_generation_config
    from ..training import merge_adapter
    from .engine_rows import engine_warnings

    dtype = None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    provenance = None
    if arguments.base is not None:  # of an adapter
        read_json_object(Path(arguments.checkpoint) / "adapter_config.json", "`checkpoint`: the adapter's config")
        opened = open_source("base", arguments.base)
        tokenizer = _tokenizer(opened)
        check_saves(arguments.output_dir, opened.config, tokenizer, read_generation_config(opened.location))
        if _ends_dry(arguments):
            return
        base = opened.load_model(torch.float32)  # nothing is rounded while merging
        model = merge_adapter(base, arguments.checkpoint)
    else:
        opened = open_source("checkpoint", arguments.checkpoint, masked=None, unwrap=True)
        if opened.is_plain:
            raise UsageError(
                f"`checkpoint` {opened.name!r} has no masks (model_type {opened.config.model_type!r}), and its weights are"
                " whole and under plain names: it is a plain checkpoint already. Use it as it is."
            )
        tokenizer, config = _tokenizer(opened), opened.config
        if opened.has_masks:
            runs.check_result(arguments.output_dir, opened.location, config, config.resolved_target(), tokenizer)
            text = _calibration(arguments, opened)  # refused, if it is, before any weight is loaded
            if _ends_dry(arguments):
                return
            masked = AutoShearingModelForCausalLM.from_pretrained(opened)
            model, kept, facts = _cut(arguments, masked, text, dtype)
            provenance = provenance_record(masked, kept, commands=runs.commands_for(opened.name), **facts)
            dtype = None  # what was cut is in it
        else:
            check_saves(arguments.output_dir, config, tokenizer, read_generation_config(opened.location))
            if _ends_dry(arguments):
                return
            model = opened.load_model()
    save_checkpoint(model, arguments.output_dir, tokenizer, provenance, dtype=dtype)
    print(f"Wrote {arguments.output_dir}." + ("" if tokenizer else " No tokenizer lies beside the checkpoint."))
    for line in engine_warnings(arguments.output_dir):
        print(line)


def _ends_dry(arguments: Arguments) -> bool:
    """Whether no more than the checks was asked for, which are over then."""
    if arguments.dry_run:
        print("Dry run: all of this was checked, and nothing was written. No weights are loaded for it.")
    return arguments.dry_run


def _tokenizer(opened: Source) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a checkpoint, if there is one."""
    return opened.load_tokenizer() if opened.has_tokenizer else None


def _calibration(arguments: Arguments, opened: Source) -> Calibration | None:
    """Text for the compensation, if there is to be one."""
    from ..training import ShearTrainingArguments

    if arguments.compensation == "none":
        return None
    runs.check_learned_cut(arguments.compensation, opened.config)
    args = ShearTrainingArguments(arguments.output_dir, report_to="none")
    num_samples = arguments.calibration_batches * arguments.batch_size
    domains = runs.read_domains(arguments, args)
    data = runs.pack(arguments, domains, opened.load_tokenizer(), opened.config, num_samples)
    return data.calibration(arguments.batch_size, arguments.calibration_batches, arguments.seed)


def _cut(arguments: Arguments, masked: ShearingModel, text: Calibration | None, dtype: torch.dtype | None):
    """The sliced model, the kept units, and what compensation did, for the provenance."""
    from ..compensation import resolve_compensation
    from ..slicing import slice_model
    from ..sources import on_device, open_source
    from ..training import ShearTrainingArguments

    if text is None:
        return *slice_model(masked, dtype=dtype, release_source=True), {}
    source = None
    method = resolve_compensation(arguments.compensation)
    if method.reads_source:
        name = arguments.source or masked.config.source_name_or_path
        source = open_source("source", name, as_family=masked.family.model_type).load_model(masked.dtype)
    device = ShearTrainingArguments(arguments.output_dir, report_to="none").device
    model, kept, report = runs.cut_learned_masks(on_device(masked, device), arguments.compensation, text, source, dtype)
    return model, kept, {"compensation": {"method": arguments.compensation, **asdict(report)}}
