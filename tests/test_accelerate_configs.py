"""examples/accelerate: accelerate reads each config, alone and with flags. tests/test_distributed.py launches them."""

from __future__ import annotations

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from launching import BACKENDS, CONFIGS, launch_flags


def test_every_config_is_launched():
    assert {path.stem for path in CONFIGS.glob("*")} == {config for config, _ in BACKENDS.values() if config}


@pytest.mark.parametrize("backend", [name for name, (config, _) in BACKENDS.items() if config])
def test_accelerate_reads_it_as_what_it_says(backend):
    words = [*launch_flags(backend), "--num_processes", "8", "script.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert args.num_processes == 8 and not args.use_cpu
    assert args.mixed_precision == "no"  # --bf16 of the script decides
    assert (args.multi_gpu, args.use_fsdp) == (backend == "ddp", backend == "fsdp2")
    assert args.use_deepspeed == backend.startswith("zero")
    if args.use_deepspeed:
        assert args.zero_stage == int(backend[4])
        assert args.offload_optimizer_device == ("cpu" if backend.endswith("offload") else "none")
        # The training arguments decide, or transformers refuses a mismatch.
        assert args.gradient_clipping == args.gradient_accumulation_steps == "auto"
        assert str(args.zero3_init_flag).lower() == str(args.zero_stage == 3).lower()
    if args.use_fsdp:
        assert str(args.fsdp_version) == "2"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*")), ids=lambda path: path.stem)
def test_its_first_lines_say_how_to_call_it(path):
    text = path.read_text()
    assert f"accelerate launch --config_file examples/accelerate/{path.name} examples/shear.py" in text
    assert ("Not tried on GPUs yet" in text) == (path.stem == "fsdp2")
