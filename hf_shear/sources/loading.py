"""The one way in which checkpoints are read.

``open_source`` reads the config and the heads of the weights, and refuses what does not fit together: before any weight
is loaded, and before any text is read. A ``Source`` then loads the model and the tokenizer, and looks once more at what
transformers says that it loaded.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import PretrainedConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils.hub import extract_commit_hash

from ..core import UsageError
from ..core.defaults import MASKED_PREFIX
from ..shapes import family_of, find_family
from .config import NEMOTRON_NAS, config_fields, largest_layer_config, read_config, readable
from .generation_settings import load_generation_config
from .gguf_file import check_gguf
from .places import Place, find_place
from .quantised import check_blocks, check_quantisation, to_dequantise
from .tokenizer import check_tokenizer, has_tokenizer
from .weight_files import GGUF, PICKLED, Weights, find_weights
from .whole_models import whole_models

if TYPE_CHECKING:  # importing them takes seconds, which a config does not need
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_OPTIONS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies")
"""Arguments of ``from_pretrained`` that say where on the Hub."""

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Source:
    """A checkpoint that fits together.

    Attributes:
        argument: what the user called it, for messages.
        name: as the user named it.
        config: as the weights say: untied where the head differs from the embedding, and without a
            quantization_config, since ``load_model`` gives whole weights.
        fields: of the config as they are written.
        notes: what else was found that a user should know, one sentence each.
    """

    argument: str
    name: str
    config: PretrainedConfig
    fields: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()
    weights: Weights | None = field(default=None, repr=False)
    _place: Place = field(repr=False, kw_only=True)
    _quantisation: Mapping | None = field(default=None, repr=False)
    _hub: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def load_model(self, dtype: torch.dtype | str | None = None, **options: Any) -> PreTrainedModel:
        """The model, with every weight from the checkpoint, in evaluation mode.

        Args:
            dtype: of its weights; None or "auto": as the config says, or else as they are stored.
            options: more for ``from_pretrained``.

        Raises:
            UsageError: a weight is missing, left over, or of another shape.
        """
        if dtype is not None:
            options["dtype"] = dtype
        from transformers import AutoModelForCausalLM

        return self.load_as(AutoModelForCausalLM.from_pretrained, self.config, **options)[0]

    def load_as(self, from_pretrained, config: PretrainedConfig, *arguments, new: tuple[str, ...] = (), **options: Any):
        """The model and transformers' report of loading it, by any class.

        Args:
            from_pretrained: of the class that loads it.
            config: of the model to make.
            arguments: more for its class.
            new: names, or beginnings of names, of weights that no plain checkpoint has, such as masks.
            options: more for ``from_pretrained``.

        Raises:
            UsageError: as ``load_model``; or DeepSpeed ZeRO-3 is to build the model out of quantised weights.
        """
        config = copy.deepcopy(config)
        if self.is_quantised and "quantization_config" in options:
            raise UsageError(f"`{self.argument}` {self.name!r} is quantised already, and can not be quantised anew.")
        if self.is_quantised and is_deepspeed_zero3_enabled():
            raise UsageError(
                f"`{self.argument}` {self.name!r} is quantised, and DeepSpeed ZeRO-3 can not build it in parts. Save it"
                f" dequantised first: hf-shear export {self.name} --output_dir PLAIN."
            )
        if self.is_gguf:
            from transformers import GgufConfig

            options |= {**self._place.options, "quantization_config": GgufConfig(dequantize=True)}
        elif self._quantisation is not None:
            config = to_dequantise(config, self._quantisation)
        mapping = None if self.weights is None else self.weights.key_mapping
        with _silent_transformers():
            model, info = from_pretrained(
                self._place.name, *arguments, config=config,
                **{**options, **self._hub, "output_loading_info": True, "trust_remote_code": False,
                   "key_mapping": mapping, "ignore_mismatched_sizes": True},
            )  # fmt: skip
        refuse_incomplete_load(self.argument, self.name, info, new)
        _forget_renames(model, mapping)
        model.config.name_or_path = self.name
        return model, info

    def load_tokenizer(self, **options: Any) -> PreTrainedTokenizerBase:
        """The tokenizer that lies beside the weights, or in a GGUF file.

        Raises:
            UsageError: there is none, it is broken, or it needs code of its own.
        """
        from transformers import AutoTokenizer

        in_gguf = check_tokenizer(self.argument, self._place)
        options |= self._place.options if in_gguf else {}
        options |= {} if in_gguf else {"config": self.config}
        with readable(self.argument, self.name):
            return AutoTokenizer.from_pretrained(self._place.name, trust_remote_code=False, **options, **self._hub)

    @property
    def location(self) -> str:
        """Where its files are: a folder, or a name on the Hub."""
        return self._place.name

    @property
    def revision(self) -> str | None:
        """The commit on the Hub that the weights are of, or else what the user named; None for a folder."""
        path = None if self.weights is None else str(self.weights.paths[0])
        return extract_commit_hash(path, None) or self._hub.get("revision")

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer lies beside the weights, or in their GGUF file; a name on the Hub is taken to have one."""
        return has_tokenizer(self._place)

    @property
    def is_plain(self) -> bool:
        """Whether it is what ``hf-shear export`` would make of it: whole weights under plain names, without masks."""
        wrapped = self.weights is not None and self.weights.key_mapping is not None
        return not (self.has_masks or self.is_quantised or wrapped)

    @property
    def is_nemotron_nas(self) -> bool:
        """Whether it is such an export, which can be described, but not loaded."""
        return self.fields.get("model_type") == NEMOTRON_NAS

    @property
    def has_masks(self) -> bool:
        """Whether it is a checkpoint with masks."""
        return self.config.model_type.startswith(MASKED_PREFIX)

    @property
    def is_gguf(self) -> bool:
        """Whether its weights are a GGUF file."""
        return self._place.gguf_file is not None

    @property
    def is_quantised(self) -> bool:
        """Whether its weights are made whole as they are loaded."""
        return self._quantisation is not None or self.is_gguf


def open_source(
    argument: str,
    name: str | os.PathLike,
    *,
    as_family: str | None = None,
    masked: bool | None = False,
    nemotron_nas: bool = False,
    unwrap: bool = False,
    fetch: bool = True,
    config: PretrainedConfig | None = None,
    **hub: Any,
) -> Source:
    """Read what a checkpoint says of itself, and refuse one that does not fit together.

    Args:
        argument: what the user called it, for messages.
        name: a folder, a ``.gguf`` file, or a name on the Hub.
        as_family: "mistral": a Llama without biases, whose heads do not divide its hidden size, is read as a Mistral.
        masked: whether it must have masks; None: it may.
        nemotron_nas: whether such an export is taken too, with the config of its largest layer, to describe it.
        unwrap: whether names of wrappers (``_orig_mod.``, ``module.``) before those of weights are left out.
        fetch: whether weights must be there, and are downloaded from the Hub. Without it, those that are not here are not
            looked at.
        config: used in place of the checkpoint's.
        hub: any of ``HUB_OPTIONS``.

    Raises:
        UsageError: says what does not fit, and what to do.
    """
    place = find_place(argument, name)
    fields = config_fields(argument, place, hub)
    described = nemotron_nas and fields.get("model_type") == NEMOTRON_NAS
    if config is not None:
        config = copy.deepcopy(config)
    elif described:
        config = largest_layer_config(fields)
    else:
        config = read_config(argument, place, fields, as_family, hub)
    config._name_or_path = str(name)
    if place.folder is not None:  # from the Hub, transformers fetches it with the model
        load_generation_config(place.folder)
    _check_masks(argument, name, config, masked)
    method = check_quantisation(argument, str(name), config)
    quantisation = config.quantization_config if method is not None else None
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    weights = find_weights(argument, place, getattr(config, "transformers_weights", None), fetch, hub)
    notes = []
    if weights is None:
        notes.append("Its weights are not here: only its config was looked at.")
    elif not described:
        notes += _check_weights(argument, str(name), config, weights, quantisation, unwrap)
    if method is not None:
        notes.append(f"It is quantised by {method}, and dequantised as it is loaded.")
    return Source(argument, str(name), config, fields, tuple(notes), weights, quantisation, hub, _place=place)


def refuse_incomplete_load(argument: str, name: str | os.PathLike, info: Mapping, new: tuple[str, ...] = ()) -> None:
    """Raise if any weight of a model did not come from its checkpoint, or one of the checkpoint went nowhere.

    Args:
        argument, name: as in ``open_source``.
        info: of ``from_pretrained(..., output_loading_info=True)``.
        new: beginnings of the names of weights that the checkpoint can not have.

    Raises:
        UsageError: names the weights.
    """
    problems = {
        "missing weights": sorted(key for key in info["missing_keys"] if not (new and key.startswith(new))),
        "weights of another shape": sorted(_shapes(key) for key in info["mismatched_keys"]),
        "weights that the config does not name": sorted(info["unexpected_keys"]),
    }
    found = [f"{kind} {_listed(keys)}" for kind, keys in problems.items() if keys]
    if found:
        raise UsageError(
            f"`{argument}`: the checkpoint {str(name)!r} does not fit its own config: {'; '.join(found)}. The model would"
            " compute another function than the checkpoint's. Check the path, or get the checkpoint anew."
        )


def _listed(names: list[str]) -> str:
    return f"[{', '.join(map(repr, names[:5]))}{f', and {len(names) - 5} more' if len(names) > 5 else ''}]"


def _shapes(key) -> str:
    """A mismatch as transformers gives it: a name, or a name with the shapes of file and model."""
    return key if isinstance(key, str) else f"{key[0]} ({', not '.join(str(list(shape)) for shape in key[1:])})"


def _check_masks(argument: str, name, config: PretrainedConfig, masked: bool | None) -> None:
    has_masks = config.model_type.startswith(MASKED_PREFIX)
    if masked is False and has_masks:
        raise UsageError(
            f"`{argument}` must be a plain checkpoint, but {str(name)!r} still has masks (model_type"
            f" {config.model_type!r}), so its size and speed are the source's. Export it first: hf-shear export {name}"
        )
    if masked and not has_masks:
        raise UsageError(
            f"`{argument}` {str(name)!r} has no masks (model_type {config.model_type!r}): it is a plain checkpoint already,"
            " or of another kind."
        )


def _check_weights(argument, name, config, weights: Weights, quantisation, unwrap: bool) -> list[str]:
    """Notes on the weights; those that do not fit the config are refused. The config follows the head."""
    if weights.kind == GGUF:
        check_gguf(argument, weights.paths[0], config)
        return ["It is a GGUF file, and dequantised as it is loaded."]
    notes = []
    if weights.kind == PICKLED:
        notes.append("Its weights are pickled: torch reads them by its weights-only loader, which runs no code.")
    if weights.key_mapping is not None:
        wrapped = next(inside for key, (inside, _) in weights.names.items() if inside != key)
        if not unwrap:
            raise UsageError(
                f"`{argument}` {name!r} has weights under the names of a wrapper, such as {wrapped!r}, of a compiled or"
                f" parallel model. Write them plainly, and name the result: hf-shear export {name} --output_dir PLAIN."
            )
        notes.append(f"Its weights have names of a wrapper, such as {wrapped!r}: hf-shear export writes them plainly.")
    if not weights.tensors:
        raise UsageError(f"`{argument}`: {str(weights.paths[0])!r} holds no weights at all. Get the checkpoint anew.")
    if quantisation is None:
        _refuse_no_floats(argument, name, weights)
    else:
        check_blocks(argument, name, quantisation, weights.tensors)
    if find_family(config) is None:
        return notes  # of no family here: transformers' report on loading it has to do
    if _has_own_head(config, weights):
        config.tie_word_embeddings = False
        notes.append("Its config ties the head to the embedding, but its weights hold another head: it is read untied.")
    if not config.model_type.startswith(MASKED_PREFIX):
        _check_fit(argument, name, config, weights, quantisation)
    return notes


def _refuse_no_floats(argument: str, name: str, weights: Weights) -> None:
    wrong = {
        key: head.dtype
        for key, head in weights.tensors.items()
        if isinstance(head.dtype, str) or not head.dtype.is_floating_point or head.dtype.itemsize < 2
    }
    if wrong:
        kinds = sorted({str(kind).removeprefix("torch.") for kind in wrong.values()})
        raise UsageError(
            f"`{argument}`: the checkpoint {name!r} has weights of type {', '.join(kinds)} and no quantization_config that"
            f" says what they stand for: {_listed(sorted(wrong))}. Give one with weights in float32, bfloat16 or float16."
        )


def _has_own_head(config: PretrainedConfig, weights: Weights) -> bool:
    """Whether a head lies beside a config that ties it, and differs from the embedding."""
    embedding, head = weights.tensors.get(_EMBEDDING), weights.tensors.get(_HEAD)
    if not config.tie_word_embeddings or embedding is None or head is None or embedding.shape != head.shape:
        return False
    embedding, head = weights.read(_EMBEDDING), weights.read(_HEAD)
    return not all(torch.equal(*rows) for rows in zip(embedding.split(4096), head.split(4096), strict=True))


def _check_fit(argument: str, name: str, config: PretrainedConfig, weights: Weights, quantisation) -> None:
    """Load the heads alone, as tensors without storage, by all of transformers' rules for names and pieces."""
    family = family_of(config)
    assert family is not None, "asked before"
    state = {inside: weights.tensors[key] for key, (inside, _) in weights.names.items()}
    state = {
        inside: torch.empty(head.shape, dtype=head.dtype, device="meta")
        for inside, head in state.items()
        if isinstance(head.dtype, torch.dtype)
    }
    config = copy.deepcopy(config)
    if quantisation is not None:
        config = to_dequantise(config, quantisation)
    with whole_models(), _silent_transformers(), readable(argument, name):
        loaded: Any = family.model_class.from_pretrained(
            None, config=config, state_dict=state, device_map={"": "meta"}, key_mapping=weights.key_mapping,
            output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32,
        )  # fmt: skip
    refuse_incomplete_load(argument, name, loaded[1])


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Without transformers' own report: what it says is said here, in one line."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _forget_renames(model: PreTrainedModel, mapping: Mapping[str, str] | None) -> None:
    """transformers saves a model under the names it was loaded from; those of wrappers are not to come back."""
    rules = getattr(model, "_weight_conversions", None)
    if mapping and rules:
        vars(model)["_weight_conversions"] = [
            rule for rule in rules if rule._original_source_patterns[0] not in mapping
        ]
