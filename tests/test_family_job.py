"""The main job on a model of another family than Llama: trained by the script that exists, then sheared.

It takes half a minute and more, most of it training.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from hf_shear.core import check_results, read_results

ROOT = Path(__file__).resolve().parent.parent
SEPARATOR = "\n<|endoftext|>\n"
MODULES = {"text": ("argparse", "textwrap", "string"), "numbers": ("statistics", "fractions", "random")}
SOURCE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_length": 64,
    "num_tokens": 150_000,
}
TARGET = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 80,
}
JOB = {
    "max_length": 64,
    "mask_tokens": 8_192,
    "recovery_tokens": 40_960,
    "learning_rate": 2e-3,
    "per_device_train_batch_size": 8,
    "eval_tokens": 4096,
    "eval_strategy": "steps",
    "eval_steps": 8,
    "eval_token_share": 0.9,
    "calibration_batches": 4,
    "baselines": "false",
    "use_cpu": "true",
}
SECONDS = 900
SHEAR = str(ROOT / "examples" / "shear.py")


def write_text(folder: Path) -> None:
    """Two domains out of Python's own library: a document for each function and class of a few modules."""
    for domain, modules in MODULES.items():
        (folder / domain).mkdir(parents=True)
        documents = []
        for name in modules:
            text = Path(sys.modules["ast"].__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
            nodes = [node for part in ast.parse(text).body for node in (part, *getattr(part, "body", ()))]
            documents += [ast.get_source_segment(text, node) for node in nodes if isinstance(node, ast.FunctionDef)]
        (folder / domain / "a.txt").write_text(SEPARATOR.join(documents), encoding="utf-8")


def run(script: tuple[str, ...], folder: Path, **flags: object) -> None:
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    environment = {"HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *script, *words],
        env=os.environ | environment, cwd=folder, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_the_job_shears_a_trained_qwen3(tmp_path):
    text, source, output = tmp_path / "text", tmp_path / "source", tmp_path / "run"
    write_text(text)
    run(
        ("-m", "examples.research.train_source"),
        tmp_path,
        output_dir=source,
        data_dir=text,
        model_type="qwen3",
        **SOURCE,
    )
    trained = json.loads((source / "source.json").read_text(encoding="utf-8"))
    assert all(loss < trained["unigram_loss"][domain] for domain, loss in trained["loss"].items())

    run(
        (SHEAR,),
        tmp_path,
        model_name_or_path=source,
        data_dir=text,
        output_dir=output,
        **TARGET,
        **JOB,
    )
    results = read_results(output / "results.json")
    check_results(results)
    masked = [row for row in results["history"] if row["stage"] == "mask_learning"]
    cut, recovered = results["pruned"]["mean"], results["recovered"]["mean"]
    assert recovered < cut
    # The last evaluation with masks is of the hardened ones, which compute what the cut does, on a part of its text.
    assert len(masked) >= 2 and fmean(masked[-1]["loss"].values()) == pytest.approx(cut, rel=0.03)

    for name in ("pruned", "recovered"):
        config = json.loads((output / name / "config.json").read_text(encoding="utf-8"))
        assert config["model_type"] == "qwen3" and config["architectures"] == ["Qwen3ForCausalLM"]
        assert config | TARGET == config and config["head_dim"] == 16
        with safe_open(output / name / "model.safetensors", "pt") as weights:
            assert not any("mask" in key for key in weights.keys())
        model, found = AutoModelForCausalLM.from_pretrained(output / name, output_loading_info=True)
        assert type(model) is Qwen3ForCausalLM and not any(found[key] for key in ("missing_keys", "unexpected_keys"))
        assert tuple(model.model.layers[0].self_attn.q_norm.weight.shape) == (16,)
        assert model.num_parameters() == results[name]["num_parameters"]
        ids = AutoTokenizer.from_pretrained(output / name)("def f(x):", return_tensors="pt").input_ids
        assert torch.isfinite(model(ids).logits).all()
