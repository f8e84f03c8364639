"""Keeps ``report.html`` of a run's folder up to date while the run goes, at a bounded cost.

One process draws the page from the run's records and its trainer's log, and replaces the file in one step. It draws again
when a step has ended and the last drawing is ``1 / MOST_TIME`` of its own length ago, so that all of it takes one per cent
of the run at most.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from transformers import PretrainedConfig, TrainerCallback

from ..core import REPORT_NAME, StoppedBySignal, is_main_process, num_processes, write_text_atomically
from ..pruning.interleave import InterleavedTrainer
from ..report import live_report
from ..shapes import TargetShape
from ..slicing.kept_units import kept_units_from_masks
from ..sources import Source
from ..training import ShearTrainer
from .report import known_results
from .run_folder import RunFolder
from .run_time import CHOOSING, MASK_LEARNING, RECOVERY, SOURCE, Work, seconds_left

MOST_TIME = 0.01
"""Share of the run's time that drawing may take."""
LEAST_SECONDS = 5.0
"""Between two drawings, however fast they are."""
LEAST_REFRESH = 10
"""Seconds until a browser loads the page again."""
_RUNNING, _FINISHED, _STOPPED = "running", "finished", "stopped"


class Followed(Protocol):
    """What the page reads of a run.

    Attributes:
        stop_after: the last stage that was asked for; None: all of them.
    """

    @property
    def folder(self) -> RunFolder: ...
    @property
    def source(self) -> Source: ...
    @property
    def target(self) -> TargetShape: ...
    @property
    def stop_after(self) -> str | None: ...

    def planned(self) -> Mapping[str, Work]:
        """Work of the stages, by name."""
        ...

    def training_flops(self, config: PretrainedConfig) -> float:
        """FLOPs of a training token of a model."""
        ...


class LivePage:
    """Draws the page of one run; does nothing where it is switched off, and in all processes but one.

    Args:
        is_on: ``--live_page``.

    Attributes:
        num_drawn: how often the page was written.
        seconds: that all of it took.
    """

    def __init__(self, is_on: bool = True):
        self.is_on = is_on and is_main_process()
        self.num_drawn, self.seconds = 0, 0.0
        self._due = self._last = 0.0
        self._trainer: ShearTrainer | None = None

    @contextmanager
    def stage(self, run: Followed, name: str) -> Iterator[None]:
        """Draw when a stage begins, and when it ends the run."""
        self._run, self._name, self._trainer = run, name, None
        self._begun = self._train_begun = time.perf_counter()
        self._first_step = 0
        self._planned = run.planned() if self.is_on else {}
        self._draw(_RUNNING)
        try:
            yield
        except StoppedBySignal as stop:
            self._draw(_STOPPED, str(stop))
            raise
        except BaseException as error:
            self._draw(_STOPPED, f"The run ended with an error: {error or type(error).__name__}")
            raise
        self._trainer = None
        if run.stop_after == name:
            self._draw(_FINISHED, "This stage was the last that was asked for.")

    def watch(self, trainer: ShearTrainer) -> None:
        """Draw while ``trainer`` trains the present stage."""
        if self.is_on:
            self._trainer = trainer
            trainer.add_callback(_Watch(self))

    def training_begins(self, step: int) -> None:
        """Note where a training begins, also one that goes on."""
        self._train_begun, self._first_step = time.perf_counter(), step
        self.draw_if_due()

    def draw_if_due(self) -> None:
        """Draw if enough time has passed since the last drawing."""
        if self.is_on and time.perf_counter() >= self._due:
            self._draw(_RUNNING)

    def _draw(self, state: str, said: str = "") -> None:
        """Write the page. What goes wrong is told once, and ends the drawing, not the run."""
        if not self.is_on or self._run.folder.holds_another_run:
            return
        start = time.perf_counter()
        try:
            content = live_report(self._results(), self._live(state, said))
            write_text_atomically(self._run.folder.path / REPORT_NAME, content)
        except Exception as error:
            self.is_on = False
            warnings.warn(
                f"{REPORT_NAME} could not be kept up to date ({type(error).__name__}: {error}). The run goes on without it,"
                " and writes it at its end. Silence this with `--live_page false`.",
                UserWarning,
                stacklevel=2,
            )
        self._last = time.perf_counter() - start
        self.seconds, self.num_drawn = self.seconds + self._last, self.num_drawn + 1
        self._due = time.perf_counter() + max(LEAST_SECONDS, self._last / MOST_TIME)

    # ---- what is on it ----------------------------------------------------------------------------------------

    def _results(self) -> dict[str, Any]:
        """What ``results.json`` will hold, as far as it is known."""
        run, records = self._run, dict(self._run.folder.records)
        if (trainer := self._begun_trainer) is not None:
            records[self._name] = trainer.stage_record(self._name) | self._kept_now(trainer)
        chosen = next((records[name] for name in CHOOSING if name in records), {})
        known = (SOURCE, *CHOOSING, RECOVERY)
        others = {name: record for name, record in records.items() if name not in known and "history" in record}
        source = records.get(SOURCE) or {"shape": run.target.source.to_dict()}
        source = source | {"name": Path(run.source.name).name}
        return known_results(source, chosen, records.get(RECOVERY, {}), others, run.target.sizes())

    @property
    def _begun_trainer(self) -> ShearTrainer | None:
        """The trainer of this stage, once it trains."""
        return None if self._trainer is None or self._trainer.domains.loader is None else self._trainer

    def _kept_now(self, trainer: ShearTrainer) -> dict[str, Any]:
        """The units that a cut would keep now, where this stage learns the run's masks or removes units by turns."""
        if isinstance(trainer, InterleavedTrainer):
            return {"kept": trainer.kept_units().to_dict()}
        learning = trainer.mask_learning
        if learning is None or self._name != MASK_LEARNING:
            return {}
        masks = learning.masks
        return {"kept": kept_units_from_masks(masks.kept_units(), masks.kinds, masks.source).to_dict()}

    def _live(self, state: str, said: str) -> dict[str, Any]:
        records, planned, now = self._run.folder.records, self._planned, time.perf_counter()
        finished = {name: records[name]["stage_seconds"] for name in planned if name in records}
        whole = sum(work.flops for work in planned.values()) or 1.0
        live: dict[str, Any] = {
            "state": state,
            "said": said,
            "written": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "refresh_seconds": max(LEAST_REFRESH, math.ceil(self._last / MOST_TIME)),
            "stage": self._name,
            "seconds": sum(finished.values()) + (0.0 if self._name in finished else now - self._begun),
            "seconds_left": self._seconds_left(finished),
            "num_processes": num_processes(),
            "stages": [
                {
                    "name": name,
                    "state": _FINISHED if name in finished else _RUNNING if name == self._name else "waiting",
                    "share": work.flops / whole,
                    "seconds": finished.get(name),
                }
                for name, work in planned.items()
            ],
        }
        done = [records[name] for name in finished]
        live["tokens"] = sum(record.get("tokens", 0) for record in done)
        live["flops"] = sum(record.get("flops") or 0.0 for record in done)
        return live | self._of_training(live)

    def _of_training(self, live: dict[str, Any]) -> dict[str, Any]:
        """Of the training that goes, if one does."""
        if (trainer := self._begun_trainer) is None:
            return {}
        learning, log = trainer.mask_learning, trainer.state.log_history
        config = self._run.source.config if learning is not None else trainer.model.config
        per_step = trainer.args.samples_per_step() * trainer.sample_length
        found = {
            "step": trainer.state.global_step,
            "max_steps": trainer.state.max_steps,
            "tokens": live["tokens"] + trainer.tokens_seen(),
            "flops": live["flops"] + trainer.tokens_seen() * self._run.training_flops(config),
            "training": [
                {"num_tokens": row["step"] * per_step, "loss": row["loss"]}
                for row in log
                if "loss" in row and "step" in row
            ],
        }
        if learning is not None and learning.kept_at_start:
            found["swapped"] = learning.masks.swapped_units(learning.kept_at_start)
        found["removes_units"] = isinstance(trainer, InterleavedTrainer)
        return found

    def _seconds_left(self, finished: dict[str, float]) -> float | None:
        """Of the run: the training that goes at its own speed, and the rest at that of all that is done."""
        planned = {name: work.flops for name, work in self._planned.items()}
        trainer = self._trainer
        if trainer is None or (steps := trainer.state.global_step - self._first_step) <= 0:
            return seconds_left(planned, finished)
        took = time.perf_counter() - self._train_begun
        own = took / steps * (trainer.state.max_steps - trainer.state.global_step)
        work = self._planned.get(self._name, Work(0.0))
        done, seconds = work.own * steps / max(trainer.state.max_steps, 1), took
        for name, taken in finished.items():
            done, seconds = done + planned[name], seconds + taken
        rest = work.judging + sum(flops for name, flops in planned.items() if name not in (*finished, self._name))
        return own + (rest * seconds / done if done else 0.0)


class _Watch(TrainerCallback):
    """Asks for a new page where training may wait for it: between steps, and after what is logged."""

    def __init__(self, live: LivePage):
        self.live = live

    def on_train_begin(self, args, state, control, **kwargs):
        self.live.training_begins(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.live.draw_if_due()

    def on_log(self, args, state, control, **kwargs):
        self.live.draw_if_due()
