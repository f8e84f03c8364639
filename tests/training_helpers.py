"""A tiny Llama, tiny domains and a trainer that remembers what it saw, for the tests of training."""

from __future__ import annotations

import gc
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_shear import MaskSettings, ShearingLlamaConfig, ShearingLlamaForCausalLM, ShearTrainer, ShearTrainingArguments
from hf_shear.shapes import TargetShape

# Every run starts with a collection (accelerate); walking what the imports left would take half of a tiny run's time.
gc.collect()
gc.freeze()

VOCAB_SIZE = 61
LENGTH = 16  # tokens per sample
DOMAINS = {"books": 40, "code": 24, "wiki": 6}  # training samples; the last is exhausted within a few steps
TARGET = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
}
"""Of a source with 6 heads in 3 groups: a group goes, and one of the two query heads of each group that stays."""
NO_DROPOUT = {"attention_dropout": 0.0}
OPEN_MASKS = MaskSettings(method="hard_concrete", log_alpha_start=1.0)  # not saturated, so that gates have gradients


def tiny_config(**changes) -> LlamaConfig:
    """Grouped-query attention, untied embeddings, and dropout, so that a resumed run needs the random state."""
    fields = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 18,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 4,
        "max_position_embeddings": 32,
        "attention_dropout": 0.1,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    return LlamaConfig(**(fields | changes))


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter and one for a blank; ids below 30."""
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, " ": 3}
    vocabulary = special | {letter: len(special) + number for number, letter in enumerate(LETTERS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def random_documents(seed: int, num_documents: int, length: int = 30) -> list[str]:
    """Seeded texts of letters, each with letters of its own more often than others."""
    generator = random.Random(seed)
    return ["".join(generator.choices(LETTERS[: 5 + number % 20] + " ", k=length)) for number in range(num_documents)]


def plain_model(seed: int = 0, **changes) -> LlamaForCausalLM:
    """A tiny random Llama."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config(**changes))


def tiny_source_and_text(folder: Path) -> tuple[Path, str]:
    """A checkpoint of a tiny Llama with its tokenizer, and two domains of text."""
    plain_model(attention_dropout=0.0).save_pretrained(folder / "source")
    letter_tokenizer().save_pretrained(folder / "source")
    for number, name in enumerate(("books", "code")):
        (folder / "text" / name).mkdir(parents=True)
        (folder / "text" / name / "a.txt").write_text("\n<|endoftext|>\n".join(random_documents(number, 60)))
    return folder / "source", str(folder / "text")


def masked_model(settings: MaskSettings | str = "relaxed_topk", **changes) -> ShearingLlamaForCausalLM:
    """The same tiny Llama with masks towards TARGET."""
    source = plain_model(**changes)
    target = TargetShape.from_source(source.config, **TARGET)
    settings = MaskSettings(method=settings) if isinstance(settings, str) else settings
    config = ShearingLlamaConfig.from_source(source.config, target, settings)
    model = ShearingLlamaForCausalLM(config)
    weights = {name: value for name, value in model.state_dict().items() if name.startswith("masks.")}
    model.load_state_dict(weights | source.state_dict(), strict=True)
    return model


def make_domains(sizes: dict[str, int] | None = None, seed: int = 0, length: int = LENGTH) -> DatasetDict:
    """Random token ids; each domain draws from a part of the vocabulary of its own."""
    generator = torch.Generator().manual_seed(seed)
    domains = DatasetDict()
    for number, (name, size) in enumerate((sizes or DOMAINS).items()):
        low = 3 + 10 * number
        ids = torch.randint(low, low + 25, (size, length), generator=generator)
        domains[name] = Dataset.from_dict({"input_ids": ids.tolist()})
    return domains


@lru_cache
def train_domains() -> DatasetDict:
    return make_domains()


@lru_cache
def held_out_domains(size: int = 4) -> DatasetDict:
    return make_domains(dict.fromkeys(DOMAINS, size), seed=1)


def make_args(output_dir: str | Path, **changes) -> ShearTrainingArguments:
    """Eight quiet steps on the CPU."""
    fields = {
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "mask_learning_rate": 0.05,
        "budget_warmup_ratio": 0.0,
        "eval_token_share": 0.9,
        "shape_gap_tolerance": 1e9,
        "min_swapped_units": 0,
        "disable_tqdm": True,
        "use_cpu": True,
        "report_to": "none",
    }
    return ShearTrainingArguments(output_dir=str(output_dir), **(fields | changes))


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """Within, no file can grow beyond ``num_bytes``: writing fails as on a full disk, with OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class RecordingTrainer(ShearTrainer):
    """Remembers what every training step saw and gave."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.records: list[dict] = []

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Overridden: notes what goes in and what comes out."""
        record = {
            "step": self.state.global_step,
            "input_ids": inputs["input_ids"].tolist(),
            "mixture_weights": self.domains.sampler.mixture_weights,
            "masks": masks_of(self.model),
        }
        record["loss"] = super().training_step(model, inputs, num_items_in_batch).item()
        record["hidden_gates"] = self.model.model.embed_tokens.output_mask if self.mask_learning is not None else None
        record["phase"] = self.model.masks.phase if self.mask_learning is not None else None
        self.records.append(record)
        return torch.tensor(record["loss"])


def masks_of(model) -> dict[str, list]:
    """log_alpha and multipliers by name, as lists."""
    masks = getattr(model, "masks", None)  # apart from the model's modules while it trains
    return {name: value.tolist() for name, value in masks.state_dict().items()} if masks is not None else {}


def make_trainer(model, args, train=None, held_out=None, **kwargs) -> RecordingTrainer:
    """A trainer on the tiny domains."""
    train = train_domains() if train is None else train
    held_out = held_out_domains() if held_out is None else held_out
    return RecordingTrainer(model, args, train, held_out, **kwargs)


def trained(tmp_path, model, callbacks=None, **changes):
    """A finished run."""
    trainer = make_trainer(model, make_args(tmp_path, **changes), callbacks=callbacks)
    trainer.train()
    return trainer


def next_token_loss(model, input_ids: list) -> torch.Tensor:
    """Mean cross-entropy in the model's present mode, by hand."""
    ids = torch.tensor(input_ids)
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def stop_workers(trainer) -> None:
    """Let persistent workers end now; left to the garbage collector, each is waited for five seconds."""
    trainer.callback_handler.train_dataloader._loader._iterator = None


def weights_of(model) -> dict[str, torch.Tensor]:
    """A copy of all weights, masks and multipliers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_equal_weights(model, expected: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    found = model.state_dict()
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different


def differences(model, expected: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Maximum and mean absolute difference over all weights, masks and multipliers."""
    parts = torch.cat([(value - expected[name]).abs().flatten() for name, value in model.state_dict().items()])
    return parts.max().item(), parts.mean().item()
