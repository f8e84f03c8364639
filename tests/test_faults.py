"""What goes wrong in a run of two processes ends in a clear message within a bounded time, the last checkpoint intact."""

from __future__ import annotations

import time

import pytest
from launching import finish, log_of, start
from training_helpers import plain_model

from hf_shear.training.checkpoints import is_whole, last_whole_checkpoint

pytest.importorskip("deepspeed", reason="deepspeed is not installed")

BOUND = 120.0  # seconds from the start of the launch, whose imports take 10 to 30, to its end
MESSAGES = {
    "nan": "TrainingDivergedError: The loss or a gradient became NaN or infinite during mask learning, by step 6",
    "die": "Signal 9 (SIGKILL) received by PID",
    "full_disk": "checkpoint-6 could not be written: ",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(MESSAGES))
@pytest.mark.parametrize("backend", ["ddp", "zero2", "zero3"])
def test_a_fault_ends_the_run_and_leaves_its_last_checkpoint(backend, fault, tmp_path):
    plain_model().save_pretrained(tmp_path / "source")
    folder, began = tmp_path / "run", time.monotonic()
    options = ("--save_steps", "3", "--fault", fault, "--fault_at", "5", "--arguments", '{"logging_steps": 3}')
    code = finish(start(backend, folder, tmp_path / "source", "hard_concrete", *options), timeout=BOUND)
    assert code != 0
    assert MESSAGES[fault] in log_of(folder)
    if fault != "die":
        assert f"ast good one is {folder}/checkpoint-3" in log_of(folder) or (
            f"The last good checkpoint is {folder}/checkpoint-3" in log_of(folder)
        )
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-3")
    assert not is_whole(folder / "checkpoint-6")
    assert finish(start(backend, folder, tmp_path / "source", "hard_concrete", "--resume")) == 0, log_of(folder)[-4000:]
    assert time.monotonic() - began < 2 * BOUND
