"""Every backend trains what one process trains, and a killed run goes on as if nothing had happened.

The default suite starts DDP and ZeRO-2 with one kill each; ``-m slow`` is the full matrix, which takes about
half an hour and writes its results to the folder that HF_SHEAR_RESULTS names.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import distributed_run
import pytest
import torch
from launching import (
    ROOT,
    assert_same_run,
    finish,
    kill,
    largest_gaps,
    log_of,
    num_records,
    read_run,
    run,
    start,
    wait_for_records,
)
from training_helpers import plain_model
from transformers import LlamaForCausalLM

from hf_shear.core import UsageError, collect_versions
from hf_shear.training import merge_adapter
from hf_shear.training.checkpoints import last_whole_checkpoint

pytest.importorskip("deepspeed", reason="deepspeed is not installed")

# Against one process, float32, eight steps at masks' rate .05 and weights' rate .01, clipping active; reductions differ
# in their order alone, and AdamW's first steps turn a last bit into a few more.
BOUNDS = {"masks": 1e-5, "losses": 1e-5, "held_out": 1e-5, "weights": 1e-4}
# In bfloat16 sums round differently for every split of a batch; ZeRO also computes in bfloat16 weights, not by autocast.
# Measured: examples/research/benchmarks/reports/backends.json; the bounds leave 1.2 to 3 times that.
BF16_BOUNDS = {"masks": 0.05, "losses": 0.03, "held_out": 0.05, "weights": 0.06}
SHARDED = ("zero1", "zero2", "zero3")
CLIPPED = 0.5  # the norm that tests/distributed_run.py clips to
OFFLOADED = ("zero1_offload", "zero2_offload", "zero3_offload")
CASES = ("relaxed_topk", "hard_concrete", "recovery")
NUM_KILLS = 20


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Plain checkpoints: "still" without dropout, for runs that are compared over splits; "noisy" with it."""
    folder = tmp_path_factory.mktemp("sources")
    plain_model(attention_dropout=0.0).save_pretrained(folder / "still")
    plain_model().save_pretrained(folder / "noisy")
    return {name: folder / name for name in ("still", "noisy")}


def run_here(folder: Path, source: Path, case: str, *more: str):
    """A run in this process, which needs no start."""
    distributed_run.main(["--output_dir", str(folder), "--source", str(source), "--case", case, *more])
    return read_run(folder)


@pytest.fixture(scope="session")
def single_runs(sources, tmp_path_factory):
    """``single_runs(case, *more)``: the run of one process that others are compared with, made once."""
    made = {}

    def single(case: str, *more: str):
        if (case, more) not in made:
            made[case, more] = run_here(tmp_path_factory.mktemp("one"), sources["still"], case, *more)
        return made[case, more]

    return single


def assert_close(found, expected, bounds: dict[str, float]) -> dict[str, float]:
    """Losses, masks, multipliers and weights within the bounds; batches and chosen units equal."""
    gaps = largest_gaps(found, expected)
    assert all(gaps[name] <= bound for name, bound in bounds.items()), gaps
    assert found.samples() == expected.samples()
    norms = [row["grad_norm"] for row in expected.end["history"] if "grad_norm" in row]
    assert sum(norm > CLIPPED for norm in norms) >= len(norms) / 2, norms  # clipping is active
    mine, theirs = found.end["judged"], expected.end["judged"]
    assert mine["eval_tokens"] == theirs["eval_tokens"] and mine["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
    if found.end["drifted"] is not None:
        assert found.end["drifted"] == [False, True]  # equal, and one bit that differs is seen
    return gaps


def record_result(name: str, key: str, content: dict) -> None:
    """Add to HF_SHEAR_RESULTS/<name>.json, which then holds versions and what was measured."""
    if "HF_SHEAR_RESULTS" not in os.environ:
        return
    path = Path(os.environ["HF_SHEAR_RESULTS"]) / f"{name}.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"results": {}}
    results["versions"] = collect_versions() | {"deepspeed": version("deepspeed")}
    results["commit"] = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True, cwd=ROOT).strip()
    results["results"][key] = content
    path.write_text(json.dumps(results, indent=1), encoding="utf-8")


# ZeRO-2 shards what DDP holds whole, and goes through all that DDP goes through: one of the two is enough by default.
@pytest.mark.parametrize("backend", [pytest.param("ddp", marks=pytest.mark.slow), "zero2"])
def test_two_processes_killed_once_train_what_one_trains(backend, sources, single_runs, tmp_path):
    options = ("--save_steps", "3")
    process = start(backend, tmp_path, sources["still"], "hard_concrete", *options, "--hang_at", "4")
    assert wait_for_records(process, tmp_path, 9), log_of(tmp_path)[-6000:]  # two micro-batches each of steps 0 to 3
    kill(process)
    assert last_whole_checkpoint(tmp_path).endswith("checkpoint-3")
    found = run(backend, tmp_path, sources["still"], "hard_concrete", *options, "--resume")
    repeated = [records for (step, _, _), records in found.records.items() if step == 3]
    assert repeated and all(len(records) == 2 and records[0] == records[1] for records in repeated)
    expected = single_runs("hard_concrete", *options)
    assert_close(found, expected, BOUNDS)
    assert found.end["kept"] == expected.end["kept"]
    if backend == "ddp":
        # The same checkpoint goes on in one process: no sample lost, none repeated.
        (tmp_path / "end.json").unlink()
        for path in tmp_path.glob("records-*.jsonl"):
            path.unlink()
        for step in (6, 8):
            (tmp_path / f"checkpoint-{step}").rename(tmp_path / f"later-{step}")
        alone = run("one_process", tmp_path, sources["still"], "hard_concrete", *options, "--resume")
        assert alone.samples() == {step: ids for step, ids in expected.samples().items() if step >= 3}
        assert alone.losses == pytest.approx(expected.losses, abs=1e-5)
    else:
        for step in (6, 8):
            (tmp_path / f"checkpoint-{step}").rename(tmp_path / f"later-{step}")
        with pytest.raises(
            UsageError, match="was written under DeepSpeed ZeRO-2, and this launch is under one process"
        ):
            run_here(tmp_path, sources["still"], "hard_concrete", *options, "--resume")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["ddp", *SHARDED, *OFFLOADED])
def test_every_backend_trains_what_one_process_trains(backend, case, sources, single_runs, tmp_path):
    found, expected = run(backend, tmp_path, sources["still"], case), single_runs(case)
    gaps = assert_close(found, expected, BOUNDS)
    assert found.end.get("kept") == expected.end.get("kept")
    record_result("backends", f"{backend}/{case}", gaps)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "zero2", "zero3"])
@pytest.mark.parametrize("variant", ["bf16", "checkpointing"])
def test_half_precision_and_checkpointing(backend, variant, sources, single_runs, tmp_path):
    arguments = {"bf16": {"bf16": True}, "checkpointing": {"activation_checkpointing": True}}[variant]
    more = ("--arguments", json.dumps(arguments))
    found = run(backend, tmp_path, sources["still"], "hard_concrete", *more)
    bounds = BOUNDS if variant == "checkpointing" else BF16_BOUNDS
    gaps = assert_close(found, single_runs("hard_concrete", *more), bounds)
    # Masks are float32, and learn as such: bfloat16 could not hold their values.
    values = torch.tensor(found.end["masks"]["log_alpha_hidden"])
    assert not torch.equal(values.bfloat16().float(), values)
    record_result("backends", f"{backend}/hard_concrete/{variant}", gaps)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "zero2", "zero3"])
def test_distillation_on_two_processes_is_that_on_one_and_resumes(backend, sources, single_runs, tmp_path):
    arguments = {"distillation": "forward_kl", "distillation_temperature": 2.0, "logging_steps": 3}
    options = ("--save_steps", "4", "--arguments", json.dumps(arguments))  # a logged mean spans the checkpoint
    found, expected = run(backend, tmp_path, sources["still"], "recovery", *options), single_runs("recovery", *options)
    rows = [[row for row in one.end["history"] if "divergence" in row] for one in (found, expected)]
    assert len(rows[0]) == len(rows[1]) > 1
    for mine, theirs in zip(*rows, strict=True):
        for name in ("loss", "cross_entropy", "divergence"):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-4), name  # transformers rounds losses
    gaps = largest_gaps(found, expected)
    assert gaps["weights"] <= BOUNDS["weights"], gaps
    (tmp_path / "checkpoint-8").rename(tmp_path / "later-8")
    (tmp_path / "end.json").unlink()
    again = run(backend, tmp_path, sources["still"], "recovery", *options, "--resume")
    assert again.end["history"] == found.end["history"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "zero2", "zero3"])
def test_lora_on_two_processes_is_that_on_one_and_resumes(backend, sources, single_runs, tmp_path):
    pytest.importorskip("peft")
    arguments = {"recovery_method": "lora", "peft_config": {"r": 4, "target_modules": "all-linear"}}
    options = ("--save_steps", "4", "--arguments", json.dumps(arguments))
    found, expected = run(backend, tmp_path, sources["still"], "recovery", *options), single_runs("recovery", *options)
    gaps = assert_close(found, expected, BOUNDS)
    assert found.weights.keys() == expected.weights.keys() and len(found.weights) == 2 * 7 * 3
    moved = [value.abs().max().item() for name, value in found.weights.items() if "lora_B" in name]  # they start at 0
    assert min(moved) > 100 * BOUNDS["weights"]
    start = LlamaForCausalLM.from_pretrained(sources["still"])
    merged = merge_adapter(sources["still"], tmp_path / "end")
    assert type(merged) is LlamaForCausalLM and merged.state_dict().keys() == start.state_dict().keys()
    record_result("backends", f"{backend}/recovery/lora", gaps)
    (tmp_path / "checkpoint-8").rename(tmp_path / "later-8")
    (tmp_path / "end.json").unlink()
    again = run(backend, tmp_path, sources["still"], "recovery", *options, "--resume")
    assert again.end["history"] == found.end["history"]
    assert all(torch.equal(again.weights[name], value) for name, value in found.weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [("one_process", "ddp"), ("ddp", "one_process")])
def test_resuming_on_another_number_of_processes(before, after, sources, single_runs, tmp_path):
    options = ("--save_steps", "4")
    run(before, tmp_path, sources["still"], "hard_concrete", *options)
    (tmp_path / "checkpoint-8").rename(tmp_path / "later")
    for path in tmp_path.glob("records-*.jsonl"):
        path.unlink()
    found, expected = (
        run(after, tmp_path, sources["still"], "hard_concrete", *options, "--resume"),
        single_runs("hard_concrete", *options),
    )
    assert found.samples() == {step: ids for step, ids in expected.samples().items() if step >= 4}
    assert found.losses == pytest.approx(expected.losses, abs=BOUNDS["losses"])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "zero2"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_ends_all_processes_at_one_step(backend, signum, sources, tmp_path):
    options = ("--steps", "12", "--pace", "0.02")
    expected = run(backend, tmp_path / "whole", sources["noisy"], "hard_concrete", *options)
    folder = tmp_path / "stopped"
    process = start(backend, folder, sources["noisy"], "hard_concrete", *options)
    assert wait_for_records(process, folder, 9), log_of(folder)[-6000:]
    process.send_signal(signum)
    assert finish(process) != 0
    (checkpoint,) = folder.glob("checkpoint-*")
    assert last_whole_checkpoint(folder) == str(checkpoint)
    step = int(checkpoint.name.split("-")[1])
    assert 4 < step < 12
    for rank in range(2):  # none took a step more
        records = (folder / f"records-{rank}.jsonl").read_text().splitlines()
        assert json.loads(records[-1])["step"] == step - 1
    name = signal.Signals(signum).name
    assert log_of(folder).count(f"{name}: training stops at the end of this step.") == 1
    assert_same_run(run(backend, folder, sources["noisy"], "hard_concrete", *options, "--resume"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "zero2"])
def test_a_save_that_the_grace_period_cuts_short_leaves_the_last_whole_checkpoint(
    backend, sources, tmp_path, monkeypatch
):
    options = ("--steps", "12", "--pace", "0.02", "--save_steps", "3")
    expected = run(backend, tmp_path / "whole", sources["noisy"], "hard_concrete", *options)
    folder = tmp_path / "stopped"
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "2")
    slow = ("--fault", "slow_save", "--fault_at", "4")
    process = start(backend, folder, sources["noisy"], "hard_concrete", *options, *slow)
    assert wait_for_records(process, folder, 8), log_of(folder)[-6000:]  # two micro-batches each of steps 0 to 3
    process.send_signal(signal.SIGTERM)
    assert finish(process) != 0
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-3")
    assert len(list(folder.glob("checkpoint-*"))) == 2
    assert_same_run(run(backend, folder, sources["noisy"], "hard_concrete", *options, "--resume"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["one_process", "ddp", "zero2", "zero3"])
def test_kills_at_random_moments(backend, sources, tmp_path):
    """NUM_KILLS times SIGKILL, half in mask learning, half in recovery, then bit for bit the uninterrupted run."""
    generator = random.Random(backend)
    tally = {"kills": 0, "half_written_checkpoints": 0, "steps_repeated": 0}
    for case in ("hard_concrete", "recovery"):
        logging = '{"logging_steps": 3}'  # a logged mean spans kills and checkpoints
        options = ("--steps", "40", "--save_steps", "2", "--pace", "0.02", "--arguments", logging)
        expected = run(backend, tmp_path / f"{case}-whole", sources["noisy"], case, *options)
        folder, kills = tmp_path / case, 0
        while True:
            resume = ["--resume"] if last_whole_checkpoint(folder) else []
            process = start(backend, folder, sources["noisy"], case, *options, *resume)
            if kills == NUM_KILLS // 2:
                assert finish(process) == 0, log_of(folder)[-6000:]
                break
            # A few micro-batches on, and then at any moment of the next steps and checkpoints.
            if not wait_for_records(process, folder, num_records(folder) + generator.randint(1, 8)):
                raise AssertionError(f"ended before it was killed {kills} times: {log_of(folder)[-6000:]}")
            time.sleep(generator.uniform(0.0, 0.15))
            kill(process)
            kills += 1
            whole = last_whole_checkpoint(folder)
            last = max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")), default=0)
            tally["half_written_checkpoints"] += last > (int(whole.split("-")[-1]) if whole else 0)
        found = read_run(folder)
        tally["steps_repeated"] += sum(len(records) - 1 for records in found.records.values())
        assert_same_run(found, expected)
        tally["kills"] += kills
    assert tally["kills"] == NUM_KILLS
    record_result("kills", backend, tally)
