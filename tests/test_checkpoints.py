"""Half-written checkpoints are recognised, and resumes that could not be exact are refused before training."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import nullcontext

import pytest
from safetensors import safe_open
from training_helpers import full_disk, make_args, make_trainer, masked_model, plain_model

from hf_shear.core import UsageError
from hf_shear.modeling.configuration import LOADER
from hf_shear.training.checkpoints import (
    FILES_NAME,
    STATE_NAME,
    CheckpointError,
    check_resumable,
    is_whole,
    last_whole_checkpoint,
    note_files,
)
from hf_shear.training.mask_optimizer import MASK_STATE_NAME, MaskOptimizer


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Mask learning with checkpoints at 2, 4, 6 and 8."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(masked_model("hard_concrete"), make_args(folder, save_strategy="steps", save_steps=2)).train()
    return folder


@pytest.fixture
def copied(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


def _cut_off(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "name, damage, fault",
    [
        ("trainer_state.json", "gone", "trainer_state.json is missing"),
        ("trainer_state.json", "empty", "trainer_state.json is cut off or damaged"),
        ("trainer_state.json", "cut off", "trainer_state.json is cut off or damaged"),
        (STATE_NAME, "gone", "shear_state.json is missing"),
        (STATE_NAME, "cut off", "shear_state.json is cut off or damaged"),
        (FILES_NAME, "gone", "shear_files.json is missing"),
        ("optimizer.pt", "gone", "optimizer.pt is missing"),
        ("optimizer.pt", "cut off", "optimizer.pt has [0-9,]+ of [0-9,]+ bytes"),
        ("optimizer.pt", "zeros", "optimizer.pt is damaged"),
        ("scheduler.pt", "gone", "scheduler.pt is missing"),
        ("rng_state.pth", "gone", "rng_state.pth is missing"),
        ("model.safetensors", "gone", "model.safetensors is missing"),
        ("model.safetensors", "zeros", "model.safetensors is damaged"),
        (MASK_STATE_NAME, "cut off", "mask_optimizer.safetensors has [0-9,]+ of [0-9,]+ bytes"),
        ("shear_state_0.json", "gone", "shear_state_0.json is missing"),
    ],
)
def test_a_checkpoint_that_lacks_a_file_or_a_part_of_one_is_skipped_and_said(name, damage, fault, copied):
    last = copied / "checkpoint-8"
    assert is_whole(last)
    path = last / name
    {
        "gone": path.unlink,
        "empty": lambda: path.write_text(""),
        "cut off": lambda: _cut_off(path),
        "zeros": lambda: path.write_bytes(bytes(path.stat().st_size)),
    }[damage]()
    said = []
    assert not is_whole(last)
    assert last_whole_checkpoint(copied, said.append) == str(copied / "checkpoint-6")
    assert len(said) == 1 and re.match(f"{last} was .*{fault}", said[0])
    assert said[0].endswith(f"it is skipped, and training goes on from {copied / 'checkpoint-6'}.")
    with pytest.raises(
        UsageError, match=f"checkpoint-8' is not whole: {fault}. Resume from '.*checkpoint-6', the last"
    ):
        check_resumable(str(last), "one process", 1)


def test_what_was_whole_once_is_not_trained_anew_without_a_word(copied):
    for checkpoint in copied.glob("checkpoint-*"):
        (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(
        UsageError, match="No checkpoint in .* is whole: .*checkpoint-8 was whole once, but optimizer.pt"
    ):
        last_whole_checkpoint(copied)
    with pytest.raises(
        UsageError, match="checkpoint-8' is not whole: optimizer.pt is missing. None beside it is whole"
    ):
        check_resumable(str(copied / "checkpoint-8"), "one process", 1)


def test_training_resumes_from_the_last_whole_one(copied, capsys):
    (copied / "checkpoint-8" / "optimizer.pt").unlink()
    trainer = make_trainer(masked_model("hard_concrete"), make_args(copied))
    trainer.train(resume_from_checkpoint=True)
    assert [record["step"] for record in trainer.records] == [6, 7]
    assert "checkpoint-8 was whole once, but optimizer.pt is missing: it is skipped" in capsys.readouterr().out


def test_order_is_by_step_and_other_folders_do_not_count(tmp_path):
    assert last_whole_checkpoint(tmp_path / "absent") is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11x", "other"):
        (tmp_path / name).mkdir()
        for file in ("trainer_state.json", STATE_NAME):
            (tmp_path / name / file).write_text("{}")
        note_files(tmp_path / name)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.mark.parametrize(
    "written, before, backend, now, message",
    [
        ("DeepSpeed ZeRO-2", 2, "DDP", 2, "was written under DeepSpeed ZeRO-2, and this launch is under DDP"),
        ("one process", 1, "DeepSpeed ZeRO-3", 1, "was written under one process, and this launch is under DeepSpeed"),
        ("DeepSpeed ZeRO-2", 2, "DeepSpeed ZeRO-3", 2, "under DeepSpeed ZeRO-2, and this launch is under DeepSpeed Z"),
        ("FSDP2", 8, "DDP", 8, "was written under FSDP2, and this launch is under DDP"),
        ("DeepSpeed ZeRO-2", 2, "DeepSpeed ZeRO-2", 4, "was written by 2 processes, and this launch has 4"),
        ("FSDP2", 2, "FSDP2", 4, "was written by 2 processes, and this launch has 4"),
        ("DDP", 2, "DDP", 4, None),
        ("DDP", 2, "one process", 1, None),
        ("DeepSpeed ZeRO-2", 2, "DeepSpeed ZeRO-2", 2, None),
    ],
)
def test_what_another_launch_can_resume(written, before, backend, now, message, copied):
    checkpoint = copied / "checkpoint-8"
    state = json.loads((checkpoint / STATE_NAME).read_text())
    (checkpoint / STATE_NAME).write_text(json.dumps(state | {"backend": written, "num_processes": before}))
    note_files(checkpoint)
    if message is None:
        assert check_resumable(str(checkpoint), backend, now)["backend"] == written
    else:
        with pytest.raises(ValueError, match=message):
            check_resumable(str(checkpoint), backend, now)


@pytest.mark.parametrize(
    "content, shown",
    [
        (
            {},
            "its shear_state.json has no backend, num_processes, decides, may_change, parts. Resume with the release",
        ),
        (
            {"lagrangian_total": float("nan")},
            "shear_state.json' is not valid JSON: it holds NaN, which is .*Restore the file, or start",
        ),
    ],
)
def test_state_that_says_too_little_or_no_number_is_refused(content, shown, copied):
    checkpoint = copied / "checkpoint-8"
    (checkpoint / STATE_NAME).write_text(json.dumps(content))
    note_files(checkpoint)
    with pytest.raises(UsageError, match=shown):
        check_resumable(str(checkpoint), "one process", 1)


def test_what_we_write_is_json_and_safetensors_and_one_import(run_folder):
    checkpoint = run_folder / "checkpoint-8"
    json.loads((checkpoint / STATE_NAME).read_text())
    with safe_open(checkpoint / MASK_STATE_NAME, "pt") as tensors:
        names = set(tensors.keys())
    assert {"log_alpha_hidden", "log_alpha_hidden.exp_avg", "multiplier_linear.exp_avg_sq"} <= names
    theirs = {"config.json", "generation_config.json", "model.safetensors", "optimizer.pt", "scheduler.pt"}
    theirs |= {"rng_state.pth", "trainer_state.json", "training_args.bin"}
    assert {path.name for path in checkpoint.iterdir()} == theirs | {
        STATE_NAME, FILES_NAME, "shear_state_0.json", MASK_STATE_NAME, LOADER.name,
    }  # fmt: skip


def test_a_checkpoint_that_is_written_over_is_not_whole_until_it_is(copied):
    checkpoint = copied / "checkpoint-8"
    assert is_whole(checkpoint)
    again = make_trainer(masked_model("hard_concrete"), make_args(copied, save_strategy="steps", save_steps=8))

    def stops(folder):
        raise OSError("stopped")

    again._save_rng_state = stops
    with pytest.raises(CheckpointError, match="checkpoint-8 could not be written: stopped. There is none before it"):
        again.train()
    assert not is_whole(checkpoint)
    assert last_whole_checkpoint(copied) == str(copied / "checkpoint-6")


def test_masks_that_differ_between_processes_are_not_saved(tmp_path, monkeypatch):
    trainer = make_trainer(masked_model(), make_args(tmp_path, save_strategy="steps", save_steps=1, max_steps=1))
    monkeypatch.setattr(MaskOptimizer, "drifted", lambda self: True)
    with pytest.raises(RuntimeError, match="Masks differ between processes at step 1; .* No checkpoint was written"):
        trainer.train()
    assert last_whole_checkpoint(tmp_path) is None


def test_masks_of_another_run_are_refused(copied, run_folder):
    other = make_trainer(masked_model("relaxed_topk"), make_args(copied))
    with pytest.raises(
        UsageError,
        match="the model's mask_settings was {'method': 'hard_concrete'} and is now {'method': 'relaxed_topk'}",
    ):
        other.train(resume_from_checkpoint=str(run_folder / "checkpoint-8"))
    recovery = copied / "recovery"
    make_trainer(plain_model(), make_args(recovery, save_strategy="steps", save_steps=8)).train()
    masks = make_trainer(masked_model(), make_args(recovery))
    with pytest.raises(UsageError, match="the model's model_type was 'llama' and is now 'hf_shear_llama'"):
        masks.train(resume_from_checkpoint=str(recovery / "checkpoint-8"))


def test_a_full_disk_names_the_last_good_checkpoint(tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer = make_trainer(masked_model(), make_args(tmp_path, **changes))
    save = trainer._save_rng_state

    def fills_up(folder):
        with full_disk(1000) if folder.endswith("checkpoint-4") else nullcontext():
            save(folder)

    trainer._save_rng_state = fills_up
    with pytest.raises(
        CheckpointError, match="checkpoint-4 could not be written: .* The last good one is .*point-2. Once"
    ):
        trainer.train()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
