"""Recovery runs from a results file, a Trainer's state, a CSV, or a JSON list of them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..core import RESULTS_NAME, UsageError, check_ranges, check_record, of_file, read_results
from .recovery_run import Case, RecoveryRun

COLUMNS = ("run", "num_parameters", "fraction_removed", "source_loss", "tokens", "loss")
OPTIONAL_COLUMNS = ("control_loss", "num_pruned_parameters", "source_tokens", "family", "pruning")
"""Columns of a CSV. All but tokens, loss and control_loss are the same in every row of a run."""
CASE_COLUMNS = ("num_parameters", "fraction_removed", "source_loss", "num_pruned_parameters", "source_tokens")

_STATE_FIX = "Take the file that the Trainer wrote."

MAX_REFERENCE_DIFFERENCE = 0.1
"""Relative difference of a run's reference losses and its source's own, above which they were not measured on it."""


def read_runs(path: str | os.PathLike) -> list[RecoveryRun]:
    """Runs from whatever holds them.

    Args:
        path: a CSV (``COLUMNS``), a ``results.json``, a folder in which every ``results.json`` is read, or a JSON list
            with, for each run, ``path`` (its ``trainer_state.json``), ``name`` and the facts of
            :func:`run_from_trainer_state`.

    Raises:
        ValueError: there is nothing of the kind, or what is there can not be used; the text names file and row.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.rglob(RESULTS_NAME))
        if not found:
            raise UsageError(
                f"`runs`: the folder {str(path)!r} holds no {RESULTS_NAME}, at any depth. Name a folder with finished runs."
            )
        places = [path.resolve().name if file.parent == path else str(file.parent.relative_to(path)) for file in found]
        return [run_from_results(file, place) for file, place in zip(found, places, strict=True)]
    if not path.is_file():
        raise UsageError(f"`runs`: {str(path)!r} is neither a file nor a folder. Name a CSV, a JSON file or a folder.")
    if path.suffix == ".csv":
        return runs_from_csv(path)
    content = _read_json(path)
    if isinstance(content, list):
        if not content:
            raise UsageError(f"{str(path)!r} lists no run. List one or more, each with the path of its state.")
        return [_listed_run(path, entry) for entry in content]
    if isinstance(content, dict) and "log_history" in content:
        raise UsageError(
            f"{str(path)!r} is a Trainer's state and does not say which model was pruned. List it in a JSON file:"
            ' [{"name": ..., "path": ..., "num_parameters": ..., "fraction_removed": ..., "source_loss": ...}].'
        )
    return [run_from_results(path)]


def run_from_results(path: str | os.PathLike, name: str | None = None, source_loss: float | None = None) -> RecoveryRun:
    """The recovery of one run of this library, from its ``results.json``.

    Its checkpoints are the evaluations during recovery; where the file has no history, the recovered model alone. The
    history's losses are of fewer held-out samples than those of the finished models, so L0 is then the mean of the
    reference losses, which mask learning measured on the same samples of the source.

    Raises:
        ValueError: the file lacks what is needed, or its reference losses are not those of its source.
    """
    results = read_results(path)
    with of_file(path):
        check_record(results, "results")
    try:
        source, pruned, tokens = results["source"], results["pruned"], results["tokens"]
        sizes = (source["num_parameters"], pruned["num_parameters"])
        rows = [row for row in results.get("history", []) if row["stage"] == "recovery"]
        checkpoints = [(row["num_tokens"] - tokens["mask_learning"], fmean(row["loss"].values())) for row in rows]
        last = (tokens["recovery"], results["recovered"]["mean"])
    except KeyError as error:
        raise UsageError(
            f"The results file {os.fspath(path)!r} lacks `{error.args[0]}`, which a run's law needs. Finish the run."
        ) from error
    if source_loss is None:
        source_loss = _reference_loss(path, source, rows)
    checkpoints = [(count, loss) for count, loss in checkpoints if count > 0] or [last]
    counts, losses = zip(*checkpoints, strict=True)
    with of_file(path):
        case = Case(sizes[0], 1 - sizes[1] / sizes[0], source_loss, num_pruned_parameters=sizes[1])
        return RecoveryRun(name or Path(path).stem, case, counts, losses)


def _reference_loss(path, source: Mapping, rows: Sequence[Mapping]) -> float:
    if not rows:
        return source["mean"]
    measured = fmean(rows[0].get("reference_loss", source["loss"]).values())
    if abs(measured - source["mean"]) > MAX_REFERENCE_DIFFERENCE * source["mean"]:
        raise UsageError(
            f"The reference losses of {os.fspath(path)!r} (mean {measured:.3f}) are not those of its source"
            f" ({source['mean']:.3f}), so they were given and not measured. Pass `source_loss`, of the held-out samples"
            " that training evaluated on."
        )
    return measured


def run_from_trainer_state(
    path: str | os.PathLike,
    case: Case,
    name: str | None = None,
    *,
    tokens_per_step: float | None = None,
    loss_key: str = "eval_loss",
    family: str | None = None,
    pruning: str | None = None,
) -> RecoveryRun:
    """A run of any transformers ``Trainer``, from its ``trainer_state.json``, and the facts that it does not hold.

    Args:
        path: the file.
        case: which model was pruned, and how much of it.
        tokens_per_step: tokens of one optimizer step; not needed where log entries count tokens (``num_tokens``, or
            ``num_input_tokens_seen`` with ``include_num_input_tokens_seen``).
        loss_key: the log entry that holds the loss.
    """
    state = _read_json(Path(path))
    if not isinstance(state, dict) or "log_history" not in state:
        raise UsageError(f"{os.fspath(path)!r} has no `log_history`. Name the trainer_state.json of a checkpoint.")
    with of_file(path):
        tokens, losses = checkpoints_of_log(state["log_history"], tokens_per_step, loss_key)
    if not tokens:
        raise UsageError(
            f"The log of {os.fspath(path)!r} has no {loss_key!r} after the start. Evaluate during the run"
            " (`eval_strategy`), or take the training loss with `loss_key='loss'`."
        )
    name = name or str(Path(path).parent.name)
    with of_file(path):
        return RecoveryRun(name, case, tokens, losses, family=family, pruning=pruning)


def checkpoints_of_log(
    log_history: Sequence[Mapping], tokens_per_step: float | None = None, loss_key: str = "eval_loss"
) -> tuple[list[float], list[float]]:
    """Tokens and losses of a Trainer's log, in order of tokens; an entry that repeats a step replaces the one before.

    Raises:
        ValueError: nothing says how many tokens a step has; or the log is none, or holds losses or tokens that are no
            numbers.
    """
    if not isinstance(log_history, Sequence) or isinstance(log_history, str):
        raise UsageError(f"`log_history` must be a list, but it is {reprlib.repr(log_history)}. {_STATE_FIX}")
    found = {}
    for index, entry in enumerate(log_history):
        if not isinstance(entry, Mapping):
            raise UsageError(f"`log_history[{index}]` must be a dict, but it is {reprlib.repr(entry)}. {_STATE_FIX}")
        if loss_key not in entry:
            continue
        for key in (loss_key, "num_tokens", "num_input_tokens_seen", "step"):
            if key in entry and not _is_number(entry[key]):
                raise UsageError(
                    f"`log_history[{index}].{key}` must be a number, but it is {reprlib.repr(entry[key])}. {_STATE_FIX}"
                )
        tokens = entry.get("num_tokens", entry.get("num_input_tokens_seen"))
        if tokens is None:
            if tokens_per_step is None:
                raise UsageError(
                    "`tokens_per_step` is needed: the log counts no tokens (no `num_tokens` or `num_input_tokens_seen`)."
                    " Give samples per step x tokens per sample, over all processes."
                )
            if "step" not in entry:
                raise UsageError(f"`log_history[{index}]` lacks `step`. {_STATE_FIX}")
            tokens = entry["step"] * tokens_per_step
        if tokens > 0:
            found[tokens] = entry[loss_key]
    return sorted(found), [found[tokens] for tokens in sorted(found)]


def runs_from_csv(path: str | os.PathLike) -> list[RecoveryRun]:
    """Runs from a table with a header, one row per checkpoint; further columns are not allowed.

    Raises:
        ValueError: a column is missing or unknown, a cell is no number, or facts differ within a run.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{os.fspath(path)!r} is no text in UTF-8: {error.reason}. Save it as UTF-8.") from error
    with io.StringIO(text, newline="") as stream:
        reader = csv.DictReader(stream)
        header = reader.fieldnames or []
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise UsageError(f"{os.fspath(path)!r} has the column {twice[0]!r} twice. Remove one of them.")
        missing = [name for name in COLUMNS if name not in header]
        unknown = [name for name in header if name not in COLUMNS + OPTIONAL_COLUMNS]
        if missing or unknown:
            raise UsageError(
                f"{os.fspath(path)!r} must have the columns {', '.join(COLUMNS)}, and may have"
                f" {', '.join(OPTIONAL_COLUMNS)}; missing: {', '.join(missing) or 'none'}; unknown:"
                f" {', '.join(map(str, unknown)) or 'none'}. Write them in the first line."
            )
        rows: dict[str, list[dict]] = {}
        for number, row in enumerate(reader, start=2):
            if None in row:
                raise UsageError(
                    f"{os.fspath(path)!r}, line {number}: there are more cells than columns ({len(header)}). Remove them."
                )
            if not row["run"]:
                raise UsageError(f"{os.fspath(path)!r}, line {number}: `run` must not be empty. Name the run.")
            rows.setdefault(row["run"], []).append(_parse_row(path, number, row))
    if not rows:
        raise UsageError(f"{os.fspath(path)!r} has no rows. Write one for each checkpoint of each run.")
    with of_file(path):
        return [_run_from_rows(path, name, part) for name, part in rows.items()]


def _parse_row(path, number: int, row: Mapping[str, str]) -> dict:
    parsed = {}
    for name, text in row.items():
        if name in ("run", "family", "pruning"):
            parsed[name] = text or None
            continue
        if not text and name in OPTIONAL_COLUMNS:
            parsed[name] = None
            continue
        try:
            parsed[name] = float(text)
        except (TypeError, ValueError):
            parsed[name] = math.nan
        if not math.isfinite(parsed[name]):
            raise UsageError(
                f"{os.fspath(path)!r}, line {number}: `{name}` must be a finite number, but it is {text!r}."
                " Correct the cell, or remove the line."
            )
    return parsed


def _run_from_rows(path, name: str, rows: list[dict[str, Any]]) -> RecoveryRun:
    for column in (*CASE_COLUMNS, "family", "pruning"):
        values = {row.get(column) for row in rows}
        if len(values) > 1:
            raise UsageError(
                f"{os.fspath(path)!r}: `{column}` must be the same in every row of run {name!r}, but it is"
                f" {', '.join(map(str, sorted(values, key=str)))}. Name runs of different models differently."
            )
    rows = sorted(rows, key=lambda row: row["tokens"])
    controls = [row["control_loss"] for row in rows if row.get("control_loss") is not None]
    if len(controls) < len(rows):
        if controls:
            raise UsageError(
                f"{os.fspath(path)!r}: run {name!r} has `control_loss` in some rows only. Give it in all or in none."
            )
        controls = None
    case = Case(**{column: rows[0][column] for column in CASE_COLUMNS if column in rows[0]})
    tokens, losses = [row["tokens"] for row in rows], [row["loss"] for row in rows]
    return RecoveryRun(name, case, tokens, losses, controls, rows[0].get("family"), rows[0].get("pruning"))


def _listed_run(path: Path, entry: Mapping) -> RecoveryRun:
    """One entry of a JSON list; a relative path is read from the list's folder."""
    options = ("name", "tokens_per_step", "loss_key", "family", "pruning")
    if not isinstance(entry, dict):
        raise UsageError(
            f"A run in {str(path)!r} must be a dict, but it is {reprlib.repr(entry)}. Write its facts by name."
        )
    unknown = [name for name in entry if name not in (*options, *CASE_COLUMNS, "path")]
    missing = [name for name in ("path", *CASE_COLUMNS[:3]) if name not in entry]
    if unknown or missing:
        raise UsageError(
            f"A run in {str(path)!r} must have path, {', '.join(CASE_COLUMNS[:3])}, and may have"
            f" {', '.join((*options, *CASE_COLUMNS[3:]))}; missing: {', '.join(missing) or 'none'}; unknown:"
            f" {', '.join(unknown) or 'none'}. Give what is missing, and leave out the rest."
        )
    for name in ("path", *(name for name in options if name != "tokens_per_step")):
        if name in entry and not isinstance(entry[name], str):
            raise UsageError(
                f"`{name}` of a run in {str(path)!r} must be a string, but it is {entry[name]!r}. Give a string."
            )
    with of_file(path):
        if entry.get("tokens_per_step") is not None:
            check_ranges({"tokens_per_step": entry["tokens_per_step"]})
        case = Case(**{name: entry[name] for name in CASE_COLUMNS if name in entry})
    return run_from_trainer_state(
        path.parent / entry["path"], case, **{name: entry[name] for name in options if name in entry}
    )


def _read_json(path: Path):
    if not path.is_file():
        raise UsageError(f"{str(path)!r} is no file. Give the path of one.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also JSONDecodeError and UnicodeDecodeError
        raise UsageError(f"{str(path)!r} is not valid JSON: {error}. Write it again.") from error
    except RecursionError:
        raise UsageError(f"{str(path)!r} is not valid JSON: it is nested too deep. Write it again.") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
