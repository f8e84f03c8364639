"""A checkpoint that came from elsewhere runs no code: pickles are read only if this user's own runs wrote them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from launching import finish, log_of, start
from training_helpers import make_args, make_trainer, plain_model

from hf_shear.core import UsageError
from hf_shear.training import trusted_files
from hf_shear.training.checkpoints import note_files
from hf_shear.training.trusted_files import check_trusted, note_trusted, record_folder

DEEPSPEED, FSDP = "DeepSpeed ZeRO-2", "FSDP2"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(trusted_files, "HF_HOME", str(tmp_path / "home"))


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def deepspeed_checkpoint(folder: Path, text: str = "") -> Path:
    """A folder laid out as DeepSpeed's."""
    states = folder / "global_step5"
    states.mkdir(parents=True)
    (folder / "latest").write_text("global_step5")
    for name in ("mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save({"a": torch.ones(2), "text": text}, states / name)
    return folder


def test_what_this_user_wrote_is_trusted_wherever_it_is_moved(tmp_path):
    checkpoint = deepspeed_checkpoint(tmp_path / "run" / "checkpoint-5")
    with pytest.raises(
        UsageError, match="holds pickled files .global_step5/bf16.*optim_states.pt and 1 more. that no run"
    ):
        check_trusted(checkpoint, DEEPSPEED)
    note_trusted(checkpoint, DEEPSPEED)
    check_trusted(checkpoint, DEEPSPEED)
    check_trusted(shutil.move(checkpoint, tmp_path / "moved"), DEEPSPEED)


@pytest.mark.parametrize("place", ["model_states", "optim_states", "a new file"])
def test_a_copied_run_with_a_payload_and_a_record_of_its_own_is_refused(place, tmp_path):
    checkpoint = deepspeed_checkpoint(tmp_path / "theirs" / "checkpoint-5")
    note_trusted(checkpoint, DEEPSPEED)
    name = next((path for path in (checkpoint / "global_step5").iterdir() if place in path.name), None)
    torch.save(Payload(tmp_path / "ran"), name or checkpoint / "global_step5" / "more_optim_states.pt")
    for forged in ("trusted_checkpoints", "hf_shear/trusted_checkpoints"):  # beside the run, and in it
        folder = tmp_path / "theirs" / forged
        folder.mkdir(parents=True)
        digests = [
            digest
            for _, digest in trusted_files._digests(checkpoint, trusted_files.unpickled_files(checkpoint, DEEPSPEED))
        ]
        (folder / "forged.json").write_text(json.dumps({"checkpoint": str(checkpoint), "sha256": digests}))
    with pytest.raises(UsageError, match="that no run of yours on this machine wrote.*give `--trust_checkpoint`"):
        check_trusted(checkpoint, DEEPSPEED)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("latest", ["../../elsewhere", "..", "", "/tmp", "global_step6"])
def test_a_checkpoint_that_sends_deepspeed_elsewhere_is_refused(latest, tmp_path):
    checkpoint = deepspeed_checkpoint(tmp_path / "checkpoint-5")
    note_trusted(checkpoint, DEEPSPEED)
    (checkpoint / "latest").write_text(latest)
    with pytest.raises(UsageError, match="has a file 'latest' that names no folder in it"):
        check_trusted(checkpoint, DEEPSPEED)


def test_a_folder_behind_a_link_is_looked_at_too(tmp_path):
    checkpoint = deepspeed_checkpoint(tmp_path / "checkpoint-5")
    note_trusted(checkpoint, DEEPSPEED)
    elsewhere = deepspeed_checkpoint(tmp_path / "elsewhere", "other")
    (checkpoint / "global_step6").symlink_to(elsewhere / "global_step5")
    with pytest.raises(UsageError, match="global_step6/"):
        check_trusted(checkpoint, DEEPSPEED)


def test_the_metadata_of_fsdp_are_pickles(tmp_path):
    parts = tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0"
    parts.mkdir(parents=True)
    (parts / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    (parts / "__0_0.distcp").write_bytes(b"tensors")
    with pytest.raises(UsageError, match="pickled files .pytorch_model_fsdp_0/.metadata. that no run of yours"):
        check_trusted(tmp_path / "checkpoint-5", FSDP)
    note_trusted(tmp_path / "checkpoint-5", FSDP)
    check_trusted(tmp_path / "checkpoint-5", FSDP)
    for backend in ("one process", "DDP"):
        assert trusted_files.unpickled_files(tmp_path / "checkpoint-5", backend) == []


def test_records_of_checkpoints_that_were_rotated_away_are_dropped(tmp_path):
    first, second, third = (
        deepspeed_checkpoint(tmp_path / run / f"checkpoint-{step}", f"{run} {step}")
        for run, step in (("a", 1), ("a", 2), ("b", 1))
    )
    for checkpoint in (first, third):
        note_trusted(checkpoint, DEEPSPEED)
    shutil.rmtree(first)
    shutil.move(third, tmp_path / "moved")  # gone with its run: kept
    note_trusted(second, DEEPSPEED)
    assert len(list(record_folder().iterdir())) == 2
    check_trusted(second, DEEPSPEED)
    check_trusted(tmp_path / "moved", DEEPSPEED)
    (record_folder() / "half.json").write_text('{"checkpoint"')
    check_trusted(second, DEEPSPEED)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
def test_in_one_process_code_in_a_checkpoint_is_refused_in_one_line(name, tmp_path):
    """transformers reads these with torch's `weights_only`."""
    arguments = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make_trainer(plain_model(), make_args(tmp_path, **arguments)).train()
    checkpoint = tmp_path / "checkpoint-1"
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    torch.save(Payload(tmp_path / "ran"), checkpoint / name)
    note_files(checkpoint)
    trainer = make_trainer(plain_model(), make_args(tmp_path, **arguments))
    with pytest.raises(UsageError, match="checkpoint-1' has a file that holds other than tensors .* do not trust this"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backend, states", [("zero2", "optim_states"), ("zero3", "model_states")])
def test_deepspeed_resumes_from_its_own_checkpoints_and_from_no_others(backend, states, tmp_path, monkeypatch):
    """Two processes: both refuse, and no code has run; with the flag it runs, which shows that it could have."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    plain_model(attention_dropout=0.0).save_pretrained(tmp_path / "source")

    def launch(*options: str) -> int:
        return finish(start(backend, tmp_path / "run", tmp_path / "source", "hard_concrete", "--steps", "4", *options))

    saving, bounded = ("--save_steps", "1"), ("--arguments", '{"save_total_limit": 1}')
    assert launch(*saving, *bounded) == 0, log_of(tmp_path / "run")[-4000:]
    records = list((tmp_path / "home" / "hf_shear" / "trusted_checkpoints").iterdir())
    assert len(records) == 2  # of four checkpoints: the last, and the one that was rotated away after it was written
    assert launch(*saving, "--resume") == 0, log_of(tmp_path / "run")[-4000:]

    checkpoint, ran = tmp_path / "run" / "checkpoint-4", tmp_path / "ran"
    path = next(path for path in sorted((checkpoint / "global_step4").iterdir()) if states in path.name)
    torch.save(Payload(ran), path)
    note_files(checkpoint)  # as whoever made it would
    assert launch("--resume") != 0 and not ran.exists()
    assert log_of(tmp_path / "run").count("UsageError: `resume_from_checkpoint`") >= 2
    assert f"holds pickled files (global_step4/{path.name})" in log_of(tmp_path / "run")
    assert launch("--resume", "--arguments", '{"trust_checkpoint": true}') != 0  # it is no state, but it was unpickled
    assert ran.is_dir()
