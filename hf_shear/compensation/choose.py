"""From what a user names to a method of compensation."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from transformers import PretrainedConfig

from ..core import UsageError, keyword_options, options_from_text
from ..shapes import family_of
from .add_biases import check_biases
from .gap import Gap

NONE = "none"
COMPENSATIONS = (NONE, "bias", "least_squares", "least_squares_bias")
MODULE, SOURCE = "module", "source"
TOWARDS = (MODULE, SOURCE)


@dataclass(frozen=True)
class Compensation:
    """A method with its options.

    Attributes:
        update: from the gap of a layer to the updates of its weight and its bias, None where it changes none.
        needs_bias: whether it updates biases.
        towards: what a layer's outputs are fitted to (``TOWARDS``).
        store: where hidden states wait between layers, such as "cpu"; None: the model's device.
    """

    update: Callable[[Gap], tuple[Tensor | None, Tensor | None]]
    needs_bias: bool
    towards: str
    store: str | None = None


def check_compensation(choice: str, config: PretrainedConfig) -> None:
    """Raise ValueError for a method that is unknown, or that models of this family do not admit."""
    chosen = resolve_compensation(choice)
    if chosen is not None and family_of(config).has_experts:
        raise UsageError(
            f"`compensation` must be 'none' for a {family_of(config).model_type}, but it is {choice!r}: what removed"
            " experts gave depends on the routing, which no linear layer can make up for. Say `compensation='none'`."
        )
    if chosen is not None and chosen.needs_bias:
        check_biases(config)
    if chosen is not None and chosen.towards == SOURCE:
        family = family_of(config)
        if family.post_norms or getattr(config, "residual_multiplier", 1.0) != 1.0:
            raise UsageError(
                f"`compensation` with towards=source fits what o_proj and down_proj add to the residual stream, but in the"
                f" family {family.model_type!r} that is normalised or scaled in between. Leave `towards` out."
            )


def reads_own_inputs(choice: str) -> bool:
    """Whether a method fits modules from the inputs that they have before anything more is removed.

    They are what a criterion that shares its inputs collected a moment ago; with ``towards=source`` inputs are those of
    the pruned and compensated layers below, which nobody knows before.
    """
    chosen = resolve_compensation(choice)
    return chosen is not None and chosen.towards == MODULE


def resolve_compensation(choice: str) -> Compensation | None:
    """The method that a name with options stands for (``"least_squares:damping=0.1"``); None for "none".

    Raises:
        ValueError: an unknown name or option.
    """
    name, _, text = choice.partition(":")
    if name not in COMPENSATIONS:
        raise UsageError(f"`compensation` must be one of {', '.join(COMPENSATIONS)}, but it is {name!r}.")
    if name == NONE:
        options_from_text(text, {}, "Compensation 'none'")
        return None
    function = getattr(importlib.import_module(f"{__package__}.{name}"), name)
    options = options_from_text(
        text, keyword_options(function) | {"towards": MODULE, "store": ""}, f"Compensation {name!r}"
    )
    towards, store = options.pop("towards", MODULE), options.pop("store", "")
    if towards not in TOWARDS:
        raise UsageError(f"Option 'towards' of `compensation` must be one of {', '.join(TOWARDS)}: {towards!r}.")
    return Compensation(partial(function, **options), function.needs_bias, towards, store or None)
