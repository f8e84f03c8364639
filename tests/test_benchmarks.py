"""The speed benchmark, in a tiny form: what it prints, and that its numbers mean what they are called."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples.research.benchmarks import speed
from examples.research.benchmarks.speed_parts import (
    memory,
    model_sizes,
    real_trainer,
    report,
    sampler,
    scaling,
    step_time,
    timing,
    training_steps,
    workers,
)
from hf_shear.masks import STRATEGIES, MaskPhase, unit_kinds
from hf_shear.shapes import ModelShape, count_parameters

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "research" / "benchmarks"
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 32,
}
TINY = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
TINY += ["--models", "1m", "--device", "cpu", "--batch_size", "2", "--max_length", "8"]
TINY += ["--rounds", "4", "--warmup_steps", "1", "--domains", "2"]
RATIOS = ("ratio", "cpu_time_ratio")
ARMS = ("relaxed_topk", "hard_concrete", "activation_masks")


def tiny(*arguments: str) -> argparse.Namespace:
    return speed.parse_arguments([*TINY, *arguments])


def tiny_size() -> model_sizes.Size:
    return speed.size_of(tiny(), "1m")


def printed_json(capsys) -> tuple[str, dict]:
    """What stands before the last line, and the last line's JSON object."""
    *table, last = capsys.readouterr().out.splitlines()
    return "\n".join(table), json.loads(last)


# ---- the command ------------------------------------------------------------------------------------------------


def test_the_command_prints_tables_and_json_and_writes_a_report(capsys, tmp_path):
    small = [
        "--sampler_sizes",
        "1000",
        "100000",
        "--sampler_batches",
        "5",
        "--report",
        str(tmp_path / "new" / "r.json"),
    ]
    speed.main([*TINY, "--parts", "steps", "sampler", *small])
    table, result = printed_json(capsys)
    assert list(result) == ["benchmark", "environment", "arguments", "models", "sampler"]
    environment = result["environment"]
    assert environment["versions"]["torch"] == torch.__version__ and environment["gpu"] is None and environment["cpu"]
    assert re.fullmatch(r"\d{4}-\d{2}", environment["month"])
    assert {"transformers", "accelerate"} <= set(environment["versions"]) and "commit" in environment
    assert result["arguments"]["rounds"] == 4 and not {"worker", "report"} & set(result["arguments"])

    steps = result["models"]["1m"]["steps"]
    assert steps["tokens"] == 16 and steps["rounds"] == 4
    config = model_sizes.llama_config(tiny_size(), 8)
    assert steps["num_parameters"] == count_parameters(config, ModelShape.from_config(config))
    # hidden, layer, key/value heads, query heads, neurons; and the paper's multipliers, two of each kind.
    units = 16 + 2 + 2 * 2 + 2 * 2 * 2 + 2 * 24
    assert steps["num_mask_parameters"] == dict(zip(ARMS, (units, units + 2 * 5, units), strict=True))
    assert set(steps["seconds"]) == {"plain", *ARMS} and set(steps["ratio"]) == set(steps["cpu_time_ratio"]) == set(
        ARMS
    )
    for values in (*steps["seconds"].values(), *steps["ratio"].values()):
        assert 0 < values["lower_quartile"] <= values["median"] <= values["upper_quartile"]
    assert steps["tokens_per_second"]["plain"] == pytest.approx(16 / steps["seconds"]["plain"]["median"])
    assert set(steps["mfu"].values()) == {None}  # no CPU has an entry in the table of peaks

    rows = result["sampler"]
    assert list(rows["dynamic"]) == list(rows["random"]) == ["1000", "100000"]
    medians = [row["batch_seconds"] for row in rows["dynamic"].values()]
    assert all(0 < seconds < 1 for seconds in medians)
    assert rows["slowest_over_fastest"] == pytest.approx(max(medians) / min(medians))
    for words in ("Fewer than 2048 tokens", "slowest size / fastest size", "not run on a GPU", "activation_masks"):
        assert words in table
    assert "does not apply (not on a GPU, fewer than 1B parameters, not in bfloat16)" in table

    assert json.loads((tmp_path / "new" / "r.json").read_text()) == result
    page = (tmp_path / "new" / "r.md").read_text()
    assert "- GPU: none: not run on a GPU" in page and f"torch {torch.__version__}" in page and "`r.json`" in page
    assert str(tmp_path) not in page and "speed --hidden_size 16 " in page


@pytest.mark.parametrize("path", sorted((FOLDER / "reports").glob("[cg]pu-*.json")), ids=lambda path: path.stem)
def test_pages_of_kept_reports_are_made_of_their_numbers(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    block = re.search(r"```text\n(.*?)\n```", page, flags=re.DOTALL).group(1)
    assert block.splitlines() == [line.rstrip() for line in speed.tables(result)]
    environment = result["environment"]
    for fact in (environment["month"], environment["commit"], environment["versions"]["torch"], environment["cpu"]):
        assert fact in page
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"(reports/{path.stem}.md)" in readme
    for name, parts in result["models"].items():
        for arm, ratio in parts["steps"]["ratio"].items():  # a row of the README's table
            row = [timing.as_text(values[arm], ".3f") for values in (parts["steps"][key] for key in RATIOS)]
            assert f"| {name} | `{arm}` | {' | '.join(row)} |" in readme, (arm, ratio)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--attention", "flash_attention_2", "--dtype", "mixed"], "needs a GPU and the package flash-attn; use"),
        (["--attention", "flash_attention_2"], "computes in half precision; add --dtype mixed or bfloat16"),
        (["--liger"], r"--liger needs a GPU and the package liger-kernel: pip install 'hf-shear\[liger\]'"),
        (["--device", "cuda"], "torch sees no GPU; use --device cpu"),
    ],
)
def test_what_can_not_be_had_is_refused(arguments, text, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    problems = speed.missing(argparse.Namespace(**vars(tiny()) | vars(speed_namespace(arguments))))
    assert any(re.search(text, problem) for problem in problems)
    with pytest.raises(SystemExit):
        tiny(*arguments)
    assert problems[0] in capsys.readouterr().err


def speed_namespace(arguments: list[str]) -> argparse.Namespace:
    """What the arguments say, unchecked."""
    pairs = dict(zip(arguments[::2], arguments[1::2], strict=True)) if len(arguments) > 1 else {arguments[0]: True}
    return argparse.Namespace(**{name.lstrip("-"): value for name, value in pairs.items()})


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(speed.shutil, "which", lambda name: None)
    args = argparse.Namespace(**vars(tiny()) | {"compile": True})
    assert speed.missing(args) == ["--compile needs a C++ compiler on a CPU (g++ or clang++); leave --compile out"]


BLOCKED = ("datasets", "scipy", "matplotlib", "pandas", "deepspeed", "peft", "sentencepiece", "liger_kernel")


def test_torch_transformers_and_accelerate_are_enough():
    arguments = [*TINY, "--worker", "trainer", "--trainer_steps", "4"]
    program = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({BLOCKED!r}));"
        f" sys.argv = ['speed.py', *{arguments!r}]; runpy.run_module({workers.SPEED!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["data_format"] == "arrays in memory"


# ---- sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("1m", 1.0e6), ("5m", 5.5e6), ("14m", 14.6e6),
        ("160m", 162e6), ("1.3b", 1.345e9), ("2.7b", 2.70e9), ("7b", 6.738e9),
    ],
)  # fmt: skip
def test_every_size_is_what_it_is_called_and_masks_every_kind_of_unit(name, num_parameters):
    config = model_sizes.llama_config(model_sizes.SIZES[name], 256)
    source = ModelShape.from_config(config)
    assert count_parameters(config, source) == pytest.approx(num_parameters, rel=0.03)
    kinds = unit_kinds(source, training_steps.half_of_every_size(config))
    # Where every query head has a key/value head of its own, the mask of that one is its mask.
    frozen = set() if source.num_attention_heads > source.num_key_value_heads else {"query_head"}
    assert len(kinds) == 5 and {kind.name for kind in kinds.values() if kind.frozen} == frozen


def test_flops_per_token():
    tied = model_sizes.llama_config(tiny_size(), 8)
    assert model_sizes.training_flops_per_token(tied, 1000, 8) == 6 * 1000 + 12 * 2 * 16 * 8
    untied = model_sizes.llama_config(model_sizes.Size(16, 2, 4, 2, 24, 32), 8)
    assert model_sizes.training_flops_per_token(untied, 1000, 8) == 6 * (1000 - 32 * 16) + 12 * 2 * 16 * 8


def test_peaks_of_gpus_by_the_names_torch_gives_them():
    peaks = {
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA L4": 121e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA Unheard-of": None,
    }
    assert {name: model_sizes.peak_flops(name, "mixed") for name in peaks} == peaks
    assert model_sizes.peak_flops("NVIDIA H100 80GB HBM3", "float32") is None
    assert model_sizes.peak_flops(None, "mixed") is None


# ---- steps ------------------------------------------------------------------------------------------------------


def arms_of(args: argparse.Namespace, *names: str) -> list:
    return training_steps.make_arms(args, tiny_size(), list(names), 6)


def test_ratios_are_formed_within_a_round_and_the_order_turns(monkeypatch):
    order = []
    costs = {"plain": 1.0, "relaxed_topk": 1.5, "hard_concrete": 2.0, "activation_masks": 3.0}

    def step(arm, input_ids):
        arm.steps_done += 1
        order.append(arm.name)
        slow_machine = 5.0 if arm.steps_done % 2 else 1.0  # every other round
        # The warm-up would spoil every number if it were counted.
        return 1e6 if arm.steps_done == 1 else costs[arm.name] * slow_machine

    monkeypatch.setattr(training_steps.Arm, "step", step)
    monkeypatch.setattr(step_time, "time_call", lambda call, device: (call(),) * 2)
    monkeypatch.setattr(step_time, "peak_flops", lambda gpu, dtype: 1e6)
    steps = step_time.measure_steps(tiny(), tiny_size())
    for name in ARMS:
        assert set(steps["ratio"][name].values()) == {costs[name]}
        assert set(steps["cpu_time_ratio"][name].values()) == {costs[name]}
    assert steps["seconds"]["plain"]["median"] == 3.0
    assert steps["mfu"]["plain"] == pytest.approx(16 * steps["model_flops_per_token"] / 3.0 / 1e6)
    assert any("MFU" in line and "%" in line for line in step_time.steps_table(steps))
    rounds = [order[start : start + 4] for start in range(0, len(order), 4)]
    assert len(rounds) == 5 and all(set(names) == set(rounds[0]) for names in rounds)
    assert [names[0] for names in rounds] == [rounds[0][index % 4] for index in range(5)]


def test_quartiles():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert timing.quartiles(values) == {"median": 3.0, "lower_quartile": 2.0, "upper_quartile": 4.0}
    assert set(timing.quartiles([7.0]).values()) == {7.0}
    assert timing.quartiles(values)["median"] == statistics.median(values)


@pytest.mark.parametrize("name", ["plain", *ARMS])
def test_a_step_trains_weights_and_masks(name):
    (arm,) = arms_of(tiny(), name)
    before = {key: value.detach().clone() for key, value in arm.model.named_parameters()}
    batches = training_steps.random_batches(arm.args, SIZES["vocab_size"])
    # The Lagrangian's multipliers move once the target has left the source's size, after the first step.
    losses = [arm.step(next(batches)) for _ in range(3)]
    assert arm.steps_done == 3 and torch.stack(losses).isfinite().all()
    assert (name != "plain") == any(key.startswith("masks.") for key in before)
    moved = {key for key, value in arm.model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == set(before)


def test_all_kinds_of_step_train_the_same_weights():
    plain, *masked = arms_of(tiny(), "plain", *ARMS)
    for arm in masked:
        own = {name: value for name, value in arm.model.named_parameters() if not name.startswith("masks.")}
        assert {name: id(value) for name, value in own.items()} == {
            name: id(value) for name, value in plain.model.named_parameters()
        }
        assert not any(value.is_meta for value in (*arm.model.parameters(), *arm.model.buffers()))
    ids = torch.arange(8).unsqueeze(0)
    with torch.no_grad(), masked[0].model.use_gates({}):
        assert torch.equal(masked[0].model(ids).logits, plain.model(ids).logits)


def test_masks_on_activations_compute_what_folded_masks_compute():
    folded, on_activations = (arms_of(tiny(), name)[0].model for name in ("relaxed_topk", "activation_masks"))
    assert any(isinstance(module, training_steps.ActivationRMSNorm) for module in on_activations.modules())
    ids = torch.arange(16).view(2, 8)
    gradients = []
    for model in (folded, on_activations):
        model.set_mask_phase(MaskPhase(temperature=0.3))
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        gradients.append({"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype, weights", [("bfloat16", torch.bfloat16), ("mixed", torch.float32)])
def test_masks_stay_float32_in_every_dtype(dtype, weights):
    (arm,) = arms_of(tiny("--dtype", dtype, "--gradient_checkpointing", "--attention", "eager"), "relaxed_topk")
    assert arm.step(next(training_steps.random_batches(arm.args, SIZES["vocab_size"]))).isfinite()
    assert arm.model.model.gradient_checkpointing and arm.model.config._attn_implementation == "eager"
    for key, value in arm.model.named_parameters():
        assert value.dtype == (torch.float32 if key.startswith("masks.") else weights)


# ---- memory, and processes of their own ---------------------------------------------------------------------------


def test_memory_of_one_kind_of_step(capsys):
    speed.main([*TINY, "--worker", "memory", "--worker_arm", "relaxed_topk"])
    _, result = printed_json(capsys)
    assert result["peak_bytes"] >= result["before_model_bytes"] > 2**20


def test_memory_runs_every_kind_in_a_process_of_its_own(monkeypatch, capsys):
    commands = []

    def run(command, **options):
        commands.append(command)
        peak = 100 * 2**20 * (2 if command[-1] == "relaxed_topk" else 1)
        output = json.dumps({"peak_bytes": peak, "before_model_bytes": 50 * 2**20})
        return subprocess.CompletedProcess(command, 0, stdout=f"a line of a library\n{output}\n")

    monkeypatch.setattr(workers.subprocess, "run", run)
    monkeypatch.setattr(report, "commit", lambda: None)
    given = [*TINY, "--parts", "memory", "--arms", "relaxed_topk"]
    speed.main(given)
    table, result = printed_json(capsys)
    assert [command[-2:] for command in commands] == [["--worker_arm", name] for name in ("plain", "relaxed_topk")]
    assert all(command[3:-4] == [*given, "--models", "1m"] for command in commands)
    found = result["models"]["1m"]["memory"]
    assert found["ratio"] == {"relaxed_topk": 2.0} and found["counter"] == "ru_maxrss"
    assert "200   of which 50 before there was a model   x plain 2.000" in table


def failing(monkeypatch, stderr: str) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=stderr)
    monkeypatch.setattr(workers.subprocess, "run", lambda *args, **options: failed)


def test_a_failed_process_is_told(monkeypatch):
    failing(monkeypatch, "no such thing")
    with pytest.raises(RuntimeError, match="--worker memory .*` failed:\nno such thing"):
        memory.measure_memory(tiny(), TINY)


def test_a_model_that_does_not_fit_is_told_and_the_rest_goes_on(monkeypatch):
    failing(monkeypatch, "Traceback\ntorch.OutOfMemoryError: CUDA out of memory.\nmore")
    args = tiny("--parts", "memory", "trainer")
    parts = speed.measure_model(args, TINY, "1m")
    assert parts["memory"] == parts["trainer"] == {"did_not_fit": "torch.OutOfMemoryError: CUDA out of memory."}
    assert parts["targets"] == {}
    result = {"environment": {"gpu": "X"}, "arguments": vars(args), "models": {"1m": parts}}
    assert "memory: did not fit, torch.OutOfMemoryError: CUDA out of memory." in speed.tables(result)


@pytest.mark.parametrize(
    ("device", "processes", "visible", "wanted"),
    [("cuda", 1, "3,5", "3"), ("cuda:1", 1, "3,5", "5"), ("cuda:1", 1, None, "1"), ("cuda", 2, "3,5", "3,5")],
)
def test_a_worker_sees_as_many_gpus_as_it_has_processes(device, processes, visible, wanted, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    args = argparse.Namespace(device=device, threads=3)
    variables = workers.environment(args, processes)
    assert variables["CUDA_VISIBLE_DEVICES"] == wanted and variables["OMP_NUM_THREADS"] == "3"


# ---- the trainer, and several processes -------------------------------------------------------------------------


def test_shares_of_data_and_evaluation():
    args = tiny("--trainer_steps", "40")
    result = real_trainer.measure_trainer(args, tiny_size())
    assert result["arm"] == "relaxed_topk" and result["steps"] == 40 and result["data_format"] == "datasets"
    assert result["training_tokens"] == 40 * 2 * 8
    # 5 % of the tokens pay for two evaluations of one sample of either domain, and for none to steer by.
    assert result["eval_tokens"] == 2 * 2 * 8
    assert result["eval_token_share"] == pytest.approx(result["eval_tokens"] / result["training_tokens"])
    assert 0 < result["data_share"] < 1 and 0 < result["eval_time_share"] < 1
    assert "evaluation: 32 of 640 training tokens, 5.0%" in "\n".join(real_trainer.trainer_table(result))


def test_the_default_run_is_long_enough_for_its_evaluations():
    for batch_size, domains in ((8, 7), (2, 2), (16, 1)):
        args = argparse.Namespace(batch_size=batch_size, domains=domains)
        steps = real_trainer.steps_for_evaluation(args)
        assert 11 * domains < 0.05 * steps * batch_size <= 11 * domains + 0.05 * batch_size


def test_efficiency_is_formed_within_a_round(monkeypatch):
    launches = []

    def run_worker(args, arguments, num_processes):
        assert arguments[-2:] == ["--worker", "scaling"]
        launches.append(num_processes)
        slow = 2.0 if len(launches) > 2 else 1.0
        rates = (
            {"plain": 100.0, "relaxed_topk": 80.0} if num_processes == 1 else {"plain": 180.0, "relaxed_topk": 120.0}
        )
        return {"tokens_per_second": {arm: rate / slow for arm, rate in rates.items()}, "backend": "gloo"}

    monkeypatch.setattr(scaling, "run_worker", run_worker)
    result = scaling.measure_scaling(tiny("--scaling_rounds", "2"), TINY)
    assert launches == [1, 2, 2, 1]
    assert set(result["efficiency"]["plain"]["2"].values()) == {0.9}
    assert set(result["efficiency"]["relaxed_topk"]["2"].values()) == {0.75}
    assert "efficiency 0.75" in "\n".join(scaling.scaling_table(result)) and result["backend"] == "gloo"


def test_one_gpu_can_not_tell_how_training_scales(monkeypatch):
    for gpus, counts in ((1, [1]), (2, [1, 2]), (8, [1, 2, 8])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert scaling.process_counts("cuda") == counts
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    result = scaling.measure_scaling(argparse.Namespace(device="cuda"), [])
    assert scaling.scaling_table(result) == ["Scaling: not measured, there is one GPU"]


def test_several_processes_are_started_by_torchrun(monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout='{"backend": "gloo"}\n')

    monkeypatch.setattr(workers.subprocess, "run", run)
    assert workers.run_worker(tiny(), ["--worker", "scaling"], 2) == {"backend": "gloo"}
    (command,) = commands
    assert command[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert command[6:] == ["-m", workers.SPEED, "--worker", "scaling"]


def test_each_process_times_plain_and_masked_training(monkeypatch, capsys):
    speed.main([*TINY, "--worker", "scaling", "--scaling_steps", "3"])
    _, result = printed_json(capsys)
    assert set(result["tokens_per_second"]) == {"plain", "relaxed_topk"} and result["backend"] is None
    assert all(rate > 0 for rate in result["tokens_per_second"].values())
    monkeypatch.setenv("RANK", "1")  # the second of several says nothing
    speed.main([*TINY, "--worker", "scaling", "--scaling_steps", "3", "--arms", "activation_masks"])
    assert not capsys.readouterr().out


# ---- targets ----------------------------------------------------------------------------------------------------


def test_targets_are_met_missed_or_do_not_apply():
    args = argparse.Namespace(device="cuda", dtype="mixed", attention="sdpa")
    ratios = {"relaxed_topk": {"median": 1.05}, "hard_concrete": {"median": 1.06}, "activation_masks": {"median": 2.0}}
    result = {
        "steps": {"num_parameters": 1.3e9, "ratio": ratios},
        "trainer": {"data_share": 0.009, "eval_token_share": 0.05},
    }
    met = {name: target["met"] for name, target in report.judge(args, result).items()}
    assert met == {
        "relaxed_topk step / plain step": True,
        "hard_concrete step / plain step": False,
        "data loading / step time": True,
        "evaluation / training tokens": False,
    }
    result["steps"]["num_parameters"] = 1e8
    targets = report.judge(args, result)
    assert targets["relaxed_topk step / plain step"]["met"] is None
    lines = report.targets_table(targets)
    assert "does not apply (fewer than 1B parameters)" in lines[1] and lines[-1].endswith("NOT met")


# ---- the sampler, and the documentation ---------------------------------------------------------------------------


def test_both_samplers_begin_new_passes():
    for stream in (sampler.dynamic_batches(512), sampler.shuffled_batches(512)):
        batches = [next(stream) for _ in range(5)]
        assert all(len(batch) == sampler.SAMPLER_BATCH_SIZE for batch in batches)
        assert batches[0] != batches[2]


def test_commands_of_the_readme_are_understood(capsys, monkeypatch):
    monkeypatch.setattr(speed, "missing", lambda args: [])  # some need a GPU
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    text = text.partition("# Host memory of slicing and export")[0]  # the rest is of other commands
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line]
    assert len(lines) >= 4
    for line in lines:
        python, _, module, *arguments = shlex.split(line, comments=True)
        assert (python, module) == ("python", workers.SPEED)
        speed.parse_arguments(arguments)
    with pytest.raises(SystemExit):
        speed.parse_arguments(["--help"])
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    named = set(re.findall(r"`(--\w+)", text))
    assert named and named <= known
    assert tuple(STRATEGIES) == ("relaxed_topk", "hard_concrete")  # which the text names
