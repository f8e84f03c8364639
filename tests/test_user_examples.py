"""The short scripts of examples/, one after the other as a user runs them, each for two steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import evaluate_checkpoints
import learn_masks
import prune
import pytest
import recover
import search_shapes
from training_helpers import letter_tokenizer, plain_model, random_documents
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hf_shear import PruneConfig

TRAINING = (
    "--max_steps 2 --per_device_train_batch_size 4 --eval_steps 1 --eval_token_share 0.9 --use_cpu --report_to none"
)
SHORT = ["--max_length", "16"]
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

pytestmark = pytest.mark.filterwarnings(
    "ignore:These domains have fewer", "ignore:.*calibration text has", "ignore:Even one held-out sample",
    "ignore:The expected shape",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny source, and two domains of text."""
    folder = tmp_path_factory.mktemp("examples")
    plain_model(attention_dropout=0.0).save_pretrained(folder / "source")
    letter_tokenizer().save_pretrained(folder / "source")
    for number, name in enumerate(("books", "code")):
        (folder / "text" / name).mkdir(parents=True)
        (folder / "text" / name / "a.txt").write_text("\n<|endoftext|>\n".join(random_documents(number, 60)))
    prune.main(
        ["--model", f"{folder}/source", "--data_dir", f"{folder}/text", "--intermediate_size", "16", *SHORT,
         "--batch_size", "4", "--num_batches", "2", "--output_dir", f"{folder}/pruned"]
    )  # fmt: skip
    return folder


def is_a_plain_model_of_the_target(path) -> bool:
    model = AutoModelForCausalLM.from_pretrained(path)
    return type(model) is LlamaForCausalLM and model.config.intermediate_size == 16


def test_prune(folder):
    assert is_a_plain_model_of_the_target(folder / "pruned")
    assert PruneConfig.from_pretrained(folder / "pruned") == PruneConfig()


def test_search_shapes(folder, capsys):
    words = ["--model", f"{folder}/source", "--data_dir", f"{folder}/text", *SHORT, "--batch_size", "4"]
    search_shapes.main([*words, "--num_batches", "2", "--max_parameters", "6000", "--output_dir", f"{folder}/found"])
    model = AutoModelForCausalLM.from_pretrained(folder / "found")
    assert type(model) is LlamaForCausalLM and model.num_parameters() <= 6000
    assert "nats per token predicted" in capsys.readouterr().out


def test_learn_masks(folder):
    words = ["--model", f"{folder}/source", "--data_dir", f"{folder}/text", "--intermediate_size", "16", *SHORT]
    learn_masks.main([*words, *TRAINING.split(), "--output_dir", f"{folder}/masks"])
    assert is_a_plain_model_of_the_target(folder / "masks" / "pruned")


@pytest.mark.parametrize("how", ["--recovery_method full", "--recovery_method lora --distillation forward_kl"])
def test_recover(folder, how, tmp_path):
    words = ["--pruned", f"{folder}/pruned", "--source", f"{folder}/source", "--data_dir", f"{folder}/text", *SHORT]
    recover.main([*words, *TRAINING.split(), *how.split(), "--learning_rate", "1e-2", "--output_dir", str(tmp_path)])
    assert is_a_plain_model_of_the_target(tmp_path / "recovered")
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (folder / "pruned", tmp_path / "recovered"))
    weights = dict(before.named_parameters())
    assert any((weights[name] != weight).any() for name, weight in after.named_parameters())


def test_evaluate(folder, capsys):
    words = [
        f"{folder}/source",
        f"{folder}/pruned",
        "--data_dir",
        f"{folder}/text",
        "--prompt_length",
        "8",
        "--new_tokens",
        "2",
    ]
    evaluate_checkpoints.main([*words, "--output", f"{folder}/evaluation.json"])
    record = json.loads((folder / "evaluation.json").read_text())
    assert set(record["differences"]) >= {"books", "code"} and "speed" in record
    assert "books" in capsys.readouterr().out


def test_there_are_few_and_the_page_names_them():
    scripts = [path.name for path in EXAMPLES.glob("*.py") if path.stem != "__init__"]
    configs = [path for name in ("accelerate", "configs") for path in (EXAMPLES / name).iterdir()]
    assert len(scripts) + len(configs) <= 13
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in page for name in scripts)
    for folder in (EXAMPLES, EXAMPLES / "research"):
        links = re.findall(r"\]\(([^)#]+)\)", (folder / "README.md").read_text(encoding="utf-8"))
        assert links and all((folder / link).exists() for link in links)
