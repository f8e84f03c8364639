"""Memory of the LLM Surgeon's scores, measured on small models and calculated for large ones."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_shear import ShearingLlamaForCausalLM
from hf_shear.criteria.llm_surgeon import removal_costs
from hf_shear.data import Calibration

from ..memory import peak_bytes
from .formulas import Setup, moments, peak

SIZE_NAMES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size",
)  # fmt: skip
SMALL_MODELS = {  # layers alone change, then widths, then the vocabulary
    "d 64, L 4": (64, 4, 4, 2, 176, 256),
    "d 64, L 8": (64, 8, 4, 2, 176, 256),
    "d 128, L 6": (128, 6, 4, 2, 352, 512),
    "d 256, L 3": (256, 3, 8, 4, 704, 512),
    "d 128, L 3, V 2048": (128, 3, 4, 2, 352, 2048),
}
LARGE_MODELS = {
    "Llama-3.2-1B": (2048, 16, 32, 8, 8192, 128256, True),
    "Llama-2-7B": (4096, 32, 32, 32, 11008, 32000, False),
    "Llama-2-13B": (5120, 40, 40, 40, 13824, 32000, False),
}
WINDOW = Setup(2, 128, 8, layers_per_pass=1, activation_checkpointing=True)
SMALL_SETUPS = {
    "one pass": Setup(2, 128, 8),
    "1 layer per pass": Setup(2, 128, 8, layers_per_pass=1),
    "1 layer per pass, checkpointing": WINDOW,
    "the same in bfloat16": replace(WINDOW, weight_bytes=2),
    "forward passes alone": Setup(2, 128, 8, gradients=False),
}
LARGE = Setup(1, 2048, 128, weight_bytes=2, store_on_host=True)
LARGE_SETUPS = {
    "one pass": LARGE,
    "one pass, checkpointing": replace(LARGE, activation_checkpointing=True),
    "8 layers per pass, checkpointing": replace(LARGE, layers_per_pass=8, activation_checkpointing=True),
    "1 layer per pass, checkpointing": replace(LARGE, layers_per_pass=1, activation_checkpointing=True),
    "forward passes alone": replace(LARGE, gradients=False),
}
CARD_BYTES = 24 * 10**9


def config_of(sizes: tuple) -> LlamaConfig:
    """Config of a row of sizes, with whether the head is tied as its last value."""
    tied = bool(sizes[6:] and sizes[6])
    return LlamaConfig(**dict(zip(SIZE_NAMES, sizes[:6], strict=True)), tie_word_embeddings=tied)


def score(config: LlamaConfig, setup: Setup) -> None:
    """A model from its making to the scores of all its units."""
    dtype = {2: torch.bfloat16, 4: torch.float32}[setup.weight_bytes]
    size = (setup.num_samples, setup.sequence_length)
    ids = torch.randint(config.vocab_size, size, generator=torch.Generator().manual_seed(0))
    calibration = Calibration.from_batches([{"input_ids": ids, "labels": ids}], setup.batch_size)
    torch.set_default_dtype(dtype)
    try:
        model = ShearingLlamaForCausalLM.from_model(LlamaForCausalLM(config)).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    with model.use_gates({}):
        removal_costs(
            model,
            calibration,
            setup.update,
            setup.gradients,
            layers_per_pass=setup.layers_per_pass or None,
            activation_checkpointing=setup.activation_checkpointing,
        )


def measure_memory(args: argparse.Namespace) -> list[dict]:
    """Predicted and measured peak of every small model in every way, on the CPU."""
    rows = []
    for model in args.memory_models:
        config = config_of(SMALL_MODELS[model])
        for way, setup in SMALL_SETUPS.items():
            moment, predicted = peak(config, setup)
            measured = peak_bytes(lambda config=config, setup=setup: score(config, setup), "cpu")
            rows.append(
                {
                    "model": model,
                    "way": way,
                    "predicted_bytes": round(predicted),
                    "measured_bytes": measured,
                    "error": predicted / measured - 1,
                    "moment": moment,
                }
            )
    return rows


def calculate() -> list[dict]:
    """The same for large models, that are not here."""
    rows = []
    for model, sizes in LARGE_MODELS.items():
        config = config_of(sizes)
        for way, setup in LARGE_SETUPS.items():
            moment, total = peak(config, setup)
            waiting = setup.num_samples * setup.sequence_length * config.hidden_size * setup.weight_bytes
            rows.append(
                {
                    "model": model,
                    "way": way,
                    "peak_bytes": round(total),
                    "moment": moment,
                    "parts": {name: round(value) for name, value in moments(config, setup)[moment].items()},
                    "host_bytes": waiting,
                    "fits": total <= CARD_BYTES,
                    "setup": asdict(setup),
                }
            )
    return rows


def measured_table(rows: list[dict]) -> list[str]:
    """Lines to print."""
    lines = [f"  {'model':<22}{'way':<34}{'predicted':>10}{'measured':>10}{'error':>8}  moment"]
    for row in rows:
        predicted, measured = (row[key] / 2**20 for key in ("predicted_bytes", "measured_bytes"))
        lines.append(
            f"  {row['model']:<22}{row['way']:<34}{predicted:10.2f}{measured:10.2f}{row['error']:8.1%}  {row['moment']}"
        )
    return ["Peak of all tensors while units are scored, MiB", *lines]


def calculated_table(rows: list[dict]) -> list[str]:
    """Lines to print."""
    lines = [f"  {'model':<16}{'way':<34}{'GB':>8}{'host GB':>9}  {'24 GB':<6}  moment"]
    for row in rows:
        lines.append(
            f"  {row['model']:<16}{row['way']:<34}{row['peak_bytes'] / 1e9:8.1f}{row['host_bytes'] / 1e9:9.1f}"
            f"  {'fits' if row['fits'] else 'no':<6}  {row['moment']}"
        )
    return ["Calculated: bfloat16 weights, 128 samples of 2,048 tokens, one at a time", *lines]
