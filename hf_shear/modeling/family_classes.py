"""The masked classes of every family: one of configs and one of models, with a model_type of their own.

A family is a row of ``shapes/family_table.py`` and a pair of classes here. So no plain class loads a masked checkpoint and
drops its masks, and a type checker knows every class.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from huggingface_hub.dataclasses import strict
from transformers import (
    ArceeConfig,
    ArceeForCausalLM,
    AutoConfig,
    AutoModelForCausalLM,
    Exaone4Config,
    Exaone4ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    HunYuanDenseV1Config,
    HunYuanDenseV1ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MinistralConfig,
    MinistralForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SeedOssConfig,
    SeedOssForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from ..sources import MASKED_PREFIX
from .configuration import ShearingConfig
from .mixin import ShearingCausalLMOutput
from .shearing_model import ShearingModel

__all__ = [
    "ShearingArceeConfig",
    "ShearingArceeForCausalLM",
    "ShearingExaone4Config",
    "ShearingExaone4ForCausalLM",
    "ShearingGemma2Config",
    "ShearingGemma2ForCausalLM",
    "ShearingGemma3ForCausalLM",
    "ShearingGemma3TextConfig",
    "ShearingGemmaConfig",
    "ShearingGemmaForCausalLM",
    "ShearingGlm4Config",
    "ShearingGlm4ForCausalLM",
    "ShearingGraniteConfig",
    "ShearingGraniteForCausalLM",
    "ShearingHunYuanDenseV1Config",
    "ShearingHunYuanDenseV1ForCausalLM",
    "ShearingLlamaConfig",
    "ShearingLlamaForCausalLM",
    "ShearingMinistralConfig",
    "ShearingMinistralForCausalLM",
    "ShearingMistralConfig",
    "ShearingMistralForCausalLM",
    "ShearingMixtralConfig",
    "ShearingMixtralForCausalLM",
    "ShearingOlmo2Config",
    "ShearingOlmo2ForCausalLM",
    "ShearingOlmo3Config",
    "ShearingOlmo3ForCausalLM",
    "ShearingPhi3Config",
    "ShearingPhi3ForCausalLM",
    "ShearingQwen2Config",
    "ShearingQwen2ForCausalLM",
    "ShearingQwen3Config",
    "ShearingQwen3ForCausalLM",
    "ShearingQwen3MoeConfig",
    "ShearingQwen3MoeForCausalLM",
    "ShearingSeedOssConfig",
    "ShearingSeedOssForCausalLM",
    "ShearingSmolLM3Config",
    "ShearingSmolLM3ForCausalLM",
]


@strict
class ShearingLlamaConfig(ShearingConfig, LlamaConfig):
    """``LlamaConfig`` with a target shape and masks."""

    model_type = "hf_shear_llama"


class ShearingLlamaForCausalLM(ShearingModel, LlamaForCausalLM):
    """``LlamaForCausalLM`` with masks."""

    config_class = ShearingLlamaConfig


@strict
class ShearingMistralConfig(ShearingConfig, MistralConfig):
    """``MistralConfig`` with a target shape and masks."""

    model_type = "hf_shear_mistral"


class ShearingMistralForCausalLM(ShearingModel, MistralForCausalLM):
    """``MistralForCausalLM`` with masks."""

    config_class = ShearingMistralConfig


@strict
class ShearingMinistralConfig(ShearingConfig, MinistralConfig):
    """``MinistralConfig`` with a target shape and masks."""

    model_type = "hf_shear_ministral"


class ShearingMinistralForCausalLM(ShearingModel, MinistralForCausalLM):
    """``MinistralForCausalLM`` with masks."""

    config_class = ShearingMinistralConfig


@strict
class ShearingQwen2Config(ShearingConfig, Qwen2Config):
    """``Qwen2Config`` with a target shape and masks."""

    model_type = "hf_shear_qwen2"


class ShearingQwen2ForCausalLM(ShearingModel, Qwen2ForCausalLM):
    """``Qwen2ForCausalLM`` with masks."""

    config_class = ShearingQwen2Config


@strict
class ShearingQwen3Config(ShearingConfig, Qwen3Config):
    """``Qwen3Config`` with a target shape and masks."""

    model_type = "hf_shear_qwen3"


class ShearingQwen3ForCausalLM(ShearingModel, Qwen3ForCausalLM):
    """``Qwen3ForCausalLM`` with masks."""

    config_class = ShearingQwen3Config


@strict
class ShearingSmolLM3Config(ShearingConfig, SmolLM3Config):
    """``SmolLM3Config`` with a target shape and masks."""

    model_type = "hf_shear_smollm3"


class ShearingSmolLM3ForCausalLM(ShearingModel, SmolLM3ForCausalLM):
    """``SmolLM3ForCausalLM`` with masks."""

    config_class = ShearingSmolLM3Config


@strict
class ShearingGraniteConfig(ShearingConfig, GraniteConfig):
    """``GraniteConfig`` with a target shape and masks."""

    model_type = "hf_shear_granite"


class ShearingGraniteForCausalLM(ShearingModel, GraniteForCausalLM):
    """``GraniteForCausalLM`` with masks."""

    config_class = ShearingGraniteConfig


@strict
class ShearingPhi3Config(ShearingConfig, Phi3Config):
    """``Phi3Config`` with a target shape and masks."""

    model_type = "hf_shear_phi3"


class ShearingPhi3ForCausalLM(ShearingModel, Phi3ForCausalLM):
    """``Phi3ForCausalLM`` with masks."""

    config_class = ShearingPhi3Config


@strict
class ShearingGemmaConfig(ShearingConfig, GemmaConfig):
    """``GemmaConfig`` with a target shape and masks."""

    model_type = "hf_shear_gemma"


class ShearingGemmaForCausalLM(ShearingModel, GemmaForCausalLM):
    """``GemmaForCausalLM`` with masks."""

    config_class = ShearingGemmaConfig


@strict
class ShearingGemma2Config(ShearingConfig, Gemma2Config):
    """``Gemma2Config`` with a target shape and masks."""

    model_type = "hf_shear_gemma2"


class ShearingGemma2ForCausalLM(ShearingModel, Gemma2ForCausalLM):
    """``Gemma2ForCausalLM`` with masks."""

    config_class = ShearingGemma2Config


@strict
class ShearingGemma3TextConfig(ShearingConfig, Gemma3TextConfig):
    """``Gemma3TextConfig`` with a target shape and masks."""

    model_type = "hf_shear_gemma3_text"


class ShearingGemma3ForCausalLM(ShearingModel, Gemma3ForCausalLM):
    """``Gemma3ForCausalLM`` with masks."""

    config_class = ShearingGemma3TextConfig


@strict
class ShearingOlmo2Config(ShearingConfig, Olmo2Config):
    """``Olmo2Config`` with a target shape and masks."""

    model_type = "hf_shear_olmo2"


class ShearingOlmo2ForCausalLM(ShearingModel, Olmo2ForCausalLM):
    """``Olmo2ForCausalLM`` with masks."""

    config_class = ShearingOlmo2Config


@strict
class ShearingOlmo3Config(ShearingConfig, Olmo3Config):
    """``Olmo3Config`` with a target shape and masks."""

    model_type = "hf_shear_olmo3"


class ShearingOlmo3ForCausalLM(ShearingModel, Olmo3ForCausalLM):
    """``Olmo3ForCausalLM`` with masks."""

    config_class = ShearingOlmo3Config


@strict
class ShearingExaone4Config(ShearingConfig, Exaone4Config):
    """``Exaone4Config`` with a target shape and masks."""

    model_type = "hf_shear_exaone4"


class ShearingExaone4ForCausalLM(ShearingModel, Exaone4ForCausalLM):
    """``Exaone4ForCausalLM`` with masks."""

    config_class = ShearingExaone4Config


@strict
class ShearingSeedOssConfig(ShearingConfig, SeedOssConfig):
    """``SeedOssConfig`` with a target shape and masks."""

    model_type = "hf_shear_seed_oss"


class ShearingSeedOssForCausalLM(ShearingModel, SeedOssForCausalLM):
    """``SeedOssForCausalLM`` with masks."""

    config_class = ShearingSeedOssConfig


@strict
class ShearingArceeConfig(ShearingConfig, ArceeConfig):
    """``ArceeConfig`` with a target shape and masks."""

    model_type = "hf_shear_arcee"


class ShearingArceeForCausalLM(ShearingModel, ArceeForCausalLM):
    """``ArceeForCausalLM`` with masks."""

    config_class = ShearingArceeConfig


@strict
class ShearingHunYuanDenseV1Config(ShearingConfig, HunYuanDenseV1Config):
    """``HunYuanDenseV1Config`` with a target shape and masks."""

    model_type = "hf_shear_hunyuan_v1_dense"


class ShearingHunYuanDenseV1ForCausalLM(ShearingModel, HunYuanDenseV1ForCausalLM):
    """``HunYuanDenseV1ForCausalLM`` with masks."""

    config_class = ShearingHunYuanDenseV1Config


@strict
class ShearingGlm4Config(ShearingConfig, Glm4Config):
    """``Glm4Config`` with a target shape and masks."""

    model_type = "hf_shear_glm4"


class ShearingGlm4ForCausalLM(ShearingModel, Glm4ForCausalLM):
    """``Glm4ForCausalLM`` with masks."""

    config_class = ShearingGlm4Config


@strict
class ShearingMixtralConfig(ShearingConfig, MixtralConfig):
    """``MixtralConfig`` with a target shape and masks."""

    model_type = "hf_shear_mixtral"


class ShearingMixtralForCausalLM(ShearingModel, MixtralForCausalLM):
    """``MixtralForCausalLM`` with masks."""

    config_class = ShearingMixtralConfig


@strict
class ShearingQwen3MoeConfig(ShearingConfig, Qwen3MoeConfig):
    """``Qwen3MoeConfig`` with a target shape and masks."""

    model_type = "hf_shear_qwen3_moe"


class ShearingQwen3MoeForCausalLM(ShearingModel, Qwen3MoeForCausalLM):
    """``Qwen3MoeForCausalLM`` with masks."""

    config_class = ShearingQwen3MoeConfig


SHEARING_CLASSES: dict[str, type[ShearingModel]] = {
    masked.config_class.model_type.removeprefix(MASKED_PREFIX): masked for masked in ShearingModel.__subclasses__()
}
"""The masked model class of every family, by the ``model_type`` of the family."""


def _with_stock_signature(stock: type[PreTrainedModel]) -> Callable[..., ShearingCausalLMOutput]:
    """A masked forward from whose signature `generate` reads that it may derive an attention mask from padding."""

    @wraps(stock.forward)
    def forward(self: ShearingModel, *args, **kwargs) -> ShearingCausalLMOutput:
        return ShearingModel.forward(self, *args, **kwargs)

    return forward


for _model_type, _masked in SHEARING_CLASSES.items():
    _masked.forward = _with_stock_signature(_masked.__bases__[1])
    AutoConfig.register(_masked.config_class.model_type, _masked.config_class)
    AutoModelForCausalLM.register(_masked.config_class, _masked)
    # Some families keep weights on disk under other names, or in other pieces, than in memory: a mixture's experts are
    # one file entry each, and one tensor together. transformers finds the rules by model_type.
    _rules = get_checkpoint_conversion_mapping(_model_type)
    if _rules is not None:
        register_checkpoint_conversion_mapping(MASKED_PREFIX + _model_type, _rules, overwrite=True)
