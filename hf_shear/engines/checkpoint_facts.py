"""What an engine looks at before it takes a checkpoint: sizes, biases, rotary embedding, tokenizer files."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..core import UsageError

SENTENCEPIECE, JSON_ONLY, NO_TOKENIZER = "tokenizer.model", "tokenizer.json only", "none"


@dataclass(frozen=True)
class CheckpointFacts:
    """Facts of one checkpoint, from its config.json and the names of its files.

    Attributes:
        model_type: as in the config; "nemotron-nas" gives every layer a shape of its own.
        hidden_size, num_attention_heads, num_key_value_heads, head_dim, vocab_size: sizes of the model.
        intermediate_sizes: the widths of the MLPs that occur, each once.
        tied: whether the head is the embedding.
        attention_bias, mlp_bias: whether the checkpoint says it has them.
        rope_type, rope_theta: of the rotary embedding; theta 10,000 where nothing is said.
        rope_at_top: whether theta is also a field of the config itself, where readers of before transformers 5 look.
        window: width of a sliding attention window, None if there is none.
        tokenizer: SENTENCEPIECE, JSON_ONLY or NO_TOKENIZER.
    """

    model_type: str
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    intermediate_sizes: tuple[int, ...]
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_type: str = "default"
    rope_theta: float = 10_000.0
    rope_at_top: bool = False
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
        if "intermediate_size" in sizes:
            sizes["intermediate_sizes"] = (sizes.pop("intermediate_size"),)
        known = {name: size for name, size in sizes.items() if name in self.__dataclass_fields__}
        return replace(self, rope_at_top=True, **known)


def facts_of_config(config: Mapping, files: Collection[str] = ()) -> CheckpointFacts:
    """Facts of a checkpoint whose config.json is ``config``, with the files named.

    Raises:
        ValueError: the config lacks a size that every decoder has.
    """
    missing = [
        name for name in ("model_type", "hidden_size", "num_attention_heads", "vocab_size") if not config.get(name)
    ]
    if missing:
        raise UsageError(f"The config lacks {', '.join(missing)}, so it is not known where it loads.")
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return CheckpointFacts(
        model_type=config["model_type"],
        hidden_size=config["hidden_size"],
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        intermediate_sizes=_intermediate_sizes(config),
        tied=bool(config.get("tie_word_embeddings")),
        attention_bias=bool(config.get("attention_bias")),
        mlp_bias=bool(config.get("mlp_bias")),
        rope_type=rope.get("rope_type", rope.get("type", "default")),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        rope_at_top="rope_theta" in config,
        window=config.get("sliding_window") if config.get("use_sliding_window", True) else None,
        tokenizer=_tokenizer(files),
    )


def read_facts(checkpoint: str | os.PathLike) -> CheckpointFacts:
    """Facts of the checkpoint in a folder; no weights are read.

    Raises:
        ValueError: the folder has no config.json, or it lacks a size.
    """
    folder = Path(checkpoint)
    if not (folder / "config.json").is_file():
        raise UsageError(f"`checkpoint` {str(checkpoint)!r} holds no config.json. Name the folder of a checkpoint.")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return facts_of_config(config, {path.name for path in folder.iterdir()})


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


def _tokenizer(files: Collection[str]) -> str:
    if SENTENCEPIECE in files:
        return SENTENCEPIECE
    return JSON_ONLY if "tokenizer.json" in files else NO_TOKENIZER
