"""Every YAML in examples/ is read by the real parser and names a shape that its source accepts."""

from __future__ import annotations

from pathlib import Path

import pytest
import shear
from transformers import LlamaConfig

from hf_shear import ShearTrainingArguments
from hf_shear.runs import choose_target, parse_arguments
from hf_shear.shapes import count_parameters

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CONFIGS = sorted(EXAMPLES.glob("configs/sheared_llama_*.yaml"))


def llama_2_7b() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008, vocab_size=32000,
        max_position_embeddings=4096,
    )  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_paper_config(path, tmp_path):
    flags = ["--config", str(path), "--output_dir", str(tmp_path), "--bf16", "false", "--use_cpu", "true"]
    pipeline, args = parse_arguments((shear.PipelineArguments, ShearTrainingArguments), flags)
    assert pipeline.paper and isinstance(args.learning_rate, float) and args.learning_rate == 1e-4
    target, _ = choose_target(pipeline, llama_2_7b())
    expected = {"1.3b": 1_345_423_360, "2.7b": 2_701_560_320}[path.stem.split("_")[2]]
    assert count_parameters(llama_2_7b(), target) == expected
    steps = {"pruning": (pipeline.mask_tokens, 3200), "recovery": (pipeline.recovery_tokens, 48_000)}
    tokens, num_steps = steps[path.stem.split("_")[-1]]
    gpus = 8
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * gpus * pipeline.max_length
    assert tokens == num_steps * per_step
    assert set(args.reference_losses) == {"cc", "github", "book", "stackexchange", "wiki", "arxiv", "c4-rp"}


def test_there_are_four_paper_configs():
    assert len(CONFIGS) == 4


@pytest.mark.parametrize("name", ["stories260k", "redpajama_sample", "family_96"])
def test_config_of_a_measured_run(name, tmp_path):
    flags = ["--config", str(EXAMPLES / "research" / "configs" / f"{name}.yaml"), "--output_dir", str(tmp_path)]
    pipeline, args = parse_arguments((shear.PipelineArguments, ShearTrainingArguments), flags)
    assert pipeline.baselines and not pipeline.paper and args.learning_rate > 0


def test_embedded_default():
    pipeline, args = parse_arguments(
        (shear.PipelineArguments, ShearTrainingArguments),
        [],
        default_config=shear.EMBEDDED / "shear.yaml",
        unless=["model_name_or_path"],
    )
    assert pipeline.model_name_or_path == str(shear.EMBEDDED / "model")
    assert pipeline.baselines and args.output_dir == "trainer_output"
