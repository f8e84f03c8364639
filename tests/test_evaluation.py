"""Losses of documents against a naive computation, metrics, intervals, and two checkpoints side by side."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from training_helpers import LENGTH, LETTERS, letter_tokenizer, plain_model, random_documents
from transformers import PreTrainedTokenizerFast

from hf_shear.cli import main
from hf_shear.core import UsageError
from hf_shear.evaluation import (
    PerplexityProtocol,
    SpeedProtocol,
    document_losses,
    load_tasks,
    measure_speed,
    tasks,
)
from hf_shear.evaluation.intervals import paired_difference, ratio_of_sums
from hf_shear.evaluation.perplexity import domain_losses, perplexity_record
from hf_shear.shapes import ModelShape
from hf_shear.training import evaluate_domains

pytest.importorskip("evaluate")
pytest.importorskip("lm_eval")


def naive_loss(model, ids: list[int], window: int, stride: int) -> float:
    """Token by token: each is predicted once, by the first window that holds it."""
    total, done, start = 0.0, 1, 0
    while done < len(ids):
        piece = ids[start : start + window + 1]
        logits = model(torch.tensor([piece[:-1]])).logits[0].double().log_softmax(-1)
        for position in range(done - start, len(piece)):
            total -= logits[position - 1, piece[position]].item()
        done, start = start + len(piece), start + stride
    return total


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (12, 5), (30, 30)])
@torch.no_grad()
def test_document_losses_are_the_naive_ones(window, stride):
    model, tokenizer = plain_model(attention_dropout=0.0).eval(), letter_tokenizer()
    texts = [*random_documents(0, 3, 40), "ab", "täglich"]
    losses = document_losses(model, tokenizer, texts, window=window, stride=stride, batch_size=3)
    for index, text in enumerate(texts):
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert losses.nats[index] == pytest.approx(naive_loss(model, ids, window, stride), rel=1e-5)
        assert losses.num_tokens[index] == len(ids) - 1
        assert losses.num_bytes[index] == len(text.encode("utf-8"))


def test_control_tokens_in_documents_are_text_unless_it_is_asked_for():
    model, tokenizer = plain_model(attention_dropout=0.0), letter_tokenizer()
    options = {"window": 16, "stride": 16}
    assert document_losses(model, tokenizer, ["ab</s>"], **options).num_tokens.tolist() == [6]
    parsed = document_losses(model, tokenizer, ["ab</s>"], **options, parse_special_tokens=True)
    assert parsed.num_tokens.tolist() == [3]
    with torch.no_grad():
        assert parsed.nats[0] == pytest.approx(naive_loss(model.eval(), [1, 4, 5, 2], 16, 16), rel=1e-5)
    texts = {"books": ["ab</s>"]}
    for parse, num_tokens in ((False, 6), (True, 3)):
        protocol = PerplexityProtocol(parse_special_tokens=parse).resolved(model.config)
        record = perplexity_record(domain_losses(model, tokenizer, texts, protocol), tokenizer, protocol)
        assert record["domains"]["books"]["num_tokens"] == num_tokens
        assert record["protocol"]["parse_special_tokens"] == parse


@pytest.mark.parametrize(
    ("text", "told"), [("ax", "holds 'x', which has id 27"), ("a<image>", "holds '<image>', which has")]
)
def test_ids_that_the_model_lacks_are_refused_before_any_forward(text, told):
    model, tokenizer = plain_model(vocab_size=20), letter_tokenizer()
    model.forward = None
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    with pytest.raises(UsageError, match=rf"`vocab_size` \(20\), but it {told}"):
        document_losses(model, tokenizer, [text], window=16, stride=16)
    tokenizer.bos_token = "<image>"
    with pytest.raises(
        UsageError, match=r"`tokenizer.bos_token_id or eos_token_id` must be below .* \(20\), but it is 30"
    ):
        document_losses(model, tokenizer, ["a"], window=16, stride=16)


def test_the_loss_of_whole_documents_is_the_trainers_on_the_same_tokens():
    model, tokenizer = plain_model(attention_dropout=0.0), letter_tokenizer()
    texts = {name: random_documents(seed, 20, LENGTH - 1) for seed, name in enumerate(("books", "code"))}
    samples = {
        name: Dataset.from_dict(
            {"input_ids": [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in own]}
        )
        for name, own in texts.items()
    }
    assert {len(row) for own in samples.values() for row in own["input_ids"]} == {LENGTH}
    expected, num_tokens = evaluate_domains(model, samples, 8)
    losses = domain_losses(model, tokenizer, texts, PerplexityProtocol(LENGTH - 1, LENGTH - 1).resolved(model.config))
    record = perplexity_record(losses, tokenizer, PerplexityProtocol().resolved(model.config))
    assert {name: row["loss"] for name, row in record["domains"].items()} == pytest.approx(expected, abs=1e-6)
    assert sum(row["num_tokens"] for row in record["domains"].values()) == num_tokens
    assert record["mean_loss"] == pytest.approx(sum(expected.values()) / 2, abs=1e-6)


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """One token for every two letters."""
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    pairs = {
        first + second: len(special) + 26 * i + j for i, first in enumerate(LETTERS) for j, second in enumerate(LETTERS)
    }
    backend = Tokenizer(models.WordLevel(special | pairs, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(".."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.filterwarnings("default")
def test_models_with_different_tokenizers_compare_by_bits_per_byte(tmp_path, capsys):
    """All tokens alike: a letter of 32 tokens, or two letters of 1,024, are 5 bits a byte, and not the same nats."""
    for name, tokenizer, vocab_size in (("letters", letter_tokenizer(), 32), ("pairs", pair_tokenizer(), 1024)):
        model = plain_model(vocab_size=vocab_size)
        with torch.no_grad():
            model.model.norm.weight.zero_()  # logits of zero
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "text" / "books").mkdir(parents=True)
    texts = [text.replace(" ", "x") for text in random_documents(0, 12, 40)]
    (tmp_path / "text" / "books" / "a.txt").write_text("\n<|endoftext|>\n".join(texts))
    words = ["evaluate", str(tmp_path / "letters"), str(tmp_path / "pairs"), "--data_dir", str(tmp_path / "text")]
    words += ["--all_documents", "--speed", "false", "--output", str(tmp_path / "evaluation.json")]
    assert main(words) == 0
    record = json.loads((tmp_path / "evaluation.json").read_text())
    rows = {role: record[role]["perplexity"]["domains"]["books"] for role in ("source", "pruned")}
    assert rows["source"]["num_bytes"] == rows["pruned"]["num_bytes"] == 12 * 40
    assert rows["source"]["num_tokens"] == 2 * rows["pruned"]["num_tokens"] == 12 * 40
    assert rows["source"]["bits_per_byte"] == pytest.approx(5, abs=1e-5)
    assert rows["pruned"]["bits_per_byte"] == pytest.approx(5, abs=1e-5)
    assert rows["pruned"]["loss"] == pytest.approx(2 * rows["source"]["loss"], abs=1e-5)
    difference = record["differences"]["books"]
    assert difference.keys() == {"bits_per_byte", "bits_per_byte_interval"}
    assert difference["bits_per_byte"] == pytest.approx(0, abs=1e-5)
    assert "The tokenizers differ: nats per token do not compare. Compare bits per byte." in capsys.readouterr().out


def test_timed_models_take_turns_and_ratios_are_of_one_round(monkeypatch):
    """A machine that gets slower and slower changes no ratio: a round's two times are neighbours."""
    source, pruned, order = plain_model(0), plain_model(1), []

    def one_round(model, protocol):
        order.append("source" if model is source else "pruned")
        slower = 2.0 ** ((len(order) - 1) // 2)  # twice as slow from round to round
        return (slower * (3.0 if model is source else 1.0), slower * (8.0 if model is source else 2.0))

    monkeypatch.setattr("hf_shear.evaluation.speed._one_round", one_round)
    record = measure_speed(source, pruned, SpeedProtocol(batch_size=2, prompt_length=6, new_tokens=4, rounds=4))
    assert order[:2] == ["source", "pruned"]  # not timed
    rounds = [order[start : start + 2] for start in range(2, 10, 2)]
    assert rounds == [["source", "pruned"], ["pruned", "source"]] * 2
    assert record["prefill_ratio"] == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert record["decode_ratio"] == {"median": 4.0, "low": 4.0, "high": 4.0}
    medians = [12 / (3 * slower) for slower in (2, 4, 8, 16)]
    assert record["source"]["prefill_tokens_per_second"] == pytest.approx(sum(sorted(medians)[1:3]) / 2)


def test_metrics_are_of_evaluate_and_need_no_network(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    from evaluate import Metric

    from hf_shear.evaluation.metrics import BitsPerByte, Perplexity

    nats, tokens, size = [10.0, 30.0, 5.0], [4, 10, 3], [8, 25, 5]
    perplexity, bits = Perplexity(), BitsPerByte()
    assert isinstance(perplexity, Metric) and isinstance(bits, Metric)
    perplexity.add_batch(nats=nats[:2], num_tokens=tokens[:2])
    perplexity.add(nats=nats[2], num_tokens=tokens[2])
    found = perplexity.compute()
    assert found["loss"] == pytest.approx(45 / 17)
    assert found["perplexity"] == pytest.approx(math.exp(45 / 17))
    assert found["loss_interval"][0] <= found["loss"] <= found["loss_interval"][1]
    assert bits.compute(nats=nats, num_bytes=size)["bits_per_byte"] == pytest.approx(45 / math.log(2) / 38)


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator, inside, trials = np.random.default_rng(0), 0, 200
    for _ in range(trials):
        tokens = generator.integers(20, 60, 80)
        _, (low, high) = ratio_of_sums(tokens * generator.normal(2.0, 0.5, 80), tokens, 300, 0)
        inside += low <= 2.0 <= high
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / trials) < inside / trials  # four standard errors


def test_a_paired_interval_is_narrower():
    generator = np.random.default_rng(1)
    tokens = generator.integers(50, 90, 100)
    first = tokens * generator.normal(3.0, 1.0, 100)
    second = first + tokens * generator.normal(0.1, 0.02, 100)
    difference, (low, high) = paired_difference((first, tokens), (second, tokens))
    assert difference == pytest.approx(0.1, abs=0.02)
    _, own = ratio_of_sums(first, tokens)
    assert high - low < 0.2 * (own[1] - own[0])


def test_the_cache_of_one_token():
    shape = ModelShape(64, 5, 8, 4, 172, head_dim=8)
    assert shape.kv_cache_bytes_per_token(2) == 2 * 5 * 4 * 8 * 2


def test_a_group_of_tasks_without_a_score_of_its_own_has_no_row():
    scores = {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "one"}
    results = {
        "results": {"group": {"alias": "group"}, "one": scores}, "configs": {}, "group_subtasks": {"group": ["one"]},
        "n-samples": {"one": {"effective": 4, "original": 4}},
    }  # fmt: skip
    records = tasks._task_records(results)
    assert list(records) == ["one"] and records["one"]["metric"] == "acc" and records["one"]["num_items"] == 4


def test_a_task_that_lm_eval_lacks_is_told_before_its_files_are_indexed(monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(tasks, "_task_manager", lambda *_, **__: pytest.fail("14,000 files were parsed"))
    with pytest.raises(UsageError, match="it has no 'hellaswagg'. Near to it: hellaswag.* need `tasks_dir`"):
        load_tasks(["hellaswagg", "arc_easy"])


def test_task_files_are_read_with_care(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("task: mine\ntask: other\n")
    with pytest.raises(UsageError, match="`tasks` '.*mine.yaml', line 2: 'task' is given twice"):
        load_tasks([str(file)])
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    file.write_text("\n".join(levels + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]))
    with pytest.raises(UsageError, match="mine.yaml', line 5: with its aliases written out"):
        load_tasks(["mine"], tmp_path)


def test_tasks_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="tasks_dir"):
        load_tasks(["any"], tmp_path / "nowhere")
    (tmp_path / "mine.yaml").write_text("task: mine\ndataset_path: json\noutput_type: multiple_choice\n")
    with pytest.raises(ValueError, match="other.*mine"):
        load_tasks(["other"], tmp_path)


@pytest.mark.filterwarnings("default")  # lm-eval and what it imports warn of their own futures
def test_the_verb_on_a_model_and_its_equal(shared_data, tmp_path, capsys):
    models, output = shared_data / "models", tmp_path / "evaluation.json"
    words = ["evaluate", str(models / "stories260K"), str(models / "stories260K-mha"), "--output", str(output)]
    words += ["--data_dir", str(shared_data / "data" / "tinystories"), "--max_documents", "8", "--rounds", "2"]
    words += ["--tasks_dir", str(shared_data / "data" / "zero_shot"), "--tasks", "shear_piqa", "--limit", "4"]
    words += ["--prompt_length", "32", "--new_tokens", "4"]
    assert main(words) == 0
    record = json.loads(output.read_text())
    (domain,) = record["differences"]
    assert record["differences"][domain]["loss"] == pytest.approx(0, abs=1e-4)  # the same function
    assert 1.0 < record["source"]["perplexity"]["mean_loss"] < 1.8
    assert record["source"]["num_parameters"] == 260_032 and record["pruned"]["num_parameters"] == 280_512
    assert record["pruned"]["kv_cache_bytes_per_token"] == 2 * record["source"]["kv_cache_bytes_per_token"]
    assert record["source"]["tasks"] == record["pruned"]["tasks"]
    assert record["speed"]["decode_ratio"]["low"] <= record["speed"]["decode_ratio"]["median"]
    shown = capsys.readouterr().out
    assert "280,512" in shown and "shear_piqa" in shown and "window" in shown
    assert main(words) == 2  # the file is there


def test_a_checkpoint_that_is_not_there(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "nothing"), "--output", str(tmp_path / "e.json")]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "e.json").exists()
