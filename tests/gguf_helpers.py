"""Tiny GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import LlamaConfig, LlamaForCausalLM

# The pieces of text that the tokenizer knows; "▁" begins a word.
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_LAYERS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_llama(**changes) -> LlamaForCausalLM:
    """A Llama of two layers whose rows blocks of 32 divide, as its GGUF says it: in float32, with a head of its own."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(vocab_size=len(TOKENS), rms_norm_eps=2.0**-16, **sizes, **heads, **changes)
    return LlamaForCausalLM(config).eval()


def write_gguf(model: LlamaForCausalLM, path: Path, quantised: bool = False, extra: dict | None = None) -> dict:
    """Write a model, the matrices of its layers in Q8_0 if ``quantised``; returns what the weights stand for by name."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([-float(index) for index in range(len(TOKENS))])
    writer.add_token_types([2, 3, 3, *([6] * 256), *([1] * (len(TOKENS) - 259))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    exact = {}
    for name, weight in model.state_dict().items():
        values = weight.detach().float()
        exact[name] = values
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        array = (_interleaved(values, heads) if heads else values).numpy()
        if quantised and "_proj" in name:
            kind = GGMLQuantizationType.Q8_0
            blocks = gguf.quantize(array, kind)
            writer.add_tensor(_gguf_name(name), blocks, raw_dtype=kind)
            values = torch.from_numpy(np.array(gguf.dequantize(blocks, kind)))
            exact[name] = _apart(values, heads) if heads else values
        else:
            writer.add_tensor(_gguf_name(name), array)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if config.tie_word_embeddings:
        exact["lm_head.weight"] = exact["model.embed_tokens.weight"]
    return exact


def _gguf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, *rest = name.split(".")
    module, _, kind = ".".join(rest).rpartition(".")
    return f"blk.{layer}.{IN_LAYERS[module]}.{kind}"


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Channels of a head as llama.cpp rotates them: neighbours are a pair."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()


def _apart(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Channels of a head as transformers rotates them: the halves are pairs."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()
