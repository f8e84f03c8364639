"""``hf-shear export``: a masked checkpoint, or an adapter and its base, as a plain checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoConfig, AutoTokenizer

from ..modeling import AutoShearingModelForCausalLM, is_masked_config
from ..recovery import merge_adapter
from ..slicing import provenance_record, save_checkpoint, slice_model

SUMMARY = "Turn a masked checkpoint, or an adapter and its base, into a plain checkpoint."
EXAMPLE = "hf-shear export sheared/mask_learning/checkpoint-500 --output_dir pruned --dtype bfloat16"
POSITIONAL = ("checkpoint",)


@dataclass
class Arguments:
    """What is exported, and where to."""

    checkpoint: str = field(metadata={"help": "A masked checkpoint, or the folder of an adapter."})
    output_dir: str = field(metadata={"help": "Folder to make; it must not exist."})
    base: str | None = field(default=None, metadata={"help": "The plain checkpoint that an adapter was trained on."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Of the weights; auto: as they are."}
    )

    def __post_init__(self):
        if Path(self.output_dir).exists():
            raise ValueError(f"`output_dir` {self.output_dir!r} exists. Name a folder that does not.")
        if not Path(self.checkpoint).is_dir():
            raise ValueError(f"`checkpoint` {self.checkpoint!r} is not a folder.")
        if self.is_adapter and self.base is None:
            raise ValueError(
                f"`checkpoint` {self.checkpoint!r} is an adapter: give `--base`, the checkpoint it was trained on."
            )

    @property
    def is_adapter(self) -> bool:
        """Whether the checkpoint is an adapter of peft."""
        return (Path(self.checkpoint) / "adapter_config.json").is_file()


def run(arguments: Arguments) -> None:
    """Cut or merge, and save whole or not at all."""
    dtype = None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    provenance = None
    if arguments.is_adapter:
        model, tokenizer_path = merge_adapter(arguments.base, arguments.checkpoint), arguments.base
    else:
        config = AutoConfig.from_pretrained(arguments.checkpoint)
        if not is_masked_config(config):
            raise ValueError(
                f"`checkpoint` {arguments.checkpoint!r} has no masks (model_type {config.model_type!r}): it is a plain"
                " checkpoint already, or of another kind."
            )
        masked = AutoShearingModelForCausalLM.from_pretrained(arguments.checkpoint)
        model, kept = slice_model(masked)
        provenance, tokenizer_path = provenance_record(masked, kept), arguments.checkpoint
    tokenizer = None
    if any((Path(tokenizer_path) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    save_checkpoint(model, arguments.output_dir, tokenizer, provenance, dtype=dtype)
    print(f"Wrote {arguments.output_dir}." + ("" if tokenizer else " No tokenizer lies beside the checkpoint."))
