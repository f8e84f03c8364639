"""Configurations of well-known checkpoints, from their public config.json, and the parameters that are published of them.

Fields that change no weight are left out. ``published`` is the number of parameters of the checkpoint's weights, tied ones
counted once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import PretrainedConfig

from hf_shear.shapes.family_table import FAMILIES

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class RealConfig:
    """One checkpoint.

    Attributes:
        sizes: hidden size, layers, heads, KV heads, MLP width, vocabulary.
        published: parameters.
        half: a target of about half of it that its config class accepts.
    """

    name: str
    family: str
    sizes: tuple[int, int, int, int, int, int]
    published: int
    tied: bool
    positions: int
    others: dict = field(default_factory=dict)

    def config(self) -> PretrainedConfig:
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
        values = dict(zip((*names, "vocab_size"), self.sizes, strict=True)) | self.others
        values |= {"tie_word_embeddings": self.tied, "max_position_embeddings": self.positions}
        return FAMILIES[self.family].config_class(**values)


REAL_CONFIGS = (
    RealConfig("Llama-2-7B", "llama", (4096, 32, 32, 32, 11008, 32000), 6_738_415_616, False, 4096),
    RealConfig(
        "Llama-3.1-8B", "llama", (4096, 32, 32, 8, 14336, 128256), 8_030_261_248, False, 131072,
        {"rope_parameters": LLAMA3_ROPE},
    ),
    RealConfig(
        "Llama-3.2-1B", "llama", (2048, 16, 32, 8, 8192, 128256), 1_235_814_400, True, 131072,
        {"head_dim": 64, "rope_parameters": LLAMA3_ROPE | {"factor": 32.0}},
    ),
    RealConfig(
        "Mistral-7B-v0.1", "mistral", (4096, 32, 32, 8, 14336, 32000), 7_241_732_096, False, 32768,
        {"sliding_window": 4096},
    ),
    RealConfig("Qwen2.5-0.5B", "qwen2", (896, 24, 14, 2, 4864, 151936), 494_032_768, True, 32768),
    RealConfig("Qwen2.5-1.5B", "qwen2", (1536, 28, 12, 2, 8960, 151936), 1_543_714_304, True, 131072),
    RealConfig("Qwen2.5-7B", "qwen2", (3584, 28, 28, 4, 18944, 152064), 7_615_616_512, False, 131072),
    RealConfig("Qwen3-0.6B", "qwen3", (1024, 28, 16, 8, 3072, 151936), 596_049_920, True, 40960, {"head_dim": 128}),
    RealConfig("Qwen3-4B", "qwen3", (2560, 36, 32, 8, 9728, 151936), 4_022_468_096, True, 40960, {"head_dim": 128}),
    RealConfig(
        "Gemma-2-2B", "gemma2", (2304, 26, 8, 4, 9216, 256000), 2_614_341_888, True, 8192,
        {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096},
    ),
    RealConfig("SmolLM2-135M", "llama", (576, 30, 9, 3, 1536, 49152), 134_515_008, True, 8192),
    RealConfig("SmolLM2-1.7B", "llama", (2048, 24, 32, 32, 8192, 49152), 1_711_376_384, True, 8192),
    RealConfig("SmolLM3-3B", "smollm3", (2048, 36, 16, 4, 11008, 128256), 3_075_098_624, True, 65536),
)  # fmt: skip
