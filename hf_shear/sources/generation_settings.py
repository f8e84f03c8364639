"""A source's generation_config, in a form that transformers saves again.

transformers loads settings that contradict each other (``temperature`` without ``do_sample``, as checkpoints of 2023
have) and saves them back as they came. Once anything in them has changed, and training sets token ids, it refuses to.
"""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path

from torch import distributed as dist
from transformers import GenerationConfig
from transformers.utils import logging
from transformers.utils.hub import cached_file

from ..core import UsageError

GENERATION_NAME = "generation_config.json"

_NUMBERS = (
    "temperature", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
    "encoder_repetition_penalty", "length_penalty", "diversity_penalty", "guidance_scale", "max_time",
)  # fmt: skip
_WHOLE_NUMBERS = (
    "top_k", "num_beams", "num_beam_groups", "num_return_sequences", "max_length", "max_new_tokens", "min_length",
    "min_new_tokens", "no_repeat_ngram_size",
)  # fmt: skip
_FLAGS = ("do_sample", "use_cache")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

# Fields that have no effect without sampling, with the values that say nothing.
_SAMPLING = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None, "top_h": None, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}  # fmt: skip
_OF_BEAMS = {"early_stopping": False, "length_penalty": 1.0}

logger = logging.get_logger(__name__)


def read_generation_config(checkpoint: str | os.PathLike) -> GenerationConfig | None:
    """The generation_config.json of a checkpoint as ``savable_generation_config`` has it; None where there is none.

    Raises:
        UsageError: as ``load_generation_config``, or it cannot be saved.
    """
    config = load_generation_config(checkpoint)
    return None if config is None else savable_generation_config(config, _name(checkpoint))


def load_generation_config(checkpoint: str | os.PathLike) -> GenerationConfig | None:
    """The generation_config.json of a checkpoint as it is; None where there is none.

    transformers takes one that is not JSON for one that is not there, and fails on wrong types with bare errors of Python.

    Raises:
        UsageError: it is no JSON object, a field has a value that cannot be meant, or transformers refuses it.
    """
    path = cached_file(
        checkpoint, GENERATION_NAME, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    if path is None:
        return None
    name = _name(checkpoint)
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{name!r} is not valid JSON: {error}. Mend it, or delete it.") from error
    if not isinstance(fields, dict):
        raise UsageError(
            f"{name!r} must hold a JSON object, but it holds a {type(fields).__name__}. Mend or delete it."
        )
    _check_types(fields, name)
    try:
        return GenerationConfig(**fields)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name!r} is refused by transformers: {_sentence(error)} Mend it, or delete it.") from error


def _name(checkpoint: str | os.PathLike) -> str:
    return str(Path(checkpoint) / GENERATION_NAME)


def savable_generation_config(config: GenerationConfig, name: str = "generation_config") -> GenerationConfig:
    """The same settings in a form that transformers saves: ``config`` itself, or a copy, and a message of what changed.

    Where sampling is not said to be on or off, fields of sampling are kept and it is turned on. Servers take such fields
    whatever ``do_sample`` says. Where it is off, or ``temperature`` is 0, they have no effect and are dropped. So are
    fields of beam search without beams, and a negative padding token.

    Args:
        config: of a model.
        name: what errors call it.

    Raises:
        UsageError: a field has a value that can not be meant, or transformers refuses the settings for another reason.
    """
    _check_types(vars(config), name)
    if _refusal(config) is None:
        return config
    config = copy.deepcopy(config)
    sampling = {field: value for field in _SAMPLING if _is_set(value := getattr(config, field), _SAMPLING[field])}
    if sampling and config.do_sample is None and config.temperature != 0:
        config.do_sample = True
        _tell(
            f"generation_config: {_listed(sampling)} without `do_sample` is saved with `do_sample=True`, to have an effect."
        )
    dropped = {}
    if not config.do_sample:
        dropped |= sampling
    if config.num_beams in (None, 1):
        dropped |= {f: value for f in _OF_BEAMS if _is_set(value := getattr(config, f), _OF_BEAMS[f])}
    if not config.return_dict_in_generate:
        dropped |= {field: True for field in config.extra_output_flags if getattr(config, field)}
    if isinstance(config.pad_token_id, int) and config.pad_token_id < 0:
        dropped["pad_token_id"] = config.pad_token_id
    for field in dropped:
        setattr(config, field, None)
    if dropped:
        _tell(f"generation_config: {_listed(dropped)} has no effect beside its other settings, and is not saved.")
    refusal = _refusal(config)
    if refusal is not None:
        raise UsageError(f"{name!r} cannot be saved: {_sentence(refusal)} Mend it, or delete it.")
    return config


def _tell(text: str) -> None:
    """Say it once, in the main process alone."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        logger.warning_once(text)


def _sentence(text: object) -> str:
    return " ".join(str(text).split()).rstrip(".") + "."


def _refusal(config: GenerationConfig) -> str | None:
    try:
        config.validate(strict=True)
    except ValueError as error:
        return str(error)
    return None


def _is_set(value, default) -> bool:
    return value is not None and value != default


def _listed(fields: dict) -> str:
    return ", ".join(f"`{field}={value}`" for field, value in fields.items())


def _check_types(fields: dict, name: str) -> None:
    """Refuse values of other types than the field's; transformers compares them, and fails or takes them for valid."""
    for field, value in fields.items():
        if value is None:
            continue
        if field in _NUMBERS and not (_is_number(value) and math.isfinite(value)):
            rule = "a number"
        elif field in _WHOLE_NUMBERS and not _is_whole(value):
            rule = "a whole number"
        elif field in _FLAGS and not isinstance(value, bool):
            rule = "true or false"
        elif field in _TOKEN_IDS and not (_is_whole(value) or (isinstance(value, list) and all(map(_is_whole, value)))):
            rule = "a token id, or a list of them"
        else:
            continue
        raise UsageError(f"`{field}` in {name!r} must be {rule}, but it is {value!r}. Mend it, or delete it.")


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
