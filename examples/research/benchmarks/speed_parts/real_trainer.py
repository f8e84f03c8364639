"""ShearTrainer itself, timed: data loading's share of a step, evaluation's share of the tokens, several processes.

Data are random tokens in domains. Where 🤗 Datasets is installed they lie on disk in its format, as packed texts do;
elsewhere they are arrays in memory. The result says which.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback

from hf_shear import ShearTrainer, ShearTrainingArguments
from hf_shear.masks import STRATEGIES

from .model_sizes import Size
from .timing import quartiles, wait_for
from .training_steps import ACTIVATION_MASKS, PLAIN, masked_model, plain_model, prepare

EVALUATIONS = 10  # ShearTrainingArguments evaluates after every tenth of the steps,
REFERENCES = 1  # and once before the first
EVAL_TOKEN_SHARE = 0.05  # its default, and the target


class RandomDomain(torch.utils.data.Dataset):
    """Samples of random tokens, from an array [samples, S]."""

    def __init__(self, ids: np.ndarray):
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"input_ids": self.ids[index]}

    def select(self, indices) -> RandomDomain:
        """The samples at ``indices``, as 🤗 Datasets has it."""
        return RandomDomain(self.ids[list(indices)])


class TimedIterator:
    """An iterator that adds up the seconds its items took."""

    def __init__(self, items):
        self.items, self.seconds = items, 0.0

    def __next__(self):
        start = time.perf_counter()
        item = next(self.items)
        self.seconds += time.perf_counter() - start
        return item


class TimedTrainer(ShearTrainer):
    """Notes the seconds of every step and of its data, and what evaluations cost.

    The device is waited for before and after every step, so that loading never hides behind it: its share is the most
    it can be.
    """

    def __init__(self, *args, device: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.device, self.started = device, 0.0
        self.step_seconds: list[float] = []
        self.data_seconds: list[float] = []
        self.eval_seconds, self.eval_tokens = 0.0, 0
        self.add_callback(StepClock(self))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Overridden: starts the clock of a step and times its data."""
        wait_for(self.device)
        self.started = time.perf_counter()
        timed = TimedIterator(epoch_iterator)
        batch = super().get_batch_samples(timed, num_batches, device)
        self.data_seconds.append(timed.seconds)
        return batch

    def domain_losses(self, datasets):
        """Overridden: every evaluation comes through here, that of the reference losses too."""
        wait_for(self.device)
        start = time.perf_counter()
        losses = super().domain_losses(datasets)
        wait_for(self.device)
        self.eval_seconds += time.perf_counter() - start
        self.eval_tokens += sum(len(dataset) for dataset in datasets.values()) * self.sample_length
        return losses


class StepClock(TrainerCallback):
    """Ends the clock of a step."""

    def __init__(self, trainer: TimedTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        wait_for(self.trainer.device)
        self.trainer.step_seconds.append(time.perf_counter() - self.trainer.started)


def steps_for_evaluation(args: argparse.Namespace) -> int:
    """Fewest steps in which one held-out sample per domain and evaluation stays below the default share of tokens."""
    return int((EVALUATIONS + REFERENCES) * args.domains / (EVAL_TOKEN_SHARE * args.batch_size)) + 1


def random_domains(args: argparse.Namespace, size: Size, samples: int, seed: int, folder: Path | None) -> dict:
    """Domains of ``samples`` samples each; with a folder, in it and in the format of 🤗 Datasets."""
    generator = np.random.default_rng(seed)
    arrays = {
        f"domain_{number}": generator.integers(size.vocab_size, size=(samples, args.max_length), dtype=np.int32)
        for number in range(args.domains)
    }
    if folder is None:
        return {name: RandomDomain(ids) for name, ids in arrays.items()}
    from datasets import Dataset, DatasetDict, Features, Sequence, Value, disable_progress_bars

    disable_progress_bars()
    features = Features({"input_ids": Sequence(Value("int32"), length=args.max_length)})
    made = {name: Dataset.from_dict({"input_ids": ids}, features=features) for name, ids in arrays.items()}
    DatasetDict(made).save_to_disk(folder)
    return dict(DatasetDict.load_from_disk(folder))


def train(args: argparse.Namespace, size: Size, arm: str, steps: int, evaluate: bool) -> TimedTrainer:
    """A whole run of ShearTrainer with its defaults, masked or plain; what it says goes to stderr."""
    model = plain_model(args, size)
    if arm != PLAIN:
        model = masked_model(model, next(iter(STRATEGIES)) if arm == ACTIVATION_MASKS else arm, args.device)
    prepare(model, args)
    use_datasets = importlib.util.find_spec("datasets") is not None
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # bfloat16 weights, off-target masks: nothing is kept of this model
        paths = [Path(folder) / name if use_datasets else None for name in ("train", "held_out")]
        samples = max(args.batch_size * steps // args.domains, 16)
        held_out = math.ceil(EVAL_TOKEN_SHARE * samples)  # of which evaluations take as many as they may
        trainer = TimedTrainer(
            model,
            ShearTrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=args.batch_size,
                per_device_eval_batch_size=args.batch_size,
                learning_rate=1e-4,
                bf16=args.dtype == "mixed",
                use_cpu=args.device == "cpu",
                torch_compile=args.compile,
                save_strategy="no",
                eval_strategy="steps" if evaluate else "no",
                dynamic_batches=evaluate,
                disable_tqdm=True,
                report_to="none",
            ),
            random_domains(args, size, samples, 0, paths[0]),
            random_domains(args, size, held_out, 1, paths[1]) if evaluate else None,
            device=args.device,
        )
        trainer.train()
    return trainer


def measure_trainer(args: argparse.Namespace, size: Size) -> dict:
    """Data loading's share of a step, and evaluation's of tokens and time, in one run of mask learning."""
    arm = args.arms[0] if args.arms[0] != ACTIVATION_MASKS else next(iter(STRATEGIES))
    steps = args.trainer_steps or steps_for_evaluation(args)
    trainer = train(args, size, arm, steps, evaluate=True)
    data, step = (values[args.warmup_steps :] for values in (trainer.data_seconds, trainer.step_seconds))
    trained = trainer.tokens_seen()
    return {
        "arm": arm,
        "steps": steps,
        "domains": args.domains,
        "data_format": "datasets" if importlib.util.find_spec("datasets") is not None else "arrays in memory",
        "step_seconds": quartiles(step),
        "data_seconds": quartiles(data),
        "data_share": sum(data) / sum(step),
        "training_tokens": trained,
        "eval_tokens": trainer.eval_tokens,
        "eval_token_share": trainer.eval_tokens / trained,
        "eval_time_share": trainer.eval_seconds / (trainer.eval_seconds + sum(trainer.step_seconds)),
    }


def trainer_table(result: dict) -> list[str]:
    """Lines to print."""
    return [
        f"ShearTrainer, {result['arm']}, {result['steps']} steps, {result['domains']} domains"
        f" ({result['data_format']}), default evaluations",
        f"  data loading: {result['data_share']:.2%} of step time"
        f" ({result['data_seconds']['median'] * 1e3:.2f} ms of {result['step_seconds']['median'] * 1e3:.1f} ms)",
        f"  evaluation: {result['eval_tokens']:,} of {result['training_tokens']:,} training tokens,"
        f" {result['eval_token_share']:.1%}; {result['eval_time_share']:.1%} of the time",
    ]
