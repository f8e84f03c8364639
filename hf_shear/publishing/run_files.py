"""Finds what is published: a run's checkpoint, and beside it the results, provenance, evaluation and report."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..core import (
    EVALUATION_NAME,
    REPORT_NAME,
    RESULTS_NAME,
    TARGET_NAMES,
    UsageError,
    check_record,
    of_file,
    read_json_object,
)
from ..slicing import PROVENANCE_NAME
from .checkpoint_files import checkpoint_config, is_masked
from .plain_files import plain_file

ARMS = ("recovered", "pruned")  # folders of a run that can be published, and records of its results; the first is best
RECORDS = {RESULTS_NAME: "results", EVALUATION_NAME: "evaluation", PROVENANCE_NAME: "provenance"}


@dataclass(frozen=True)
class RunFiles:
    """A checkpoint and what is known of it.

    Attributes:
        checkpoint: the folder that is published.
        config: its config.json.
        arm: which record of the results it is, "recovered" or "pruned".
        results, provenance, evaluation: contents of the JSON files, None where there are none.
        report: the run's report.html, if it has one.
    """

    checkpoint: Path
    config: dict
    arm: str
    results: dict | None
    provenance: dict | None
    evaluation: dict | None
    report: Path | None


def find_run(folder: str | os.PathLike) -> RunFiles:
    """What there is to publish of a run's folder, or of one checkpoint.

    A folder with results.json is a run, whose ``recovered`` (else ``pruned``) checkpoint is meant. For a checkpoint, the
    results are looked for beside its weights, then one folder up, where a run keeps them.

    Raises:
        UsageError: there is no checkpoint, a file is a link or broken, or results or evaluation are those of another model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is not a folder. Name the folder of a run, or a checkpoint.")
    checkpoint = folder if (folder / "config.json").is_file() else _best_checkpoint(folder)
    config = checkpoint_config(checkpoint)
    # A checkpoint keeps its own results where it was downloaded; a masked one is of a run that is not finished.
    places = [checkpoint] if is_masked(config) else [checkpoint, checkpoint.resolve().parent]
    found = {RECORDS[name]: _first_json(places, name) for name in (RESULTS_NAME, EVALUATION_NAME)}
    provenance = _first_json([checkpoint], PROVENANCE_NAME)
    arm = _arm(checkpoint, provenance)
    if found["results"] is not None:
        _check_same_model(found["results"], arm, config, checkpoint)
    check_judged(found["evaluation"], arm)
    report = next((place / REPORT_NAME for place in places if plain_file(place / REPORT_NAME)), None)
    return RunFiles(checkpoint, config, arm, provenance=provenance, report=report, **found)


def check_judged(evaluation: dict | None, arm: str) -> None:
    """Before and after recovery a model has the same shape, so that only its folder tells which one was evaluated.

    Raises:
        UsageError: an evaluation of the run's other model.
    """
    name = ((evaluation or {}).get("pruned") or {}).get("name")
    judged = os.path.basename(os.path.normpath(name)) if isinstance(name, str) else ""
    if judged in ARMS and judged != arm:
        raise UsageError(
            f"evaluation.json is of {name!r}, but what is described is the run's {arm!r}. Evaluate that one, with"
            " `--output` in its own folder, or move evaluation.json away."
        )


def _best_checkpoint(folder: Path) -> Path:
    for arm in ARMS:
        if (folder / arm).is_symlink():
            raise UsageError(
                f"{str(folder / arm)!r} is a symbolic link. Name the folder that it leads to, if you mean that."
            )
        if (folder / arm / "config.json").is_file():
            return folder / arm
    raise UsageError(
        f"{str(folder)!r} has nothing to publish: no config.json, and no checkpoint in {' or '.join(ARMS)}. Name the"
        " folder of a finished run, or a checkpoint."
    )


def _first_json(places: list[Path], name: str) -> dict | None:
    found = [place / name for place in places]
    path = next((path for path in found if plain_file(path) or (path.exists() and not path.is_symlink())), None)
    if path is None:
        return None
    content = read_json_object(path)
    with of_file(path):
        check_record(content, RECORDS[name])
    return content


def _arm(checkpoint: Path, provenance: dict | None) -> str:
    """Recovery notes its tokens in the provenance; without one, the folder's name says what it is."""
    if provenance is None:
        return "pruned" if checkpoint.resolve().name == "pruned" else "recovered"
    return "recovered" if "recovery" in provenance else "pruned"


# How configs of mixtures of experts name a size, before its own name.
_OTHER_FIELDS = {"intermediate_size": "moe_intermediate_size", "num_experts": "num_local_experts"}


def _size(config: dict, name: str) -> int | None:
    return config.get(_OTHER_FIELDS.get(name), config.get(name))


def _check_same_model(results: dict, arm: str, config: dict, checkpoint: Path) -> None:
    if not results.get(arm):
        raise UsageError(
            f"The results beside {str(checkpoint)!r} have no record `{arm}`, so a card could not say how good it is."
            " Finish the run, and publish it then."
        )
    shape = results[arm].get("shape", {})
    sizes = {name: _size(config, name) for name in TARGET_NAMES}
    different = [name for name, size in sizes.items() if shape.get(name) != size]
    if different:
        name = different[0]
        raise UsageError(
            f"{str(checkpoint)!r} is not the model of the results beside it: `{name}` is {sizes[name]}, and"
            f" {shape.get(name)} in `{arm}` of the results. Put the results of this checkpoint there."
        )
