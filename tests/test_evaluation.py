"""Losses of documents against a naive computation, metrics, intervals, and two checkpoints side by side."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from training_helpers import letter_tokenizer, plain_model, random_documents

from hf_shear.cli import main
from hf_shear.evaluation import document_losses, kv_cache_bytes_per_token, load_tasks, paired_difference, ratio_of_sums
from hf_shear.shapes import ModelShape

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
    assert kv_cache_bytes_per_token(shape, 2) == 2 * 5 * 4 * 8 * 2


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
