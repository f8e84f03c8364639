"""SIGTERM and SIGINT: training saves the step it is in and goes on exactly; the exit code tells which it was."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
from test_trainer_resume import CASES, arguments, assert_same_run
from training_helpers import make_trainer, stop_workers
from transformers import TrainerCallback

from hf_shear.core import StoppedBySignal, UsageError, run_command_line
from hf_shear.core.signals import StoppedByKeyboard
from hf_shear.training.checkpoints import last_whole_checkpoint

SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130}
pytestmark = pytest.mark.filterwarnings("error")


class Signals(TrainerCallback):
    """Sends a signal to this process, or to what else is given, at an event of a step."""

    def __init__(self, signum: int, step: int, event: str = "on_step_begin", send=os.kill, to: int | None = None):
        self.signum, self.step, self.send, self.to = signum, step, send, to
        setattr(self, event, self.act)

    def act(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.send(os.getpid() if self.to is None else self.to, self.signum)


@pytest.fixture(autouse=True)
def sigint_is_not_ignored():
    """As it would be where the tests are started by a script in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def handlers() -> list:
    return [signal.getsignal(signum) for signum in SIGNALS]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """``whole_run(case)``: the trainer of a run that was never stopped."""
    made = {}

    def run(case: str):
        if case not in made:
            folder = tmp_path_factory.mktemp(case)
            made[case] = make_trainer(CASES[case][0](), arguments(folder, case, save_strategy="no"))
            made[case].train()
        return made[case]

    return run


# Step 4 ends with an evaluation; a signal in the evaluation itself ends the same step.
@pytest.mark.parametrize(
    "case, signum, event, step, changes",
    [
        ("relaxed_topk", signal.SIGTERM, "on_step_begin", 3, {"save_strategy": "no"}),
        ("recovery", signal.SIGINT, "on_evaluate", 4, {"save_steps": 100}),
        ("recovery", signal.SIGTERM, "on_save", 4, {"save_steps": 4}),
        ("recovery", signal.SIGINT, "on_step_begin", 8, {"save_strategy": "no"}),  # the last step
    ],
)
def test_training_saves_its_step_and_goes_on_exactly(whole_run, tmp_path, capfd, case, signum, event, step, changes):
    before = handlers()
    stopped = make_trainer(
        CASES[case][0](), arguments(tmp_path, case, **changes), callbacks=[Signals(signum, step, event)]
    )
    with pytest.raises(StoppedBySignal) as caught:
        stopped.train()
    assert handlers() == before
    assert caught.value.code == SIGNALS[signum] and caught.value.signum == signum
    assert isinstance(caught.value, KeyboardInterrupt) == (signum == signal.SIGINT)
    last = step + (event == "on_step_begin")
    checkpoint = str(tmp_path / f"checkpoint-{last}")
    name = signal.Signals(signum).name
    assert str(caught.value) == (
        f"Stopped by {name} after step {last}, which is saved in {checkpoint}. To go on:"
        " `trainer.train(resume_from_checkpoint=True)`."
    )
    assert f"{name}: training stops at the end of this step." in capfd.readouterr().err
    assert last_whole_checkpoint(tmp_path) == checkpoint
    resumed = make_trainer(CASES[case][0](), arguments(tmp_path, case, save_strategy="no"))
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(resumed, whole_run(case), first_step=last)


def to_all_workers(loader_of):
    """Sends to the workers that read ahead too, as a terminal and a scheduler do."""

    def send(process: int, signum: int) -> None:
        for worker in loader_of()._loader._iterator._workers:
            # By another process: torch's workers end in peace if their parent asks for it.
            subprocess.run(["kill", f"-{int(signum)}", str(worker.pid)], check=True)
        time.sleep(0.3)  # torch hears of a worker that died, and raises
        os.kill(process, signum)

    return send


@pytest.mark.parametrize("signum", SIGNALS)
def test_workers_that_get_the_signal_too_go_on_reading_until_the_step_ends(whole_run, tmp_path, signum):
    case, changes = "recovery", {"save_strategy": "no", "dataloader_num_workers": 2}
    made = []
    callback = Signals(signum, 2, send=to_all_workers(lambda: made[0].domains.loader))
    made.append(make_trainer(CASES[case][0](), arguments(tmp_path, case, **changes), callbacks=[callback]))
    with pytest.raises(StoppedBySignal, match="after step 3"):
        made[0].train()
    stop_workers(made[0])
    resumed = make_trainer(CASES[case][0](), arguments(tmp_path, case, save_strategy="no"))
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(resumed, whole_run(case), first_step=3)


def test_a_second_signal_ends_at_once_but_not_under_torchrun(tmp_path, monkeypatch):
    twice = [Signals(signal.SIGINT, 3), Signals(signal.SIGINT, 3, "on_optimizer_step")]
    trainer = make_trainer(CASES["recovery"][0](), arguments(tmp_path, "recovery"), callbacks=twice)
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.train()
    assert not isinstance(caught.value, StoppedByKeyboard) and trainer.state.global_step == 3
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    trainer = make_trainer(CASES["recovery"][0](), arguments(tmp_path, "recovery"), callbacks=twice)
    with pytest.raises(StoppedByKeyboard, match="after step 4"):
        trainer.train()


def test_a_signal_before_the_first_step_trains_nothing_and_one_behind_the_last_is_not_lost(tmp_path):
    trainer = make_trainer(CASES["recovery"][0](), arguments(tmp_path, "recovery", save_strategy="no"))
    measure = trainer.source_losses

    def source_losses():
        os.kill(os.getpid(), signal.SIGTERM)
        return measure()

    trainer.source_losses = source_losses
    with pytest.raises(StoppedBySignal, match="before the first step of this call: there is nothing new to save"):
        trainer.train()
    assert trainer.state.global_step == 0 and list(tmp_path.iterdir()) == []
    late = [Signals(signal.SIGINT, 9, "on_train_end")]
    trainer = make_trainer(CASES["recovery"][0](), arguments(tmp_path, "recovery", save_strategy="no"), callbacks=late)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 9


def test_a_checkpoint_that_can_not_be_written_is_not_said_to_be_there(tmp_path, monkeypatch):
    trainer = make_trainer(
        CASES["recovery"][0](), arguments(tmp_path, "recovery", save_strategy="no"), callbacks=[Signals(15, 3)]
    )

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.Trainer._save_checkpoint", full)
    with pytest.raises(RuntimeError, match="could not be written: .*No space left on device. There is none before it"):
        trainer.train()


def test_outside_the_main_thread_signals_are_left_to_others(tmp_path):
    before, errors = handlers(), []

    def train():
        try:
            trainer = make_trainer(CASES["recovery"][0](), arguments(tmp_path, "recovery"))
            trainer.train()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert errors == [] and handlers() == before


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_command_ends_in_one_line_with_the_signal_s_exit_code(capsys, signum):
    before, name = handlers(), signal.Signals(signum).name
    assert run_command_line("hf-shear", lambda: os.kill(os.getpid(), signum)) == SIGNALS[signum]
    assert capsys.readouterr().err == f"hf-shear: Stopped by {name}.\n"
    assert run_command_line("hf-shear", lambda: os.kill(os.getpid(), signum), debug=True) == SIGNALS[signum]
    assert "Traceback" in capsys.readouterr().err
    assert handlers() == before


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it starts with &
    try:
        assert run_command_line("hf-shear", lambda: os.kill(os.getpid(), signal.SIGINT)) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_one_trainer_at_a_time_writes_checkpoints_to_a_folder(tmp_path):
    from test_run_lock import Holder

    holder = Holder(tmp_path)
    trainer = make_trainer(CASES["recovery"][0](), arguments(tmp_path, "recovery"))
    with pytest.raises(UsageError, match="is in use: process"):
        trainer.train()
    holder.kill()
    trainer.train()
    assert Holder(tmp_path).kill() is None  # it is free again


def test_output_that_nobody_reads_ends_a_command_quietly(tmp_path):
    code = """
import sys
from hf_shear.core import run_command_line
def work():
    for _ in range(100_000):
        print("a line of a long table")
def upload():
    raise BrokenPipeError(32, "the hub hung up")
if sys.argv[1] == "network":
    sys.exit(run_command_line("tool", upload))
sys.exit(run_command_line("tool", work))
"""
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    shown = subprocess.run(
        ["bash", "-c", f"{command} output | head -1; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert shown.stdout.split("\n")[:2] == ["a line of a long table", "141"] and shown.stderr == ""
    failed = subprocess.run(["bash", "-c", f"{command} network"], capture_output=True, text=True)
    assert failed.returncode == 1 and "the hub hung up" in failed.stderr
