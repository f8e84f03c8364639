"""Tasks of lm-eval, through its Python API: local task files without a network, or lm-eval's own by name."""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib.util
import math
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core import MissingExtraError, UsageError, check_ranges, check_yaml_file
from .quiet import quiet_harness

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREFERRED_METRICS = ("acc_norm", "acc", "exact_match")
"""The first of these that a task has is its metric; else the first metric of the task."""

BOOTSTRAP_RESAMPLES = 1000  # for standard errors that have no closed form (perplexity)
_TASK_SUFFIXES = (".yaml", ".yml")
_NAMES_SHOWN = 40
_NAME_OF_TASK = re.compile(rb"^\s*(?:-\s+)?(?:task|group|tag)\s*:\s*[\"']?([\w.\-]+)", re.MULTILINE)


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks whose files and data have been read; `load_tasks` makes them."""

    names: tuple[str, ...]
    objects: list
    manager: Any


def load_tasks(names: Sequence[str], tasks_dir: str | os.PathLike | None = None) -> LoadedTasks:
    """Read task files and their data: everything that can be wrong with them is told before a model is loaded.

    Args:
        names: of tasks, groups or tags; or paths of task files (.yaml).
        tasks_dir: folder of task files. Only these are known then, and the relative paths in them are read from this
            folder, wherever the program runs: it is made the working directory of the process while they are read. If
            None, lm-eval's own tasks are known, whose data come from the Hub; a task file's paths are then read from its
            own folder.

    Raises:
        ValueError: a folder, a task file, a task or the data of a local task does not exist, with what there is.
        OSError: the data of a task cannot be fetched.
        ImportError: lm-eval is not installed.
    """
    if not names:
        raise UsageError("`tasks` must name at least one task, but it is empty.")
    folder = None if tasks_dir is None else Path(tasks_dir)
    if folder is not None and not folder.is_dir():
        raise UsageError(f"`tasks_dir` must be an existing folder of task files, but {str(folder)!r} is none.")
    names = list(dict.fromkeys(str(Path(name).resolve()) if _is_file_name(name) else name for name in names))
    for name in names:
        if _is_file_name(name) and not Path(name).is_file():
            raise UsageError(f"`tasks` names the task file {name!r}, which does not exist.{_task_files_beside(name)}")
    for name in filter(_is_file_name, names):
        check_yaml_file(name, "`tasks`")
    for file in () if folder is None else sorted(folder.rglob("*.yaml")):
        content = file.read_bytes()
        if b"&" in content and b"*" in content:  # anchors and aliases: what they stand for is counted first
            check_yaml_file(file, "`tasks_dir` has a file")
    if folder is None:
        _check_written_somewhere([name for name in names if not _is_file_name(name)])
    manager = _task_manager(folder, with_defaults=folder is None and not all(map(_is_file_name, names)))
    unknown = [name for name in names if not _is_file_name(name) and name not in manager.all_tasks]
    if unknown:
        raise UsageError(_unknown_tasks(unknown, manager, folder))
    objects = [task for name in names for task in _read_task(manager, name, folder)]
    return LoadedTasks(tuple(names), objects, manager)


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: LoadedTasks,
    *,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, dict[str, Any]]:
    """Results of a model by task (and group).

    Args:
        model, tokenizer: as loaded; the tokenizer's own rule says whether BOS comes first.
        tasks: from ``load_tasks``; may be used for several models.
        limit: the first items of each task only.
        batch_size: requests per forward.

    Returns:
        By task: ``metric`` (see ``PREFERRED_METRICS``), its ``value`` and ``standard_error`` (None where lm-eval has
        none), ``num_items``, ``dataset`` (``id``, ``config`` and ``num_fewshot`` where all items of a data set on the Hub
        were asked, else None), and ``metrics``: all of them by name.

    Raises:
        ValueError: ``limit`` is below 1.
    """
    check_limit(limit)
    _require_lm_eval()
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with quiet_harness(), _own_random_state(), _environment(DISABLE_MULTIPROC="1"):  # it would fork beside CUDA
        results = simple_evaluate(
            # HFLM gives the tokenizer a padding token; a copy keeps ours as it is.
            HFLM(
                pretrained=model,  # pyright: ignore[reportCallIssue]  # lm-eval's decorator types it as its abstract base
                tokenizer=copy.deepcopy(tokenizer),  # pyright: ignore[reportCallIssue]  # of the same call
                batch_size=batch_size,  # pyright: ignore[reportCallIssue]  # of the same call
            ),
            tasks=list(tasks.objects),
            task_manager=tasks.manager,
            limit=limit,
            bootstrap_iters=BOOTSTRAP_RESAMPLES,
            log_samples=False,
        )
    assert results is not None, "the first process alone evaluates"
    return _task_records(results)


def check_limit(limit: int | None) -> None:
    """Raises ValueError for a limit below 1."""
    check_ranges({"limit": limit})


def _require_lm_eval() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("Tasks need the package `lm-eval`: pip install 'hf-shear[eval]'") from error


def _is_file_name(name: str) -> bool:
    return name.endswith(_TASK_SUFFIXES)


def _task_manager(folder: Path | None, with_defaults: bool):
    _require_lm_eval()
    from lm_eval.tasks import TaskManager

    with quiet_harness():
        include_path = None if folder is None else str(folder.resolve())
        return TaskManager(include_path=include_path, include_defaults=with_defaults)


def _check_written_somewhere(names: Sequence[str]) -> None:
    """Refuse names that stand in none of lm-eval's files, before it reads all 14,000 of them: 1 second, and not 15."""
    _require_lm_eval()
    missing, written = {name.encode() for name in names}, set()
    spec = importlib.util.find_spec("lm_eval") if names else None
    for package in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in (Path(package) / "tasks").rglob("*"):
            if not missing or not file.is_file():
                continue
            content = file.read_bytes()
            missing = {name for name in missing if name not in content}
            written.update(_NAME_OF_TASK.findall(content))
    if missing:
        raise UsageError(
            _not_of_lm_eval(sorted(name.decode() for name in missing), [name.decode() for name in written])
        )


def _not_of_lm_eval(unknown: Sequence[str], known: Sequence[str]) -> str:
    near = [match for name in unknown for match in difflib.get_close_matches(name, known, 5)]
    hint = f" Near to it: {', '.join(dict.fromkeys(near))}." if near else ""
    return (
        f"`tasks` must name tasks of lm-eval, but it has no {', '.join(map(repr, unknown))}.{hint} Local task files need"
        " `tasks_dir`."
    )


def _read_task(manager, name: str, folder: Path | None) -> list:
    """The task, group or tasks of a tag, with their data."""
    if folder is None and _is_file_name(name):
        folder = Path(name).parent
    try:
        with quiet_harness(), _working_directory(folder):
            loaded = manager.load(name)
    except FileNotFoundError as error:
        if folder is None:
            raise OSError(_not_fetched(name, error)) from error
        raise UsageError(f"Task {name!r} names data that do not exist below {str(folder)!r}: {error}") from error
    except (OSError, ConnectionError) as error:
        raise OSError(_not_fetched(name, error)) from error
    group = loaded.get("groups", {}).get(name)
    return [group] if group is not None else list(loaded["tasks"].values())


def _not_fetched(name: str, error: Exception) -> str:
    return (
        f"The data of task {name!r} could not be fetched ({type(error).__name__}: {error}). lm-eval's own tasks read"
        " from the Hub; local task files (`tasks_dir`) need no network."
    )


def _unknown_tasks(unknown: Sequence[str], manager, folder: Path | None) -> str:
    if folder is None:
        return _not_of_lm_eval(unknown, manager.all_tasks)
    which = ", ".join(map(repr, unknown))
    there = list(manager.all_tasks)
    shown = ", ".join(there[:_NAMES_SHOWN]) + (", ..." if len(there) > _NAMES_SHOWN else "")
    read = {entry.yaml_path for entry in manager.task_index.values()}
    broken = [file.name for file in sorted(folder.resolve().glob("**/*.yaml")) if file not in read]
    also = f" These files there are no task files that lm-eval can read: {', '.join(broken)}." if broken else ""
    return f"`tasks` must name tasks of {str(folder)!r}, but it has no {which}. It has: {shown or 'none'}.{also}"


def _task_files_beside(name: str) -> str:
    folder = Path(name).parent
    beside = sorted(file.name for suffix in _TASK_SUFFIXES for file in folder.glob(f"*{suffix}"))
    return f" In {str(folder)!r} there are: {', '.join(beside)}." if beside else ""


@contextlib.contextmanager
def _working_directory(folder: Path | None) -> Iterator[None]:
    """Run in a folder; in the current one if None."""
    before = Path.cwd()
    os.chdir(before if folder is None else folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _own_random_state() -> Iterator[None]:
    """lm-eval seeds all generators; the caller's go on afterwards as if it had not."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _task_records(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By name; a group of tasks that lm-eval has no score of its own for is left out."""
    records = {name: _task_record(name, scores, results) for name, scores in results["results"].items()}
    return {name: record for name, record in records.items() if record["metric"] is not None}


def _task_record(name: str, scores: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {}
    for key, value in scores.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue  # the alias, a count, or the error of another entry
        error = scores.get(f"{metric}_stderr,{filtered}")
        shown = metric if filtered == "none" else key
        metrics[shown] = {"value": _finite(value), "standard_error": _finite(error)}
    by_plain_name = {shown.partition(",")[0]: shown for shown in reversed(metrics)}
    chosen = next((by_plain_name[metric] for metric in PREFERRED_METRICS if metric in by_plain_name), None)
    chosen = chosen or next(iter(metrics), None)
    return {
        "metric": chosen,
        **(metrics[chosen] if chosen is not None else {"value": None, "standard_error": None}),
        "num_items": _num_items(name, results),
        "dataset": _hub_dataset(name, results),
        "metrics": metrics,
    }


def _hub_dataset(name: str, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Id and config of the task's data set on the Hub, and shots; None for a group, other data or a part of the items."""
    config, counts = results["configs"].get(name) or {}, results["n-samples"].get(name) or {}
    path = config.get("dataset_path")
    whole = counts and counts["effective"] == counts["original"]
    if not isinstance(path, str) or "/" not in path or Path(path).exists() or not whole:
        return None
    return {"id": path, "config": config.get("dataset_name"), "num_fewshot": config.get("num_fewshot") or 0}


def _num_items(name: str, results: Mapping[str, Any]) -> int:
    """Items of a task, or of all tasks of a group."""
    if name in results["n-samples"]:
        return results["n-samples"][name]["effective"]
    return sum(_num_items(child, results) for child in results.get("group_subtasks", {}).get(name, ()))


def _finite(value: Any) -> float | None:
    """A number that JSON can hold; None for lm-eval's "N/A" and for an overflow."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
