"""The domains' part of a training: batches that follow the weights of domains, and held-out losses that change these."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..core import UsageError
from ..data import (
    DynamicBatchSampler,
    DynamicDataLoader,
    StreamDataLoader,
    check_mixture_weights,
    damped_excess,
    is_stream,
    update_mixture_weights,
    warn_of_runaway,
)
from .arguments import DAMPED, ShearTrainingArguments
from .cost import EvaluationPlan, plan_evaluations
from .domain_evaluation import SampleLosses
from .history import EXCESS, MIXTURE, NOISE, REFERENCE
from .part import Part
from .progress import tell


class DomainMixture(Part):
    """Dynamic batch loading (arXiv 2310.06694, section 2.2), steered by what is no chance.

    Weights follow the excess of held-out losses over references. A reference that was measured on the same samples is
    compared sample by sample: the difference varies far less over samples than a loss does. What the standard error
    of the excess explains does not reach the weights (``damped_excess``), unless ``mixture_update`` is the paper's.

    Args:
        args: of the training.
        train_dataset, eval_dataset: packed samples per domain.
        reference_samples: per domain the ``SampleLosses.sums`` of the reference losses of ``args``, of the first
            samples of ``eval_dataset``.

    Attributes:
        loader: of the batches; None before the first training.
        reference_losses: per domain, in nats per token; None until they are known.
        reference_samples: their sums per sample; None if they are known by their means alone.
        reference_tokens: that were spent on measuring them.
        excess, noise: per domain the last excess loss and its standard error; empty before an evaluation that steers.
    """

    name = "domains"

    def __init__(
        self,
        args: ShearTrainingArguments,
        train_dataset: Mapping | None,
        eval_dataset: Mapping | None,
        reference_samples: Mapping[str, Sequence[float]] | None = None,
    ):
        self.args, self.train_dataset, self.eval_dataset = args, train_dataset, eval_dataset
        self.loader: DynamicDataLoader | StreamDataLoader | None = None
        references: Any = args.reference_losses  # a dict by now, whatever it was read from
        self.reference_losses: dict[str, float] | None = dict(references) if references else None
        self.reference_samples = (
            None if reference_samples is None else {k: list(v) for k, v in reference_samples.items()}
        )
        self.reference_tokens = 0
        self.excess: dict[str, float] = {}
        self.noise: dict[str, float] = {}

    @property
    def sampler(self) -> DynamicBatchSampler:
        """Draws the batches of the loader."""
        assert self.loader is not None, "a training has begun"
        return self.loader.sampler

    def make_loader(self, collate: Callable) -> DynamicDataLoader | StreamDataLoader:
        """A loader without end, which begins with the weights of ``args``."""
        args, datasets = self.args, self.train_dataset
        if datasets is None:
            raise UsageError("ShearTrainer needs `train_dataset`, a dict of packed samples per domain, to train.")
        streams = {name for name, dataset in datasets.items() if is_stream(dataset)}
        weights: Any = args.mixture_weights
        sampler = DynamicBatchSampler(
            {name: None if name in streams else len(dataset) for name, dataset in datasets.items()},
            args.train_batch_size,
            mixture_weights=check_mixture_weights(weights, list(datasets)),
            seed=args.data_seed if args.data_seed is not None else args.seed,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            rank=args.process_index,
            world_size=args.world_size,
            on_new_pass=partial(tell, args),
        )
        self.loader = (StreamDataLoader if streams else DynamicDataLoader)(
            datasets,
            sampler,
            collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.loader

    def end(self) -> None:
        """Stop what reads ahead."""
        if self.loader is not None:
            self.loader.close()

    @property
    def plan(self) -> EvaluationPlan:
        """When losses are measured, on how many samples, and whether they change weights."""
        return plan_evaluations(self.args, len(self.eval_dataset or ()))

    def steering_samples(self) -> dict[str, Any]:
        """The first samples of each held-out domain, as many as an evaluation reads."""
        assert self.eval_dataset is not None
        limit = self.plan.samples_per_domain
        return {name: dataset.select(range(min(limit, len(dataset)))) for name, dataset in self.eval_dataset.items()}

    @property
    def needs_references(self) -> bool:
        """Whether losses of the model as it comes must be measured before the first step."""
        return bool(self.eval_dataset) and self.reference_losses is None and self.plan.steers

    def set_references(self, found: Mapping[str, SampleLosses]) -> None:
        """Losses to be reached, on the ``steering_samples``."""
        self.reference_losses = {name: losses.mean for name, losses in found.items()}
        self.reference_samples = {name: losses.sums for name, losses in found.items()}
        self.reference_tokens = sum(sum(losses.num_tokens) for losses in found.values())

    def update(self, found: Mapping[str, SampleLosses]) -> None:
        """Give domains more weight whose losses are further above their references.

        Args:
            found: on the ``steering_samples``.
        """
        args = self.args
        if not self.plan.steers:
            return
        self.excess, self.noise = self._excess_and_noise(found)
        losses, references = self.excess, dict.fromkeys(self.excess, 0.0)
        if args.mixture_update == DAMPED:
            losses = damped_excess(self.excess, self.noise)
        before = self.sampler.mixture_weights
        weights = update_mixture_weights(
            before,
            losses,
            references,
            clamp_excess=args.clamp_excess,
            floor=args.mixture_floor,
            ceiling=args.mixture_ceiling,
        )
        warn_of_runaway(before, weights, args.mixture_ceiling)
        self.sampler.set_mixture_weights(weights)

    def _excess_and_noise(self, found: Mapping[str, SampleLosses]) -> tuple[dict[str, float], dict[str, float]]:
        """Excess loss per domain, nats per token, and its standard error."""
        assert self.reference_losses is not None, "given, or measured before the first step"
        excess, noise = {}, {}
        for name, losses in found.items():
            reference = (self.reference_samples or {}).get(name, ())
            if len(reference) >= len(losses.sums):
                difference = losses.above(reference)
                excess[name], noise[name] = difference.mean, difference.standard_error
            else:  # the reference is of other text, and what is known of it has no error
                excess[name], noise[name] = losses.mean - self.reference_losses[name], losses.standard_error
        return excess, noise

    def evaluation_entries(self, step: int) -> dict[str, float]:
        """Weights, reference losses and excess losses of the domains, and the errors of these that are known."""
        entries = {MIXTURE + name: weight for name, weight in self.sampler.mixture_weights.items()}
        entries |= {REFERENCE + name: loss for name, loss in (self.reference_losses or {}).items()}
        entries |= {EXCESS + name: excess for name, excess in self.excess.items()}
        return entries | {NOISE + name: error for name, error in self.noise.items() if math.isfinite(error)}

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler is, its weights, and the references."""
        return {
            "sampler": self.sampler.state_dict(),
            "reference_losses": self.reference_losses,
            "reference_samples": self.reference_samples,
            "reference_tokens": self.reference_tokens,
        }

    def own_state_dict(self) -> dict[str, Any]:
        """Where this process is in its streams of data."""
        assert self.loader is not None
        return {"streams": self.loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any], own: dict[str, Any], same_processes: bool) -> None:
        """Go on with the next batch. Streams compare the number of processes themselves."""
        assert self.loader is not None
        self.sampler.load_state_dict(state["sampler"])
        self.loader.load_state_dict(own.get("streams", {}))
        self.reference_losses, self.reference_tokens = state["reference_losses"], state["reference_tokens"]
        self.reference_samples = state.get("reference_samples")  # None in checkpoints of before
