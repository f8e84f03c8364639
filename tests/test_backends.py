"""Launches that would not do what they say are refused."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from training_helpers import make_args, make_trainer, masked_model, plain_model

from hf_shear.training import backends
from hf_shear.training.backends import backend_name, check_backend, launched_processes


def test_one_process_is_named_and_fine(tmp_path):
    trainer = make_trainer(masked_model(), make_args(tmp_path))
    assert backend_name(trainer) == "one process"
    check_backend(trainer, learns_masks=True)


COMMANDS = {
    "accelerate launch --cpu --num_processes 2 run.py --num_processes 7": 2,
    "/bin/python /bin/accelerate launch --num_processes=4 run.py": 4,
    "/bin/accelerate-launch --num-processes 3 run.py": 3,
    "accelerate launch run.py --num_processes 7": None,
    "bash -c accelerate": None,
    "python run.py --num_processes 2": None,
}


@pytest.mark.parametrize("command, expected", COMMANDS.items())
def test_what_accelerate_launch_was_asked_for(command, expected, monkeypatch):
    import psutil

    parent = SimpleNamespace(cmdline=lambda: command.split())
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parent=lambda: parent))
    assert launched_processes() == expected


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched, .* Give `--use_cpu` to the script"):
        backends.check_launch(1)
    backends.check_launch(2)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_the_number_may_stand_in_a_config_file(suffix, tmp_path, monkeypatch):
    import psutil

    path = tmp_path / f"config{suffix}"
    write = json.dumps if suffix == ".json" else yaml.safe_dump
    path.write_text(write({"num_processes": 5, "distributed_type": "MULTI_GPU"}))
    command = ["accelerate", "launch", "--config_file", str(path), "run.py"]
    parent = SimpleNamespace(cmdline=lambda: command)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parent=lambda: parent))
    assert launched_processes() == 5
    with pytest.raises(ValueError, match="`accelerate launch` was asked for 5 processes, but this is the only one"):
        make_args(tmp_path)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parent=lambda: None))
    make_args(tmp_path)


def test_fp16_cannot_learn_masks(tmp_path, monkeypatch):
    trainer = make_trainer(masked_model(), make_args(tmp_path))
    monkeypatch.setattr(trainer.args, "fp16", True)
    with pytest.raises(
        ValueError, match=r"fp16 \(`fp16=True`, or .*\) scales the loss, and with it the gradients of masks"
    ):
        check_backend(trainer, learns_masks=True)
    check_backend(trainer, learns_masks=False)


def test_an_optimizer_of_the_users_must_not_hold_masks(tmp_path):
    model = masked_model()
    everything = torch.optim.AdamW(model.parameters())
    with pytest.raises(
        ValueError, match="`optimizers` holds parameters of the masks, which have an optimizer of their"
    ):
        make_trainer(model, make_args(tmp_path), optimizers=(everything, None))
    model.take_masks_apart()
    weights = torch.optim.AdamW(model.parameters())
    make_trainer(model, make_args(tmp_path), optimizers=(weights, None))


@pytest.mark.parametrize(
    "plugin, message",
    [
        ({"fsdp_version": 1}, "FSDP version 1 flattens parameters"),
        ({"fsdp_version": 2, "cpu_ram_efficient_loading": True}, "FSDP's `cpu_ram_efficient_loading` moves parameters"),
        ({"fsdp_version": 2, "cpu_offload": True}, "FSDP's `cpu_offload` moves parameters"),
    ],
)
def test_fsdp_settings_that_masks_do_not_survive_are_refused(plugin, message):
    with pytest.raises(ValueError, match=message):
        backends._check_fsdp(SimpleNamespace(**plugin))
    backends._check_fsdp(SimpleNamespace(fsdp_version=2, cpu_ram_efficient_loading=False, cpu_offload=None))


def test_a_model_in_parts_is_refused(tmp_path, monkeypatch):
    trainer = make_trainer(plain_model(), make_args(tmp_path))
    parallelism = SimpleNamespace(tp_size=1, cp_size=2, sp_size=1)
    accelerator = SimpleNamespace(parallelism_config=parallelism, mixed_precision="no", distributed_type=None)
    monkeypatch.setattr(trainer, "accelerator", accelerator)
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", False)
    with pytest.raises(ValueError, match="The model is split by cp, but every process here draws samples of its own"):
        check_backend(trainer, learns_masks=False)


def test_a_parent_that_may_not_be_looked_at_is_not_known(monkeypatch):
    import psutil

    def refuse():
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parent=lambda: SimpleNamespace(cmdline=refuse)))
    assert launched_processes() is None


def test_fsdp_that_falls_back_is_refused(tmp_path, monkeypatch):
    trainer = make_trainer(plain_model(), make_args(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP was asked for, but accelerate runs NO: without GPUs it falls back"):
        check_backend(trainer, learns_masks=False)


@pytest.mark.parametrize(
    "config, arguments, message",
    [
        ({"optimizer": {"type": "AdamW"}}, {}, "The DeepSpeed config has a section 'optimizer', which would replace"),
        ({"scheduler": {"type": "WarmupLR"}}, {}, "The DeepSpeed config has a section 'scheduler'"),
        ({}, {"clip_masks": True}, "`clip_masks=True` clips weights and masks by one common norm, but DeepSpeed clips"),
        ({"fp16": {"enabled": True}}, {}, "The DeepSpeed config enables `fp16`, which scales the loss"),
    ],
)
def test_what_deepspeed_would_take_over_is_refused(config, arguments, message, tmp_path):
    args = make_args(tmp_path, **arguments)
    with pytest.raises(ValueError, match=message):
        backends._check_deepspeed(config, args, learns_masks=True)


def test_what_concerns_masks_alone_is_fine_without_them(tmp_path):
    backends._check_deepspeed({"fp16": {"enabled": True}}, make_args(tmp_path, clip_masks=True), learns_masks=False)


def test_deepspeed_is_imported_by_nothing_here():
    assert sys.modules["hf_shear.training.backends"]
    assert not any(name == "deepspeed" for name in vars(backends))
