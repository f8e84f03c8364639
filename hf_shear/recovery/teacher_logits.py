"""A teacher's likeliest tokens, computed once and stored as columns of the packed samples.

Training then needs no teacher at all, and any number of runs can share what was stored. The cost on the disk is
``bytes_per_token(top_k)`` for each training token.

Legend: S tokens of a sample, k stored tokens per position.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, List, Value, load_from_disk
from tqdm.auto import tqdm

from .distillation import top_k_log_probs
from .teachers import Teacher

TEACHER_LOG_PROBS, TEACHER_IDS = "teacher_log_probs", "teacher_ids"
"""Columns [S * (k + 1)] float16 and [S * k] int32 of a sample, flattened."""

RECORD_NAME = "teacher_logits.json"


def bytes_per_token(top_k: int) -> int:
    """Bytes on the disk for each token: k ids of 4, and k + 1 logarithms of probabilities of 2."""
    return 4 * top_k + 2 * (top_k + 1)


def store_teacher_logits(
    datasets: Mapping[str, Dataset],
    teacher: Teacher,
    folder: str | os.PathLike,
    *,
    top_k: int = 32,
    temperature: float = 1.0,
    batch_size: int = 8,
    autocast=None,
) -> DatasetDict:
    """Run the teacher over every sample once and save the samples with its likeliest tokens.

    A domain that is there already, from an earlier call with the same samples and settings, is not computed again; one
    that was interrupted is.

    Args:
        datasets: packed samples per domain, on the same device order as they will be trained on.
        teacher: see :class:`~hf_shear.recovery.Teacher`.
        folder: where to save; one sub-folder per domain.
        top_k: tokens kept per position. What the others had together is kept as well, as one outcome.
        temperature: at which probabilities are taken; training must use the same.
        batch_size: samples per forward.
        autocast: makes the context manager of each forward.

    Returns:
        What ``load_teacher_logits`` returns.

    Raises:
        ValueError: ``top_k`` does not fit the vocabulary, or the folder holds other settings or samples.
    """
    vocab_size = teacher.model.config.vocab_size
    if not 1 <= top_k < vocab_size:
        raise ValueError(
            f"`distillation_top_k` must be at least 1 and below the vocabulary's size ({vocab_size}), but it is {top_k}."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "top_k": top_k,
        "temperature": temperature,
        "vocab_size": vocab_size,
        "samples": {name: _fingerprint(dataset) for name, dataset in datasets.items()},
    }
    _check_record(folder, record)
    (folder / RECORD_NAME).write_text(json.dumps(record, indent=1), encoding="utf-8")
    for name, dataset in datasets.items():
        if (folder / name).is_dir():
            continue
        unfinished = folder / f".{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        _with_logits(dataset, teacher, name, top_k, temperature, batch_size, autocast).save_to_disk(unfinished)
        os.replace(unfinished, folder / name)
    return load_teacher_logits(folder)


def load_teacher_logits(folder: str | os.PathLike) -> DatasetDict:
    """Samples per domain with a teacher's likeliest tokens, as ``store_teacher_logits`` saved them.

    Raises:
        ValueError: the folder holds none, or not those of all domains.
    """
    folder = Path(folder)
    if not (folder / RECORD_NAME).is_file():
        raise ValueError(f"{str(folder)!r} holds no stored teacher logits. Make them with `store_teacher_logits`.")
    record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    missing = [name for name in record["samples"] if not (folder / name).is_dir()]
    if missing:
        raise ValueError(
            f"{str(folder)!r} lacks the teacher logits of {', '.join(missing)}: storing them was interrupted. Call"
            " `store_teacher_logits` again; it computes what is missing."
        )
    return DatasetDict({name: load_from_disk(folder / name) for name in record["samples"]})


def read_record(folder: str | os.PathLike) -> dict:
    """Settings with which teacher logits were stored: ``top_k``, ``temperature``, ``vocab_size``."""
    return json.loads((Path(folder) / RECORD_NAME).read_text(encoding="utf-8"))


def _check_record(folder: Path, record: dict) -> None:
    path = folder / RECORD_NAME
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in record if before.get(name) != record[name]]
    if changed:
        raise ValueError(
            f"{str(folder)!r} holds teacher logits of other {', '.join(changed)}. Choose another folder, or delete it."
        )


def _fingerprint(dataset: Dataset) -> dict:
    """Tells samples apart without reading all of them: their number, and the tokens of some."""
    some = sorted({0, len(dataset) // 2, len(dataset) - 1})
    return {
        "num_samples": len(dataset),
        "tokens": [[int(i) for i in dataset[index]["input_ids"][:16]] for index in some],
    }


def _with_logits(dataset, teacher, name, top_k, temperature, batch_size, autocast) -> Dataset:
    columns = {TEACHER_LOG_PROBS: List(Value("float16")), TEACHER_IDS: List(Value("int32"))}
    features = Features({**dataset.features, **columns})

    def samples():
        rows = dataset.with_format("numpy")
        for start in tqdm(range(0, len(rows), batch_size), desc=f"Teacher, {name}", disable=None):
            batch = rows[start : start + batch_size]
            log_probs, ids = _batch_logits(batch, teacher, top_k, temperature, autocast)
            for index in range(len(log_probs)):
                own = {column: batch[column][index] for column in dataset.features}
                yield own | {TEACHER_LOG_PROBS: log_probs[index], TEACHER_IDS: ids[index]}

    return Dataset.from_generator(samples, features=features, keep_in_memory=False, fingerprint=None)


def _batch_logits(batch: dict, teacher: Teacher, top_k, temperature, autocast) -> tuple[np.ndarray, np.ndarray]:
    """[b, S * (k + 1)] float16 and [b, S * k] int32."""
    device = teacher.head.weight.device if teacher.placement == "device" else teacher.model.device
    inputs = {
        name: torch.from_numpy(np.asarray(batch[name], dtype=np.int64)).to(device)
        for name in ("input_ids", "position_ids")
        if name in batch
    }
    logits = teacher.logits(**inputs, **({} if autocast is None else {"autocast": autocast}))
    log_probs, ids = top_k_log_probs(logits.flatten(0, 1), temperature, top_k)
    samples = len(batch["input_ids"])
    return (
        log_probs.view(samples, -1).cpu().numpy().astype(np.float16),
        ids.view(samples, -1).to(torch.int32).cpu().numpy(),
    )
