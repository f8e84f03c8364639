"""examples/research/surgeon_tables.py in a tiny form, and the page that shows what it measured."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig

from examples.research import surgeon_tables as tables

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "embedded" / "model"
PAGE, RESULTS = tables.PAGE, tables.RESULTS


@pytest.fixture
def data_dir(tmp_path):
    words = "The zeros of a model are counted, row by row and column by column, until the table is full. ".split()
    folder = tmp_path / "text"
    folder.mkdir()
    for name, step in (("train", 7), ("test", 5)):
        lines = [
            json.dumps({"text": " ".join(words[(step * i + j) % len(words)] for j in range(40))}) for i in range(60)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, build_llama):
    """A tiny Llama with a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    build_llama(vocab_size=len(tokenizer), hidden_size=16, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=24).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


def test_tables_of_every_method(model_folder, data_dir, tmp_path, capsys, monkeypatch):
    flags = "--small --num_samples 8 --max_length 64 --max_evaluated 4 --num_shots 2 --sizes 90 70 --batch_size 4"
    arguments = [
        "--model",
        str(model_folder),
        "--data_dir",
        str(data_dir),
        "--output",
        str(tmp_path / "out" / "opt-1.3b"),
    ]
    tables.main([*arguments, *flags.split(), "--structure", "columns", "2:4"])
    out, path = capsys.readouterr().out, tmp_path / "out" / "opt-1.3b.json"
    results = json.loads(path.read_text())
    assert not (tmp_path / "out" / "opt-1.json").exists()
    assert (tmp_path / "out" / "opt-1.3b.md").read_text() == tables.table(results) and tables.table(results) in out
    assert [row["method"] for row in results["records"][:6:2]] == ["magnitude", "kobd", "surgeon"]
    for row in results["records"]:
        assert row["target_size"] <= row["size"] < row["target_size"] + 1 and math.isfinite(row["perplexity"])
        assert sum(shot["loss_before"] > 0 for shot in row["shots"]) == len(row["shots"]) == 1
    assert str(data_dir) not in json.dumps(results)
    # Made again, by the options that are kept.
    monkeypatch.setattr(tables, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("".join(tables.MARKS))
    tables.main([*arguments[:4], "--confirm", str(path)])
    again, out = json.loads(path.read_text()), capsys.readouterr().out
    assert again["code"][0].pop("confirmed")["digest"] == tables.todays_code() and again == results
    assert all(f"opt-1.3b.json, {what}: " in out for what in ("dense", "columns, surgeon", "2:4, surgeon"))
    path.write_text(json.dumps(results | {"dense_perplexity": 1.01 * results["dense_perplexity"]}))
    with pytest.raises(ValueError, match="opt-1.3b.json, dense: .* Measure anew"):
        tables.main([*arguments[:4], "--confirm", str(path)])


def test_perplexity_is_that_of_all_predicted_tokens(build_llama):
    model = build_llama()
    samples = torch.randint(3, 40, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = model(samples).logits[:, :-1].log_softmax(dim=-1)
    mean = -scores.gather(-1, samples[:, 1:, None]).mean().item()
    assert tables.perplexity(model, samples, 2) == pytest.approx(math.exp(mean), rel=1e-5)


def test_shots_are_spread_over_what_is_removed():
    assert tables.shots_of([90, 80, 70, 60, 50], 40) == [8] * 5
    assert tables.shots_of([80, 75, 50], 10) == [4, 1, 5]
    assert tables.shots_of([90, 50], 1) == [1, 1]


def test_what_does_not_fit_is_refused(model_folder, data_dir, capsys):
    arguments = ["--model", str(model_folder), "--data_dir", str(data_dir), "--small"]
    with pytest.raises(SystemExit):
        tables.parse([*arguments, "--sizes", "50", "80"])
    assert "percentages between 0 and 100 that fall" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--data_dir holds test, train, but not 'valid'"):
        tables.main([*arguments, "--evaluation", "valid"])
    with pytest.raises(ValueError, match="--num_samples must be at most the text's samples"):
        tables.main([*arguments, "--num_samples", "5000"])


def test_a_text_file_is_split_by_its_documents(tmp_path):
    file = tmp_path / "stories.txt"
    file.write_text("<|endoftext|>".join(f" story {i} " for i in range(20)), encoding="utf-8")
    options = tables.parse(["--model", str(MODEL), "--data_dir", str(file)])
    train, test = tables.read_texts(options)
    assert len(train) == 18 and test == [" story 18 ", " story 19 "]


def test_the_page_shows_what_was_measured():
    assert PAGE.read_text(encoding="utf-8") == tables.documented()


def test_what_the_page_says_of_the_order_is_what_was_measured():
    def perplexities(name: str) -> dict:
        rows = json.loads(RESULTS.with_name(name).read_text(encoding="utf-8"))["records"]
        return {(row["structure"], row["method"], row["target_size"]): row["perplexity"] for row in rows}

    full, short = perplexities(RESULTS.name), perplexities(tables.SHORT.name)
    for structure, method, size in full:
        if method == "surgeon":
            assert full[structure, "surgeon", size] < full[structure, "kobd", size]
            if (structure, size) != ("unstructured", 90):
                assert full[structure, "kobd", size] < full[structure, "magnitude", size]
    for size in (90, 80, 70, 60, 50):
        ahead = "kobd" if size >= 70 else "surgeon"
        assert min(("kobd", "surgeon"), key=lambda way: short["rows_and_columns", way, size]) == ahead  # noqa: B023


def test_the_memory_on_the_page_is_that_of_the_shapes():
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)  # Llama-2-7B
    hidden, wide = config.hidden_size, config.intermediate_size
    floats = (3 + 5) * hidden**2 + (1 + 2) * wide**2
    weights = 4 * hidden**2 + 3 * hidden * wide
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    for said in (
        f"{4 * floats / 2**30:.2f} GiB per layer and {4 * floats * 32 / 2**30:.0f} GiB in all",
        f"{4 * weights * 32 / 2**30:.0f} GiB of costs",
        f"{weights * 32 / 2**30:.0f} GiB of masks",
    ):
        assert said in text, said
