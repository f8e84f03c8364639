"""A teacher's likeliest tokens, computed once and stored as columns of the packed samples.

Training then needs no teacher at all, and any number of runs can share what was stored. The cost on the disk is
``bytes_per_token(top_k)`` for each training token.

Legend: S tokens of a sample, k stored tokens per position.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..core import UsageError, check_ranges, read_json_object, tracked, write_json_atomically
from .distillation import top_k_log_probs
from .teachers import Teacher

if TYPE_CHECKING:  # training needs neither: imported where they are used
    from datasets import Dataset, DatasetDict

TEACHER_LOG_PROBS, TEACHER_IDS = "teacher_log_probs", "teacher_ids"
"""Columns [S * (k + 1)] float16 and [S * k] int32 of a sample, flattened."""

TEACHER_TEMPERATURE, TEACHER_VOCAB_SIZE = "teacher_temperature", "teacher_vocab_size"
"""Columns of one number, the same in every sample, so that whatever becomes of the data set, they stay with it."""

COLUMNS = (TEACHER_LOG_PROBS, TEACHER_IDS, TEACHER_TEMPERATURE, TEACHER_VOCAB_SIZE)
SAMPLES_LOOKED_AT = 16  # of each domain, evenly spaced
SAME_TEACHER_NATS = 0.1  # mean difference of log-probabilities: more than half precision makes, less than another model

RECORD_NAME = "teacher_logits.json"
_AGAIN = "Delete the folder, and store the teacher's logits again."


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

    A domain that is there already, from an earlier call with the same samples, teacher and settings, is not computed
    again; one that was interrupted is. Each is one file, ``<domain>.arrow``, which is mapped into memory when it is read.

    Args:
        datasets: packed samples per domain; no streams.
        teacher: see :class:`~hf_shear.distillation.Teacher`.
        folder: where to save.
        top_k: tokens kept per position. What the others had together is kept as well, as one outcome.
        temperature: at which probabilities are taken; training must use the same.
        batch_size: samples per forward.
        autocast: makes the context manager of each forward.

    Returns:
        What ``load_teacher_logits`` returns.

    Raises:
        ValueError: ``top_k`` does not fit the vocabulary, a domain is a stream or empty or has teacher logits already, or
            the folder holds other settings or samples, or those of another teacher.
        OSError: the disk has no room for what is missing, which is checked before the teacher runs, or it fills up on
            the way; domains that are whole stay.
    """
    _check_domains(datasets)
    numbers = {"distillation_temperature": temperature, "distillation_top_k": top_k, "batch_size": batch_size}
    check_ranges(numbers)
    vocab_size = teacher.model.config.vocab_size
    if top_k >= vocab_size:
        raise UsageError(f"`distillation_top_k` must be below the vocabulary's size ({vocab_size}), but it is {top_k}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"top_k": top_k, "temperature": temperature, "autocast": autocast}
    record = {
        "top_k": top_k,
        "temperature": temperature,
        "vocab_size": vocab_size,
        "samples": {name: _fingerprint(dataset) for name, dataset in datasets.items()},
        "teacher": _first_answer(next(iter(datasets.values())), teacher, settings),
    }
    _check_record(folder, record)
    missing = {name: dataset for name, dataset in datasets.items() if not _path(folder, name).is_file()}
    _check_room(folder, missing, top_k)
    for name, dataset in missing.items():
        _store(_path(folder, name), dataset, _batches(dataset, teacher, batch_size, name, settings))
    return load_teacher_logits(folder)


def load_teacher_logits(folder: str | os.PathLike) -> DatasetDict:
    """Samples per domain with a teacher's likeliest tokens, as ``store_teacher_logits`` saved them.

    Raises:
        ValueError: the folder holds none, or not those of all domains.
    """
    folder = Path(folder)
    if not (folder / RECORD_NAME).is_file():
        raise UsageError(f"{str(folder)!r} holds no stored teacher logits. Make them with `store_teacher_logits`.")
    record = read_json_object(folder / RECORD_NAME, fix=_AGAIN, needs=["samples"])
    missing = [name for name in record["samples"] if not _path(folder, name).is_file()]
    if missing:
        raise UsageError(
            f"{str(folder)!r} lacks the teacher logits of {', '.join(missing)}: storing them was interrupted. Call"
            " `store_teacher_logits` again; it computes what is missing."
        )
    from datasets import Dataset, DatasetDict

    return DatasetDict({name: Dataset.from_file(str(_path(folder, name))) for name in record["samples"]})


def check_teacher_logits(
    datasets: Mapping[str, Dataset], temperature: float, vocab_size: int, sample_length: int
) -> None:
    """Refuse stored teacher logits that training would compare wrongly.

    Args:
        datasets: samples per domain with the columns of ``store_teacher_logits``.
        temperature: of the training's distillation.
        vocab_size: the student's.
        sample_length: S.

    Raises:
        ValueError: says what was stored, and what training asks for.
    """
    lengths = set()
    for name, dataset in datasets.items():
        for index in range(0, len(dataset), -(-len(dataset) // SAMPLES_LOOKED_AT)):
            sample = dataset[index]
            lacking = [column for column in COLUMNS if column not in sample]
            if lacking:
                raise UsageError(
                    f"`train_dataset[{name!r}]` has no {', '.join(lacking)}, which stored teacher logits need. Store them"
                    " for all domains with `hf_shear.distillation.store_teacher_logits`."
                )
            stored = float(sample[TEACHER_TEMPERATURE])
            if not math.isclose(stored, temperature, rel_tol=1e-6):
                raise UsageError(
                    f"The teacher logits of `train_dataset[{name!r}]` were stored at temperature {stored:g}, but"
                    f" `distillation_temperature` is {temperature:g}. Train at {stored:g}, or store them again."
                )
            if int(sample[TEACHER_VOCAB_SIZE]) != vocab_size:
                raise UsageError(
                    f"The teacher logits of `train_dataset[{name!r}]` are over a vocabulary of"
                    f" {int(sample[TEACHER_VOCAB_SIZE])} entries, but the student's has {vocab_size}. Store those of a"
                    " teacher with the student's tokenizer."
                )
            lengths.add((len(sample[TEACHER_LOG_PROBS]), len(sample[TEACHER_IDS])))
    if len(lengths) > 1 or any(one - two != sample_length for one, two in lengths):
        raise UsageError(
            f"Stored teacher logits must have one `top_k` in all domains, and S * (k + 1) and S * k values for samples of S"
            f" ({sample_length}) tokens, but they have {sorted(lengths)}. Store all domains together."
        )


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.arrow"


def _check_room(folder: Path, missing: Mapping[str, Dataset], top_k: int) -> None:
    """Raise OSError, before hours of work, if the disk has no room for the domains that are not there yet."""
    tokens = sum(len(dataset) * len(dataset[0]["input_ids"]) for dataset in missing.values())
    needed, free = tokens * bytes_per_token(top_k), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the teacher logits of {', '.join(missing)} take {needed:,} bytes ({tokens:,} tokens, `distillation_top_k`"
            f" {top_k}), but {free:,} are free. Free some, store fewer with a lower `distillation_top_k`, or keep the"
            " teacher beside the student (`teacher_placement`)",
            str(folder),
        )


def _store(path: Path, dataset: Dataset, batches: Iterator[dict]) -> None:
    """Write one domain whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    try:
        _write(unfinished, dataset, batches)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        unfinished.unlink(missing_ok=True)  # gives the disk back what it took
        raise OSError(
            error.errno,
            f"the teacher logits of {path.stem!r} were not stored ({error.strerror or error}); domains that were stored"
            " before are whole. Make room and run the same again: it goes on with this domain",
            str(path),
        ) from error
    os.replace(unfinished, path)


def _check_domains(datasets: Mapping[str, Dataset]) -> None:
    from datasets import Dataset

    for name, dataset in datasets.items():
        if not isinstance(dataset, Dataset):
            raise UsageError(
                f"The domain {name!r} is a {type(dataset).__name__}: teacher logits are stored for packed data sets, whose"
                " samples come again, not for streams. Distil with the teacher itself, or pack a part of the stream."
            )
        if len(dataset) == 0:
            raise UsageError(f"The domain {name!r} has no samples. Give it text, or leave it out.")
        if set(COLUMNS) & set(dataset.column_names):
            raise UsageError(f"The samples of the domain {name!r} carry teacher logits already. Give those without.")
        if Path(name).name != name:
            raise UsageError(f"The domain {name!r} can not be the name of a file. Rename it.")


def _check_record(folder: Path, record: dict) -> None:
    """Compare with the record of an earlier call, or write the first."""
    path = folder / RECORD_NAME
    if not path.is_file():
        write_json_atomically(path, record)
        return
    before = read_json_object(path, fix=_AGAIN, needs=record)
    changed = [name for name in record if name != "teacher" and before.get(name) != record[name]]
    if not changed:
        gap = np.abs(np.subtract(before["teacher"], record["teacher"])).mean()
        changed = [] if gap <= SAME_TEACHER_NATS else ["teacher"]
    if changed:
        raise UsageError(
            f"{str(folder)!r} holds teacher logits of other {', '.join(changed)}. Choose another folder, or delete it."
        )


def _fingerprint(dataset: Dataset) -> dict:
    """Tells samples apart without reading all of them: their number, and the tokens of some."""
    some = sorted({0, len(dataset) // 2, len(dataset) - 1})
    return {
        "num_samples": len(dataset),
        "tokens": [[int(i) for i in dataset[index]["input_ids"][:16]] for index in some],
    }


def _first_answer(dataset: Dataset, teacher: Teacher, settings: dict) -> list[float]:
    """What the teacher says of the first sample: tells teachers apart wherever their weights are."""
    log_probs, _ = _batch_logits(dataset.with_format("numpy")[:1], teacher, **settings)
    return log_probs[0].astype(np.float64).clip(min=-100.0).tolist()


def _batches(dataset: Dataset, teacher: Teacher, batch_size: int, name: str, settings: dict) -> Iterator[dict]:
    rows = dataset.with_format("numpy")
    for start in tracked(range(0, len(rows), batch_size), f"Teacher, {name}"):
        batch = rows[start : start + batch_size]
        log_probs, ids = _batch_logits(batch, teacher, **settings)
        size = len(log_probs)
        yield dict(batch) | {
            TEACHER_LOG_PROBS: list(log_probs),
            TEACHER_IDS: list(ids),
            TEACHER_TEMPERATURE: [settings["temperature"]] * size,
            TEACHER_VOCAB_SIZE: [teacher.model.config.vocab_size] * size,
        }


def _write(path: Path, dataset: Dataset, batches: Iterator[dict]) -> None:
    """The samples, batch by batch, as the stream of Arrow records that ``Dataset.from_file`` reads."""
    import pyarrow as pa
    from datasets import Dataset, Features, List, Value

    kinds = (List(Value("float16")), List(Value("int32")), Value("float32"), Value("int32"))
    features = Features({**dataset.features, **dict(zip(COLUMNS, kinds, strict=True))})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, features.arrow_schema) as writer:
        for batch in batches:
            writer.write_table(Dataset.from_dict(batch, features=features).data.table)


def _batch_logits(batch: dict, teacher: Teacher, top_k, temperature, autocast) -> tuple[np.ndarray, np.ndarray]:
    """[b, S * (k + 1)] float16 and [b, S * k] int32."""
    inputs = {
        name: torch.from_numpy(np.stack(batch[name]).astype(np.int64)).to(teacher.device)
        for name in ("input_ids", "position_ids")
        if name in batch
    }
    log_probs, ids = [], []
    with torch.no_grad(), (autocast or nullcontext)():
        for sample in teacher.hidden_states(**inputs):  # the logits of one sample at a time
            found = top_k_log_probs(teacher.head(sample), temperature, top_k)
            log_probs.append(found[0].flatten().cpu().numpy().astype(np.float16))
            ids.append(found[1].flatten().cpu().numpy().astype(np.int32))
    return np.stack(log_probs), np.stack(ids)
