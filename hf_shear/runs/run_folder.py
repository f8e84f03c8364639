"""One run's folder: never overwritten by accident, and resumable stage by stage."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..core import UsageError
from ..shapes import TARGET_NAMES, ModelShape
from ..training.checkpoints import TRAINER_STATE_NAME, last_whole_checkpoint
from ..training.state_file import STATE_NAME, write_json_atomically

_STAGES_NAME = "stages.json"
_UNUSED = {"settings", "source"}  # what a run has recorded that was refused, or stopped, before any training
_FREE_SETTINGS = {
    "num_proc", "baselines", "baseline_learning_rates", "stop_after", "resume", "overwrite", "keep_adapter", *TARGET_NAMES,
}  # fmt: skip
_RECOVERY_SETTINGS = ("recovery_method", "distillation", "distillation_temperature", "distillation_weight")


def run_settings(pipeline, target: ModelShape, args) -> dict:
    """What a resumed run must share with the run it continues; ``pipeline`` is a dataclass of arguments."""
    settings = {name: value for name, value in asdict(pipeline).items() if name not in _FREE_SETTINGS}
    settings |= {name: getattr(args, name) for name in _RECOVERY_SETTINGS}
    return {"target_shape": target.to_dict(), "seed": args.seed} | settings


class RunFolder:
    """Holds ``results.json``, the checkpoints, and the records of finished stages.

    Args:
        path: the folder; ``None`` makes the next free ``runs/NNN``.
        resume: continue what is there.
        overwrite: replace what is there. It is deleted only when the first stage of this run is done, so that a run
            refused before that has deleted nothing.
        settings: JSON-ready facts that a resumed run must share with the run it continues.

    Raises:
        ValueError: the folder holds a run and neither ``resume`` nor ``overwrite`` was asked for; it holds no run but
            ``resume`` was; it holds files that no run wrote; or a resumed run has other settings.
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        resume: bool = False,
        overwrite: bool = False,
        settings: dict | None = None,
    ):
        if resume and overwrite:
            raise UsageError("`--resume` and `--overwrite` contradict each other; give one of them.")
        if path is None and resume:
            raise UsageError("`--resume` needs `--output_dir`: the folder of the run to continue.")
        self.path = Path(path) if path is not None else _next_numbered(Path("runs"))
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"`--output_dir` {str(self.path)!r} is a file. Choose another name for the run's folder.")
        stages = self.path / _STAGES_NAME
        self._replaces = False
        if resume and not stages.is_file():
            raise UsageError(f"`--resume`: `--output_dir` {str(self.path)!r} holds no run. Leave `--resume` out.")
        if self.path.is_dir() and any(self.path.iterdir()) and not resume:
            if not stages.is_file():
                raise UsageError(
                    f"`--output_dir` {str(self.path)!r} is not empty, and what it holds was not written by a run."
                    " Choose another folder."
                )
            unused = _is_unused(self.path)
            if not overwrite and not unused:
                raise UsageError(
                    f"`--output_dir` {str(self.path)!r} already holds a run. Choose another folder, continue it with"
                    " `--resume`, or delete it with `--overwrite`."
                )
            self._replaces = not unused
        self.path.mkdir(parents=True, exist_ok=True)
        self._stage_seconds = 0.0
        self._stages = json.loads(stages.read_text(encoding="utf-8")) if resume else {}
        self._check_settings(settings or {})

    @classmethod
    def open(cls, *args, **kwargs) -> RunFolder:
        """As the constructor, on every process of a launch: the main one looks and writes, the others are told."""
        state, told = PartialState(), [None]
        if state.is_main_process:
            try:
                folder = cls(*args, **kwargs)
                told = [(str(folder.path), folder._stages, folder._replaces, None)]
            except Exception as error:  # raised below, on every process, once the others know
                told = [(None, None, None, error)]
        if state.num_processes > 1:
            broadcast_object_list(told)
        path, stages, replaces, error = told[0]
        if error is not None:
            raise error
        folder = cls.__new__(cls)
        folder.path, folder._stages, folder._replaces, folder._stage_seconds = Path(path), stages, replaces, 0.0
        return folder

    def _check_settings(self, settings: dict) -> None:
        settings = json.loads(json.dumps(settings))
        before = self._stages.get("settings", settings)
        changed = [name for name in settings if name in before and before[name] != settings[name]]
        if changed:
            listed = ", ".join(f"{name} was {before.get(name)!r} and is now {settings[name]!r}" for name in changed)
            raise UsageError(
                f"`--resume` would continue {str(self.path)!r} with other arguments: {listed}. Give the same ones, or"
                " start a run in another folder."
            )
        self._stages["settings"] = settings
        if not self._replaces:
            self._write()

    def record(self, stage: str, content: dict) -> dict:
        """Note a stage as finished, with what later stages need of it."""
        self._stages[stage] = content
        self._write()
        PartialState().wait_for_everyone()  # the next stage reads what is there now
        return content

    def _write(self) -> None:
        if not PartialState().is_main_process:
            return
        if self._replaces:
            shutil.rmtree(self.path)
            self.path.mkdir()
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

    def finished(self, stage: str) -> dict | None:
        """What a finished stage recorded, or None."""
        return self._stages.get(stage)

    def last_checkpoint(self, stage: str) -> str | None:
        """The last whole training checkpoint of a stage, or None."""
        for checkpoint in (self.path / stage).glob("checkpoint-*"):
            if (checkpoint / TRAINER_STATE_NAME).is_file() and not (checkpoint / STATE_NAME).is_file():
                raise UsageError(
                    f"`--resume`: {str(checkpoint)!r} was written with `save_only_model`, so training cannot go on from"
                    " it. Delete it to train this stage again, or start a run in another folder."
                )
        return last_whole_checkpoint(self.path / stage, PartialState().print)


def _is_unused(folder: Path) -> bool:
    """Whether a run was refused, or stopped, before any training: it left the record of its settings at most."""
    content = list(folder.iterdir())
    return content == [folder / _STAGES_NAME] and set(json.loads(content[0].read_text(encoding="utf-8"))) <= _UNUSED


def _next_numbered(root: Path) -> Path:
    numbers = [int(folder.name) for folder in root.glob("[0-9]*") if folder.name.isdigit()] if root.is_dir() else []
    return root / f"{max(numbers, default=0) + 1:03d}"


def finished_stages(path: str | os.PathLike) -> list[str] | None:
    """Names of the stages that the run in this folder has finished, or None where no run has been."""
    stages = Path(path) / _STAGES_NAME
    if not stages.is_file():
        return None
    return [name for name in json.loads(stages.read_text(encoding="utf-8")) if name != "settings"]
