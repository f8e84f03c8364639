"""How a model with masks is made: from a checkpoint, or from a model in memory."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict

import torch
from transformers import PretrainedConfig, PreTrainedModel
from typing_extensions import Self

from ..core import UsageError
from ..masks import MaskSettings, ShearingMasks
from ..shapes import ModelShape, TargetShape, as_family, check_supported_source, family_of
from ..sources import HUB_OPTIONS, Source, open_source
from .configuration import ShearingConfig, is_masked_config
from .mixin import ShearingMixin

PATH = "pretrained_model_name_or_path"  # the argument's name, for messages

GROUPED_MULTIPLE = 8  # values of two bytes in the 16 bytes that torch.nn.functional.grouped_mm asks strides to divide

# Arguments of the stock `from_pretrained` that a config may have an attribute for: they are passed on, not set on it.
LOADING_OPTIONS = (
    "dtype",
    "torch_dtype",
    "attn_implementation",
    "experts_implementation",
    "quantization_config",
    "fusion_config",
    "distributed_config",
)


class ShearingModel(ShearingMixin):
    """A stock causal language model whose hidden dimensions, layers, heads and MLP neurons, or experts, carry masks.

    (arXiv 2310.06694, section 2.1.) One class per family: ``ShearingLlamaForCausalLM``, ``ShearingQwen2ForCausalLM``, ...

    Example:
        >>> model = ShearingLlamaForCausalLM.from_pretrained("path/to/llama", target_shape={"intermediate_size": 5504})
    """

    config_class: type[ShearingConfig]

    def __init__(self, config: ShearingConfig):
        super().__init__(config)
        self._add_masks()
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | Source,
        *model_args,
        target_shape: TargetShape | dict[str, int] | None = None,
        mask_settings: MaskSettings | None = None,
        config: PretrainedConfig | None = None,
        **kwargs,
    ) -> Self:
        """Load a plain checkpoint and add masks towards ``target_shape``, or load a masked checkpoint.

        Args:
            pretrained_model_name_or_path: a folder, a .gguf file, a Hub name, or any of them opened.
            target_shape: the shape to reach; any subset of its names of sizes. Required for a plain checkpoint; for a
                masked one it may be left out, and must agree if given.
            mask_settings: how masks are parameterised and drawn.
            config, kwargs: as for any ``from_pretrained``; where ``config`` is not given, ``kwargs`` that are
                attributes of the checkpoint's config (``use_cache=False``) are set on it.

        Raises:
            UsageError: the source is of another family (but see below); the target does not fit the source; the
                checkpoint lacks weights or holds weights of another shape (nothing is ever left at random values).

        ``ShearingMistralForCausalLM`` takes a Llama without biases too, as the Mistral without a window that it is: then
        the target may have a hidden size that the heads do not divide, which a Llama's config refuses.
        """
        loading_info_wanted = kwargs.pop("output_loading_info", False)
        source = pretrained_model_name_or_path
        if not isinstance(source, Source):
            hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
            own_type = family_of(cls.config_class()).model_type
            source = open_source(PATH, source, as_family=own_type, masked=None, config=config, **hub)
        if config is None:
            config = copy.deepcopy(source.config)
            if "experts_implementation" in kwargs:
                config._experts_implementation = kwargs["experts_implementation"]
            for name in [name for name in kwargs if name not in LOADING_OPTIONS and hasattr(config, name)]:
                setattr(config, name, kwargs.pop(name))
        else:
            config = copy.deepcopy(config)
            config.tie_word_embeddings = source.config.tie_word_embeddings
        masked = is_masked_config(config)
        config = _masked_config(cls, config, target_shape, mask_settings, None if masked else source.revision)
        if source.is_gguf:  # transformers knows the names in it by the model_type of a plain config
            model, info = cls.from_model(source.load_model(**kwargs), target_shape, mask_settings), {}
        else:
            new = () if masked else ("masks.",)
            model, info = source.load_as(super().from_pretrained, config, *model_args, new=new, **kwargs)
            model.replicate_masks(saved=masked)
        return (model, info) if loading_info_wanted else model  # pyright: ignore[reportReturnType]  # as the stock method

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        target_shape: TargetShape | dict[str, int] | None = None,
        mask_settings: MaskSettings | None = None,
    ) -> Self:
        """Add masks to a model in memory, whose weights the result shares; ``model`` itself is left as it is.

        Args:
            model: a stock model, or a masked one, of which only the weights are taken.
            target_shape: as in ``from_pretrained``; None: the source's own, so that nothing is to be removed.
            mask_settings: as in ``from_pretrained``.

        Raises:
            ValueError: the model is of another family, is spread over processes, or the target does not fit it.
        """
        config = copy.deepcopy(model.config)
        if is_masked_config(config):
            config.target_shape = config.mask_settings = config.mask_phase = None
            target = TargetShape.from_dict(config, _named_sizes(target_shape or {}))
            config.target_shape, config.mask_settings = target.to_dict(), asdict(mask_settings or MaskSettings())
        else:
            config = _masked_config(cls, config, target_shape or {}, mask_settings, None)
        state = {name: weight for name, weight in model.state_dict().items() if not name.startswith("masks.")}
        if any(weight.is_meta or hasattr(weight, "device_mesh") for weight in state.values()):
            raise UsageError("`model` must hold all its weights in this process, but some are on others, or on meta.")
        with torch.device("meta"):
            masked = cls(config)
        masks = ShearingMasks(masked.masks.source, masked.masks.target, masked.masks.settings)
        masks.load_state_dict(masks.start_parameters(), strict=True)
        masked.masks = masks.to(model.device)
        state |= {f"masks.{name}": value for name, value in masked.masks.state_dict().items()}
        masked.load_state_dict(state, assign=True, strict=True)
        masked.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
        for name, buffer in model.named_buffers():  # those that no state dict holds: the scale of embeddings
            if masked.get_buffer(name).is_meta:
                owner, _, last = name.rpartition(".")
                setattr(masked.get_submodule(owner), last, buffer.detach().clone())
        masked.tie_weights()
        masked.generation_config = copy.deepcopy(model.generation_config)
        copy_implementations(model.config, masked)
        return masked.train(model.training)


def copy_implementations(config: PretrainedConfig, model: PreTrainedModel) -> None:
    """Let ``model`` compute attention, and experts, as models of ``config`` do."""
    if config._attn_implementation is not None:
        model.set_attn_implementation(config._attn_implementation)
    if family_of(config).has_experts and config._experts_implementation is not None:
        model.set_experts_implementation(config._experts_implementation)


def check_model(model: object) -> None:
    """Raise UsageError for what is no model of transformers, nor one that wraps it."""
    if not isinstance(getattr(model, "config", None), PretrainedConfig):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise UsageError(
            f"`model` must be a causal language model of transformers, but it is {given}. Load one with `from_pretrained`."
        )


def _masked_config(
    cls: type[ShearingModel],
    config: PretrainedConfig,
    target_shape: TargetShape | Mapping[str, int] | None,
    mask_settings: MaskSettings | None,
    revision: str | None,
) -> ShearingConfig:
    """The masked config of the class for a plain or masked checkpoint's config."""
    family = family_of(cls.config_class())
    if is_masked_config(config):
        if type(config) is not cls.config_class:
            raise UsageError(f"This masked checkpoint is a {config.model_type!r}: load it with its own class.")
        sizes = config.resolved_target().to_dict()
        if target_shape is not None and sizes | _named_sizes(target_shape) != sizes:
            raise UsageError(
                f"`target_shape` {target_shape} differs from the one that the masks of this checkpoint were made for,"
                f" {sizes}. Leave `target_shape` out, or start again from the plain source."
            )
        if mask_settings is not None and mask_settings != config.resolved_settings():
            raise UsageError(
                f"`mask_settings` {mask_settings} differ from those of this masked checkpoint,"
                f" {config.resolved_settings()}. Leave `mask_settings` out, or start again from the plain source."
            )
        return config
    check_supported_source(config)
    if target_shape is None:
        names = ModelShape.from_config(config).size_names
        raise UsageError(
            "`target_shape` is needed to add masks to a plain checkpoint. Give any of"
            f" {', '.join(names)}, for example target_shape={{{names[-1]!r}: ...}}."
        )
    config = as_family(config, family)
    target = TargetShape.from_dict(config, _named_sizes(target_shape))
    if family.has_experts:
        _check_grouped(config, target)
    return cls.config_class.from_source(config, target, mask_settings or MaskSettings(), revision)


def _check_grouped(config: PretrainedConfig, target: TargetShape) -> None:
    """Refuse a hidden size whose sliced experts torch's grouped matrix product, transformers' default, does not take."""
    size = target.hidden_size
    if size != target.source.hidden_size and size % GROUPED_MULTIPLE and config._experts_implementation != "eager":
        raise UsageError(
            f"`hidden_size` must be a multiple of {GROUPED_MULTIPLE} in a mixture of experts, but it is {size}: torch"
            " multiplies all experts at once only where rows of weights fill 16 bytes. Give"
            f" {-(-size // GROUPED_MULTIPLE) * GROUPED_MULTIPLE}, or load source and result with"
            " experts_implementation='eager'."
        )


def _named_sizes(target_shape: TargetShape | Mapping[str, int | None]) -> dict[str, int]:
    """The sizes that a target names; one that is None is left to the source, or to the saved target."""
    sizes = target_shape.to_dict() if isinstance(target_shape, TargetShape) else target_shape
    return {name: size for name, size in sizes.items() if size is not None}
