"""The teacher of a run: loaded where it is asked to live, or its logits stored once in the run's folder."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from datasets import DatasetDict
from transformers import PretrainedConfig

from ..core import MissingExtraError, UsageError
from ..distillation import Teacher, check_same_tokens, check_teacher, load_teacher_logits, store_teacher_logits
from ..distillation.teachers import ON_DEVICE, STORED
from ..sources import Source, whole_models
from ..training import ShearTrainingArguments, check_mergeable

if TYPE_CHECKING:
    from .stages import Run

LOGITS_FOLDER = "teacher_logits"


def check_teaching(pipeline, args: ShearTrainingArguments, teacher: Source | None, student: PretrainedConfig,
                   tokenizer) -> None:  # fmt: skip
    """Refuse a teacher that does not fit, before anything is loaded or trained.

    Args:
        pipeline: has ``teacher_placement``, ``quantize`` and ``max_length``.
        teacher: None without distillation.
        student, tokenizer: of the model that is trained.

    Raises:
        ValueError: other vocabularies; a quantised base or an adapter to keep without adapters, or a quantised base
            without bitsandbytes; a teacher without distillation.
    """
    if pipeline.quantize != "none" and not args.recovery.adapts:
        raise UsageError(
            f"`quantize={pipeline.quantize!r}` needs `recovery_method='lora'`: quantised weights can not be trained, only"
            f" adapters beside them, but it is {args.recovery_method!r}. Give `lora`, or leave `quantize` out."
        )
    if pipeline.quantize != "none" and find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            f"`quantize={pipeline.quantize!r}` needs bitsandbytes: pip install 'hf-shear[bitsandbytes]'."
        )
    if args.recovery.adapts:  # merged at the end: refused now if that can not be
        check_mergeable(student, args.recovery.peft_config(args))
    elif pipeline.keep_adapter:
        raise UsageError(
            f"`keep_adapter` needs `recovery_method='lora'`, but it is {args.recovery_method!r}: nothing else has an"
            " adapter. Give `lora`, or leave `keep_adapter` out."
        )
    if teacher is None:
        _refuse_without_teacher(pipeline)
        return
    check_teacher(student, teacher.config, pipeline.max_length)
    check_same_tokens(tokenizer, teacher.load_tokenizer(), student.vocab_size)


def _refuse_without_teacher(pipeline) -> None:
    for name, default in (("teacher_name_or_path", None), ("teacher_placement", ON_DEVICE)):
        value = getattr(pipeline, name)
        if value != default:
            raise UsageError(
                f"`{name}={value!r}` has no effect without a divergence from the teacher in the loss. Give"
                " `--distillation forward_kl`, or leave it out."
            )


def load_teacher(pipeline, args: ShearTrainingArguments, source: Source | None) -> Teacher | None:
    """The teacher as a model, whole on every process; None without distillation, or where its logits are stored.

    It has the dtype of its checkpoint, but float32 on CPUs, which are slow in half precision.
    """
    if source is None or pipeline.teacher_placement == STORED:
        return None
    return _load(pipeline.teacher_placement, args, source)


def _load(placement: str, args: ShearTrainingArguments, source: Source) -> Teacher:
    with whole_models():
        model = source.load_model(torch.float32 if args.device.type == "cpu" else None)
    return Teacher(model, placement, args.device)


def store_logits(run: Run) -> dict:
    """Compute what the teacher says of every training sample; domains that are stored already are left as they are.

    Raises:
        ValueError: several processes, which would wait for the first one for hours.
    """
    if PartialState().num_processes > 1:
        raise UsageError(
            "`teacher_placement='stored'`: the teacher's logits are computed by one process. Run once with one process and"
            " `--stop_after teacher_logits`, then launch this with `--resume`."
        )
    start, args, train = time.perf_counter(), run.args, run.data.train
    assert run.teacher is not None
    store_teacher_logits(
        train, _load(ON_DEVICE, args, run.teacher), run.folder.path / LOGITS_FOLDER,
        top_k=run.pipeline.distillation_top_k, temperature=args.distillation_temperature, batch_size=args.eval_batch_size,
    )  # fmt: skip
    tokens = sum(len(dataset) for dataset in train.values()) * run.pipeline.max_length
    return {"tokens": tokens, "seconds": time.perf_counter() - start}


def stored_logits(folder: Path) -> DatasetDict:
    """Training samples with the logits that ``store_logits`` stored."""
    return load_teacher_logits(folder / LOGITS_FOLDER)
