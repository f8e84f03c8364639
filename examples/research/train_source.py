"""Train a small source model to shear and its tokenizer, from scratch on text domains, and measure it.

    python -m examples.research.train_source --output_dir source  # the standard library's text
    python -m examples.research.train_source --output_dir source --data_dir my_folder  # a sub-folder per domain
    python -m examples.research.train_source --output_dir source --model_type qwen3  # another family than Llama

Only the training side of `hf_shear.data.split_domains` is read, by the tokenizer as well. The result is a plain
Hugging Face checkpoint with tokenizer and generation config, and ``source.json``: the held-out loss of every domain
(nats per token) beside that of a unigram model, which knows how often each token occurs in that domain and nothing
else.

A run that was broken off goes on where it was last saved when the same command is given again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from examples.embedded.stdlib_domains import domain_sizes, stdlib_domains
from hf_shear.data import load_domains, pack_domains, split_domains
from hf_shear.shapes import family_named

from .source_tokenizer import save_tokenizer, train_pieces

logger = logging.getLogger("train_source")

SHAPE_NAMES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)

LOG_SECONDS, SAVE_SECONDS = 20.0, 150.0
WARMUP_FRACTION = 0.02  # of the steps, linear
FINAL_LEARNING_RATE = 0.02  # of the peak, at the end of the cosine
EVALUATION_BATCH_SIZE = 16  # samples
NUM_PROBE_SAMPLES = 4
"""Held-out samples per domain whose loss is recorded on its own, so that the numbers are quickly checked."""


@dataclass(frozen=True)
class SourceArguments:
    """What is trained, on what, for how long; every field is a flag of the same name."""

    output_dir: str
    data_dir: str | None = None
    text_field: str = "text"
    vocab_size: int = 1536
    hidden_size: int = 128
    num_hidden_layers: int = 5
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    intermediate_size: int = 336
    max_position_embeddings: int = 512
    max_length: int = 256
    num_tokens: int = 8_000_000
    batch_size: int = 8
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    max_gradient_norm: float = 1.0
    size_exponent: float = 0.5
    held_out_fraction: float = 0.1
    seed: int = 0
    num_threads: int = 1
    dtype: str = "float32"
    model_type: str = "llama"

    @property
    def num_steps(self) -> int:
        return max(1, self.num_tokens // (self.batch_size * self.max_length))


HELP = {
    "output_dir": "the checkpoint's folder",
    "data_dir": "folder with a sub-folder or file of text per domain; default: the standard library's text",
    "text_field": "field or column that holds the text",
    "vocab_size": "pieces of the tokenizer",
    "max_length": "tokens per sample",
    "num_tokens": "training tokens",
    "batch_size": "samples per step",
    "size_exponent": "a domain is drawn in proportion to its tokens to this power: 0 uniform, 1 by size",
    "held_out_fraction": "share of the groups that is held out",
    "seed": "of the split, the first weights and the order of the samples",
    "num_threads": "threads of torch",
    "dtype": "of the saved weights; they are rounded to it before anything is measured",
    "model_type": "any family that can be sheared: llama, mistral, qwen3, ...",
}


def parse_arguments(arguments: list[str] | None = None) -> SourceArguments:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    for name, field in SourceArguments.__dataclass_fields__.items():
        kind = {"str": str, "str | None": str, "int": int, "float": float}[field.type]
        required = name == "output_dir"
        default = None if required else field.default
        text = f"{HELP.get(name, name.replace('_', ' '))} (%(default)s)"
        parser.add_argument(f"--{name}", type=kind, required=required, default=default, help=text)
    return SourceArguments(**vars(parser.parse_args(arguments)))


# Model, data ------------------------------------------------------------------------------------------------


def build_model(arguments: SourceArguments, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    family = family_named(arguments.model_type)
    config = family.config_class(
        vocab_size=len(tokenizer),
        head_dim=arguments.hidden_size // arguments.num_attention_heads,
        max_position_embeddings=arguments.max_position_embeddings,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        **{name: getattr(arguments, name) for name in SHAPE_NAMES},
    )
    torch.manual_seed(arguments.seed)
    model = family.model_class(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return model


class SampleStream:
    """Batches of samples: the domain of each is drawn, its samples come in shuffled passes.

    What is drawn depends on the seed and the number of batches drawn before, and on nothing else.
    """

    def __init__(self, samples: dict[str, torch.Tensor], batch_size: int, size_exponent: float, seed: int) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        weights = np.array([len(rows) for rows in samples.values()], dtype=float) ** size_exponent
        self.weights = dict(zip(samples, weights / weights.sum(), strict=True))
        self.num_drawn = dict.fromkeys(samples, 0)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """[batch_size, max_length] int64, for ever."""
        domains = list(self.samples)
        draws = np.random.default_rng([self.seed, len(domains)])
        orders: dict[str, np.ndarray] = {}
        while True:
            rows = []
            for index in draws.choice(len(domains), size=self.batch_size, p=list(self.weights.values())):
                name = domains[index]
                size = len(self.samples[name])
                number, position = divmod(self.num_drawn[name], size)
                if position == 0:
                    orders[name] = np.random.default_rng([self.seed, int(index), number]).permutation(size)
                rows.append(self.samples[name][int(orders[name][position])])
                self.num_drawn[name] += 1
            yield torch.stack(rows)

    def passes(self) -> dict[str, float]:
        return {name: self.num_drawn[name] / len(rows) for name, rows in self.samples.items()}


def as_tensors(packed: DatasetDict) -> dict[str, torch.Tensor]:
    """Domain -> token ids [samples, max_length] int64."""
    arrays = {name: np.stack(rows.with_format("numpy")["input_ids"][:]) for name, rows in packed.items()}
    return {name: torch.from_numpy(array).long() for name, array in arrays.items()}


# Training ---------------------------------------------------------------------------------------------------


def learning_rate_factor(step: int, num_steps: int) -> float:
    """Linear warm-up, then half a cosine down to FINAL_LEARNING_RATE."""
    warmup_steps = max(1, round(WARMUP_FRACTION * num_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(model: PreTrainedModel, arguments: SourceArguments) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices, not on norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [one for one in parameters if one.dim() > 1], "weight_decay": arguments.weight_decay},
        {"params": [one for one in parameters if one.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.95), fused=True)


def train(model: PreTrainedModel, stream: SampleStream, arguments: SourceArguments, checkpoint: Path) -> float:
    """All steps, from the checkpoint on if there is one; returns the seconds of all parts of the run.

    Raises:
        ValueError: the checkpoint is of a run with other arguments, or the loss is not finite.
    """
    optimizer = build_optimizer(model, arguments)
    first_step, seconds_before = _resume(model, optimizer, arguments, checkpoint)
    batches = iter(stream)
    for _ in range(first_step):
        next(batches)
    model.train()
    start = last_log = last_save = time.monotonic()
    losses: list[torch.Tensor] = []
    for step in range(first_step, arguments.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * learning_rate_factor(step, arguments.num_steps)
        batch = next(batches)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        now = time.monotonic()
        if now - last_log > LOG_SECONDS or step + 1 == arguments.num_steps:
            _log_progress(step + 1, first_step, now - start, losses, arguments)
            last_log, losses = now, []
        if now - last_save > SAVE_SECONDS:
            progress = {"step": step + 1, "seconds": seconds_before + now - start}
            _save(model, optimizer, arguments, progress, checkpoint)
            last_save = now
    return seconds_before + time.monotonic() - start


def _log_progress(
    step: int, first_step: int, seconds: float, losses: list[torch.Tensor], arguments: SourceArguments
) -> None:
    mean = torch.stack(losses).mean().item()
    tokens_per_second = (step - first_step) * arguments.batch_size * arguments.max_length / seconds
    left = (arguments.num_steps - step) * arguments.batch_size * arguments.max_length / tokens_per_second
    logger.info(
        f"step {step:,} of {arguments.num_steps:,}: training loss {mean:.4f}, "
        f"{tokens_per_second:,.0f} tokens/s, {left / 60:.1f} minutes left"
    )
    if not math.isfinite(mean):
        raise ValueError(
            f"The training loss is {mean} at step {step}. Lower `learning_rate` ({arguments.learning_rate})."
        )


def _save(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    arguments: SourceArguments,
    progress: dict[str, float],
    checkpoint: Path,
) -> None:
    """Written beside the old checkpoint, then put in its place: a broken run never leaves half a file."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "arguments": asdict(arguments)}
    state |= progress
    unfinished = checkpoint.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(checkpoint)


def _resume(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, arguments: SourceArguments, checkpoint: Path
) -> tuple[int, float]:
    """(first step to do, seconds spent before)."""
    if not checkpoint.exists():
        return 0, 0.0
    state = torch.load(checkpoint, weights_only=True)
    if state["arguments"] != asdict(arguments):
        raise ValueError(
            f"`output_dir` ({arguments.output_dir}) holds the unfinished run of other arguments: "
            f"{state['arguments']}. Give those again, or remove {checkpoint}."
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    logger.info(f"The run goes on at step {state['step']:,}.")
    return state["step"], state["seconds"]


# Measuring --------------------------------------------------------------------------------------------------


@torch.no_grad()
def mean_loss(model: PreTrainedModel, samples: torch.Tensor) -> float:
    """Nats per predicted token over samples [N, max_length]; N * (max_length - 1) tokens are predicted."""
    model.eval()
    total = 0.0
    for batch in samples.split(EVALUATION_BATCH_SIZE):
        total += model(input_ids=batch, labels=batch, use_cache=False).loss.double().item() * len(batch)
    return total / len(samples)


def unigram_loss(train: torch.Tensor, held_out: torch.Tensor, vocab_size: int) -> float:
    """Nats per predicted token of the held-out samples under the training side's frequencies.

    One is added to every count, so that a token that does not occur in training has a probability.
    """
    counts = torch.bincount(train.flatten(), minlength=vocab_size).double() + 1.0
    return -(counts / counts.sum()).log()[held_out[:, 1:]].mean().item()


def digest(samples: torch.Tensor) -> str:
    """SHA-256 of the token ids: says whether two installations hold out the same text."""
    return hashlib.sha256(np.ascontiguousarray(samples.numpy(), dtype="<i4").tobytes()).hexdigest()


def measure(
    model: PreTrainedModel, train: dict[str, torch.Tensor], held_out: dict[str, torch.Tensor]
) -> dict[str, dict]:
    """The held-out numbers of `source.json`, each by domain."""
    loss = {name: mean_loss(model, samples) for name, samples in held_out.items()}
    vocab_size = model.config.vocab_size
    probes = {name: samples[:NUM_PROBE_SAMPLES] for name, samples in held_out.items()}
    return {
        "loss": loss,
        "mean": sum(loss.values()) / len(loss),
        "unigram_loss": {name: unigram_loss(train[name], held_out[name], vocab_size) for name in held_out},
        "eval_tokens": {name: samples[:, 1:].numel() for name, samples in held_out.items()},
        "train_tokens": {name: samples.numel() for name, samples in train.items()},
        "probe": {
            name: {"samples": len(probe), "sha256": digest(probe), "loss": mean_loss(model, probe)}
            for name, probe in probes.items()
        },
    }


# The run ----------------------------------------------------------------------------------------------------


def prepare_tokenizer(train: DatasetDict, arguments: SourceArguments) -> PreTrainedTokenizerFast:
    """The tokenizer in `output_dir`: trained, or, where an unfinished run left one, read."""
    folder = Path(arguments.output_dir)
    if not (folder / "tokenizer.model").exists():
        logger.info("The tokenizer is being trained.")
        save_tokenizer(train_pieces(train, arguments.vocab_size), folder, arguments.max_position_embeddings)
    return AutoTokenizer.from_pretrained(folder)


def describe(model: PreTrainedModel, arguments: SourceArguments) -> dict:
    """What was trained and with what, for `source.json`."""
    packages = ("torch", "transformers", "tokenizers", "sentencepiece", "datasets")
    recipe = {
        key: value for key, value in asdict(arguments).items() if key not in ("output_dir", "data_dir", "text_field")
    }
    return {
        "shape": {name: getattr(model.config, name) for name in (*SHAPE_NAMES, "head_dim")},
        "num_parameters": model.num_parameters(),
        "vocab_size": model.config.vocab_size,
        "domains": "folder" if arguments.data_dir else "standard library",
        "tokens": arguments.num_steps * arguments.batch_size * arguments.max_length,
        "arguments": recipe,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "seed": arguments.seed,
    }


def main(command_line: list[str] | None = None) -> dict:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = parse_arguments(command_line)
    torch.set_num_threads(arguments.num_threads)
    folder = Path(arguments.output_dir)
    if (folder / "source.json").exists():
        raise ValueError(f"`output_dir` ({folder}) already holds a source model. Name another folder, or remove it.")
    folder.mkdir(parents=True, exist_ok=True)

    domains = load_domains(arguments.data_dir, arguments.text_field) if arguments.data_dir else stdlib_domains()
    train_text, held_out_text = split_domains(domains, arguments.held_out_fraction, arguments.seed)
    tokenizer = prepare_tokenizer(train_text, arguments)
    train_samples = as_tensors(pack_domains(train_text, tokenizer, arguments.max_length))
    held_out_samples = as_tensors(pack_domains(held_out_text, tokenizer, arguments.max_length))
    for name, samples in train_samples.items():
        num_held_out = held_out_samples[name].numel()
        logger.info(f"{name}: {samples.numel():,} training and {num_held_out:,} held-out tokens")

    model = build_model(arguments, tokenizer)
    logger.info(f"{model.num_parameters():,} parameters, {arguments.num_steps:,} steps")
    stream = SampleStream(train_samples, arguments.batch_size, arguments.size_exponent, arguments.seed)
    checkpoint = folder / "checkpoint.pt"
    seconds = train(model, stream, arguments, checkpoint)
    model.to(getattr(torch, arguments.dtype)).save_pretrained(folder)
    model.float()

    numbers = {
        **describe(model, arguments),
        **measure(model, train_samples, held_out_samples),
        "passes": stream.passes(),
        "domain_weights": stream.weights,
        "text": domain_sizes(train_text, held_out_text),
        "seconds": seconds,
    }
    (folder / "source.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    for name, loss in numbers["loss"].items():
        unigram = numbers["unigram_loss"][name]
        logger.info(f"{name:14} held-out loss {loss:.4f}, unigram model {unigram:.4f} nats per token")
    return numbers


if __name__ == "__main__":
    main()
