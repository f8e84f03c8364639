"""The README's Python runs as printed, its commands are what CI runs, and it stays short."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL = ROOT / "examples" / "embedded" / "model"


def test_python_block_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    words = random.Random(0)
    for domain in ("code", "prose"):
        (tmp_path / "text" / domain).mkdir(parents=True)
        documents = [" ".join(words.choices(["def", "the", "return", "of", "x", "and"], k=400)) for _ in range(30)]
        (tmp_path / "text" / domain / "a.txt").write_text("\n<|endoftext|>\n".join(documents))
    source = blocks[0].replace("path/to/llama", str(MODEL)).replace("path/to/text", str(tmp_path / "text"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(source, "README.md", "exec"), {})
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert type(pruned) is LlamaForCausalLM
    assert pruned.config.intermediate_size == 192


def test_commands_of_ci_are_there():
    for name in ("job", "test"):
        assert re.search(rf"<!-- command: {name} -->\n```bash\n.+?\n```", README), name
    assert "accelerate launch examples/shear.py" in README


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists(), link
