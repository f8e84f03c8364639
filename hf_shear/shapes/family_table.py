"""The families that can be sheared, one row each. How to add one: examples/docs/families.md."""

from __future__ import annotations

from typing import Any

from .family import ALWAYS, ATTENTION_BIAS, FUSED_ATTENTION, FUSED_MLP, MIXTURE, MLP_BIAS, UNGATED_MLP, Family

_QKV_ALWAYS: dict[str, str] = dict.fromkeys(("q_proj", "k_proj", "v_proj"), ALWAYS)
_QKV_BIAS: dict[str, str] = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attention_bias")
_QK_NORM = ("q_norm", "k_norm")
_FOUR_NORMS: dict[str, Any] = {
    "pre_norms": ("input_layernorm", "pre_feedforward_layernorm"),
    "post_norms": ("post_attention_layernorm", "post_feedforward_layernorm"),
}
_POST_NORMS: dict[str, Any] = {
    "pre_norms": (),
    "post_norms": ("post_attention_layernorm", "post_feedforward_layernorm"),
}
_GEMMA: dict[str, Any] = {
    "biases": ATTENTION_BIAS,
    "norm_offset": 1.0,
    "norm_scales_in_float32": True,
    "scaled_embedding": True,
}

# With router logits a model's loss has a part for the balance of experts, in which removed ones would count.
_ROUTED = {"output_router_logits": False}

_ROWS = (
    Family("llama", "LlamaConfig", "LlamaForCausalLM", biases=ATTENTION_BIAS | MLP_BIAS),
    Family("mistral", "MistralConfig", "MistralForCausalLM"),
    Family("ministral", "MinistralConfig", "MinistralForCausalLM"),
    Family("qwen2", "Qwen2Config", "Qwen2ForCausalLM", biases=_QKV_ALWAYS),
    Family("qwen3", "Qwen3Config", "Qwen3ForCausalLM", biases=ATTENTION_BIAS, head_norms=_QK_NORM),
    Family("smollm3", "SmolLM3Config", "SmolLM3ForCausalLM", biases=ATTENTION_BIAS | MLP_BIAS),
    Family("granite", "GraniteConfig", "GraniteForCausalLM", biases=ATTENTION_BIAS | MLP_BIAS),
    Family("phi3", "Phi3Config", "Phi3ForCausalLM", attention=FUSED_ATTENTION, mlp=FUSED_MLP),
    Family("gemma", "GemmaConfig", "GemmaForCausalLM", **_GEMMA),
    Family("gemma2", "Gemma2Config", "Gemma2ForCausalLM", **_GEMMA, **_FOUR_NORMS),
    Family("gemma3_text", "Gemma3TextConfig", "Gemma3ForCausalLM", head_norms=_QK_NORM, **_GEMMA, **_FOUR_NORMS),
    Family(
        "olmo2", "Olmo2Config", "Olmo2ForCausalLM",
        biases=ATTENTION_BIAS, wide_head_norms=_QK_NORM, norm_scales_in_float32=True, **_POST_NORMS,
    ),
    Family(
        "olmo3", "Olmo3Config", "Olmo3ForCausalLM",
        biases=ATTENTION_BIAS, wide_head_norms=_QK_NORM, norm_scales_in_float32=True, **_POST_NORMS,
    ),
    Family("exaone4", "Exaone4Config", "Exaone4ForCausalLM", head_norms=_QK_NORM, **_POST_NORMS),
    Family(
        "seed_oss", "SeedOssConfig", "SeedOssForCausalLM",
        biases=_QKV_BIAS | {"o_proj": "attention_out_bias"} | MLP_BIAS,
    ),
    Family(
        "arcee", "ArceeConfig", "ArceeForCausalLM", mlp=UNGATED_MLP,
        biases=ATTENTION_BIAS | {"up_proj": "mlp_bias", "down_proj": "mlp_bias"},
    ),
    Family(
        "hunyuan_v1_dense", "HunYuanDenseV1Config", "HunYuanDenseV1ForCausalLM",
        biases=ATTENTION_BIAS, head_norms=("query_layernorm", "key_layernorm"),
    ),
    Family(
        "glm4", "Glm4Config", "Glm4ForCausalLM", biases=_QKV_BIAS, mlp=FUSED_MLP,
        post_norms=("post_self_attn_layernorm", "post_mlp_layernorm"),
    ),
    Family(
        "mixtral", "MixtralConfig", "MixtralForCausalLM",
        mlp=MIXTURE, routing_weights_sum_to_one=ALWAYS, required=_ROUTED,
    ),
    Family(
        "qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeForCausalLM", biases=ATTENTION_BIAS, head_norms=_QK_NORM,
        mlp=MIXTURE, mlp_width="moe_intermediate_size", routing_weights_sum_to_one="norm_topk_prob",
        required=_ROUTED | {"mlp_only_layers": [], "decoder_sparse_step": 1},
    ),
)  # fmt: skip

FAMILIES: dict[str, Family] = {family.model_type: family for family in _ROWS}
"""Families by ``model_type``."""
