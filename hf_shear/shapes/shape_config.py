"""Copy a config to another shape, and ask a config class whether it accepts a shape at all."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from ..core import TARGET_NAMES, UsageError
from .family import Family, family_of, find_family
from .model_shape import ModelShape

_COMMON_FIELDS = {field.name for field in fields(PretrainedConfig)}
_WRITTEN_BY_CLASS = {"model_type", "transformers_version"}


def config_for_shape(
    source_config: PretrainedConfig,
    shape: ModelShape,
    kept_layers: Sequence[int] | None = None,
    config_class: type[PretrainedConfig] | None = None,
) -> PretrainedConfig:
    """A copy of `source_config` with the sizes of `shape` and an explicit `head_dim`.

    Per-layer lists (`layer_types`, and every other list of the config with one entry per layer, except token
    ids and the fields common to all configs) keep the entries of `kept_layers`. All else stays: rope
    parameters, bias and tie flags, token ids, positions, dtype, attention implementation. `source_config` is
    not changed.

    Args:
        shape: the sizes of the copy, of no more layers than the source.
        kept_layers: rising indices of the source's layers that the copy keeps; the first ones by default.
        config_class: class of the copy, by default the source's. Fields that only the source's class declares
            and `architectures` are then left out.

    Raises:
        ValueError: `head_dim` differs from the source's, `kept_layers` does not name num_hidden_layers layers
            of the source in rising order, or the config class refuses the result.
    """
    source = ModelShape.from_config(source_config)
    if shape.head_dim != source.head_dim:
        raise UsageError(f"`head_dim` must stay at the source's {source.head_dim}, but the shape has {shape.head_dim}.")
    layers = _check_kept_layers(kept_layers, shape.num_hidden_layers, source.num_hidden_layers)
    changes: dict[str, Any] = {**shape.to_dict(), **_cut_layer_lists(source_config, layers)}
    changes[family_of(source_config).mlp_width] = changes.pop("intermediate_size")
    config_class = type(source_config) if config_class is None else config_class
    try:
        if config_class is type(source_config):
            config = copy.deepcopy(source_config)
            for name, value in changes.items():
                setattr(config, name, value)
        else:
            config = config_class(**{**_fields_for_class(source_config, config_class), **changes})
        config.validate()
    except (StrictDataclassError, ValueError) as error:
        reason = error.__cause__ or error
        raise UsageError(f"{config_class.__name__} refuses the shape ({shape}): {reason}") from error
    return config


def as_family(config: PretrainedConfig, family: Family) -> PretrainedConfig:
    """The stock config of ``family`` that computes what ``config`` computes, on weights of the same names.

    There is one pair: a Llama without biases is a Mistral without a window.

    Raises:
        ValueError: there is no exact equivalent.
    """
    own = find_family(config)
    if own is family:
        return config
    biased = own is not None and any(own.has_bias(name, config) for name, _ in own.projections())
    if own is None or (own.model_type, family.model_type) != ("llama", "mistral") or biased:
        raise UsageError(
            f"A checkpoint of model_type {config.model_type!r}{' with biases' if biased else ''} has no exact equivalent"
            f" of model_type {family.model_type!r}. There is one of a Llama without biases: 'mistral'."
        )
    stock = config_for_shape(config, ModelShape.from_config(config), config_class=family.config_class)
    stock.sliding_window = None
    return stock


class ShapeAcceptance:
    """Asks the class of one source config which (hidden size, heads, key/value heads) it accepts.

    LlamaConfig, for one, refuses a hidden size that its heads do not divide, even when head_dim is given.
    """

    def __init__(self, source_config: PretrainedConfig):
        self._trial = copy.deepcopy(source_config)
        self._fixed = {name: getattr(source_config, name) for name in family_of(source_config).fixed_sizes}
        self.class_name = type(source_config).__name__

    def refusal(self, hidden_size: int, num_attention_heads: int, num_key_value_heads: int) -> str | None:
        """The class's own words if it refuses these three sizes, None if it accepts them.

        A family whose heads are normalised together (OLMo 2) is refused any change of theirs here.
        """
        heads = {"num_attention_heads": num_attention_heads, "num_key_value_heads": num_key_value_heads}
        if any(heads[name] != size for name, size in self._fixed.items()):
            return (
                "its queries, and its keys, are normalised over all heads together, so that none can be removed without"
                f" changing the others. Keep {', '.join(f'{name}={size}' for name, size in self._fixed.items())}"
            )
        try:
            self._trial.hidden_size = hidden_size
            self._trial.num_attention_heads = num_attention_heads
            self._trial.num_key_value_heads = num_key_value_heads
            self._trial.validate()
        except (StrictDataclassError, ValueError) as error:
            return str(error.__cause__ or error)
        return None


def _check_kept_layers(kept_layers: Sequence[int] | None, num_kept: int, num_layers: int) -> list[int]:
    if num_kept > num_layers:
        raise UsageError(f"`num_hidden_layers` must be at most the source's {num_layers}, but it is {num_kept}.")
    if kept_layers is None:
        return list(range(num_kept))
    layers = list(kept_layers)
    are_indices = all(
        isinstance(layer, Integral) and not isinstance(layer, bool) and 0 <= layer < num_layers for layer in layers
    )
    if not are_indices or len(layers) != num_kept or layers != sorted(set(layers)):
        raise UsageError(
            f"`kept_layers` must name {num_kept} of the source's layers 0 to {num_layers - 1} in rising "
            f"order, each once, but it is {layers}."
        )
    return [int(layer) for layer in layers]


def _cut_layer_lists(source_config: PretrainedConfig, layers: Sequence[int]) -> dict[str, list]:
    """The config's per-layer lists by name, cut to `layers`."""
    num_layers = source_config.num_hidden_layers
    return {
        name: [value[layer] for layer in layers]
        for name, value in vars(source_config).items()
        if isinstance(value, (list, tuple)) and len(value) == num_layers and _may_be_per_layer(name)
    }


def _may_be_per_layer(name: str) -> bool:
    """False for lists that are as long as the model is deep by accident (an `eos_token_id` of three ids)."""
    return not name.startswith("_") and name not in _COMMON_FIELDS and "token" not in name


def _fields_for_class(source_config: PretrainedConfig, config_class: type[PretrainedConfig]) -> dict[str, Any]:
    """Keyword arguments that carry everything but the shape of `source_config` into `config_class`."""
    own_fields = {field.name for field in fields(config_class)}
    foreign_fields = {field.name for field in fields(type(source_config))} - own_fields
    width = family_of(source_config).mlp_width
    sizes = {width if name == "intermediate_size" else name for name in (*TARGET_NAMES, "head_dim")}
    sizes |= {source_config.attribute_map.get(name, name) for name in sizes}  # under which `to_dict` has them
    dropped = foreign_fields | sizes | {"architectures"} | _WRITTEN_BY_CLASS
    values = {name: value for name, value in source_config.to_dict().items() if name not in dropped}
    values["name_or_path"] = values.pop("_name_or_path", "")
    values["attn_implementation"] = source_config._attn_implementation
    return values
