"""The README's Python runs as printed, its commands are what CI runs, and it stays short."""

from __future__ import annotations

import random
import re
import shlex
from pathlib import Path

import pytest
import shear
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_shear.runs import choose_target, parse_arguments
from hf_shear.shapes import count_parameters

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


def test_the_command_for_ones_own_model_parses():
    block = next(
        block for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL) if "path/to/llama" in block
    )
    words = shlex.split(block.replace("\\\n", " "))
    assert words[:3] == ["accelerate", "launch", "examples/shear.py"]
    cpu = ["--bf16", "false", "--use_cpu", "true"]
    pipeline, args = parse_arguments((shear.PipelineArguments, shear.ShearTrainingArguments), [*words[3:], *cpu])
    assert pipeline.recovery_tokens == 5_000_000_000 and args.activation_checkpointing is True
    llama_2_7b = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008)
    assert count_parameters(llama_2_7b, choose_target(pipeline, llama_2_7b)[0]) == 1_345_423_360


def test_commands_of_ci_are_there():
    for name in ("job", "test"):
        assert re.search(rf"<!-- command: {name} -->\n```bash\n.+?\n```", README), name
    assert "accelerate launch examples/shear.py" in README


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists(), link
