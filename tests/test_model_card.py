"""Every number of a card is one of its JSON files, its metadata parses, its snippet runs; it says what is against it."""

from __future__ import annotations

import copy
import json
import math
import re

import pytest
import torch
from huggingface_hub import ModelCard
from publishing_helpers import SECRET_PATH, SMALL, make_evaluation, make_provenance, make_results, make_run
from training_helpers import plain_model
from transformers import AutoModelForCausalLM

from hf_shear.cli.main import main
from hf_shear.core import UsageError
from hf_shear.publishing import SourceLicense, model_card, write_card
from hf_shear.publishing.card_facts import short_count
from hf_shear.publishing.card_sections import as_published

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
    with pytest.raises(OSError, match="the card was not written.*No space left"):
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
