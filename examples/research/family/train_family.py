"""Train a family of small Llamas of one tokenizer and fixed aspect ratios on text domains.

    python -m examples.research.family.train_family --data_dir my_folder --output_dir family  # every size, one by one
    python -m examples.research.family.train_family --data_dir my_folder --output_dir family --sizes 96 128

A size is its hidden size d: d / 32 layers, d / 16 heads of 16 channels with d / 32 KV heads, an MLP of 8 / 3 d (rounded
up to a multiple of 32), tied embeddings. Every size sees the same tokens in the same order, at a learning rate that
falls as 1 / d. Each is a plain checkpoint in ``<output_dir>/<size>`` as ``examples/research/train_source.py`` writes
it, whose flags not named here keep their defaults; sizes that are there are left alone, and one that was broken off
goes on. The tokenizer is trained with the first size.
"""

from __future__ import annotations

import argparse
import logging
import math
import shutil
from pathlib import Path

from ..train_source import main as train_source

SIZES = (64, 96, 128, 192)
LAYER_WIDTH, HEAD_DIM, QUERIES_PER_GROUP = 32, 16, 2  # hidden dimensions per layer, channels per head, heads per group
MLP_RATIO, MLP_MULTIPLE = 8 / 3, 32
LEARNING_RATE_AT_128 = 3e-3
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")

logger = logging.getLogger("train_family")


def shape_of(hidden_size: int) -> dict[str, int]:
    """The shape of the member of the family with this hidden size."""
    if hidden_size < 2 * LAYER_WIDTH or hidden_size % LAYER_WIDTH:
        raise ValueError(
            f"`sizes` must be multiples of {LAYER_WIDTH} of at least {2 * LAYER_WIDTH}, because a layer is added for"
            f" every {LAYER_WIDTH} hidden dimensions, but one is {hidden_size}."
        )
    heads = hidden_size // HEAD_DIM
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": hidden_size // LAYER_WIDTH,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // QUERIES_PER_GROUP,
        "intermediate_size": math.ceil(MLP_RATIO * hidden_size / MLP_MULTIPLE) * MLP_MULTIPLE,
    }


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--output_dir", required=True, help="a folder per size is made in it")
    parser.add_argument("--data_dir", help="a sub-folder or file of text per domain; default: the standard library's")
    parser.add_argument("--text_field", default="text", help="field or column that holds the text (%(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="hidden sizes (%(default)s)")
    parser.add_argument("--vocab_size", type=int, default=4096, help="pieces of the tokenizer (%(default)s)")
    parser.add_argument("--num_tokens", type=int, default=3_000_000, help="training tokens of each (%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="of the saved weights (%(default)s)")
    arguments = parser.parse_args(command_line)
    shapes = {size: shape_of(size) for size in arguments.sizes}
    root = Path(arguments.output_dir)
    for size, shape in shapes.items():
        folder = root / str(size)
        if (folder / "source.json").exists():
            logger.warning(f"{folder} is there and left alone.")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        share_tokenizer(root, folder)
        flags = shape | {
            "output_dir": folder,
            "vocab_size": arguments.vocab_size,
            "num_tokens": arguments.num_tokens,
            "learning_rate": LEARNING_RATE_AT_128 * 128 / size,
            "dtype": arguments.dtype,
        }
        if arguments.data_dir:
            flags |= {"data_dir": arguments.data_dir, "text_field": arguments.text_field}
        train_source([part for name, value in flags.items() for part in (f"--{name}", str(value))])


def share_tokenizer(root: Path, folder: Path) -> None:
    """Copy the family's tokenizer into ``folder``, if a size before has trained it."""
    if (folder / TOKENIZER_FILES[0]).exists():
        return
    for other in sorted(root.iterdir()):
        if all((other / name).exists() for name in TOKENIZER_FILES):
            for name in TOKENIZER_FILES:
                shutil.copyfile(other / name, folder / name)
            return


if __name__ == "__main__":
    main()
