"""Small checkpoints of other families than Llama: random weights of trained models' size, and a trained model's tokenizer.

They answer whether an engine computes what transformers computes, not whether the text is good. Their shape is one that
pruning leaves: heads times head_dim is not the hidden size.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_shear.slicing import save_checkpoint

FAMILIES = (
    "llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3", "granite", "phi3", "gemma", "gemma2", "gemma3_text",
    "olmo2", "olmo3", "exaone4", "seed_oss", "arcee", "hunyuan_v1_dense", "glm4",
)  # fmt: skip
"""`model_type` of the families that are tried."""

SIZES = {
    "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 192,
    "num_hidden_layers": 3, "max_position_embeddings": 512,
}  # fmt: skip
EXTRA = {name: {"query_pre_attn_scalar": SIZES["head_dim"]} for name in ("gemma2", "gemma3_text")}
"""As in most published models of these families, where it is head_dim."""
NORM_SPREAD, EMBEDDING_SPREAD, BIAS_SPREAD = 0.3, 0.7, 0.3  # standard deviations


def make_family(model_type: str, source: str, folder: Path) -> Path:
    """Write the checkpoint of a family, with the tokenizer and vocabulary of ``source``; one that is there is kept."""
    output = folder / model_type
    if not output.exists():
        tokenizer = AutoTokenizer.from_pretrained(source)
        save_checkpoint(build(model_type, tokenizer), output, tokenizer)
    return output


def build(model_type: str, tokenizer) -> PreTrainedModel:
    """The model. Every parameter differs from what a reader would assume that does not read it."""
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = AutoConfig.for_model(model_type, **SIZES, **EXTRA.get(model_type, {}), **tokens, vocab_size=len(tokenizer))
    model = AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.add_(NORM_SPREAD * noise)  # around what the family starts from, 1 or 0
            elif parameter.dim() == 1:
                parameter.copy_(BIAS_SPREAD * noise)
            elif "embed_tokens" in name:
                parameter.copy_(EMBEDDING_SPREAD * noise)
            else:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
    return model
