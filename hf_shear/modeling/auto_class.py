"""An auto class that picks the masked class of a checkpoint's family."""

from __future__ import annotations

import os

from transformers import PretrainedConfig, PreTrainedModel

from ..shapes import check_supported_source, family_named, family_of, find_family
from ..sources import HUB_OPTIONS, Source, open_source
from .family_classes import SHEARING_CLASSES
from .shearing_model import PATH, ShearingModel, check_model


class AutoShearingModelForCausalLM:
    """Makes the masked model of a checkpoint's family: ``ShearingLlamaForCausalLM`` for a Llama, and so on."""

    def __init__(self):
        raise TypeError(
            "AutoShearingModelForCausalLM is made by from_pretrained(path, target_shape=...) or from_model."
        )

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike | Source,
        *model_args,
        as_family: str | None = None,
        **kwargs,
    ) -> ShearingModel:
        """As ``ShearingModel.from_pretrained``, of the class for the checkpoint's family.

        Args:
            as_family: model_type to load it as, where that is exactly the same function ("mistral" for a Llama without
                biases); default: its own.

        Raises:
            ValueError: the family is not supported; the message lists those that are.
        """
        source = pretrained_model_name_or_path
        if not isinstance(source, Source):
            hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
            source = open_source(PATH, source, as_family=as_family, masked=None, config=kwargs.get("config"), **hub)
        return shearing_class(source.config, as_family).from_pretrained(source, *model_args, **kwargs)

    @staticmethod
    def from_model(model: PreTrainedModel, *args, as_family: str | None = None, **kwargs) -> ShearingModel:
        """As ``ShearingModel.from_model``, of the class for the model's family."""
        check_model(model)
        return shearing_class(model.config, as_family).from_model(model, *args, **kwargs)


def shearing_class(config: PretrainedConfig, as_family: str | None = None) -> type[ShearingModel]:
    """The masked class for a plain or masked config.

    Raises:
        ValueError: the family is not supported.
    """
    if find_family(config) is None:
        check_supported_source(config)
    family = family_of(config) if as_family is None else family_named(as_family, "`as_family`: ")
    return SHEARING_CLASSES[family.model_type]
