"""The domains' part of a training: batches that follow the weights of domains, and held-out losses that change these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ..core import UsageError
from ..data import (
    DynamicBatchSampler,
    DynamicDataLoader,
    StreamDataLoader,
    check_mixture_weights,
    is_stream,
    update_mixture_weights,
    warn_of_runaway,
)
from .arguments import ShearTrainingArguments
from .cost import evaluation_samples_per_domain
from .history import MIXTURE, REFERENCE
from .part import Part
from .progress import tell


class DomainMixture(Part):
    """Dynamic batch loading (arXiv 2310.06694, section 2.2).

    Args:
        args: of the training.
        train_dataset, eval_dataset: packed samples per domain.

    Attributes:
        loader: of the batches; None before the first training.
        reference_losses: per domain, in nats per token; None until they are known.
        reference_tokens: that were spent on measuring them.
    """

    name = "domains"

    def __init__(self, args: ShearTrainingArguments, train_dataset: Mapping | None, eval_dataset: Mapping | None):
        self.args, self.train_dataset, self.eval_dataset = args, train_dataset, eval_dataset
        self.loader: DynamicDataLoader | StreamDataLoader | None = None
        references: Any = args.reference_losses  # a dict by now, whatever it was read from
        self.reference_losses: dict[str, float] | None = dict(references) if references else None
        self.reference_tokens = 0

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

    def judged(self) -> dict[str, Any]:
        """The first samples of each held-out domain, as many as ``eval_token_share`` pays for."""
        assert self.eval_dataset is not None
        limit = evaluation_samples_per_domain(self.args, len(self.eval_dataset))
        return {name: dataset.select(range(min(limit, len(dataset)))) for name, dataset in self.eval_dataset.items()}

    def update(self, losses: dict[str, float]) -> None:
        """Give domains more weight whose losses are further above their references."""
        args = self.args
        if not args.dynamic_batches:
            return
        assert self.reference_losses is not None, "given, or measured before the first step"
        before = self.sampler.mixture_weights
        weights = update_mixture_weights(
            before,
            losses,
            self.reference_losses,
            clamp_excess=args.clamp_excess,
            floor=args.mixture_floor,
            ceiling=args.mixture_ceiling,
        )
        warn_of_runaway(before, weights, args.mixture_ceiling)
        self.sampler.set_mixture_weights(weights)

    def evaluation_entries(self, step: int) -> dict[str, float]:
        """Weights and reference losses of the domains."""
        entries = {MIXTURE + name: weight for name, weight in self.sampler.mixture_weights.items()}
        return entries | {REFERENCE + name: loss for name, loss in (self.reference_losses or {}).items()}

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler is, its weights, and the references."""
        return {
            "sampler": self.sampler.state_dict(),
            "reference_losses": self.reference_losses,
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
