"""The benchmark of slicing checkpoints in shards: what it writes and prints, and (slow) that the limit is kept."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from examples.research.benchmarks import shard_memory as benchmark
from hf_shear import ShearingLlamaForCausalLM

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "research" / "benchmarks"
REPORT = FOLDER / "reports" / "shard-memory.json"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc")


def test_the_synthetic_checkpoints_are_real_ones(tmp_path):
    config = benchmark.source_config(benchmark.MODELS["small"])
    benchmark.write_checkpoints(tmp_path, config, 4)
    assert len(list((tmp_path / "plain").glob("*.safetensors"))) >= 4
    plain, found = LlamaForCausalLM.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"] and plain.dtype == torch.bfloat16
    masked = ShearingLlamaForCausalLM.from_pretrained(tmp_path / "masked")  # refuses what lacks weights
    assert masked.masks.target.hidden_size == benchmark.target_sizes(config)["hidden_size"] == 32
    assert all(torch.equal(weight, masked.get_parameter(name)) for name, weight in plain.named_parameters())


def test_a_command_is_measured_in_this_process(tmp_path, capsys):
    benchmark.write_checkpoints(tmp_path, benchmark.source_config(benchmark.MODELS["small"]), 4)
    benchmark.main(["--model", "small", "--worker", "export", str(tmp_path)])
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert measured["before_bytes"] > 2**20 and measured["extra_peak_bytes"] >= 0
    weights = load_file(tmp_path / "export" / "model.safetensors").values()
    assert sum(weight.nbytes for weight in weights) <= measured["written_bytes"]


def test_a_command_that_fails_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="hf-shear export .* ended with 2"):
        benchmark.main(["--model", "small", "--worker", "export", str(tmp_path)])


def test_pages_say_what_the_report_says():
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    text = (ROOT / "examples" / "docs" / "memory.md").read_text(encoding="utf-8")
    assert benchmark.measured_table(report) in text
    assert benchmark.calculated_table() in text
    measured = report["measured"]
    assert measured["shards"] >= 4 and measured["model_bytes"] > 13 * 10**9
    for command in benchmark.COMMANDS:
        assert measured[command]["peak_over_model"] < benchmark.LIMIT
        assert abs(measured[command]["peak_over_model"] - measured[command]["calculated"]) < 0.05
    for sizes in benchmark.CALCULATED.values():
        assert max(benchmark.calculated(benchmark.source_config(sizes)).values()) < benchmark.LIMIT


def test_commands_of_the_readme_are_understood():
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.startswith("python -m examples.research.benchmarks.shard_memory")]
    assert len(lines) >= 2
    for line in lines:
        benchmark.parse_arguments(shlex.split(line, comments=True)[3:])


@pytest.mark.slow
def test_no_command_needs_more_than_the_limit(tmp_path):
    """Of 3B parameters, because what reading the text takes, some 0.2 GB whatever the model, is much for a small one."""
    if shutil.disk_usage(tmp_path).free < 20e9:
        pytest.skip("needs 20 GB of disk")
    command = [sys.executable, "-m", benchmark.MODULE, "--model", "3b", "--work_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])["measured"]
    assert measured["shards"] >= 4
    for name in benchmark.COMMANDS:
        assert 0.3 < measured[name]["peak_over_model"] < benchmark.LIMIT, (name, measured[name])
    assert measured["export"]["peak_over_model"] < 0.6  # the source is not in memory at any moment
