"""examples/accelerate: one config per backend, each read by accelerate itself. tests/test_distributed.py launches them."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "accelerate"
EXPECTED = {
    "one_process": ("NO", None, None),
    "ddp": ("MULTI_GPU", None, None),
    "zero1": ("DEEPSPEED", 1, "none"),
    "zero2": ("DEEPSPEED", 2, "none"),
    "zero3": ("DEEPSPEED", 3, "none"),
    "zero1_offload": ("DEEPSPEED", 1, "cpu"),
    "zero2_offload": ("DEEPSPEED", 2, "cpu"),
    "zero3_offload": ("DEEPSPEED", 3, "cpu"),
    "fsdp2": ("FSDP", None, None),
}


def test_there_is_one_config_per_backend():
    assert {path.stem for path in FOLDER.glob("*")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_it_as_what_it_says(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    backend, stage, offload = EXPECTED[name]
    assert config.distributed_type.value == backend
    assert config.num_processes == (1 if name == "one_process" else 8)
    assert not config.use_cpu
    assert config.mixed_precision == "no"  # --bf16 of the script decides
    if stage is not None:
        assert config.deepspeed_config["zero_stage"] == stage
        assert config.deepspeed_config["offload_optimizer_device"] == offload
        # The training arguments decide, or transformers refuses a mismatch.
        assert config.deepspeed_config["gradient_clipping"] == "auto"
        assert config.deepspeed_config["gradient_accumulation_steps"] == "auto"
        assert config.deepspeed_config["zero3_init_flag"] == (stage == 3)
    if backend == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
    text = (FOLDER / f"{name}.yaml").read_text()
    assert f"accelerate launch --config_file examples/accelerate/{name}.yaml examples/shear.py" in text
    assert ("Not tried on GPUs yet" in text) == (name == "fsdp2")
