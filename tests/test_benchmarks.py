"""The benchmark command, in a tiny form: what it prints, and that its numbers mean what they are called."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import statistics
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from hf_shear.masks import MASK_METHODS, unit_kinds
from hf_shear.shapes import ModelShape, count_parameters

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "benchmarks"
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 32,
}
TINY = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
TINY += ["--device", "cpu", "--batch_size", "2", "--max_length", "8", "--pairs", "4", "--warmup_steps", "1"]


@pytest.fixture(scope="module")
def step_time():
    spec = importlib.util.spec_from_file_location("step_time", FOLDER / "step_time.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed_json(capsys) -> tuple[str, dict]:
    """What stands before the last line, and the last line's JSON object."""
    *table, last = capsys.readouterr().out.splitlines()
    return "\n".join(table), json.loads(last)


def test_the_command_prints_tables_and_json(step_time, capsys):
    sampler = ["--sampler_sizes", "1000", "100000", "--sampler_batches", "5"]
    step_time.main([*TINY, "--parts", "steps", "sampler", *sampler])
    table, result = printed_json(capsys)
    assert list(result) == ["benchmark", "environment", "arguments", "steps", "sampler"]
    environment = result["environment"]
    assert environment["torch"] == torch.__version__ and environment["gpu"] is None and environment["cpu"]
    assert re.fullmatch(r"\d{4}-\d{2}", environment["month"])
    assert {"transformers", "commit", "threads"} <= set(environment)
    assert result["arguments"]["pairs"] == 4 and "memory_arm" not in result["arguments"]

    steps = result["steps"]
    assert steps["tokens"] == 16 and steps["pairs"] == 4
    shape = ModelShape(**{name: SIZES[name] for name in SIZES if name != "vocab_size"}, head_dim=4)
    source = LlamaConfig(**SIZES, tie_word_embeddings=True)
    assert steps["num_parameters"] == count_parameters(source, shape)
    # hidden, layer, key/value heads, query heads, neurons; the paper's multipliers are not in the first masked kind.
    assert steps["num_mask_parameters"] == 16 + 2 + 2 * 2 + 2 * 2 * 2 + 2 * 24
    assert set(steps["seconds"]) == {"plain", *MASK_METHODS}
    assert set(steps["ratio"]) == set(steps["cpu_time_ratio"]) == set(MASK_METHODS)
    for values in (*steps["seconds"].values(), *steps["ratio"].values()):
        assert 0 < values["lower_quartile"] <= values["median"] <= values["upper_quartile"]

    rows = result["sampler"]
    assert list(rows["dynamic"]) == list(rows["random"]) == ["1000", "100000"]
    medians = [row["batch_seconds"] for row in rows["dynamic"].values()]
    assert all(0 < seconds < 1 for seconds in medians)
    assert rows["slowest_over_fastest"] == pytest.approx(max(medians) / min(medians))
    assert "Fewer than 2048 tokens" in table and "slowest size / fastest size" in table
    assert "hard_concrete" in table and "100,000" in table


def test_ratios_are_formed_within_a_round_and_the_order_turns(step_time, monkeypatch):
    order = []

    def step(arm, input_ids):
        arm.steps_done += 1
        order.append(arm.name)
        slow_machine = 5.0 if arm.steps_done % 2 else 1.0  # every other round
        costs = {"plain": 1.0, "relaxed_topk": 1.5, "hard_concrete": 2.0}
        # The warm-up would spoil every number if it were counted.
        return 1e6 if arm.steps_done == 1 else costs[arm.name] * slow_machine

    monkeypatch.setattr(step_time.Arm, "step", step)
    monkeypatch.setattr(step_time, "time_call", lambda call, device: (call(),) * 2)
    steps = step_time.measure_steps(step_time.parse_arguments(TINY))
    for name, ratio in (("relaxed_topk", 1.5), ("hard_concrete", 2.0)):
        assert set(steps["ratio"][name].values()) == {ratio}
        assert set(steps["cpu_time_ratio"][name].values()) == {ratio}
    assert steps["seconds"]["plain"]["median"] == 3.0
    rounds = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert len(rounds) == 5 and all(set(names) == set(rounds[0]) for names in rounds)
    assert [names[0] for names in rounds] == [rounds[0][index % 3] for index in range(5)]


def test_quartiles(step_time):
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert step_time.quartiles(values) == {"median": 3.0, "lower_quartile": 2.0, "upper_quartile": 4.0}
    assert set(step_time.quartiles([7.0]).values()) == {7.0}
    assert step_time.quartiles(values)["median"] == statistics.median(values)


@pytest.mark.parametrize("name", ["plain", *MASK_METHODS])
def test_a_step_trains_weights_and_masks(step_time, name):
    arm = step_time.Arm(step_time.parse_arguments(TINY), name, total_steps=6)
    before = {key: value.detach().clone() for key, value in arm.model.named_parameters()}
    # The Lagrangian's multipliers move once the target has left the source's size, after the first step.
    losses = [arm.step(next(step_time.random_batches(arm.args))) for _ in range(3)]
    assert arm.steps_done == 3 and torch.stack(losses).isfinite().all()
    assert (name != "plain") == any(key.startswith("masks.") for key in before)
    moved = {key for key, value in arm.model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == set(before)


@pytest.mark.parametrize("dtype, weights", [("bfloat16", torch.bfloat16), ("mixed", torch.float32)])
def test_masks_stay_float32_in_every_dtype(step_time, dtype, weights):
    arguments = [*TINY, "--dtype", dtype, "--gradient_checkpointing"]
    arm = step_time.Arm(step_time.parse_arguments(arguments), "relaxed_topk", total_steps=6)
    assert arm.step(next(step_time.random_batches(arm.args))).isfinite()
    assert arm.model.model.gradient_checkpointing
    for key, value in arm.model.named_parameters():
        assert value.dtype == (torch.float32 if key.startswith("masks.") else weights)


def test_every_preset_masks_every_kind_of_unit(step_time):
    for name, low, high in (("5m", 5e6, 6e6), ("14m", 13e6, 15e6), ("160m", 130e6, 170e6), ("1b", 1e9, 1.2e9)):
        args = step_time.parse_arguments(["--preset", name])
        config = LlamaConfig(**{size: getattr(args, size) for size in step_time.MODEL_SIZES}, tie_word_embeddings=True)
        source = ModelShape.from_config(config)
        assert low < count_parameters(config, source) < high
        kinds = unit_kinds(source, step_time.half_of_every_size(config))
        assert len(kinds) == 5 and not any(kind.frozen for kind in kinds.values())


def test_memory_of_one_kind_of_step(step_time, capsys):
    step_time.main([*TINY, "--memory_arm", "relaxed_topk"])
    _, result = printed_json(capsys)
    assert result["peak_bytes"] >= result["before_model_bytes"] > 2**20


def test_memory_runs_every_kind_in_a_process_of_its_own(step_time, monkeypatch, capsys):
    commands = []

    def run(command, **options):
        commands.append(command)
        peak = 100 * 2**20 * (2 if command[-1] == "relaxed_topk" else 1)
        output = json.dumps({"peak_bytes": peak, "before_model_bytes": 50 * 2**20})
        return subprocess.CompletedProcess(command, 0, stdout=f"a line of a library\n{output}\n")

    monkeypatch.setattr(step_time.subprocess, "run", run)
    monkeypatch.setattr(step_time, "commit", lambda: None)
    step_time.main([*TINY, "--parts", "memory", "--method", "relaxed_topk"])
    table, result = printed_json(capsys)
    assert [command[-2:] for command in commands] == [["--memory_arm", name] for name in ("plain", "relaxed_topk")]
    assert all(command[2:-2] == [*TINY, "--parts", "memory", "--method", "relaxed_topk"] for command in commands)
    assert result["memory"]["ratio"] == {"relaxed_topk": 2.0}
    assert result["memory"]["counter"] == "ru_maxrss"
    assert "200   of which 50 before there was a model   x plain 2.000" in table


def test_a_failed_memory_process_is_told(step_time, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="out of memory")
    monkeypatch.setattr(step_time.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(RuntimeError, match="'plain' failed:\nout of memory"):
        step_time.measure_memory(step_time.parse_arguments(TINY), TINY)


def test_both_samplers_begin_new_passes(step_time):
    for stream in (step_time.dynamic_batches(512), step_time.shuffled_batches(512)):
        batches = [next(stream) for _ in range(5)]
        assert all(len(batch) == step_time.SAMPLER_BATCH_SIZE for batch in batches)
        assert batches[0] != batches[2]


def test_commands_of_the_readme_are_understood(step_time, capsys):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    text = text.partition("## Memory, predicted and measured")[0]  # of another command
    block = re.search(r"```bash\n(.*?)```", text, flags=re.DOTALL).group(1)
    for line in block.splitlines():
        python, script, *arguments = shlex.split(line, comments=True)
        assert (python, script) == ("python", "examples/benchmarks/step_time.py")
        step_time.parse_arguments(arguments)
    with pytest.raises(SystemExit):
        step_time.parse_arguments(["--help"])
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    named = set(re.findall(r"`(--\w+)", text))
    assert named and named <= known
