"""The masked class of every family, and an auto class that picks the right one."""

from __future__ import annotations

import os
from functools import wraps

from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..shapes import FAMILIES, Family, family_named, family_of
from ..sources import HUB_OPTIONS, Source, open_source
from .checkpoint_names import share_weight_names
from .configuration import shearing_config_class
from .shearing_model import PATH, ShearingModel, check_model, check_supported_source


def _make_class(family: Family) -> type[ShearingModel]:
    stock = family.model_class

    # With the stock signature: `generate` reads from it that it may derive an attention mask from padding.
    @wraps(stock.forward)
    def forward(self, *args, **kwargs):
        return ShearingModel.forward(self, *args, **kwargs)

    body = {
        "__module__": __name__,
        "__doc__": f"{family.model_name} with masks: see ``ShearingModel``.",
        "config_class": shearing_config_class(family),
        "forward": forward,
    }
    return type(f"Shearing{family.model_name}", (ShearingModel, stock), body)


_CLASSES = {family.model_type: _make_class(family) for family in FAMILIES.values() if family.is_installed}
for _class in _CLASSES.values():
    globals()[_class.__name__] = _class  # pickle and users find it by its name
    AutoModelForCausalLM.register(_class.config_class, _class)
for _family in _CLASSES:
    share_weight_names(_family)


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
    if family_of(config) is None:
        check_supported_source(config)
    family = family_of(config) if as_family is None else family_named(as_family, "`as_family`: ")
    return _CLASSES[family.model_type]
