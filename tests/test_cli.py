"""``hf-shear``: help, exit codes, and the verbs of a whole run one after the other."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shlex
import shutil
import sys

import datasets
import pytest
import torch
from safetensors.torch import load_file
from test_html_report import Page
from training_helpers import TARGET, letter_tokenizer, plain_model, random_documents
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_shear import PruneConfig
from hf_shear.cli import main
from hf_shear.cli.main import VERBS
from hf_shear.core import check_results, read_results
from hf_shear.modeling import AutoShearingModelForCausalLM
from hf_shear.report import live_report
from hf_shear.shapes import count_parameters, training_flops_per_token
from hf_shear.slicing import read_provenance

SIZES = [word for name, size in TARGET.items() for word in (f"--{name}", str(size))]
USAGES = {
    "compare": "RUNS ...",
    "docs": "[PAGE]",
    "evaluate": "SOURCE [PRUNED]",
    "plan": "[RUNS]",
    "push": "FOLDER REPO_ID",
}
MAX_HELP_LINES = 54
MAX_TRAINING_HELP_LINES = 72


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tiny random Llama, and two domains."""
    folder = tmp_path_factory.mktemp("cli")
    plain_model(attention_dropout=0.0).save_pretrained(folder / "model")
    letter_tokenizer().save_pretrained(folder / "model")
    for number, name in enumerate(("books", "code")):
        (folder / "text" / name).mkdir(parents=True)
        text = "\n<|endoftext|>\n".join(random_documents(number, 60))
        (folder / "text" / name / "a.txt").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        yield folder


def training_flags(inputs, sizes=SIZES) -> list[str]:
    return [
        "--data_dir", str(inputs / "text"), *sizes, "--max_length", "16", "--eval_tokens", "64", "--use_cpu", "true",
        "--mask_tokens", "384", "--recovery_tokens", "384", "--held_out_fraction", "0.3", "--calibration_batches", "2",
        "--per_device_train_batch_size", "4", "--eval_steps", "3", "--eval_token_share", "0.5", "--disable_tqdm", "true",
        "--save_strategy", "steps", "--save_steps", "6", "--learning_rate", "0.01", "--logging_steps", "3",
    ]  # fmt: skip


def test_every_verb_keeps_the_contract_and_its_help_fits_a_screen(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # the width of a screen is the default one
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert len(overview.splitlines()) <= 24
    for name in VERBS:
        verb = importlib.import_module(f"hf_shear.cli.{name}")
        fields = {field.name for field in dataclasses.fields(verb.Arguments)}
        assert set(verb.POSITIONAL) <= fields
        assert verb.SUMMARY in overview and f"hf-shear {name} " in verb.EXAMPLE
        trains = getattr(verb, "TRAINS", False)
        assert main([name, "--help"]) == 0
        short = capsys.readouterr().out.splitlines()
        assert short[0].startswith(
            f"usage: hf-shear {name} {USAGES.get(name, verb.POSITIONAL[0].upper())} [--config"
        ), name
        assert len(short) <= (MAX_TRAINING_HELP_LINES if trains else MAX_HELP_LINES), name
        assert main([name, "--help-all"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 120
        shown = {line.split()[0] for line in lines if line.startswith("  --")}
        assert {f"--{field}" for field in fields - set(getattr(verb, "REFUSED", ()))} <= shown
        assert trains or short == lines
        assert not trains or {"--learning_rate", "--bf16", "--mask_learning_rate", "--hub_strategy"} <= shown


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["shrink"], "there is no verb 'shrink'"),
        (["inspect"], "checkpoint"),
        (["inspect", "a", "b"], "takes 1 argument"),
        (["inspect", "a", "--checkpoint", "b"], "given twice"),
        (["inspect", "a", "--colour", "red"], "--colour"),
        (["learn", "a", "--num_tokens", "5"], "give --mask_tokens and --recovery_tokens"),
        (["learn", "a", "--quantize", "4bit", "--recovery_tokens", "0"], "`recovery_tokens` must be at least 1"),
        (["export", "/nowhere", "--output_dir", "x"], "but '/nowhere' does not exist"),
        (["report", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words, text, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert text in captured.err and captured.err.startswith("hf-shear: error: ")
    assert captured.out == ""


def test_inspect_knows_published_counts(tmp_path, capsys):
    config = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008)
    config.save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path), "--preset", "sheared-llama-1.3b", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["now"]["num_parameters"] == 6_738_415_616
    assert facts["target"]["num_parameters"] == 1_345_423_360
    assert facts["now"]["kv_cache_bytes_per_token"] == 2 * 32 * 4096 * 2
    assert facts["now"]["embedding_parameters"] == 2 * 32_000 * 4096
    assert facts["sequence_length"] == 2048  # the model's positions
    assert main(["inspect", str(tmp_path), "--preset", "sheared-llama-1.3b", "--sequence_length", "128"]) == 0
    said = capsys.readouterr().out
    assert "6,738,415,616" in said and "FLOPs are those of a sequence of 128 tokens" in said
    assert main(["inspect", str(tmp_path), "--hidden_size", "8192"]) == 2


@pytest.fixture(scope="module")
def learned(inputs):
    """The folder that ``hf-shear learn`` made."""
    folder = inputs / "run"
    words = ["learn", str(inputs / "model"), *training_flags(inputs), "--output_dir", str(folder)]
    assert main([*words, "--distillation", "forward_kl"]) == 0
    return folder


def test_recover_goes_on_with_what_learn_made(inputs, learned, capsys):
    pruned = AutoModelForCausalLM.from_pretrained(learned / "pruned")
    assert type(pruned) is LlamaForCausalLM and pruned.config.hidden_size == TARGET["hidden_size"]
    words = ["recover", str(inputs / "model"), *training_flags(inputs, sizes=()), "--output_dir", str(learned)]
    assert main([*words, "--distillation", "forward_kl", "--hidden_size", "12"]) == 2  # the run knows its target
    assert "target_shape was {" in capsys.readouterr().err
    assert main([*words, "--baselines", "false"]) == 2  # without the teacher that masks were learned with
    assert "distillation was 'forward_kl'" in capsys.readouterr().err
    assert main([*words, "--baselines", "false", "--distillation", "forward_kl"]) == 0
    results = read_results(learned / "results.json")
    check_results(results)
    assert results["recovery"]["distillation"]["divergence"] == "forward_kl"
    assert "recovered" in capsys.readouterr().out
    before, after = load_file(learned / "pruned" / "model.safetensors"), learned / "recovered" / "model.safetensors"
    assert any(not torch.equal(before[name], tensor) for name, tensor in load_file(after).items())
    assert main(["report", str(learned), "--output", str(inputs / "page.html")]) == 0
    assert "<html" in (inputs / "page.html").read_text(encoding="utf-8")


def test_export_cuts_what_learn_cut(inputs, learned, tmp_path):
    checkpoint = max((learned / "mask_learning").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert main(["export", str(checkpoint), "--output_dir", str(tmp_path / "cut")]) == 0
    ids = torch.arange(3, 15)[None]
    first = AutoModelForCausalLM.from_pretrained(learned / "pruned")(ids).logits
    second = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")(ids).logits
    assert torch.allclose(first, second, atol=1e-6)
    assert main(["export", str(learned / "pruned"), "--output_dir", str(tmp_path / "again")]) == 2


@pytest.mark.parametrize("method", ["least_squares:towards=source", "least_squares_bias"])
def test_export_makes_up_for_the_cut(inputs, learned, tmp_path, method):
    checkpoint = max((learned / "mask_learning").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    words = ["export", str(checkpoint), "--output_dir", str(tmp_path / "cut"), "--compensation", method]
    assert main(words) == 2  # no text
    words += ["--data_dir", str(inputs / "text"), "--max_length", "16", "--eval_tokens", "64", "--batch_size", "4"]
    assert main([*words, "--held_out_fraction", "0.3", "--calibration_batches", "4"]) == 0
    made = read_provenance(tmp_path / "cut")["compensation"]
    assert made["method"] == method and made["after"].keys() == made["before"].keys()
    assert sum(made["after"].values()) < sum(made["before"].values())
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    plain = AutoModelForCausalLM.from_pretrained(learned / "pruned")
    assert cut.config.mlp_bias == ("bias" in method)
    for name, weight in plain.state_dict().items():
        changed = not torch.equal(weight, cut.state_dict()[name])
        written = ("o_proj.weight", "down_proj.weight") if "source" not in method else ("_proj.weight",)
        assert not changed or name.endswith(written), name


def test_learn_makes_up_for_the_cut(inputs, tmp_path, capsys):
    words = ["learn", str(inputs / "model"), *training_flags(inputs), "--output_dir", str(tmp_path / "run")]
    assert main([*words, "--compensation", "magic"]) == 2
    assert main([*words, "--compensation", "bias", "--paper", "true"]) == 2
    assert "never hardened" in capsys.readouterr().err
    assert main([*words, "--compensation", "least_squares_bias:towards=source"]) == 0
    made = read_provenance(tmp_path / "run" / "pruned")["compensation"]
    assert sum(made["after"].values()) < sum(made["before"].values())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "pruned").config.attention_bias


def test_prune_makes_up_for_the_cut(inputs, tmp_path, capsys):
    words = ["prune", str(inputs / "model"), "--data_dir", str(inputs / "text"), *SIZES, "--max_length", "16",
             "--eval_tokens", "64", "--held_out_fraction", "0.3", "--calibration_batches", "2", "--output_dir",
             str(tmp_path / "cut")]  # fmt: skip
    assert main([*words, "--compensation", "magic"]) == 2
    assert "`compensation` must be one of none, bias" in capsys.readouterr().err
    assert main([*words, "--compensation", "least_squares_bias:towards=source", "--num_shots", "2"]) == 0
    assert "  SGLang: wrong (its MLP has no biases" in capsys.readouterr().out
    made = read_provenance(tmp_path / "cut")["prune_config"]
    assert (made["compensation"], made["num_shots"]) == ("least_squares_bias:towards=source", 2)
    assert PruneConfig.from_pretrained(tmp_path / "cut").to_dict() == made
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "cut").config.mlp_bias


def test_prune_judges_both_models_and_its_card_can_be_written(inputs, tmp_path, capsys):
    words = ["prune", str(inputs / "model"), "--data_dir", str(inputs / "text"), *SIZES, "--max_length", "16",
             "--held_out_fraction", "0.3", "--calibration_batches", "2", "--eval_tokens", "64"]  # fmt: skip
    cut = tmp_path / "cut"
    assert main([*words, "--output_dir", str(cut)]) == 0
    said = capsys.readouterr().out
    results = read_results(cut / "results.json")
    above = results["pruned"]["mean"] - results["source"]["mean"]
    assert f"Recover it with: hf-shear recover {inputs / 'model'} --pruned {cut} --data_dir {inputs / 'text'}" in said
    assert f"{above:.3f} nats per token" in " ".join(said.split()) and "judged on 128 held-out tokens" in said
    assert results["pruned"]["num_parameters"] == count_parameters(AutoModelForCausalLM.from_pretrained(cut).config)
    assert results["tokens"] == {"mask_learning": 0, "recovery": 0, "evaluation": 240, "calibration": 256}
    assert results["pruned"]["flops"] == sum(read_provenance(cut)["calibration"]["flops"].values())
    assert main(["card", str(cut), "--license", "apache-2.0"]) == 0
    assert main(["report", str(cut)]) == 0
    card = (cut / "README.md").read_text(encoding="utf-8")
    assert f"{results['pruned']['loss']['code']}" in card and "not been trained after the cut" in card
    assert main(["evaluate", str(cut), "--output", str(tmp_path / "again.json"), "--max_documents", "2", "--data_dir",
                 str(inputs / "text")]) == 0  # fmt: skip


def test_prune_judges_uneven_models(inputs, tmp_path):
    count = round(0.8 * count_parameters(AutoModelForCausalLM.from_pretrained(inputs / "model").config))
    words = ["prune", str(inputs / "model"), "--data_dir", str(inputs / "text"), "--max_length", "16", "--eval_tokens",
             "64", "--held_out_fraction", "0.3", "--calibration_batches", "2", "--target_num_parameters", str(count),
             "--allocation", "global", "--units", "intermediate",  "--output_dir", str(tmp_path / "cut")]  # fmt: skip
    assert main(words) == 0
    assert read_results(tmp_path / "cut" / "results.json")["pruned"]["mean"] > 0


def test_prune_computes_in_the_dtype_that_is_asked_for_and_saves_in_the_sources(inputs, tmp_path, capsys):
    words = ["prune", str(inputs / "model"), "--data_dir", str(inputs / "text"), *SIZES, "--max_length", "16",
             "--held_out_fraction", "0.3", "--calibration_batches", "2", "--eval_tokens", "64"]  # fmt: skip
    assert main([*words, "--dtype", "bfloat16", "--output_dir", str(tmp_path / "cut")]) == 0
    assert "stored in float32, and computed with in bfloat16" in capsys.readouterr().out
    results = read_results(tmp_path / "cut" / "results.json")
    assert (results["source"]["dtype"], results["source"]["computed_in"]) == ("float32", "bfloat16")
    assert (results["pruned"]["dtype"], results["pruned"]["computed_in"]) == ("float32", "float32")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "cut").dtype == torch.float32


def test_interleave_prunes_and_trains_by_turns(inputs, tmp_path, monkeypatch, capsys):
    unwanted = ("--mask_tokens", "--recovery_tokens")
    flags = training_flags(inputs)
    for name in unwanted:
        place = flags.index(name)
        del flags[place : place + 2]
    words = ["interleave", str(inputs / "model"), *flags, "--output_dir", str(tmp_path / "run"), "--num_stages", "3"]
    assert main(words) == 2
    assert "`num_tokens` and `output_dir` are needed" in capsys.readouterr().err
    words += ["--num_tokens", "768"]
    pages = []
    with monkeypatch.context() as patch:
        patch.setattr("hf_shear.runs.live_page.LEAST_SECONDS", 0.0)
        patch.setattr("hf_shear.runs.live_page.MOST_TIME", 1e9)
        patch.setattr(
            "hf_shear.runs.live_page.live_report", lambda *known: pages.append(Page(live_report(*known)).text) or ""
        )
        assert main(words) == 0
    assert any("Pruning by turns, step 12 of 12" in page and "What is kept so far" in page for page in pages)
    assert all("hf_shear run, under way" in page and "llama" not in page for page in pages)
    assert "the loss is" in capsys.readouterr().out
    report = Page((tmp_path / "run" / "report.html").read_text()).text
    assert "768 pruning by turns" in report and "mask learning" not in report.replace("mask learning and recovery", "")
    results = read_results(tmp_path / "run" / "results.json")
    assert results["tokens"]["mask_learning"] == 768 and results["history"]
    assert results["pruned"]["flops"] > 768 * training_flops_per_token(AutoConfig.from_pretrained(inputs / "model"), 1)
    assert main(["card", str(tmp_path / "run"), "--license", "mit"]) == 0
    card = (tmp_path / "run" / "pruned" / "README.md").read_text()
    assert "It was trained for 768 tokens while it was pruned." in card and "None yet" not in card
    capsys.readouterr()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "pruned")
    assert {name: getattr(model.config, name) for name in TARGET} == TARGET
    made = read_provenance(tmp_path / "run" / "pruned")
    assert made["interleaved"] == {"tokens": 768} and made["target_shape"] | TARGET == made["target_shape"]
    assert PruneConfig.from_pretrained(tmp_path / "run" / "pruned") == PruneConfig(num_shots=3, pruning_share=0.5)
    assert main(words) == 2 and "holds a finished run" in capsys.readouterr().err
    (tmp_path / "run" / "pruned").rename(tmp_path / "first")
    assert main([*words, "--resume", "true"]) == 0  # from the checkpoint of the last step
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "pruned")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_interleave_goes_on_only_with_the_run_that_was_begun(inputs, tmp_path, monkeypatch, capsys):
    flags = training_flags(inputs)
    for name in ("--mask_tokens", "--recovery_tokens"):
        del flags[flags.index(name) : flags.index(name) + 2]
    words = ["interleave", str(inputs / "model"), *flags, "--output_dir", str(tmp_path / "run"), "--num_stages", "2"]
    words += ["--criterion", "magnitude", "--compensation", "none", "--num_tokens", "384"]

    def killed(*args, **kwargs):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:  # before its first checkpoint
        patch.setattr("hf_shear.pruning.prune_interleaved", killed)
        with pytest.raises(RuntimeError, match="killed"):
            main(words)
    capsys.readouterr()
    changes = {
        "--criterion": ("taylor", "criterion was ['magnitude'] and is now ['taylor']"),
        "--compensation": ("bias", "compensation was 'none' and is now 'bias'"),
        "--num_stages": ("1", "num_stages was 2 and is now 1"),
        "--pruning_share": ("1.0", "pruning_share was 0.5 and is now 1.0"),
        "--num_tokens": ("768", "num_tokens was 384 and is now 768"),
        "--intermediate_size": (
            "20",
            "target_shape was {'intermediate_size': 16} and is now {'intermediate_size': 20}",
        ),
        "--weight_decay": ("0.5", "weight_decay was 0.0 and is now 0.5"),
        "--lr_scheduler_type": ("cosine", "lr_scheduler_type was 'linear' and is now 'cosine'"),
    }
    for name, (value, shown) in changes.items():
        given = [word for place, word in enumerate(words) if name not in (word, words[max(place - 1, 0)])]
        assert main([*given, name, value, "--resume", "true"]) == 2
        assert f"with other arguments: {shown}" in capsys.readouterr().err
    assert main([*words, "--resume", "true"]) == 0
    assert "There is no whole checkpoint" in capsys.readouterr().out
    assert read_provenance(tmp_path / "run" / "pruned")["interleaved"]["tokens"] == 384


def test_lora_and_stored_teacher_logits_end_in_a_plain_checkpoint(inputs, tmp_path):
    pytest.importorskip("peft")
    flags = [*training_flags(inputs), "--output_dir", str(tmp_path / "run"), "--baselines", "false"]
    flags += [
        "--recovery_method",
        "lora",
        "--peft_config",
        '{"r": 2, "target_modules": "all-linear"}',
        "--keep_adapter",
    ]
    flags += ["--distillation", "forward_kl", "--teacher_placement", "stored", "--distillation_top_k", "5"]
    assert main(["learn", str(inputs / "model"), *flags]) == 0
    assert main(["recover", str(inputs / "model"), *flags]) == 0
    run = tmp_path / "run"
    recovered = AutoModelForCausalLM.from_pretrained(run / "recovered")
    assert type(recovered) is LlamaForCausalLM
    words = ["export", str(run / "adapter"), "--output_dir", str(tmp_path / "merged")]
    assert main(words) == 2  # without its base
    assert main([*words, "--base", str(run / "pruned")]) == 0
    merged, again = recovered.state_dict(), AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert all(torch.allclose(merged[name], again[name], atol=1e-6) for name in merged)
    assert main([*words[:2], "--base", str(inputs / "model"), "--output_dir", str(tmp_path / "wrong")]) == 2


@pytest.fixture(scope="module")
def pruned(inputs):
    """What ``hf-shear prune`` made."""
    flags = ["--data_dir", str(inputs / "text"), "--max_length", "16", "--eval_tokens", "64", *SIZES]
    flags += ["--held_out_fraction", "0.3", "--calibration_batches", "2", "--output_dir", str(inputs / "pruned")]
    words = ["prune", str(inputs / "model"), *flags]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["hf-shear", *words])
        assert main(words) == 0
    return inputs / "pruned"


def recovery_words(inputs, pruned, folder) -> list[str]:
    flags = [*training_flags(inputs, sizes=()), "--pruned", str(pruned), "--output_dir", str(folder)]
    return ["recover", str(inputs / "model"), *flags]


def test_recover_starts_from_what_prune_made(inputs, pruned, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    words = [*recovery_words(inputs, pruned, run), "--distillation", "forward_kl"]
    monkeypatch.setattr(sys, "argv", ["hf-shear", *words])
    assert main(words) == 0
    commands = [*read_provenance(pruned)["commands"], f"hf-shear {shlex.join(words)}"]
    assert len(commands) == 2 and read_provenance(run / "recovered")["commands"] == commands
    results = read_results(run / "results.json")
    check_results(results)
    assert results["masks"] is None and results["tokens"]["mask_learning"] == 0
    assert results["kept"] == json.loads((pruned / "shear_provenance.json").read_text())["kept"]
    assert all(record["tokens"] == results["tokens"]["recovery"] for record in results["baselines"].values())
    references = results["history"][0]["reference_loss"]  # of the source, on text that is not judged
    assert references.keys() == results["source"]["loss"].keys() and references != results["source"]["loss"]
    assert references == pytest.approx(results["source"]["loss"], rel=0.1)
    start, before, after = (
        load_file(folder / "model.safetensors") for folder in (pruned, run / "pruned", run / "recovered")
    )
    assert all(torch.equal(before[name], value) for name, value in start.items())
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    assert "What was kept" in (run / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(words) == 0  # goes on: every stage has finished before
    said = capsys.readouterr().out
    assert "recovery (finished before)" in said
    assert f"Wrote {run}/recovered" in said and f"hf-shear push {run} YOUR_NAME/MODEL_NAME" in said
    assert main(["card", str(run), "--license", "mit"]) == 0
    card = (run / "recovered" / "README.md").read_text(encoding="utf-8")
    assert "What to keep was chosen by scores: criterion `llm_surgeon hidden=activation layer=joint_rise`," in card
    assert (
        " compensation `least_squares:towards=auto`, allocation `uniform`, in one shot. `prune_config.json` has" in card
    )
    again = card.partition("make it again")[2]
    assert again.index("hf-shear prune model ") < again.index("hf-shear recover model ")
    assert results["command"] == "\n".join(commands)
    capsys.readouterr()
    assert main([*words, "--recovery_tokens", "768"]) == 2
    assert "The recovery of the run in '" in (said := capsys.readouterr().err) and "--resume" not in said
    assert main([*words[: words.index("--pruned")], "--output_dir", str(tmp_path / "none")]) == 2
    assert (
        f"`output_dir` must be the folder of `hf-shear learn`, but {str(tmp_path / 'none')!r} holds"
        in capsys.readouterr().err
    )


def test_recover_runs_without_evaluations_and_charges_the_choice(inputs, pruned, tmp_path):
    words = recovery_words(inputs, pruned, tmp_path / "run")
    place = words.index("--eval_steps")
    del words[place : place + 2]
    assert main([*words, "--eval_strategy", "no", "--baselines", "false"]) == 0
    results, calibration = read_results(tmp_path / "run" / "results.json"), read_provenance(pruned)["calibration"]
    assert results["history"] == [] and results["tokens"]["calibration"] == calibration["num_tokens"]
    assert results["recovered"]["flops"] > sum(calibration["flops"].values()) > 0


def test_recover_starts_from_any_plain_checkpoint_without_a_record(inputs, tmp_path):
    plain_model(seed=5, **TARGET).save_pretrained(tmp_path / "bare")
    words = recovery_words(inputs, tmp_path / "bare", tmp_path / "run")
    assert main([*words, "--baselines", "false", "--recovery_method", "norms_and_biases"]) == 0
    results = read_results(tmp_path / "run" / "results.json")
    check_results(results)
    assert results["kept"] is None and results["baselines"] == {}
    assert main(["card", str(tmp_path / "run"), "--license", "mit"]) == 0
    card = (tmp_path / "run" / "recovered" / "README.md").read_text(encoding="utf-8")
    assert "What to keep was chosen before this run; by which method was not recorded." in card
    assert (tmp_path / "run" / "recovered" / "tokenizer.json").is_file()  # the source's


def test_what_recover_can_not_start_from(inputs, learned, pruned, tmp_path, capsys):
    masked = max((learned / "mask_learning").glob("checkpoint-*"))
    plain_model(**TARGET | {"vocab_size": 64}).save_pretrained(tmp_path / "vocabulary")
    plain_model(**TARGET | {"intermediate_size": 48}).save_pretrained(tmp_path / "larger")
    plain_model(**TARGET | {"head_dim": 2}).save_pretrained(tmp_path / "heads")
    shutil.copytree(pruned, tmp_path / "other")
    provenance = json.loads((pruned / "shear_provenance.json").read_text())
    provenance["source"]["shape"]["hidden_size"] += 6
    (tmp_path / "other" / "shear_provenance.json").write_text(json.dumps(provenance))
    refused = {
        tmp_path / "nowhere": "does not exist",
        masked: "still has masks",
        tmp_path / "vocabulary": "a vocabulary of 64 entries, the source 61",
        tmp_path / "larger": "`intermediate_size` must be between 1 and the source's 24, but it is 48",
        tmp_path / "heads": "heads of 2 channels, the source of 4",
        tmp_path / "other": "was cut out of a model of another shape",
    }
    for path, text in refused.items():
        assert main(recovery_words(inputs, path, tmp_path / "run")) == 2
        assert text in capsys.readouterr().err
    assert main([*recovery_words(inputs, pruned, tmp_path / "run"), "--hidden_size", "12"]) == 2
    assert "`pruned` has its shape already: leave out `--hidden_size`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*recovery_words(inputs, pruned, learned), "--distillation", "forward_kl"]) == 2
    assert "has a pruned model of its own" in capsys.readouterr().err


def test_adapters_that_can_not_be_merged_are_refused_before_training(inputs, tmp_path, capsys):
    pytest.importorskip("peft")
    flags = [*training_flags(inputs), "--output_dir", str(tmp_path / "run"), "--recovery_method", "lora"]
    flags += ["--peft_config", '{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}']
    assert main(["learn", str(inputs / "model"), *flags]) == 2
    assert "PROMPT_TUNING" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def prune_words(inputs, output_dir, *more, model="model"):
    words = [
        "prune",
        str(inputs / model),
        "--data_dir",
        str(inputs / "text"),
        "--max_length",
        "16",
        "--batch_size",
        "2",
    ]
    words += ["--held_out_fraction", "0.3", "--eval_tokens", "64", "--calibration_batches", "2"]
    return [*words, "--output_dir", str(output_dir), *more]


@pytest.mark.parametrize("form", ["padded", "nemotron_nas"])
def test_prune_to_a_budget_lets_layers_differ(inputs, tmp_path, form, capsys):
    source = plain_model(attention_dropout=0.0, hidden_size=24)  # 6 heads of 4 channels: the format holds no others
    source.save_pretrained(tmp_path / "square")
    letter_tokenizer().save_pretrained(tmp_path / "square")
    budget, folder = count_parameters(source.config) * 9 // 10, tmp_path / "pruned"
    words = prune_words(inputs, folder, "--target_num_parameters", str(budget), model=tmp_path / "square")
    assert main([*words, "--allocation", "global", "--units", "intermediate", "--form", form]) == 0
    record = read_provenance(folder)
    assert record["num_parameters"] <= budget == record["budget"] and record["prune_config"]["form"] == form
    assert f"{record['num_parameters']:,} parameters of a budget of {budget:,}" in capsys.readouterr().out
    if form == "padded":
        assert main(["inspect", str(folder)]) == 0
        out = capsys.readouterr().out
        widths = [len(neurons) for neurons in record["kept"]["intermediate"].values()]
        assert len(set(widths)) > 1 and "Layers differ, and are padded" in out
        rows = out.split("neurons\n")[1].splitlines()[: len(widths)]
        assert [int(row.split()[-1]) for row in rows] == widths
    else:
        weights = load_file(folder / "model.safetensors")
        (folder / "configuration_decilm.py").write_text("raise SystemExit('code beside a checkpoint was run')")
        assert main(["inspect", str(folder)]) == 0
        out = capsys.readouterr().out
        assert "nemotron-nas" in out and "  vLLM on a GPU  " in out
        assert main(["inspect", str(folder), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["now"]["num_parameters"] == sum(weight.numel() for weight in weights.values())
        assert main(["inspect", str(folder), "--hidden_size", "8"]) == 2


@pytest.mark.parametrize(
    "flags, message",
    [
        ([*SIZES, "--allocation", "global"], "`target` is a shape, but `allocation`"),
        (["--target_num_parameters", "9000", "--allocation", "best"], "`allocation` must be one of"),
        (
            ["--target_num_parameters", "9000", "--allocation", "global", "--units", "hidden"],
            "`units` must name some of",
        ),
        (
            ["--target_num_parameters", "9000", "--allocation", "global", "--form", "nemotron_nas"],
            "one number of query",
        ),
    ],
)
def test_prune_refuses_before_it_reads_weights(inputs, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("weights were read")
    )
    assert main(prune_words(inputs, tmp_path / "pruned", *flags)) == 2
    assert message in capsys.readouterr().err


def test_prune_reaches_the_shape_by_default(pruned):
    config = AutoModelForCausalLM.from_pretrained(pruned).config
    assert {name: getattr(config, name) for name in TARGET} == TARGET
    assert read_provenance(pruned)["prune_config"] == PruneConfig().to_dict()
    assert PruneConfig.from_pretrained(pruned) == PruneConfig()


def test_a_dry_run_checks_tells_and_leaves_nothing(inputs, learned, pruned, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_shear.runs.dry_run.MEASURED_SECONDS", 0.0)
    for cls in (AutoModelForCausalLM, AutoShearingModelForCausalLM):
        monkeypatch.setattr(cls, "from_pretrained", lambda *args, **kwargs: pytest.fail("weights were read"))
    flags, model = training_flags(inputs), str(inputs / "model")
    turns = [word for word in flags if word not in ("--mask_tokens", "--recovery_tokens")]
    del turns[turns.index("384") : turns.index("384") + 2]
    checkpoint = next((learned / "mask_learning").glob("checkpoint-*"))
    text = ["--data_dir", str(inputs / "text"), "--held_out_fraction", "0.3"]
    commands = {
        "prune": (prune_words(inputs, "cut", *SIZES), ("source", "pruning", "in all")),
        "learn": (
            ["learn", model, *flags, "--output_dir", "run"],
            ("source", "mask_learning", "Memory of mask_learning"),
        ),
        "learn, numbered": (["learn", model, *flags], ("mask_learning",)),
        "recover": (recovery_words(inputs, pruned, "run"), ("recovery", "scratch", "Memory of recovery")),
        "interleave": (
            ["interleave", model, *turns, "--num_tokens", "384", "--num_stages", "2", "--output_dir", "run"],
            ("scores", "training"),
        ),
        "evaluate": (
            ["evaluate", model, str(pruned), *text],
            ("loss of source", "loss of pruned", "not counted: speed"),
        ),
        "export": (["export", str(checkpoint), "--output_dir", "out"], ("No weights are loaded",)),
    }
    for name, (words, shown) in commands.items():
        assert main([*words, "--dry_run"]) == 0, name
        out = capsys.readouterr().out
        assert "Dry run: all of this was checked, and nothing was written." in out
        assert all(text.lower() in out.lower() for text in shown), (name, out)
        assert not list(tmp_path.iterdir()), name
    assert main(["learn", model, *flags, "--hidden_size", "999", "--dry_run"]) == 2
