"""From text to packed samples: what is trained on, what is held out, what models are judged by."""

from __future__ import annotations

import dataclasses
import importlib
import json
import warnings
from collections import Counter
from dataclasses import replace

import pytest
from datasets import Dataset, DatasetDict
from training_helpers import VOCAB_SIZE, letter_tokenizer, make_args, random_documents, tiny_config

from hf_shear import runs
from hf_shear.cli.main import VERBS
from hf_shear.data import packing
from hf_shear.runs import prepare_domain_data
from hf_shear.runs.domain_data import _set_apart, judged_tokens
from hf_shear.shapes import ModelShape


@pytest.fixture(scope="module")
def tokenizer():
    return letter_tokenizer()


def text_of(seed: int, num_documents: int) -> Dataset:
    return Dataset.from_dict({"text": random_documents(seed, num_documents)})


@pytest.fixture(scope="module")
def domains() -> DatasetDict:
    return DatasetDict({"code": text_of(0, 40), "prose": text_of(3, 60)})


OPTIONS = {"max_length": 16, "held_out_fraction": 0.3, "eval_tokens": 64}


def prepare(domains, tokenizer, config=None, **changes):
    return prepare_domain_data(domains, tokenizer, config or tiny_config(), **(OPTIONS | changes))


@pytest.fixture(scope="module")
def data(domains, tokenizer):
    return prepare(domains, tokenizer)


def test_samples_are_packed_on_both_sides(data):
    assert data.domains == ["code", "prose"] == list(data.held_out) == list(data.judged)
    for side in (data.train, data.held_out):
        for dataset in side.values():
            assert len(dataset) > 4
            assert {len(ids) for ids in dataset["input_ids"]} == {16}
            assert max(max(ids) for ids in dataset["input_ids"]) < VOCAB_SIZE


@pytest.mark.parametrize("most", [1, 4, 16, 10_000])
def test_no_more_text_is_tokenised_than_is_read(domains, tokenizer, data, monkeypatch, most):
    monkeypatch.setattr(packing, "TOKENIZE_BATCH", 4)
    found = prepare(domains, tokenizer, most_samples=most)
    for name in data.domains:
        whole, part = data.held_out[name]["input_ids"], found.held_out[name]["input_ids"]
        assert part == whole[: len(part)] and len(part) >= min(most + 4, len(whole))
        assert found.judged[name]["input_ids"] == data.judged[name]["input_ids"]
    if most == 1:
        assert all(len(found.train[name]) < len(data.train[name]) for name in data.domains)


def test_the_text_alone_decides_how_much_is_judged():
    assert judged_tokens(77, 16, 2) == 77
    assert [judged_tokens(None, 256, num_domains) for num_domains in (1, 2, 4, 100)] == [8_192, 8_192, 4_096, 2_048]
    assert judged_tokens(None, 4096, 100) == 4_096


def test_models_are_judged_by_the_first_held_out_samples(data):
    for name, dataset in data.judged.items():
        assert len(dataset) == 4
        assert dataset["input_ids"][:] == data.held_out[name]["input_ids"][:4]


def rows_of(dataset) -> list[tuple]:
    return [tuple(ids) for ids in dataset["input_ids"]]


def test_what_steers_is_neither_trained_on_nor_judged(data):
    for name, dataset in data.steering.items():
        rest = rows_of(data.held_out[name])[4:]
        assert rows_of(dataset) == rest and len(rest) >= 16
    few = data.first_steering(2)
    assert [rows_of(dataset) for dataset in few.values()] == [rows_of(data.steering[name])[:2] for name in few]
    everything = data.first_steering(10_000)
    assert [len(dataset) for dataset in everything.values()] == [len(dataset) for dataset in data.steering.values()]


@pytest.mark.parametrize("eval_tokens", [64, 320, 480, 4800])
def test_the_three_parts_are_disjoint_and_lose_nothing(domains, tokenizer, data, eval_tokens, caplog):
    """Training text steers where held-out text is short; what is judged is never touched."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer tokens to judge than asked for
        found, again = (prepare(domains, tokenizer, eval_tokens=eval_tokens) for _ in range(2))
    whole = {name: rows_of(data.train[name]) + rows_of(data.held_out[name]) for name in domains}
    for name in domains:
        parts = [rows_of(part[name]) for part in (found.train, found.steering, found.judged)]
        assert parts == [rows_of(part[name]) for part in (again.train, again.steering, again.judged)]
        assert Counter(sum(parts, [])) == Counter(whole[name])
        held_out = rows_of(data.held_out[name])
        assert parts[2] == held_out[: eval_tokens // 16]
        num_rest = max(len(held_out) - eval_tokens // 16, 0)
        taken = max(min(16 - num_rest, len(data.train[name]) // 10), 0)
        assert len(parts[1]) == num_rest + taken
        said = f"{name!r}: {{'held out': {num_rest}, 'of training': {taken}}}"
        assert (said in caplog.text) == (taken > 0)
    assert ("fewer than 16 held-out samples beyond those that are judged" in caplog.text) == (
        "of training" in caplog.text
    )
    assert ("of training" in caplog.text) == (eval_tokens > 64)


def test_a_domain_without_any_other_text_is_steered_by_what_is_judged_and_says_so(tokenizer, caplog):
    train, held_out = ({"tiny": Dataset.from_dict({"input_ids": [[row] * 4]})} for row in range(2))
    left, steering = _set_apart(train, held_out, 4)
    assert rows_of(left["tiny"]) == [(0,) * 4] and rows_of(steering["tiny"]) == [(1,) * 4]
    assert "The domains ['tiny'] have one training sample" in caplog.text


def test_the_split_does_not_change_with_what_is_trained(domains, tokenizer, data):
    """Another length or number of judged tokens leaves each document on its side."""
    other = prepare(domains, tokenizer, max_length=8, eval_tokens=8)
    for name in domains:
        whole = sum(data.held_out[name]["input_ids"], [])
        parts = sum(other.held_out[name]["input_ids"], [])
        shorter = min(len(whole), len(parts))
        assert whole[:shorter] == parts[:shorter]


def samples(domains) -> set[tuple[int, ...]]:
    return {tuple(ids) for dataset in domains.values() for ids in dataset["input_ids"]}


def test_calibration_is_a_seeded_draw_of_text_that_is_not_trained_on(data):
    def batches(seed: int) -> list:
        return [batch["input_ids"].tolist() for batch in data.calibration(3, 4, seed).batches]

    assert batches(0) == batches(0) != batches(1)
    assert [len(batch) for batch in batches(0)] == [3] * 4
    drawn = {tuple(ids) for batch in batches(0) for ids in batch}
    assert drawn <= samples(data.steering) and not drawn & samples(data.judged)
    assert set(data.calibration(3, 1, 0).batches[0]) == {"input_ids", "labels"}


def test_a_domain_with_too_little_of_it_is_calibrated_on_training_text(data):
    short = replace(data, steering=data.steering | {"code": data.steering["code"].select(range(3))})
    drawn = {
        tuple(ids) for batch in short.calibration(len(data.train), 4, 0).batches for ids in batch["input_ids"].tolist()
    }
    for name, own in data.train.items():
        assert len(drawn & samples({name: own if name == "code" else data.steering[name]})) == 4


def test_block_diagonal_gives_positions(domains, tokenizer):
    data = prepare(domains, tokenizer, block_diagonal=True)
    assert "position_ids" in data.train["code"].column_names
    assert "position_ids" in data.calibration(2, 1, 0).batches[0]


def test_a_domain_with_few_held_out_tokens_is_warned_of(domains, tokenizer, data):
    most = max(len(dataset) for dataset in data.held_out.values()) * 16
    with pytest.warns(UserWarning, match=r"fewer held-out tokens than `eval_tokens` .* Lower `eval_tokens`") as caught:
        short = prepare(domains, tokenizer, eval_tokens=most + 16)
    assert f"`eval_tokens` ({most + 16:,})" in str(caught[0].message)
    assert {name: len(dataset) for name, dataset in short.judged.items()} == {
        name: len(dataset) for name, dataset in data.held_out.items()
    }


@pytest.mark.parametrize(
    ("changes", "config", "text"),
    [
        (
            {"max_length": 64, "eval_tokens": 64},
            {},
            r"`max_length` must be at most .*\(32\), but it is 64. Lower it to 32",
        ),
        ({"eval_tokens": 15}, {}, r"`eval_tokens` \(15\) must be at least one sample of `max_length` \(16\) tokens"),
        (
            {},
            {"vocab_size": 20},
            r"Domain 'code': .* only give ids below the model's `vocab_size` \(20\), .* holds 'x', .* id 27",
        ),
        ({"held_out_fraction": 0.0}, {}, "`held_out_fraction` must be above 0 and below 1, but it is 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(domains, tokenizer, changes, config, text):
    with pytest.raises(ValueError, match=text):
        prepare(domains, tokenizer, tiny_config(**config), **changes)


def test_the_arguments_of_text_reach_the_reader_and_the_tokenizer(tmp_path, tokenizer):
    rows = [{"content": f"{text}</s>"} for text in random_documents(0, 12)]
    (tmp_path / "code.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"content": None}])))
    (tmp_path / "notes.docx").write_bytes(b"?")
    options = {"data_dir": str(tmp_path), "text_field": "content", "skip_unreadable": True, "skip_null_text": True}
    with pytest.warns(UserWarning, match=r"notes\.docx|skipped \(`skip_null_text`\), 1\.") as caught:
        domains = runs.load_text(runs.DataArguments(**options))
    assert len(caught) == 2 and domains["code"]["text"][:] == [row["content"] for row in rows]
    end, unknown = tokenizer.eos_token_id, tokenizer.unk_token_id
    for parse, ending in (
        (False, [unknown, unknown, tokenizer.convert_tokens_to_ids("s"), unknown, end]),
        (True, [end] * 2),
    ):
        arguments = runs.DataArguments(max_length=30 + len(ending), eval_tokens=40, held_out_fraction=0.3,
                                       parse_special_tokens=parse, **options)  # fmt: skip
        data = runs.pack(arguments, domains, tokenizer, tiny_config(max_position_embeddings=64))
        samples = [*data.train["code"]["input_ids"], *data.held_out["code"]["input_ids"]]
        assert [sample[30:] for sample in samples] == [ending] * 12


def test_every_verb_that_reads_text_says_how(tmp_path):
    verbs = {name: importlib.import_module(f"hf_shear.cli.{name}").Arguments for name in VERBS}
    reading = {name for name, arguments in verbs.items() if "data_dir" in fields_of(arguments)}
    assert reading == {"search", "learn", "prune", "interleave", "export", "recover", "evaluate"}
    asked = fields_of(runs.TextArguments)
    assert {"text_field", "skip_unreadable", "skip_null_text", "parse_special_tokens"} < asked
    for arguments in (*(verbs[name] for name in reading), runs.PipelineArguments, runs.BenchArguments):
        assert asked <= fields_of(arguments)
    pipeline = runs.PipelineArguments(model_name_or_path="x", text_field="content")
    source = ModelShape.from_config(tiny_config())
    settings = runs.run_settings(pipeline, source, make_args(tmp_path))
    recorded = {name: settings["may_change"][name] for name in asked - {"data_dir"}}
    assert recorded == {
        "text_field": "content",
        "skip_unreadable": False,
        "skip_null_text": False,
        "parse_special_tokens": False,
    }


def fields_of(arguments) -> set[str]:
    return {field.name for field in dataclasses.fields(arguments)}


def test_a_domain_without_a_whole_sample_is_refused(tokenizer, domains):
    tiny = DatasetDict({"code": domains["code"], "note": Dataset.from_dict({"text": ["abc", "def"]})})
    with pytest.raises(
        ValueError, match=r"at least `max_length` \(16\) tokens, but the text of domain 'note' .* holds 4"
    ):
        prepare(tiny, tokenizer)
