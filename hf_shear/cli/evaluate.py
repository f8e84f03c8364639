"""``hf-shear evaluate``: two checkpoints side by side, or one alone."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .. import runs
from ..core import UsageError, check_output_file

if TYPE_CHECKING:
    from ..evaluation import PerplexityProtocol
    from ..sources import Source

SUMMARY = "Judge a checkpoint, or compare two: size, loss by domain, lm-eval tasks, speed."
EXAMPLE = "hf-shear evaluate path/to/llama sheared/recovered --data_dir text --tasks_dir tasks --tasks my_task"
POSITIONAL = ("source", "pruned")


@dataclass(kw_only=True)
class Arguments(runs.TextArguments):
    """What is judged, on what, how."""

    source: str = field(metadata={"help": "Plain checkpoint: a folder, or a name on the Hub."})
    pruned: str | None = field(default=None, metadata={"help": "Another, to be compared with it."})
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with one sub-folder or file per domain, for the loss. Read are the documents that"
            " examples/shear.py holds out: no training of its default saw them."
        },
    )
    held_out_fraction: float = field(default=0.1, metadata={"help": "Share held out, as given to examples/shear.py."})
    all_documents: bool = field(default=False, metadata={"help": "Read all documents, for text that no model saw."})
    max_documents: int | None = field(default=None, metadata={"help": "Only the first of each domain."})
    window: int | None = field(default=None, metadata={"help": "Tokens read at once. Default: positions, up to 2048."})
    stride: int | None = field(default=None, metadata={"help": "Tokens the window moves on. Default: half of it."})
    tasks: str | None = field(default=None, metadata={"help": "lm-eval tasks or .yaml task files, with commas."})
    tasks_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of task files; no network then. Their relative paths are read from this folder."},
    )
    limit: int | None = field(default=None, metadata={"help": "Only the first items of each task."})
    speed: bool = field(default=True, metadata={"help": "Time two checkpoints in turns. --no_speed: do not."})
    prompt_length: int = field(default=256, metadata={"help": "Tokens of prefill that are timed."})
    new_tokens: int = field(default=64, metadata={"help": "Decoding steps that are timed."})
    rounds: int = field(default=7, metadata={"help": "Timed rounds."})
    speed_batch_size: int = field(default=1, metadata={"help": "Sequences at once in what is timed."})
    batch_size: int = field(default=8, metadata={"help": "Windows or task requests per forward."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "auto: each checkpoint's, or float32 on a processor that lacks it."}
    )
    device: str | None = field(default=None, metadata={"help": "Default: the accelerator, else cpu."})
    output: str = field(default="evaluation.json", metadata={"help": "File for the numbers, written part by part."})
    overwrite: bool = field(default=False, metadata={"help": "Replace that file."})
    dry_run: bool = runs.dry_run_field()

    def __post_init__(self):
        super().__post_init__()
        if self.tasks_dir is not None and not self.task_names:
            raise UsageError("`tasks_dir` is given without `tasks`. Name the tasks, such as `--tasks shear_piqa`.")
        for name in ("max_documents", "window", "stride", "all_documents"):
            if self.data_dir is None and getattr(self, name):
                raise UsageError(
                    f"`{name}` ({getattr(self, name)}) is about the loss on text, but there is none. Give `--data_dir`, or"
                    " leave it out."
                )
        check_output_file("output", self.output)
        if self.device is not None:
            from ..evaluation import resolve_device

            resolve_device(self.device)
        if Path(self.output).exists() and not self.overwrite:
            raise UsageError(f"`output` {self.output!r} exists. Name another file, or replace it with `--overwrite`.")

    @property
    def task_names(self) -> list[str]:
        """Names in `tasks`."""
        return [name.strip() for name in (self.tasks or "").split(",") if name.strip()]


def run(arguments: Arguments) -> None:
    """Check, judge, save, print."""
    from ..core import write_results
    from ..evaluation import (
        PerplexityProtocol,
        SpeedProtocol,
        compare_checkpoints,
        evaluate_checkpoint,
        evaluation_table,
        evaluation_versions,
        load_tasks,
    )
    from ..slicing import check_saves
    from ..sources import open_source

    names = {"source": arguments.source, "pruned": arguments.pruned}
    names = {role: name for role, name in names.items() if name is not None}
    documents = "all" if arguments.all_documents else f"held out ({arguments.held_out_fraction:g} of the documents)"
    protocol = PerplexityProtocol(
        arguments.window, arguments.stride, arguments.max_documents, arguments.batch_size, documents,
        arguments.parse_special_tokens,
    )  # fmt: skip
    timed = SpeedProtocol(arguments.speed_batch_size, arguments.prompt_length, arguments.new_tokens, arguments.rounds)
    check_saves(Path(arguments.output).absolute().parent, argument="output")
    sources = {role: open_source(role, name) for role, name in names.items()}
    protocol = protocol.resolved(*(source.config for source in sources.values()))  # before any text is read
    options = {
        "domains": _domains(arguments),
        "perplexity": protocol,
        "tasks": load_tasks(arguments.task_names, arguments.tasks_dir) if arguments.task_names else None,
        "limit": arguments.limit,
        "device": arguments.device,
        "dtype": _dtype(arguments.dtype),
    }
    if arguments.dry_run:
        _tell_costs(arguments, sources, protocol, options["domains"])
        return
    if arguments.pruned is None:
        record = {"source": evaluate_checkpoint(arguments.source, **options), "versions": evaluation_versions()}
    else:
        options["speed"] = timed if arguments.speed else None
        record = compare_checkpoints(**names, **options, on_part=lambda part: write_results(arguments.output, part))
    path = write_results(arguments.output, record)
    print(evaluation_table(record))
    print(f"Written: {os.fspath(path)}")


def _tell_costs(arguments: Arguments, sources: dict[str, Source], protocol: PerplexityProtocol, domains) -> None:
    """What the losses cost here; tasks and speed are named."""
    from ..evaluation.perplexity import domain_texts
    from ..shapes import forward_flops_per_token
    from ..training import ShearTrainingArguments

    assert protocol.window is not None and protocol.stride is not None, "they are resolved"
    args = ShearTrainingArguments(
        str(Path(arguments.output).parent), report_to="none", per_device_train_batch_size=arguments.batch_size,
        use_cpu=arguments.device == "cpu",
    )  # fmt: skip
    work = {}
    if domains is not None:
        texts = [text for texts in domain_texts(domains, protocol.max_documents).values() for text in texts]
        for role, source in sources.items():
            read = sum(map(len, source.load_tokenizer()(texts)["input_ids"])) * protocol.window / protocol.stride
            work[f"loss of {role}"] = read * forward_flops_per_token(source.config, protocol.window)
    runs.tell_costs(work, sources["source"].config, args, protocol.window)
    more = [*arguments.task_names, *["speed"] * (arguments.speed and arguments.pruned is not None)]
    if more:
        print(f"Not counted: {', '.join(more)}.")


def _domains(arguments: Arguments):
    """Documents by domain: held out, or all."""
    if arguments.data_dir is None:
        return None
    from ..data import split_domains
    from ..runs.domain_data import SPLIT_SEED

    domains = runs.load_text(arguments)
    if arguments.all_documents:
        return domains
    return split_domains(domains, arguments.held_out_fraction, seed=SPLIT_SEED)[1]


def _dtype(name: str):
    import torch

    return None if name == "auto" else getattr(torch, name)
