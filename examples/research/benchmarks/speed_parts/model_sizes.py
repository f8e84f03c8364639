"""Llama shapes by name, what a token of training costs in them, and what GPUs can do at most."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from transformers import LlamaConfig


@dataclass(frozen=True)
class Size:
    """The sizes of a Llama (fields as in its config)."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool = False


# Small ones, for a CPU, have few vocabulary entries and tie them: embeddings carry no folded masks.
SIZES = {
    "1m": Size(128, 4, 4, 2, 352, 2048, True),
    "5m": Size(256, 6, 8, 4, 704, 4096, True),
    "14m": Size(384, 8, 8, 4, 1024, 4096, True),
    "160m": Size(768, 12, 12, 12, 3072, 32000),  # the layers of Pythia-160M (arXiv 2304.01373), as a Llama
    "1.3b": Size(2048, 24, 16, 16, 5504, 32000),  # Sheared-LLaMA-1.3B (arXiv 2310.06694)
    "2.7b": Size(2560, 32, 20, 20, 6912, 32000),  # Sheared-LLaMA-2.7B
    "7b": Size(4096, 32, 32, 32, 11008, 32000),  # Llama-2-7B (arXiv 2307.09288)
}
SIZE_NAMES = tuple(Size.__dataclass_fields__)

# Dense bfloat16 with float32 accumulation, in FLOP/s: NVIDIA's data sheets, whose figures "with sparsity" are twice these.
# The first name that is part of what torch calls the GPU counts, so the special cases stand first.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "L40S": 362e12,
    "L4": 121e12,
}


def llama_config(size: Size, max_length: int) -> LlamaConfig:
    """The config of a size for samples of ``max_length`` tokens."""
    return LlamaConfig(**asdict(size), max_position_embeddings=max_length)


def training_flops_per_token(config: LlamaConfig, num_parameters: int, max_length: int) -> float:
    """FLOPs of forward and backward for one token: 6 N + 12 L H head_dim S (PaLM, arXiv 2204.02311, appendix B).

    N leaves out input embeddings with a matrix of their own, since a look-up multiplies nothing. Causal attention counts
    in full, as there; recomputed activations do not count.
    """
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    heads = config.num_attention_heads * config.head_dim
    return 6 * (num_parameters - looked_up) + 12 * config.num_hidden_layers * heads * max_length


def peak_flops(gpu: str | None, dtype: str) -> float | None:
    """Peak FLOP/s of a GPU (by torch's name) in bfloat16 arithmetic; None where it is not known, or in float32."""
    if gpu is None or dtype == "float32":
        return None
    return next((flops for name, flops in PEAK_FLOPS.items() if name in gpu), None)
