"""examples/shear.py, run as a user runs it: a whole run, a stopped one that goes on, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import shear
import torch
import yaml
from safetensors.torch import load_file
from training_helpers import TARGET, letter_tokenizer, plain_model, random_documents
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaForCausalLM, TrainerCallback

from hf_shear import PruneConfig, ShearTrainer, ShearTrainingArguments
from hf_shear.core import StoppedBySignal, UsageError, check_results, content_of
from hf_shear.data import load_domains
from hf_shear.report import live_report
from hf_shear.runs import choose_target, live_page
from hf_shear.shapes import shape_for_budget, training_flops_per_token
from hf_shear.training import evaluate_domains

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SEPARATOR = "\n<|endoftext|>\n"
STEP_TOKENS = 4 * 16


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict:
    """Settings of a small run: a tiny random Llama, and three domains in three kinds of files."""
    folder = tmp_path_factory.mktemp("inputs")
    model = plain_model(attention_dropout=0.0)
    model.save_pretrained(folder / "model")
    letter_tokenizer().save_pretrained(folder / "model")
    (folder / "text" / "notes").mkdir(parents=True)
    for number, name in enumerate(("books", "code")):
        (folder / "text" / name).mkdir()
        documents = random_documents(number, 60)
        (folder / "text" / name / "a.txt").write_text(SEPARATOR.join(documents[:40]))
        rows = [json.dumps({"text": document}) for document in documents[40:]]
        (folder / "text" / name / "b.jsonl").write_text("\n".join(rows))
    (folder / "text" / "notes" / "all.txt").write_text(SEPARATOR.join(random_documents(7, 60)))
    return {
        "model_name_or_path": str(folder / "model"),
        "data_dir": str(folder / "text"),
        **TARGET,
        "mask_tokens": 6 * STEP_TOKENS,
        "recovery_tokens": 6 * STEP_TOKENS - 5,
        "max_length": 16,
        "eval_tokens": 64,
        "held_out_fraction": 0.3,
        "calibration_batches": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "eval_token_share": 0.5,
        "logging_steps": 3,
        "save_strategy": "steps",
        "save_steps": 3,
        "disable_tqdm": True,
        "use_cpu": True,
        "baseline_learning_rates": {"scratch": 0.02},
        "min_swapped_units": 0,
    }


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One thread, and a cache of data sets of its own."""
    threads = torch.get_num_threads()
    cache = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        torch.set_num_threads(1)
        yield {"HF_DATASETS_CACHE": cache, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    torch.set_num_threads(threads)


@pytest.fixture
def run(environment, inputs, tmp_path):
    """``run(output_dir, *flags, **changes)``: the example in this process."""

    def call(output_dir, *flags: str, **changes) -> None:
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(inputs | changes))
        output = [] if output_dir is None else ["--output_dir", str(output_dir)]
        shear.main(["--config", str(config), *output, *flags])

    return call


@pytest.fixture(scope="module")
def whole(inputs, environment, tmp_path_factory):
    """(folder, standard output) of a whole run as a command."""
    folder = tmp_path_factory.mktemp("whole")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(inputs | {"output_dir": str(folder / "run")}))
    command = [sys.executable, str(EXAMPLES / "shear.py"), "--config", str(config)]
    done = subprocess.run(
        command, env=os.environ | environment, cwd=folder, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "run", done.stdout


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def outcome(folder: Path) -> dict:
    """All of a run's results that no clock measured."""
    results = results_of(folder)
    models = {name: results[name]["loss"] for name in ("source", "pruned", "recovered")}
    models |= {name: record["loss"] for name, record in results["baselines"].items()}
    rows = [(row["num_tokens"], row["loss"], row["mixture_weights"]) for row in results["history"]]
    return {"models": models, "masks": results["masks"], "kept": results["kept"], "rows": rows,
            "tokens": results["tokens"], "passes": results["passes"]}  # fmt: skip


# ---- a whole run ----------------------------------------------------------------------------------------------


def test_both_checkpoints_are_plain(whole):
    folder, _ = whole
    for name in ("pruned", "recovered"):
        model = AutoModelForCausalLM.from_pretrained(folder / name)
        assert type(model) is LlamaForCausalLM
        assert {key: getattr(model.config, key) for key in TARGET} == TARGET
        assert model.config.head_dim == 4
        assert model.config.use_cache is True
        assert AutoTokenizer.from_pretrained(folder / name)("ab").input_ids == [4, 5]
        assert (folder / name / "shear_provenance.json").is_file()


def test_the_results_keep_the_contract(whole, inputs):
    folder, _ = whole
    results = results_of(folder)
    check_results(results)
    assert set(results["source"]["loss"]) == {"books", "code", "notes"}
    assert results["target_shape"] == TARGET
    tokens = results["tokens"]
    assert (tokens["mask_learning"], tokens["recovery"]) == (6 * STEP_TOKENS, 6 * STEP_TOKENS)
    assert tokens["calibration"] == 2 * STEP_TOKENS
    assert set(results["baselines"]) == {"random", "taylor", "llm_surgeon", "scratch"}
    for name, record in results["baselines"].items():
        assert record["tokens"] == 12 * STEP_TOKENS
        assert record["learning_rate"] == (0.02 if name == "scratch" else 0.01)
        assert record["num_parameters"] == results["pruned"]["num_parameters"] < results["source"]["num_parameters"]
    assert all(record["eval_tokens"] == 3 * 4 * 15 for record in (results["source"], results["recovered"]))
    assert results["seconds"]["total"] > results["seconds"]["mask_learning"] > 0
    assert results["seed"] == 42
    assert [row["stage"] for row in results["history"]] == ["mask_learning"] * 2 + ["recovery"] * 2
    assert [row["num_tokens"] for row in results["sizes"]] == [3 * STEP_TOKENS, 6 * STEP_TOKENS]
    assert all(row["target_shape"] == TARGET for row in results["sizes"])
    for name, rows in results["baseline_history"].items():
        assert [row["num_tokens"] for row in rows] == [step * STEP_TOKENS for step in (3, 6, 9, 12)], name


def test_the_losses_are_those_of_the_checkpoints(whole, inputs):
    folder, _ = whole
    results = results_of(folder)
    tokenizer = AutoTokenizer.from_pretrained(inputs["model_name_or_path"])
    config = AutoConfig.from_pretrained(inputs["model_name_or_path"])
    data = shear.runs.prepare_domain_data(load_domains(inputs["data_dir"]), tokenizer, config, max_length=16,
                                     held_out_fraction=0.3, eval_tokens=64)  # fmt: skip
    paths = {"source": inputs["model_name_or_path"], "pruned": folder / "pruned", "recovered": folder / "recovered"}
    for name, path in paths.items():
        losses, _ = evaluate_domains(AutoModelForCausalLM.from_pretrained(path), data.judged, 3)
        assert results[name]["loss"] == pytest.approx(losses, abs=1e-5)
    first = results["history"][0]
    source_on_few, _ = evaluate_domains(
        AutoModelForCausalLM.from_pretrained(paths["source"]),
        data.first_steering(first["eval_tokens"] // (3 * 15)), 3,
    )  # fmt: skip
    assert first["reference_loss"] == pytest.approx(source_on_few, abs=1e-5)


def test_it_prints_the_target_the_folder_and_a_table(whole):
    folder, shown = whole
    assert f"Run folder: {folder}" in shown
    assert (folder / "table.txt").read_text(encoding="utf-8").strip() in shown
    for name in ("source", "pruned", "recovered", "scratch", "taylor", "random"):
        assert name in shown.lower()
    assert {"kept_units.png", "domains.png", "sizes.png"} <= {path.name for path in folder.iterdir()}


# ---- stopped runs ---------------------------------------------------------------------------------------------


def assert_same_outcome(folder: Path, whole_folder: Path) -> None:
    found, expected = outcome(folder), outcome(whole_folder)
    assert found["models"].keys() == expected["models"].keys()
    for name, losses in expected["models"].items():
        assert found["models"][name] == pytest.approx(losses, abs=1e-6), name
    assert found["kept"] == expected["kept"]
    assert found["masks"]["kept_below_half"] == expected["masks"]["kept_below_half"]
    assert (found["tokens"], found["passes"]) == (expected["tokens"], expected["passes"])
    for row, wanted in zip(found["rows"], expected["rows"], strict=True):
        assert row[0] == wanted[0]
        assert row[1] == pytest.approx(wanted[1], abs=1e-6)
        assert row[2] == pytest.approx(wanted[2], abs=1e-6)


def test_stages_run_alone_and_give_the_same_results(whole, run, tmp_path):
    folder = tmp_path / "run"
    run(folder, "--stop_after", "mask_learning")
    assert (folder / "pruned").is_dir() and not (folder / "recovered").exists()
    assert not (folder / "results.json").exists()
    run(folder, "--resume", "--stop_after", "recovery")
    assert (folder / "recovered").is_dir() and not (folder / "results.json").exists()
    run(folder, "--resume")
    assert_same_outcome(folder, whole[0])


class EndsAfter(TrainerCallback):
    """Ends the process, as it were, after a step."""

    def __init__(self, step: int, end):
        self.step, self.end = step, end

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.end()


def killed() -> None:
    raise KeyboardInterrupt


def terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stage, end", [("mask_learning", killed), ("recovery", terminated)])
def test_a_run_that_was_ended_goes_on_from_its_checkpoint(whole, run, tmp_path, monkeypatch, stage, end):
    folder, made = tmp_path / "run", []

    class EndingTrainer(ShearTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)
            if (self.mask_learning is not None) == (stage == "mask_learning"):
                self.add_callback(EndsAfter(4, end))

    monkeypatch.setattr("hf_shear.runs.stages.ShearTrainer", EndingTrainer)
    with pytest.raises(KeyboardInterrupt if end is killed else StoppedBySignal) as caught:
        run(folder, baselines=False)
    assert made[-1].state.global_step == 4 + (end is terminated)
    if end is killed:
        (folder / stage / "checkpoint-4").mkdir()  # one that was being written
    else:
        saved = f"which is saved in {folder / stage / 'checkpoint-5'}. To go on: the same command with `--resume`."
        assert str(caught.value) == f"Stopped by SIGTERM after step 5, {saved}" and caught.value.code == 143
    monkeypatch.setattr("hf_shear.runs.stages.ShearTrainer", ShearTrainer)
    run(folder, "--resume", baselines=False)
    results, expected = results_of(folder), results_of(whole[0])
    for name in ("source", "pruned", "recovered"):
        assert results[name]["loss"] == pytest.approx(expected[name]["loss"], abs=1e-6)
    assert results["kept"] == expected["kept"]
    assert (
        results["recovered"]["flops"] == expected["recovered"]["flops"]
    )  # of the masks' start, too, made before the end
    assert results["baselines"] == {}


CHANGES = {
    "mixture_floor": (0.3, "mixture_floor was 0.0 and is now 0.3"),
    "dynamic_batches": (False, "dynamic_batches was True and is now False"),
    "hardening_ratio": (0.1, "hardening_ratio was 0.4 and is now 0.1"),
    "weight_decay": (0.5, "weight_decay was 0.0 and is now 0.5"),
    "per_device_train_batch_size": (2, "samples per step was 4 and is now 2"),
    "mask_tokens": (3 * STEP_TOKENS, "mask_tokens was 384 and is now 192"),
    "max_length": (8, "max_length was 16 and is now 8"),
    "distillation": ("forward_kl", "distillation was 'none' and is now 'forward_kl'"),
}


def test_a_resume_is_the_run_that_it_continues(run, inputs, tmp_path, capsys):
    folder, text, source = tmp_path / "run", tmp_path / "text", tmp_path / "model"
    shutil.copytree(inputs["data_dir"], text)
    shutil.copytree(inputs["model_name_or_path"], source)
    own = {"data_dir": str(text), "model_name_or_path": str(source)}
    run(folder, "--stop_after", "mask_learning", **own)
    record = (folder / "stages.json").read_text()
    for name, (value, shown) in CHANGES.items():
        with pytest.raises(UsageError, match=f"can not (go on|be done again) with other arguments: {shown}. Give the"):
            run(folder, "--resume", **own | {name: value})
    path = text / "books" / "a.txt"
    before = path.read_text()
    path.write_text(before.replace(before[0], "z" if before[0] != "z" else "y", 1))  # as many tokens as before
    with pytest.raises(
        UsageError, match="other arguments: the (held-out )?text of domain 'books' has changed. Give the"
    ):
        run(folder, "--resume", **own)
    path.write_text(before)
    model = AutoModelForCausalLM.from_pretrained(source)
    model.model.norm.weight.data[0] += 1
    model.save_pretrained(source)
    with pytest.raises(UsageError, match=r"arguments: the source \(`model_name_or_path`\) has changed. Give the same"):
        run(folder, "--resume", **own)
    assert (folder / "stages.json").read_text() == record
    capsys.readouterr()
    # The same text and source elsewhere, another split of the batch, and what only recovery reads.
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "recovery_tokens": 3 * STEP_TOKENS}
    run(folder, "--resume", "--baselines", "false", **changes)
    said = capsys.readouterr().out
    for shown in ("recovery_tokens was 379 and is now 192", "gradient_accumulation_steps was 1 and is now 2"):
        assert shown in said
    assert results_of(folder)["tokens"]["recovery"] == 3 * STEP_TOKENS


def test_a_finished_run_is_neither_overwritten_nor_run_again(whole, run, tmp_path):
    folder = whole[0]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="already holds a run. Choose another folder, continue it with `--resume`"):
        run(folder)
    with pytest.raises(ValueError, match="with other arguments: seed was 42 and is now 1"):
        run(folder, "--resume", "--seed", "1")
    with pytest.raises(ValueError, match="`--resume`: .* holds no run"):
        run(tmp_path / "nothing", "--resume")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


# ---- units chosen at once -------------------------------------------------------------------------------------


AT_ONCE = {"mask_tokens": 0, "recovery_tokens": 12 * STEP_TOKENS, "eval_token_share": 1.0, "shape_gap_tolerance": 1e9,
           "min_swapped_units": 0}  # fmt: skip


@pytest.fixture(scope="module")
def at_once(inputs, environment, tmp_path_factory):
    """(folder, standard output) of a run that learns no masks."""
    folder = tmp_path_factory.mktemp("at_once")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(inputs | AT_ONCE))
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        shear.main(["--config", str(config), "--output_dir", str(folder / "run")])
    return folder / "run", shown.getvalue()


def test_without_mask_tokens_units_are_chosen_at_once(at_once):
    folder, shown = at_once
    results = results_of(folder)
    check_results(results)
    assert results["masks"] is None and results["tokens"]["mask_learning"] == 0
    assert results["tokens"]["calibration"] == 2 * STEP_TOKENS
    assert set(results["baselines"]) == {"random", "taylor", "paper", "scratch"}
    assert {record["tokens"] for record in results["baselines"].values()} == {12 * STEP_TOKENS}
    kept = results["kept"]
    assert len(kept["layers"]) == TARGET["num_hidden_layers"] and len(kept["hidden"]) == TARGET["hidden_size"]
    config = json.loads((folder / "pruned" / "prune_config.json").read_text())
    assert config["compensation"] == PruneConfig().compensation
    assert [line for line in shown.splitlines() if line.startswith("== ") and "left of the run" in line]


def test_every_arm_is_charged_what_it_spent(at_once):
    results = results_of(at_once[0])
    target = training_flops_per_token(AutoConfig.from_pretrained(at_once[0] / "pruned"), 16)
    flops = {name: record["flops"] for name, record in results["baselines"].items()}
    trained = 12 * STEP_TOKENS * target
    assert flops["scratch"] == flops["random"] == pytest.approx(trained)
    assert flops["paper"] > trained  # its masks learn on the source
    assert results["recovered"]["flops"] > flops["taylor"] > trained


def test_a_run_without_masks_goes_on_where_it_was(at_once, run, tmp_path):
    folder = tmp_path / "run"
    run(folder, "--stop_after", "pruning", **AT_ONCE)
    assert (folder / "pruned").is_dir() and not (folder / "recovered").exists()
    run(folder, "--resume", baselines=False, **AT_ONCE)
    found, wanted = outcome(folder), outcome(at_once[0])
    assert found["models"].keys() == {"source", "pruned", "recovered"} and found["kept"] == wanted["kept"]
    for name, losses in found["models"].items():
        assert losses == pytest.approx(wanted["models"][name], abs=1e-6), name


# ---- other ways to ask ----------------------------------------------------------------------------------------


def test_the_papers_masks_and_a_numbered_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(None, "--paper", "--stop_after", "mask_learning", shape_gap_tolerance=1e9, mask_tokens=10 * STEP_TOKENS)
    folder = tmp_path / "runs" / "001"
    provenance = json.loads((folder / "pruned" / "shear_provenance.json").read_text())
    assert provenance["mask_settings"]["method"] == "hard_concrete"
    assert provenance["mask_settings"]["log_alpha_bound"] == pytest.approx(4.60517, abs=1e-5)
    assert provenance["masks"]["kept_below_half"].keys() == TARGET.keys()
    record = json.loads((folder / "stages.json").read_text())["mask_learning"]
    assert record["calibration_tokens"] == 0


def test_targets_from_names_a_budget_and_a_preset(inputs):
    config = AutoConfig.from_pretrained(inputs["model_name_or_path"])
    arguments = shear.PipelineArguments
    named, reasons = choose_target(arguments(hidden_size=12, intermediate_size=16), config)
    assert reasons is None
    assert (named.hidden_size, named.intermediate_size, named.num_hidden_layers) == (12, 16, 3)
    budget, reasons = choose_target(arguments(target_num_parameters=6000), config)
    assert budget.num_hidden_layers <= 3
    assert "Embeddings: " in reasons and "Balance: weighted" in reasons
    alike, reasons = choose_target(arguments(target_num_parameters=6000, target_balance="proportional"), config)
    assert "Balance: proportional" in reasons
    assert alike == shape_for_budget(config, num_parameters=6000, balance="proportional").shape
    with pytest.raises(
        ValueError, match="`target_balance` 'proportional' picks the shape of `--target_num_parameters`"
    ):
        choose_target(arguments(hidden_size=12, target_balance="proportional"), config)
    for wrong in (
        {},
        {"hidden_size": 12, "preset": "sheared-llama-1.3b"},
        {"hidden_size": 12, "target_num_parameters": 9},
    ):
        with pytest.raises(ValueError, match="Name a target one way: hidden_size, .*; or one of `--preset`"):
            choose_target(arguments(**wrong), config)
    with pytest.raises(ValueError, match="model_type 'gpt2', which can not be sheared. Supported model types: .*llama"):
        choose_target(arguments(hidden_size=12), GPT2Config())
    with pytest.raises(ValueError, match="hidden_size"):
        choose_target(arguments(hidden_size=64), config)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"max_length": 64, "eval_tokens": 64}, "`max_length` must be at most"),
        ({"data_dir": "nowhere"}, "`data_dir` must be an existing folder, but it is 'nowhere'"),
        ({"mixture_weights": {"books": 1, "cc": 1}}, r"`mixture_weights` must name domains of the data, but \['cc'\]"),
        ({"mixture_floor": 0.5}, "`mixture_floor` must lie between 0 and 1 / 3"),
        ({"reference_losses": {"books": 1}}, "`reference_losses` must name the domains"),
        ({"baseline_learning_rates": "{random: 1e-3}"}, "`baseline_learning_rates` must be JSON .* '{random: 1e-3}'"),
        (
            {"baseline_learning_rates": {"tailor": 1e-3}},
            "`baseline_learning_rates` must be JSON that gives some of random",
        ),
        ({"mask_tokens": -1}, r"`mask_tokens` must be at least 1 \(or 0\), but it is -1"),
        ({"mask_tokens": 0, "paper": True}, "`paper` is of mask learning, but `mask_tokens` is 0"),
        ({"mask_tokens": 0, "criterion": "talyor"}, "talyor"),
        ({"recovery_tokens": -5}, "`recovery_tokens` must be at least 1, but it is -5"),
        (
            {"mask_start": "talyor"},
            "`mask_start` must be taylor or uniform, or name criteria, but it is 'talyor'",
        ),
        ({"mask_start": "loss_rise"}, "`criterion` 'loss_rise' cannot rank 'hidden'"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(run, tmp_path, monkeypatch, changes, text):
    monkeypatch.setattr("hf_shear.runs.judge", lambda *args: pytest.fail("it began"))
    with pytest.raises(ValueError, match=text):
        run(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists() or [path.name for path in content_of(tmp_path / "run")] == ["stages.json"]


@pytest.mark.parametrize("changes", [{"stop_after": "prunning"}, {"mask_method": "topk"}, {"mask_draw": "never"}])
def test_a_misspelt_choice_is_refused_with_the_choices(run, tmp_path, changes):
    (name, value) = next(iter(changes.items()))
    with pytest.raises(UsageError, match=rf"`{name}` in '.*', line \d+, must be one of .*, but it is '{value}'"):
        run(tmp_path / "run", **changes)


@pytest.mark.parametrize("flag", ["--num_tokens", "--max-steps", "--num_train_epochs"])
def test_flags_that_the_stages_set_are_refused(run, tmp_path, flag):
    name = flag.replace("-", "_").strip("_")
    with pytest.raises(ValueError, match=f"`--{name}` can not be given here: give --recovery_tokens"):
        run(tmp_path / "run", flag, "8")


def test_overwriting_with_a_mistake_loses_nothing(whole, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    with pytest.raises(ValueError, match="`eval_tokens`"):
        run(folder, "--overwrite", eval_tokens=3)
    assert outcome(folder) == outcome(whole[0])
    assert (folder / "recovered" / "model.safetensors").is_file()


def test_a_half_precision_source_is_trained_in_float32_and_comes_back_as_it_was(run, inputs, tmp_path):
    source = tmp_path / "model"
    model = AutoModelForCausalLM.from_pretrained(inputs["model_name_or_path"]).to(torch.bfloat16)
    model.save_pretrained(source)
    letter_tokenizer().save_pretrained(source)
    run(tmp_path / "run", "--baselines", "false", model_name_or_path=str(source))
    results = results_of(tmp_path / "run")
    for name in ("pruned", "recovered"):
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / name).dtype == torch.bfloat16
        assert results[name]["dtype"] == "bfloat16"
    checkpoint = next((tmp_path / "run" / "recovery").glob("checkpoint-*")) / "model.safetensors"
    assert {tensor.dtype for tensor in load_file(checkpoint).values()} == {torch.float32}


def test_accumulation_does_not_change_what_is_kept(run, whole, tmp_path):
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run(tmp_path / "run", "--stop_after", "mask_learning", **changes)
    learned = json.loads((tmp_path / "run" / "stages.json").read_text())["mask_learning"]
    wanted = json.loads((whole[0] / "stages.json").read_text())["mask_learning"]
    assert learned["kept"] == wanted["kept"]
    assert learned["calibration_tokens"] == wanted["calibration_tokens"]
    assert learned["model"]["mean"] == pytest.approx(wanted["model"]["mean"], abs=1e-4)


def test_the_page_follows_the_run(run, tmp_path, monkeypatch):
    drawn = []

    def keep(results, live):
        drawn.append((results, live))
        return live_report(results, live)

    monkeypatch.setattr(live_page, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(live_page, "MOST_TIME", 1e9)
    monkeypatch.setattr(live_page, "live_report", keep)
    run(tmp_path / "run", "--stop_after", "mask_learning")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "finished its stages" in page and 'http-equiv="refresh"' not in page
    steps = [live["step"] for _, live in drawn if live["stage"] == "mask_learning" and live.get("step") is not None]
    assert set(steps) == set(range(7)) and all(live["state"] == "running" for _, live in drawn[:-1])
    recorded = json.loads((tmp_path / "run" / "stages.json").read_text(encoding="utf-8"))["mask_learning"]
    results, live = next(one for one in reversed(drawn) if one[1].get("step") == 6)
    assert results["kept"] == recorded["kept"]  # what a cut would keep at the last step is what the cut kept
    assert [row["loss"] for row in results["history"]] == [row["loss"] for row in recorded["history"]][
        : len(results["history"])
    ]
    assert live["tokens"] == recorded["tokens"] == 6 * STEP_TOKENS and live["seconds_left"] is not None
    assert live["flops"] == pytest.approx(
        6
        * STEP_TOKENS
        * training_flops_per_token(
            AutoConfig.from_pretrained(
                json.loads((tmp_path / "run" / "pruned" / "shear_provenance.json").read_text())["source"][
                    "name_or_path"
                ]
            ),
            16,
        )
    )


def test_the_page_can_be_left_out(run, tmp_path):
    run(tmp_path / "run", "--stop_after", "pruning", "--live_page", "false", **AT_ONCE)
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_refused_run_does_not_block_its_folder(run, tmp_path):
    """The same command with the mistake mended must not be told that the folder holds a run."""
    with pytest.raises(ValueError, match="`data_dir` must be an existing folder"):
        run(tmp_path / "run", data_dir="nowhere")
    run(tmp_path / "run", "--stop_after", "mask_learning")


PIPELINE_OPTIONS = """as_family baseline_learning_rates baselines block_diagonal calibration_batches compensation
    criterion data_dir distillation_top_k dry_run eval_tokens from_search held_out_fraction hidden_size
    intermediate_size keep_adapter live_page mask_draw mask_method mask_start mask_start_spread mask_tokens
    max_length model_name_or_path num_attention_heads num_experts num_hidden_layers num_key_value_heads num_proc
    num_shots overwrite paper parse_special_tokens preset quantize recovery_tokens resume search_rank skip_null_text
    skip_unreadable stop_after target_balance target_num_parameters teacher_name_or_path teacher_placement
    text_field""".split()
TRAINING_OPTIONS = """activation_checkpointing activation_checkpointing_kwargs budget_warmup_ratio clamp_excess clip_masks
    distillation distillation_temperature distillation_weight dynamic_batches end_temperature
    eval_token_share hardening_ratio mask_learning_rate mask_scheduler min_swapped_units mixture_ceiling
    mixture_floor mixture_update
    mixture_weights multiplier_learning_rate num_tokens peft_config recovery_method reference_losses
    shape_gap_tolerance start_noise start_temperature trust_checkpoint""".split()


def test_options_are_frozen_and_shown(capsys, monkeypatch):
    """A change here is a change of the interface."""
    monkeypatch.delenv("COLUMNS", raising=False)  # the width of a screen is the default one
    assert sorted(shear.PipelineArguments.__dataclass_fields__) == PIPELINE_OPTIONS
    ours = set(ShearTrainingArguments.__annotations__) - CHANGED_DEFAULTS - {"_VALID_DICT_FIELDS"}
    assert sorted(ours) == TRAINING_OPTIONS
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as caught:
            shear.main([flag])
        assert caught.value.code == 0
        shown[flag] = capsys.readouterr().out
    for name in (*PIPELINE_OPTIONS, *TRAINING_OPTIONS, "output_dir", "seed", "config"):
        assert (f"--{name}" in shown["--help-all"]) == (name not in shear.NOT_HERE), name
    assert len(shown["--help"].splitlines()) <= 72 and "Optimisation:" in shown["--help"]


CHANGED_DEFAULTS = {
    "num_train_epochs",
    "output_dir",
    "ddp_find_unused_parameters",
    "eval_strategy", "eval_steps", "adam_beta2", "remove_unused_columns", "logging_nan_inf_filter", "ignore_data_skip"
}  # fmt: skip
