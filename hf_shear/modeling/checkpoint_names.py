"""Masked checkpoints have the names of weights that plain ones of their family have.

Some families keep weights on disk under other names, or in other pieces, than in memory: a mixture's experts are one
file entry each, and one tensor together. transformers finds the rules by model_type, and masked models have their own.
"""

from __future__ import annotations

from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from ..sources import MASKED_PREFIX


def share_weight_names(model_type: str) -> None:
    """Let masked models of a family be read and written by the rules of the family, if it has any."""
    rules = get_checkpoint_conversion_mapping(model_type)
    if rules is not None:
        register_checkpoint_conversion_mapping(MASKED_PREFIX + model_type, rules, overwrite=True)
