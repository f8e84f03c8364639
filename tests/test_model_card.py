"""Every number of a card is one of its JSON files, its metadata parses, its snippet runs; it says what is against it."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from publishing_helpers import SECRET_PATH, SMALL, make_evaluation, make_provenance, make_results, make_run
from training_helpers import plain_model
from transformers import AutoModelForCausalLM

from hf_shear.cli.main import main
from hf_shear.core import FailedError, UsageError
from hf_shear.publishing import (
    ENGINES,
    SourceLicense,
    eval_result_files,
    model_card,
    read_facts,
    where_it_loads,
    write_card,
)
from hf_shear.publishing.card_facts import short_count
from hf_shear.publishing.card_sections import as_published
from hf_shear.runs import origin

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def files():
    source, small = plain_model(), plain_model(seed=1, **SMALL)
    results = make_results(source, small)
    return {"results": results, "provenance": make_provenance(source), "evaluation": make_evaluation(results)}


def card(files, **changes) -> ModelCard:
    files = copy.deepcopy(files)
    return model_card(files["results"], provenance=files["provenance"], evaluation=files["evaluation"], **changes)


def leaves(value) -> list[float]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def written(numbers) -> set[str]:
    """Every form in which a card may write a number."""
    forms = ("", ",", ".1f", ",.1f", ".2f", ",.2f", ".3f", ",.0f", "g", ".2g", ".3g")
    return {format(number, form) for number in numbers for form in forms if not (form == "" and number != number)}


def numbers_of(text: str) -> set[str]:
    """Numbers in a card's prose and tables, without code, links and versions."""
    text = re.sub(r"```.*?```|`[^`]*`|## Versions\n\n.*?(?=The whole run)|https?://\S+", " ", text, flags=re.DOTALL)
    return set(re.findall(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text.replace(", ", " ; ")))


def derived(results: dict) -> list[float]:
    """What follows from the numbers of the files: shares, differences, perplexities, tokens per parameter."""
    source, own, pruned = (results[name] for name in ("source", "recovered", "pruned"))
    models = [source, own, pruned, *results["baselines"].values()]
    found = [100 * own["shape"][name] / source["shape"][name] for name in own["shape"]]
    found += [100 * model["num_parameters"] / source["num_parameters"] for model in models]
    found += [math.exp(model["mean"]) for model in models]
    found += [abs(a["mean"] - b["mean"]) for a in models for b in models]
    damage, left = pruned["mean"] - source["mean"], own["mean"] - source["mean"]
    tokens = results["tokens"]
    total = tokens["mask_learning"] + tokens["recovery"]
    return found + [100 * (1 - left / damage), total, tokens["recovery"] / own["num_parameters"]]


def test_every_number_is_of_the_files(files):
    text = card(files).text
    allowed = written([*leaves(files["results"]), *leaves(files["evaluation"]), *derived(files["results"])])
    found = numbers_of(text)
    assert len(found) > 60
    foreign = {number for number in found if number not in allowed}
    assert foreign == {short_count(files["results"]["recovered"]["num_parameters"]).rstrip("KMB")}


def test_a_number_that_changes_in_the_files_changes_in_the_card(files):
    before = card(files).text
    paths = {
        "results": [("tokens", "mask_learning"), ("tokens", "recovery"), ("tokens", "calibration"), ("seed",)],
        "evaluation": [("pruned", "tasks", "piqa", "value"), ("speed", "decode_ratio", "median")],
    }
    for file, names in paths.items():
        for path in names:
            changed = copy.deepcopy(files)
            place = changed[file]
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] += 1
            assert card(changed).text != before, path


def test_metadata_parses_back_with_the_losses_as_model_index(files):
    data = ModelCard(str(card(files, license="apache-2.0", language=["en"]))).data
    assert data.library_name == "transformers" and data.license == "apache-2.0" and data.language == ["en"]
    assert "base_model" not in data.to_dict() and "base_model_relation" not in data.to_dict()
    values = {(result.dataset_config, result.metric_type): result.metric_value for result in data.eval_results}
    for domain, loss in files["results"]["recovered"]["loss"].items():
        assert values[domain, "loss"] == loss
    assert values["piqa", "accuracy"] == 0.587 and values["books, evaluated", "bits_per_byte"] == 0.914
    assert len(values) == len(data.eval_results)


def test_a_source_on_the_hub_is_the_base_model(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    provenance = {"source": {"name_or_path": "somebody/llama", "revision": COMMIT}}
    found = card(files | {"provenance": provenance})
    assert found.data.base_model == "somebody/llama" and found.data.base_model_relation == "finetune"
    assert "[somebody/llama](https://huggingface.co/somebody/llama)" in found.text


def test_a_folder_is_never_the_base_model(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in (
        {"name_or_path": "models/llama", "revision": None},
        {"name_or_path": "models/llama", "revision": "main"},
        {"name_or_path": SECRET_PATH, "revision": COMMIT},
    ):
        assert "base_model" not in card(files | {"provenance": {"source": source}}).data.to_dict()
    (tmp_path / "models" / "llama").mkdir(parents=True)
    source = {"name_or_path": "models/llama", "revision": COMMIT}
    assert "base_model" not in card(files | {"provenance": {"source": source}}).data.to_dict()


def test_no_path_of_the_machine(files):
    text = str(card(files))
    assert "secret-place" not in text and "local folder `my-llama`" in text
    assert "--model_name_or_path my-llama --hidden_size 12" in text


def test_the_licence_is_named_or_said_to_be_missing(files):
    assert "license" not in card(files).data.to_dict()
    assert "**The licence of the source was not found.**" in card(files).text
    other = SourceLicense("other", "the file LICENSE of the source", "Odd licence", "LICENSE")
    found = card(files, license=other)
    assert (found.data.license, found.data.license_name, found.data.license_link) == ("other", "Odd licence", "LICENSE")
    assert "**Odd licence** (LICENSE), as the file LICENSE of the source says" in found.text
    with pytest.raises(ValueError, match="identifier of https"):
        card(files, license="Apache License 2.0")
    with pytest.raises(ValueError, match="'other' needs a name"):
        card(files, license="other")


def test_flags_name_a_licence_that_the_hub_has_no_name_for(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    words = ["card", str(run), "--output", str(tmp_path / "card.md")]
    named = ["--license_name", "Terms of the texts", "--license_link", "https://example.org/terms"]
    assert main([*words, "--license", "other", *named]) == 0
    data = ModelCard((tmp_path / "card.md").read_text()).data
    assert (data.license, data.license_name, data.license_link) == ("other", *named[1::2])
    for wrong, text in (
        (named, "give that too"),
        (["--license", "mit", *named], "`license` is 'mit', which the Hub knows by itself"),
        (["--license", "other"], "needs a name (`--license_name`)"),
    ):
        assert main([*words, "--overwrite", *wrong]) == 2
        assert text in capsys.readouterr().err


@pytest.mark.parametrize(("name", "arm"), [("run/pruned", "recovered"), ("/srv/run/recovered/", "pruned")])
def test_an_evaluation_of_the_runs_other_model_is_refused(files, tmp_path, capsys, name, arm):
    evaluation = copy.deepcopy(files["evaluation"])
    evaluation["pruned"] |= {"name": name, "num_parameters": files["results"][arm]["num_parameters"]}
    with pytest.raises(UsageError, match="is of '.*', but what is described is the run's"):
        model_card(files["results"], provenance=files["provenance"], evaluation=evaluation, arm=arm)
    if arm == "recovered":
        run = make_run(tmp_path / "run")
        (run / "evaluation.json").write_text(json.dumps(evaluation))
        assert main(["card", str(run), "--output", str(tmp_path / "card.md")]) == 2
        assert "evaluation.json is of 'run/pruned'" in capsys.readouterr().err and not (tmp_path / "card.md").exists()


def test_unpublished_cards_say_how_to_publish_and_published_ones_name_it(files):
    unpublished, published = card(files), card(files, repo_id="tester/small")
    assert "This model is not published." in unpublished.text
    assert "hf-shear push RUN_FOLDER" in unpublished.text and "tester" not in unpublished.text
    assert 'name = "tester/small"' in published.text and "not published" not in published.text
    headings = (r"# .*\n", r"- name: .*\n")
    same = [re.sub("|".join(headings), "", str(c), count=2) for c in (as_published_card(unpublished), published)]
    assert same[0] == same[1]
    del files["results"]["command"]
    no_command = card(files)
    assert "was not recorded" in no_command.text and "hf-shear push" in no_command.text
    assert "hf-shear push" not in as_published_card(no_command).text


def as_published_card(found: ModelCard) -> ModelCard:
    return ModelCard(as_published(str(found), "tester/small"))


def test_limits_follow_from_the_numbers(files):
    text = card(files).text
    assert "The baseline taylor did better: 2.476 against 2.504" in text and "scratch did better" not in text
    assert "No downstream task" not in text and "Speed was not measured" not in text
    bare = copy.deepcopy(files) | {"evaluation": None}
    bare["results"]["baselines"] = {}
    bare["results"]["recovered"] |= {"loss": {"books": 2.0, "code": 2.3}, "mean": 2.15}
    text = card(bare).text
    assert "No baseline was trained" in text and "No downstream task" in text and "Speed was not measured" in text
    assert "not above the source's on this text, although it is worse on code" in text


def test_a_pruned_model_is_not_sold_as_recovered(files):
    found = card(files | {"evaluation": None}, arm="pruned")
    assert "It has not been trained after the cut" in found.text and "Recovery: none yet." in found.text
    assert found.data.eval_results[0].metric_value == files["results"]["pruned"]["loss"]["books"]


def test_papers_are_cited_where_used(files):
    text = card(files).text
    assert "2310.06694" in text and "2312.17244" not in text and "2411.10272" not in text
    text = card(
        files | {"provenance": files["provenance"] | {"prune_config": {"criterion": {"default": "llm_surgeon"}}}}
    ).text
    assert "2312.17244" in text


@pytest.mark.parametrize("results", [None, {}, {"source": {}}])
def test_no_card_without_results(results):
    with pytest.raises(ValueError, match="needs results|`results.source` lacks `shape`"):
        model_card(results, provenance=None)


@pytest.mark.parametrize(
    "file, path, value",
    [
        ("results", ("recovered", "mean"), "2.5"),
        ("results", ("recovered", "mean"), None),
        ("results", ("recovered", "loss", "books"), float("nan")),
        ("results", ("recovered", "loss"), [1.0]),
        ("results", ("source", "num_parameters"), 0),
        ("results", ("source", "num_parameters"), True),
        ("results", ("source", "shape", "hidden_size"), "18"),
        ("results", ("pruned", "eval_tokens"), -1),
        ("results", ("tokens", "recovery"), 10**30),
        ("results", ("seed",), {"a": 1}),
        ("results", ("command",), ["x"]),
        ("results", ("versions", "python"), 3),
        ("results", ("baselines", "taylor"), None),
        ("results", ("baselines", "taylor", "learning_rate"), "1e-3"),
        ("results", ("history",), {"a": 1}),
        ("results", ("history",), [3]),
        ("results", ("passes", "recovery", "books"), "x"),
        ("results", ("recovery",), "full"),
        ("evaluation", ("pruned", "perplexity", "domains", "books", "loss"), "x"),
        ("evaluation", ("pruned", "perplexity", "domains", "books", "loss_interval"), [1.0]),
        ("evaluation", ("pruned", "tasks", "piqa", "value"), float("inf")),
        ("evaluation", ("pruned", "tasks", "piqa"), 3),
        ("evaluation", ("speed", "prefill_ratio", "low"), None),
        ("evaluation", ("speed", "prompt_length"), "511"),
        ("evaluation", ("speed", "source"), {}),
        ("provenance", ("source",), "a/b"),
        ("provenance", ("prune_config", "criterion"), 3),
        ("provenance", ("mask_settings",), []),
    ],
)
def test_a_damaged_record_is_named_by_its_key(files, file, path, value):
    files = copy.deepcopy(files)
    place = files[file]
    for name in path[:-1]:
        place = place.setdefault(name, {}) if isinstance(place, dict) else place[name]
    place[path[-1]] = value
    with pytest.raises(UsageError, match=re.escape(f"`{file}.{'.'.join(path[:2])}")) as caught:
        card(files)
    assert "\n" not in str(caught.value)


def test_an_evaluation_of_another_model(files):
    files = copy.deepcopy(files)
    files["evaluation"]["pruned"]["num_parameters"] += 1
    with pytest.raises(ValueError, match="evaluation is of another model"):
        card(files)


def test_the_snippet_runs(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run")
    assert main(["card", str(run), "--output", str(run / "card.md"), "--license", "mit"]) == 0
    snippet = re.search(r"```python\n(.*?)```", (run / "card.md").read_text(), flags=re.DOTALL)[1]
    monkeypatch.chdir(run)
    names = {}
    exec(compile(snippet, "card", "exec"), names)
    expected = AutoModelForCausalLM.from_pretrained(run / "recovered")
    assert torch.equal(names["model"].lm_head.weight, expected.lm_head.weight)
    assert names["tokens"].shape[1] > names["inputs"].input_ids.shape[1]


CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
KEPT = {
    "layers": [0, 2], "hidden": list(range(12)), "heads": {"0": [0, 1], "2": [2, 3]},
    "key_value_heads": {"0": [0, 1], "2": [1, 2]}, "intermediate": {"0": list(range(16)), "2": list(range(4, 20))},
}  # fmt: skip


def change_results(run, **changes) -> None:
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | changes))


def test_the_snippet_of_a_chat_model_uses_its_template(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    (run / "recovered" / "chat_template.jinja").write_text(CHAT)
    assert main(["card", str(run), "--output", str(run / "card.md")]) == 0
    snippet = re.search(r"```python\n(.*?)```", (run / "card.md").read_text(), flags=re.DOTALL)[1]
    monkeypatch.chdir(run)
    exec(compile(snippet.replace("Tell me a story.", "tell me"), "card", "exec"), names := {})
    assert names["tokenizer"].decode(names["inputs"].input_ids[0]).replace(" ", "") == "tellme"
    assert names["tokens"].shape[1] > names["inputs"].input_ids.shape[1]


def test_engines_that_accept_it_have_a_command(files, tmp_path):
    run = make_run(tmp_path / "run") / "recovered"
    text = card(files, checkpoint=run, repo_id="me/small").text
    verdicts = {row.engine: row.verdict for row in where_it_loads(ENGINES, read_facts(run))}
    for engines, command in (
        (("vLLM on a CPU", "vLLM on a GPU"), "vllm serve me/small"),
        (("llama.cpp",), "convert_hf_to_gguf.py small --outfile small.gguf"),
    ):
        assert text.count(command) == int(any(verdicts[engine] == "accepted" for engine in engines))
    assert "accepted" in verdicts.values() and "llama.cpp (" in text
    later = as_published(card(files, checkpoint=run).text, "me/small")
    assert later.partition("\n\n")[2] == text.partition("\n\n")[2]  # but for the heading, which names what it is of
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"model_type": "ministral"}))
    assert "convert_hf_to_gguf" not in card(files, checkpoint=run, repo_id="me/small").text


def test_the_picture_of_what_was_kept(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    run = make_run(tmp_path / "run")
    change_results(run, kept=KEPT)
    assert main(["card", str(run)]) == 0
    assert (run / "recovered" / "kept.png").read_bytes().startswith(b"\x89PNG")
    assert "](kept.png)" in (run / "recovered" / "README.md").read_text()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["card", str(run), "--overwrite"]) == 0
    assert "](kept.png)" not in (run / "recovered" / "README.md").read_text()
    assert "pip install 'hf-shear[plots]'" in capsys.readouterr().out


def test_commands_that_make_it_again_run_when_pasted(files):
    results = files["results"] | {"made_by": {"commit": COMMIT, "url": "https://example.org/hf_shear.git"}}
    results |= {"command": f"hf-shear recover {SECRET_PATH} --pruned '/tmp/my runs/pruned' --data_dir /data/text"}
    results["versions"] = results["versions"] | {"torch": "2.13.0+cpu"}
    text = card(files | {"results": results}, base_model="me/llama").text
    block = re.search(r"These commands make it again.*?```bash\n(.*?)```", text, flags=re.DOTALL)[1]
    assert block.splitlines() == [
        "git clone https://example.org/hf_shear.git hf_shear && cd hf_shear",
        f"git checkout {COMMIT}",
        "python3 -m venv .venv && . .venv/bin/activate && pip install torch==2.13.0 -e '.[plots]'",
        "hf-shear recover me/llama --pruned 'my runs/pruned' --data_dir text",
    ]
    assert subprocess.run(["bash", "-n"], input=block, text=True).returncode == 0
    results["made_by"] = {"commit": COMMIT, "changed": True}
    text = card(files | {"results": results}).text
    assert "# Files had been changed since this commit.\n# In a clone of hf_shear:\ngit checkout 0123" in text
    assert "hf-shear recover my-llama" in text


def test_a_run_notes_its_commit_and_how_it_was_started(monkeypatch):
    root = Path(origin.__file__).resolve().parents[2]
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr("sys.argv", [str(root / "examples" / "shear.py"), "--output_dir", "a b"])
    assert origin.run_command() == "python examples/shear.py --output_dir 'a b'"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert origin.run_command() == "accelerate launch examples/shear.py --output_dir 'a b'"
    monkeypatch.setattr("sys.argv", [str(root / "hf_shear" / "cli" / "__main__.py"), "prune"])
    assert origin.run_command() == "hf-shear prune"
    answers = {"rev-parse": COMMIT, "remote": "https://me:word@example.org/x", "status": ""}
    monkeypatch.setattr(origin, "_installed_from", dict)
    monkeypatch.setattr(origin, "_git", lambda verb, *words: answers[verb])
    if (root / ".git").exists():
        assert origin.code_origin() == {"commit": COMMIT}
        answers |= {"remote": "https://example.org/x", "status": " M hf_shear/core/ranks.py"}
        assert origin.code_origin() == {"commit": COMMIT, "url": "https://example.org/x", "changed": True}


def test_scores_of_the_hub_s_data_stand_in_files_of_their_own(files):
    evaluation = copy.deepcopy(files["evaluation"])
    assert eval_result_files(evaluation) == {} and eval_result_files(None) == {}
    tasks = evaluation["pruned"]["tasks"]
    tasks["arc/easy"] = tasks["piqa"] | {"dataset": {"id": "allenai/ai2_arc", "config": "ARC-Easy", "num_fewshot": 5}}
    tasks["none"] = tasks["arc/easy"] | {"value": None}
    ((name, content),) = eval_result_files(evaluation).items()
    (entry,) = parse_eval_result_entries(yaml.safe_load(content))
    assert name == ".eval_results/arc_easy.yaml"
    assert (entry.dataset_id, entry.task_id, entry.value) == ("allenai/ai2_arc", "ARC-Easy", 0.587)
    assert entry.notes == "acc of lm-eval's task arc/easy, 5-shot"
    found = [
        result
        for result in card(files | {"evaluation": evaluation}).data.eval_results
        if result.dataset_name == "arc/easy"
    ]
    assert [(result.dataset_type, result.dataset_config) for result in found] == [("allenai/ai2_arc", "ARC-Easy")]


def test_the_verb_writes_beside_the_weights_and_replaces_nothing_unasked(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert main(["card", str(run)]) == 0
    out = capsys.readouterr().out
    assert str(run / "recovered" / "README.md") in out and "--license" in out
    ModelCard.load(run / "recovered" / "README.md")
    assert main(["card", str(run)]) == 0  # the same card again
    assert main(["card", str(run), "--license", "mit"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["card", str(run), "--license", "mit", "--overwrite"]) == 0
    assert main(["card", str(tmp_path / "nothing")]) == 2


def test_results_of_another_model_are_noticed(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["recovered"]["shape"]["intermediate_size"] += 1
    (run / "results.json").write_text(json.dumps(results))
    assert main(["card", str(run)]) == 2
    assert "is not the model of the results beside it: `intermediate_size` is 16, and 17" in capsys.readouterr().err


def test_a_full_disk_leaves_the_old_card(files, tmp_path, monkeypatch):
    path = tmp_path / "README.md"
    path.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FailedError, match="README.md' could not be written: No space left on device. What was there"):
        write_card(card(files), path, overwrite=True)
    assert path.read_text() == "old" and [item.name for item in tmp_path.iterdir()] == ["README.md"]


def test_writing_a_card_asks_nobody(files, monkeypatch):
    def no_network(*arguments, **options):
        raise AssertionError("a card needs no network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    assert str(card(files))


def test_a_domain_of_one_document_has_no_interval_and_a_task_may_have_no_value(files):
    files = copy.deepcopy(files)
    files["evaluation"]["pruned"]["perplexity"]["domains"]["books"]["loss_interval"] = None
    files["evaluation"]["pruned"]["tasks"]["piqa"] |= {"value": None, "standard_error": None}
    text = str(card(files))
    assert "| books | 2.222 | 2.555 | - | 8.770 | 0.914 |" in text
    assert "| piqa | acc | 1,838 | 0.613 ± 0.011 | - |" in text
