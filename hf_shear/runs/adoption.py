"""Recovery from a pruned checkpoint that no mask learning of this run made."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from ..core import UsageError, collect_versions
from ..distillation import check_same_tokens
from ..shapes import ModelShape, check_supported_source
from ..slicing import PROVENANCE_NAME, read_provenance, save_checkpoint
from ..sources import Source, open_source, read_generation_config, whole_models
from .report import judge_checkpoint
from .run_folder import finished_stages
from .stages import MASK_LEARNING, PRUNING, Run, open_model, open_run, source_references
from .target_choice import target_flags

TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def open_adopting_run(pipeline, args) -> Run:
    """As ``open_run``, towards the shape that a pruned checkpoint has already; a run that is there is continued.

    Args:
        pipeline: arguments with ``model_name_or_path``, the source, and ``pruned``, a plain checkpoint with the source's
            tokens and a shape that can be cut out of it.
        args: of the training.

    Raises:
        ValueError: the two do not fit together, a target is named beside the checkpoint, or the folder holds a run with
            a pruned model of its own.
    """
    if named := target_flags(pipeline):
        raise UsageError(f"`pruned` has its shape already: leave out {', '.join(named)}.")
    source = open_model(pipeline)
    check_supported_source(source.config)
    shape = _checked_shape(pipeline, source)
    finished = finished_stages(args.output_dir)
    if {PRUNING, MASK_LEARNING} & set(finished or ()):
        raise UsageError(
            f"The run in {str(args.output_dir)!r} has a pruned model of its own. Recover that one"
            " without `--pruned`, or name another `--output_dir`."
        )
    run = open_run(replace(pipeline, **shape.sizes(), resume=finished is not None), args)
    return replace(run, continued_by="")


def _checked_shape(pipeline, opened: Source) -> ModelShape:
    """The checkpoint's shape; whether it can be cut out of the source is checked where the target is made of it."""
    path, source = pipeline.pruned, opened.config
    pruned = open_source("pruned", path)
    read_generation_config(pruned.location)  # kept, so it is refused now if it can not be saved
    config = pruned.config
    check_supported_source(config)
    shape, head_dim = ModelShape.from_config(config), ModelShape.from_config(source).head_dim
    if config.vocab_size != source.vocab_size:
        raise UsageError(
            f"`pruned` {path!r} has a vocabulary of {config.vocab_size} entries, the source {source.vocab_size}. Name the"
            " model that it was cut out of."
        )
    if shape.head_dim != head_dim:
        raise UsageError(
            f"`pruned` {path!r} has heads of {shape.head_dim} channels, the source of {head_dim}. Name the model that it"
            " was cut out of."
        )
    cut_of = (_provenance(path).get("source") or {}).get("shape")
    if cut_of is not None and cut_of != ModelShape.from_config(source).to_dict():
        raise UsageError(
            f"`pruned` {path!r} was cut out of a model of another shape than the source's, as its {PROVENANCE_NAME} says"
            f" ({cut_of}). Name that model."
        )
    if any((Path(path) / name).is_file() for name in TOKENIZER_NAMES):
        check_same_tokens(pruned.load_tokenizer(), opened.load_tokenizer(), config.vocab_size)
    return shape


def _provenance(path: str) -> dict:
    return read_provenance(path) if (Path(path) / PROVENANCE_NAME).is_file() else {}


def adopt(run: Run, path: str) -> dict:
    """Copy the checkpoint to <output_dir>/pruned and judge it; a record as that of ``learn_masks``, without masks.

    Domains are steered to the source's losses, as after mask learning, unless the arguments give others, and
    start with the arguments' weights.
    """
    start, judged = time.perf_counter(), run.data.judged
    with whole_models():
        model = open_source("pruned", path).load_model()
    provenance = _provenance(path) or _unknown_origin(run)
    if "recovery" in provenance:  # trained after its cut: here that is what recovery starts from
        provenance["trained_before"] = provenance.pop("recovery")
    chosen = provenance.get("calibration") or {}  # of `hf-shear prune`: its passes are charged to the result
    saved = save_checkpoint(model, run.folder.path / "pruned", run.tokenizer, provenance)
    exported = time.perf_counter()
    return {
        "masks": None,
        "kept": provenance.get("kept"),
        "tokens": provenance.get("mask_learning", 0),
        "history": [],
        "sizes": [],
        "passes": {},
        "mixture_weights": run.args.mixture_weights,
        "calibration_tokens": chosen.get("num_tokens", 0),
        "flops": sum(chosen["flops"].values()) if chosen else None,
        "model": judge_checkpoint(saved, judged, run.args),
        "seconds": 0.0,
        "export_seconds": exported - start,
    } | source_references(run)


def _unknown_origin(run: Run) -> dict:
    """Provenance of a checkpoint that has none: the source that it was given with, and its shape."""
    return {
        "source": {
            "name_or_path": run.source.name,
            "revision": run.source.revision,
            "shape": run.target.source.to_dict(),
        },
        "target_shape": run.target.sizes(),
        "versions": collect_versions(),
    }
