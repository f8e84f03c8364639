"""One run's folder: never overwritten by accident, and resumable stage by stage."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from accelerate import PartialState

from ..core import (
    REPORT_NAME,
    UsageError,
    by_main_process,
    content_of,
    lock_folder,
    read_json_object,
    sign,
    write_json_atomically,
)
from ..shapes import TARGET_NAMES, ModelShape
from ..training.checkpoints import FILES_NAME, STATE_NAME, TRAINER_STATE_NAME, last_whole_checkpoint
from ..training.same_run import changing_arguments, check_same_run, deciding_arguments, differences

_STAGES_NAME = "stages.json"
_UNUSED = {"settings", "source", "mask_learning_start"}
"""What a run has recorded that was refused, or stopped, before any training."""
_OF_TEXT = ("text_field", "skip_unreadable", "skip_null_text", "parse_special_tokens")
_FREE_SETTINGS = {
    "num_proc", "baselines", "baseline_learning_rates", "stop_after", "resume", "overwrite", "dry_run", "keep_adapter",
    "live_page",
    # Compared by what they lead to: the target's shape, digests of checkpoints and of packed text.
    *TARGET_NAMES, "preset", "target_num_parameters", "model_name_or_path", "teacher_name_or_path", "pruned", "data_dir",
    *_OF_TEXT,
}  # fmt: skip
_OF_RECOVERY = ("recovery_tokens", "recovery_method", "peft_config", "quantize", "lr_scheduler_type")
_MAY_CHANGE, _UNTIL = "may_change", "may_change_until"


def run_settings(pipeline, target: ModelShape, args) -> dict:
    """What decides a run's result, beside its text and its checkpoints.

    ``may_change`` holds what is only told when it changes, and ``may_change_until``, by stage, what decides nothing before
    that stage, so that it may be chosen anew until then.

    Args:
        pipeline: a dataclass of arguments.
        args: of the training.
    """
    given = asdict(pipeline)
    settings = {name: value for name, value in given.items() if name not in _FREE_SETTINGS}
    settings |= {"target_shape": target.to_dict(), "num_tokens": args.num_tokens} | deciding_arguments(args)
    settings[_MAY_CHANGE] = changing_arguments(args) | {name: given[name] for name in _OF_TEXT if name in given}
    if "recovery_tokens" in settings:
        settings[_UNTIL] = {"recovery": {name: settings.pop(name) for name in _OF_RECOVERY if name in settings}}
    return settings


class RunFolder:
    """Holds ``results.json``, the checkpoints, and the records of finished stages; locked while this object lives.

    Of several processes the main one looks and writes, and the others are told. All must make the object.

    Args:
        path: the folder; ``None`` makes the next free ``runs/NNN``.
        resume: continue what is there.
        overwrite: replace what is there. It is deleted only when the first stage of this run is done, so that a run
            refused before that has deleted nothing.
        dry: look as ever, but write and lock nothing.
        settings: JSON-ready facts that a resumed run must share with the run it continues (``run_settings``); those of
            stages that have not begun may be chosen anew.

    Raises:
        ValueError: the folder holds a run and neither ``resume`` nor ``overwrite`` was asked for; it holds no run but
            ``resume`` was; it holds files that no run wrote; another process writes to it; its record is damaged; or a
            resumed run has other settings.
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        resume: bool = False,
        overwrite: bool = False,
        settings: dict | None = None,
        dry: bool = False,
    ):
        self._dry, self._stage_seconds, self._lock = dry, 0.0, None
        try:
            looked = by_main_process(lambda: self._look(path, resume, overwrite, settings or {}))
        except BaseException:
            self._lock = None  # let go: the error's traceback keeps this object
            raise
        self.path, self._stages, self._replaces = looked

    def _look(self, path: str | os.PathLike | None, resume: bool, overwrite: bool, settings: dict) -> tuple:
        """Check what is there, lock it and note the settings: path, record of the stages, whether it is replaced."""
        if resume and overwrite:
            raise UsageError("`--resume` and `--overwrite` contradict each other; give one of them.")
        if path is None and resume:
            raise UsageError("`--resume` needs `--output_dir`: the folder of the run to continue.")
        self.path = Path(path) if path is not None else Path("runs/NNN") if self._dry else _next_numbered(Path("runs"))
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"`--output_dir` {str(self.path)!r} is a file. Choose another name for the run's folder.")
        stages = self.path / _STAGES_NAME
        self._replaces = False
        if resume and not stages.is_file():
            raise UsageError(f"`--resume`: `--output_dir` {str(self.path)!r} holds no run. Leave `--resume` out.")
        if self.path.is_dir() and content_of(self.path) and not stages.is_file():
            raise UsageError(
                f"`--output_dir` {str(self.path)!r} is not empty, and what it holds was not written by a run."
                " Choose another folder."
            )
        self._lock = None if self._dry else lock_folder(self.path)  # what follows is looked at by one process at a time
        if self.path.is_dir() and content_of(self.path) and not resume:
            unused = _is_unused(self.path)
            if not overwrite and not unused:
                raise UsageError(
                    f"`--output_dir` {str(self.path)!r} already holds a run. Choose another folder, continue it with"
                    " `--resume`, or delete it with `--overwrite`."
                )
            self._replaces = not unused
        self._stages = _read_stages(self.path) if resume else {}
        self._check_settings(settings)
        if not resume and not self._replaces:
            self._write()
        if self._lock is not None:
            sign(self._lock)
        return self.path, self._stages, self._replaces

    def require(self, settings: dict) -> None:
        """Compare further settings, which were found out later, with those of the run that is continued, or note them.

        Raises:
            ValueError: they differ.
        """
        self._check_settings(self._stages["settings"] | settings)
        if not self._replaces:
            self._write()

    def _check_settings(self, settings: dict) -> None:
        settings = json.loads(json.dumps(settings))
        before = self._stages.get("settings", settings)
        what = f"The run in {str(self.path)!r} can not go on"
        told = check_same_run(_without(before, _MAY_CHANGE, _UNTIL), _without(settings, _MAY_CHANGE, _UNTIL), what)
        told += differences(before.get(_MAY_CHANGE, {}), settings.get(_MAY_CHANGE, {}))
        for stage, values in settings.get(_UNTIL, {}).items():
            earlier = before.get(_UNTIL, {}).get(stage, {})
            if stage in self._stages:
                what = f"The {stage} of the run in {str(self.path)!r} is finished, and can not be done again"
            told += check_same_run(earlier, values, what) if self._has_begun(stage) else differences(earlier, values)
        if told:
            PartialState().print(f"Since this run was last started, {', '.join(told)}.")
        self._stages["settings"] = self._stages.get("settings", {}) | settings

    def _has_begun(self, stage: str) -> bool:
        return stage in self._stages or (self.path / stage).exists()

    def record(self, stage: str, content: dict) -> dict:
        """Note a stage as finished, with what later stages need of it."""
        self._stages[stage] = content
        self._write()
        PartialState().wait_for_everyone()  # the next stage reads what is there now
        return content

    def _write(self) -> None:
        if self._dry or not PartialState().is_main_process:
            return
        if self._replaces:
            (self.path / _STAGES_NAME).unlink()  # first: what is left where this is cut short passes for no run
            for path in content_of(self.path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self._replaces = False
        write_json_atomically(self.path / _STAGES_NAME, self._stages)

    def stage(self, name: str, run: Callable[[], dict]) -> dict:
        """Run a stage and record what it returns, or return what it recorded when it ran before."""
        if name in self._stages:
            return self._stages[name]
        start = time.perf_counter()
        record = run()
        self._stage_seconds += (seconds := time.perf_counter() - start)
        return self.record(name, record | {"stage_seconds": seconds})

    def total_seconds(self, process_started: float) -> float:
        """Seconds of all stages, over all processes of this run, and of this process outside of them.

        Args:
            process_started: ``time.perf_counter()`` when this process began.
        """
        stages = sum(record.get("stage_seconds", 0.0) for record in self._stages.values())
        return stages + time.perf_counter() - process_started - self._stage_seconds

    @property
    def records(self) -> dict[str, dict]:
        """What the finished stages recorded, by name, in order."""
        return _without(self._stages, "settings")

    @property
    def holds_another_run(self) -> bool:
        """Whether what lies in the folder is of a run that this one replaces, and has not replaced yet."""
        return self._replaces

    def last_checkpoint(self, stage: str) -> str | None:
        """The last whole training checkpoint of a stage, or None."""
        for checkpoint in (self.path / stage).glob("checkpoint-*"):
            ours = any((checkpoint / name).is_file() for name in (STATE_NAME, FILES_NAME))
            if (checkpoint / TRAINER_STATE_NAME).is_file() and not ours:
                raise UsageError(
                    f"{str(checkpoint)!r} was written with `save_only_model`, so training cannot go on from"
                    " it. Delete it to train this stage again, or start a run in another folder."
                )
        return last_whole_checkpoint(self.path / stage, PartialState().print)


def _read_stages(folder: Path) -> dict:
    """The record of a run; of a damaged one it is said what is left."""
    try:
        stages = read_json_object(folder / _STAGES_NAME, fix="Restore the file, or start anew.")
        if not isinstance(stages.get("settings"), dict):
            raise UsageError(f"{str(folder / _STAGES_NAME)!r} has no settings. Restore the file, or start anew.")
        return stages
    except UsageError as error:
        whole = [last_whole_checkpoint(stage) for stage in sorted(folder.iterdir()) if stage.is_dir()]
        whole = [path for path in whole if path is not None]
        left = f"The last whole checkpoint in it is {whole[-1]!r}" if whole else "No checkpoint in it is whole"
        raise UsageError(f"{error} {left}.") from error


def _without(values: dict, *names: str) -> dict:
    return {name: value for name, value in values.items() if name not in names}


def _is_unused(folder: Path) -> bool:
    """Whether a run was refused, or stopped, before any training: it left the record of its settings, and its page."""
    content = [path for path in content_of(folder) if path.name != REPORT_NAME]
    if content != [folder / _STAGES_NAME]:
        return False
    try:
        return set(read_json_object(content[0])) <= _UNUSED
    except UsageError:  # damaged: it may have been a run's
        return False


def _next_numbered(root: Path) -> Path:
    """A folder of its own for every process, though several may look at once."""
    root.mkdir(exist_ok=True)
    while True:
        numbers = [int(folder.name) for folder in root.glob("[0-9]*") if folder.name.isdigit()]
        path = root / f"{max(numbers, default=0) + 1:03d}"
        with suppress(FileExistsError):
            path.mkdir()
            return path


def finished_stages(path: str | os.PathLike) -> list[str] | None:
    """Names of the stages that the run in this folder has finished, or None where no run has been."""
    stages = Path(path) / _STAGES_NAME
    if not stages.is_file():
        return None
    return list(_without(_read_stages(Path(path)), "settings"))


def settings_of_run(path: str | os.PathLike) -> dict:
    """What the run in this folder was asked for (``run_settings``)."""
    return _read_stages(Path(path))["settings"]


def target_of_run(path: str | os.PathLike) -> dict[str, int]:
    """Sizes of the shape that the run in this folder shears towards, as ``TargetShape.from_source`` takes them."""
    shape = settings_of_run(path)["target_shape"]
    return {name: shape[name] for name in TARGET_NAMES if name in shape}
