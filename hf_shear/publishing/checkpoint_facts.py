"""What an engine looks at before it takes a checkpoint: sizes, kinds of layers, rotary embedding, tokenizer files."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core import UsageError, read_json_object

SENTENCEPIECE, NO_TOKENIZER = "tokenizer.model", "none"
JSON_ONLY, JSON_BYTE_FALLBACK = "tokenizer.json only", "tokenizer.json only, with byte fallback"
SLIDING = "sliding_attention"  # in `layer_types`


@dataclass(frozen=True)
class CheckpointFacts:
    """Facts of one checkpoint, from its config.json, the names of its files and the kind of its tokenizer.

    Attributes:
        model_type: as in the config; "nemotron-nas" gives every layer a shape of its own.
        hidden_size, num_attention_heads, num_key_value_heads, head_dim, vocab_size: sizes of the model.
        intermediate_sizes: the widths of the MLPs that occur, each once.
        num_hidden_layers: how many layers it has; 0 if the config does not say.
        layer_types: kind of attention of each layer, as in the config; empty where the config leaves it to the family.
        no_rope_layers: per layer 1 where it rotates and 0 where not, as in the config; empty as ``layer_types``.
        layers_are_known: False for a target with fewer layers, as long as it is open which ones stay.
        tied: whether the head is the embedding.
        attention_bias, mlp_bias: whether the checkpoint says it has them.
        rope_type, rope_theta: of the rotary embedding; theta 10,000 where nothing is said. Where each type of layer has
            an embedding of its own, the first type that is no "default", and 10,000.
        query_scale: ``query_pre_attn_scalar`` of a Gemma, None if the config has none.
        rope_at_top: whether theta is also a field of the config itself, where readers of before transformers 5 look.
        window: width of a sliding attention window, None if there is none.
        tokenizer: SENTENCEPIECE, JSON_BYTE_FALLBACK, JSON_ONLY (without byte fallback) or NO_TOKENIZER.
    """

    model_type: str
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    intermediate_sizes: tuple[int, ...]
    num_hidden_layers: int = 0
    layer_types: tuple[str, ...] = ()
    no_rope_layers: tuple[int, ...] = ()
    layers_are_known: bool = True
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_type: str = "default"
    rope_theta: float = 10_000.0
    rope_at_top: bool = False
    query_scale: float | None = None
    window: int | None = None
    tokenizer: str = NO_TOKENIZER

    @property
    def row_lengths(self) -> dict[str, int]:
        """Weights of a row, by what they are: the lengths that blocks of a quantised format must divide."""
        widths = {f"intermediate_size {size}": size for size in self.intermediate_sizes}
        attention = self.num_attention_heads * self.head_dim
        return {
            f"hidden_size {self.hidden_size}": self.hidden_size,
            f"heads x head_dim {attention}": attention,
            **widths,
        }

    @property
    def is_square(self) -> bool:
        """Whether heads times head_dim is the hidden size, as it is in most models that were not pruned."""
        return self.num_attention_heads * self.head_dim == self.hidden_size

    def not_multiples_of(self, block: int) -> str:
        """The row lengths that are no multiple of ``block``, in words; empty if there are none."""
        return ", ".join(name for name, length in self.row_lengths.items() if length % block)

    def resized(self, **sizes: int) -> CheckpointFacts:
        """The facts of the same checkpoint cut to other sizes (names of the config), as hf_shear saves it."""
        known: dict[str, Any] = {name: size for name, size in sizes.items() if name in self.__dataclass_fields__}
        if "intermediate_size" in sizes:
            known["intermediate_sizes"] = (sizes["intermediate_size"],)
        same_layers = sizes.get("num_hidden_layers", self.num_hidden_layers) == self.num_hidden_layers
        return replace(self, rope_at_top=True, layers_are_known=same_layers and self.layers_are_known, **known)


def facts_of_config(config: Mapping, files: Collection[str] = (), byte_fallback: bool = False) -> CheckpointFacts:
    """Facts of a checkpoint whose config.json is ``config``.

    Args:
        files: names of its files.
        byte_fallback: whether its tokenizer.json spells what it does not know in bytes (``has_byte_fallback``).

    Raises:
        ValueError: the config lacks a size that every decoder has.
    """
    missing = [
        name for name in ("model_type", "hidden_size", "num_attention_heads", "vocab_size") if not config.get(name)
    ]
    if missing:
        raise UsageError(f"The config lacks {', '.join(missing)}, so it is not known where it loads.")
    heads = config["num_attention_heads"]
    rope = _rope(config)
    return CheckpointFacts(
        model_type=config["model_type"],
        hidden_size=config["hidden_size"],
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        intermediate_sizes=_intermediate_sizes(config),
        num_hidden_layers=config.get("num_hidden_layers") or 0,
        layer_types=tuple(config.get("layer_types") or ()),
        no_rope_layers=tuple(config.get("no_rope_layers") or ()),
        tied=bool(config.get("tie_word_embeddings")),
        attention_bias=bool(config.get("attention_bias")),
        mlp_bias=bool(config.get("mlp_bias")),
        rope_type=rope.get("rope_type", rope.get("type", "default")),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        rope_at_top="rope_theta" in config,
        query_scale=config.get("query_pre_attn_scalar"),
        window=config.get("sliding_window") if config.get("use_sliding_window", True) else None,
        tokenizer=_tokenizer(files, byte_fallback),
    )


def read_facts(checkpoint: str | os.PathLike) -> CheckpointFacts:
    """Facts of the checkpoint in a folder; no weights are read.

    Raises:
        ValueError: the folder has no config.json, or it lacks a size.
    """
    folder = Path(checkpoint)
    if not (folder / "config.json").is_file():
        raise UsageError(f"`checkpoint` {str(checkpoint)!r} holds no config.json. Name the folder of a checkpoint.")
    config = read_json_object(folder / "config.json")
    return facts_of_config(config, {path.name for path in folder.iterdir()}, has_byte_fallback(folder))


def has_byte_fallback(checkpoint: str | os.PathLike) -> bool:
    """Whether the tokenizer.json in a folder has byte fallback; False where there is none, or no folder."""
    path = Path(checkpoint) / "tokenizer.json"
    if not path.is_file():
        return False
    model = read_json_object(path).get("model") or {}
    return bool(model.get("byte_fallback"))


def _rope(config: Mapping) -> Mapping:
    """The rotary embedding; of several, one for each type of layer, the first that is scaled, without its theta."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    each = [part for part in rope.values() if isinstance(part, Mapping)]
    scaled = [part for part in each if part.get("rope_type", "default") != "default"]
    return {**scaled[0], "rope_theta": None} if scaled else {} if each else rope


def _intermediate_sizes(config: Mapping) -> tuple[int, ...]:
    """The widths that occur; of a nemotron-nas those that its multipliers come to, before they are rounded up to 256."""
    if config.get("block_configs"):
        sizes = {_block_width(block.get("ffn") or {}, config["hidden_size"]) for block in config["block_configs"]}
        return tuple(sorted(sizes - {0}))
    size = config.get("intermediate_size")
    return (size,) if size else ()


def _block_width(ffn: Mapping, hidden_size: int) -> int:
    if ffn.get("no_op"):
        return 0
    return ffn.get("intermediate_size") or round(2 * (ffn.get("ffn_mult") or 0.0) * hidden_size / 3)


def _tokenizer(files: Collection[str], byte_fallback: bool) -> str:
    if SENTENCEPIECE in files:
        return SENTENCEPIECE
    if "tokenizer.json" not in files:
        return NO_TOKENIZER
    return JSON_BYTE_FALLBACK if byte_fallback else JSON_ONLY
