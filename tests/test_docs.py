"""Pages for readers: short, named by the index, with links that lead somewhere and Python that runs."""

from __future__ import annotations

import importlib
import json
import random
import re
import shlex
from dataclasses import fields
from pathlib import Path

import datasets
import pytest
import shear
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_shear import ShearTrainingArguments
from hf_shear.cli.main import VERBS
from hf_shear.data import first_sample
from hf_shear.runs import choose_target, parse_arguments
from hf_shear.shapes import count_parameters

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "examples" / "docs"
EMBEDDED = ROOT / "examples" / "embedded" / "model"
PAGES = sorted(DOCS.glob("*.md"))
OTHERS = [ROOT / name / "README.md" for name in (".", "examples", "examples/research")]
READ = [*PAGES, *sorted((ROOT / ".github").glob("*.md")), *OTHERS]


def headings(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "api.md"], ids=lambda page: page.name)
def test_a_page_is_short(page):
    assert len(page.read_text(encoding="utf-8").splitlines()) < 200


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        path = (page.parent / target) if target else page
        assert path.exists(), target
        if anchor:
            assert anchor in headings(path.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_the_index_names_every_page():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert {page.name for page in PAGES} - {"README.md"} == set(re.findall(r"\]\((\w+\.md)", index))


@pytest.mark.parametrize("page", READ, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_files_in_the_text_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w/.])(?:hf_shear|tests|examples|model_cards)/[\w/.-]*\w", text):
        assert "NAME" in path or (ROOT / path).exists(), path
    for name in re.findall(r"-m (examples\.[\w.]*\w)", text):
        assert "NAME" in name or ROOT.joinpath(*name.split(".")).with_suffix(".py").exists(), name


def test_ci_runs_what_the_readme_says():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "run: .ci/run" in workflow and "run: basedpyright" in workflow


def commands(page: Path) -> list[list[str]]:
    """The words of every command in the shell blocks of a page that hf_shear parses."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line.replace("...", ""), comments=True) for line in lines]
    return [words for words in found if words[:1] == ["hf-shear"] or "examples/shear.py" in words]


@pytest.mark.parametrize("page", READ, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_commands_have_no_unknown_options(page):
    for words in commands(page):
        if words[0] == "hf-shear":
            assert words[1] in VERBS, words
            verb = importlib.import_module(f"hf_shear.cli.{words[1]}")
            classes = (verb.Arguments, *[ShearTrainingArguments] * getattr(verb, "TRAINS", False))
        else:
            words, classes = (
                words[words.index("examples/shear.py") :],
                (shear.PipelineArguments, ShearTrainingArguments),
            )
        known = {field.name for each in classes for field in fields(each)} | {"config"}
        assert {word[2:] for word in words if word.startswith("--")} <= known, words


def test_the_large_example_names_the_paper_s_shape():
    (words,) = (words for words in commands(DOCS / "pipeline.md") if "zero3.yaml" in " ".join(words))
    flags = [*words[words.index("examples/shear.py") + 1 :], "--bf16", "false", "--use_cpu", "true"]
    pipeline, args = parse_arguments((shear.PipelineArguments, ShearTrainingArguments), flags)
    assert pipeline.recovery_tokens == 5_000_000_000 and args.activation_checkpointing is True
    llama_2_7b = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008)
    assert count_parameters(llama_2_7b, choose_target(pipeline, llama_2_7b)[0]) == 1_345_423_360


@pytest.fixture
def run_block(tmp_path, monkeypatch):
    """Runs a Python block of a page in a folder with ``text`` in two domains, and returns the names it leaves."""
    words = random.Random(0)
    for domain in ("code", "prose"):
        (tmp_path / "text" / domain).mkdir(parents=True)
        texts = [" ".join(words.choices(["def", "the", "return", "of", "x", "and"], k=400)) for _ in range(30)]
        rows = "\n".join(json.dumps({"text": text, "content": text}) for text in texts)
        (tmp_path / "text" / domain / "a.jsonl").write_text(rows)
    monkeypatch.chdir(tmp_path)

    def run(page: str, number: int = 0, replace: dict[str, str] | None = None, **names) -> dict:
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
        assert all(old in blocks[number] for old in replace or {})
        code = blocks[number].replace("path/to/llama", str(EMBEDDED)).replace("path/to/text", "text")
        for old, new in (replace or {}).items():
            code = code.replace(old, new)
        torch.manual_seed(0)
        exec(compile(code, page, "exec"), names)
        return names

    return run


@pytest.fixture
def tiny(build_llama):
    """A tiny model with two batches of text."""
    ids = torch.randint(3, 40, (2, 8, 12), generator=torch.Generator().manual_seed(3))
    return {"model": build_llama(), "calibration": [{"input_ids": part, "labels": part} for part in ids]}


def test_the_readme_prunes(run_block):
    names = run_block("README.md", replace={"num_batches=16": "num_batches=1"})
    pruned = AutoModelForCausalLM.from_pretrained("pruned")
    assert type(pruned) is LlamaForCausalLM and pruned.config.intermediate_size == 192
    assert names["pruning"].config == type(names["pruning"].config)()  # the defaults, as the text says


def test_masks_are_learned_and_the_model_recovered(run_block):
    run_block("examples/docs/masks.md", replace={"10_240": "4_096"})
    for folder in ("pruned", "recovered"):
        pruned = AutoModelForCausalLM.from_pretrained(folder)
        assert type(pruned) is LlamaForCausalLM and pruned.config.intermediate_size == 192


def test_pruning(run_block, tiny, capsys):
    run_block("examples/docs/pruning.md", replace={"5504": "16"}, **tiny)
    assert AutoModelForCausalLM.from_pretrained("pruned").config.intermediate_size == 16
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])) == 16


def test_ones_own_criterion(run_block, tiny, capsys):
    names = run_block("examples/docs/criteria.md", replace={"5504": "16"}, **tiny)
    norms = tiny["model"].model.layers[0].mlp.gate_proj.weight.detach().norm(dim=1)
    assert names["pruning"].kept.intermediate[0] == sorted(norms.topk(16).indices.tolist())
    assert capsys.readouterr().out.startswith("16 [")


def test_allocation(run_block, tiny):
    pruning = run_block("examples/docs/allocation.md", **tiny)["pruning"]
    assert pruning.num_parameters <= pruning.budget == int(0.7 * tiny["model"].num_parameters())


def test_sources_and_families(run_block):
    assert run_block("examples/docs/sources.md")["model"].config.model_type == "llama"
    names = run_block("examples/docs/families.md", replace={"path/to/qwen3": str(EMBEDDED)})
    assert names["model"].config.target_shape["intermediate_size"] == 192


def test_data(run_block, monkeypatch):
    rows = Dataset.from_list([{"text": "the return of x " * 40}] * 30).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)  # the Hub
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    short = {"max_length=4096": "max_length=128"}
    names = run_block(
        "examples/docs/large_data.md", replace=short | {"num_proc=16": "num_proc=None"}, tokenizer=tokenizer
    )
    assert datasets.load_from_disk("packed").column_names == names["train"].column_names
    names = run_block("examples/docs/large_data.md", 1, short, tokenizer=tokenizer)
    assert set(names["train"]) == {"web", "wiki"} and len(first_sample(names["train"]["web"])["input_ids"]) == 128


def test_zeros(run_block, tiny):
    ids = tiny["calibration"][0]["input_ids"]
    done = run_block("examples/docs/surgeon_structures.md", replace={"=40)": "=2)"}, model=tiny["model"], ids=ids)[
        "done"
    ]
    assert done.size == pytest.approx(0.7, abs=0.01) and done.loss_after < 20
