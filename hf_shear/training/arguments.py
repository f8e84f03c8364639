"""Arguments of :class:`~hf_shear.training.ShearTrainer`: those of transformers, and ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..core import RANGES, UsageError, bars_are_seen, check_ranges
from ..core.defaults import FULL
from ..data import is_stream
from ..distillation import DistillationSettings
from ..masks import STRATEGIES, MaskSchedule
from .backends import check_accelerator, check_launch
from .early_checks import check_choices, check_json_arguments, check_optimizer_arguments
from .recovery_methods import RECOVERY_METHODS, RecoveryMethod, recovery_method
from .trainer_options import check_options

NO_DISTILLATION = "none"
DAMPED, AS_MEASURED = "damped", "paper"
"""How excess losses of domains reach their weights: less what may be chance, or as they are."""

PAPER_MASK_LEARNING = {
    "mask_learning_rate": 1.0,
    "multiplier_learning_rate": 1.0,
    "mask_scheduler": "weights",  # cosine with warm-up for masks and multipliers too
    "budget_warmup_ratio": 0.2,  # 640 of 3200 steps
    "hardening_ratio": 0.0,  # masks are never hardened; export folds their soft values in
    "clip_masks": True,  # one norm over weights, masks and multipliers
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": 0.1,  # 320 of 3200 steps
    "mixture_update": AS_MEASURED,
}
"""Fields of ShearTrainingArguments for mask learning as the paper's reference code runs it (arXiv 2310.06694, section 3.1
and appendix A). The paper's weights learn at 1e-4; `learning_rate` stays the user's."""

_KNOWS_ACTIVATION_CHECKPOINTING = "activation_checkpointing" in TrainingArguments.__dataclass_fields__


@dataclass
class ShearTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the arguments of mask learning and of dynamic batches.

    Changed defaults: ``eval_strategy="steps"`` (domain weights change then) at steps that ``eval_token_share`` pays for,
    ``adam_beta2=0.95`` (the paper), ``ddp_find_unused_parameters=False`` (every weight has a gradient),
    ``remove_unused_columns=False`` (domains are already columns of tensors),
    ``logging_nan_inf_filter=False`` (the filter waits for the device at every step and hides NaN; ours looks when
    logging and before every checkpoint), ``ignore_data_skip=True`` (the sampler restores its own state, nothing is
    replayed).
    """

    _VALID_DICT_FIELDS = [
        *TrainingArguments._VALID_DICT_FIELDS, "mixture_weights", "reference_losses", "activation_checkpointing_kwargs",
        "peft_config",
    ]  # fmt: skip

    # As there, where its type allows None until it is set.
    output_dir: str = field(default="trainer_output", metadata={"help": "Where checkpoints and results are written."})
    num_tokens: int | None = field(
        default=None,
        metadata={"help": "Training tokens of this stage; sets max_steps = ceil(num_tokens / tokens per step)."},
    )
    num_train_epochs: float | None = field(
        default=None,
        metadata={"help": "Sets max_steps to as many samples as so many passes over all domains; max_steps wins."},
    )

    # Masks
    mask_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of log_alpha. Default: 0.05 for relaxed_topk, 1 for hard_concrete; more in few steps, so"
            " that units can swap."
        },
    )
    multiplier_learning_rate: float = field(
        default=1.0, metadata={"help": "Peak learning rate of the Lagrange multipliers (hard_concrete only)."}
    )
    mask_scheduler: str = field(
        default="constant",
        metadata={
            "help": "Learning rate of masks and multipliers over the steps: 'constant' until hardening starts (then"
            " 0, so that the choice of units stands), or 'weights' (as the weights', the paper)."
        },
    )
    budget_warmup_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the steps over which the size falls from the source's to the target's. Default: 0 for"
            " relaxed_topk, 0.2 for hard_concrete."
        },
    )
    hardening_ratio: float = field(
        default=0.4,
        metadata={"help": "Share of the steps, the last ones, over which masks move to exactly 0 or 1. 0: never."},
    )
    start_temperature: float = field(default=1.0, metadata={"help": "Temperature of the relaxed top-k at the start."})
    end_temperature: float = field(default=0.05, metadata={"help": "Temperature of the relaxed top-k at the end."})
    start_noise: float = field(
        default=0.0, metadata={"help": "Logistic noise on the scores of the relaxed top-k at the start, falls to 0."}
    )
    clip_masks: bool = field(
        default=False,
        metadata={
            "help": "Clip weights, masks and multipliers by one common norm (the paper). Default: weights alone."
        },
    )
    shape_gap_tolerance: float = field(
        default=0.01,
        metadata={"help": "Warn if the expected shape is further than this share from the target when masks harden."},
    )

    min_swapped_units: int = field(
        default=1,
        metadata={"help": "Warn if mask learning keeps fewer units than this that its start would have cut. 0: never."},
    )

    # Recovery
    recovery_method: str = field(
        default=FULL,
        metadata={
            "help": "What recovery trains: 'full' (all weights), 'lora' (adapters of peft) or 'norms_and_biases'."
        },
    )
    peft_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "Adapters of 'lora': JSON, or the path of a JSON file, with peft_type and its fields. Default: LoRA of"
            " rank 16 on all linear layers."
        },
    )
    distillation: str = field(
        default=NO_DISTILLATION,
        metadata={
            "help": "'forward_kl' or 'reverse_kl' adds the divergence from a teacher to the cross-entropy; 'none'."
        },
    )
    distillation_temperature: float = field(default=1.0, metadata={"help": "Divides the logits of both models."})
    distillation_weight: float = field(
        default=0.5, metadata={"help": "Share of the divergence in the loss; the rest is cross-entropy."}
    )

    # Data
    dynamic_batches: bool = field(
        default=True,
        metadata={"help": "Update the domain weights at every evaluation. False: constant proportions."},
    )
    mixture_weights: dict | str | None = field(
        default=None, metadata={"help": "Start weights per domain (JSON); uniform if not given."}
    )
    reference_losses: dict | str | None = field(
        default=None,
        metadata={
            "help": "Reference loss per domain in nats per token (JSON). Default: the losses of the model itself"
            " before training, which for a masked model are the source's."
        },
    )
    clamp_excess: bool = field(
        default=True,
        metadata={"help": "Clamp excess losses at zero in the weight update (the paper); the reference code does not."},
    )
    mixture_update: str = field(
        default=DAMPED,
        metadata={
            "help": "How evaluations change domain weights: 'damped' (excess losses less what may be chance) or 'paper' (as"
            " measured)."
        },
    )
    mixture_floor: float = field(default=0.0, metadata={"help": "Lowest weight of a domain."})
    mixture_ceiling: float = field(default=1.0, metadata={"help": "Highest weight of a domain."})
    eval_token_share: float = field(
        default=0.05,
        metadata={"help": "Evaluations during training spend at most this share of the training tokens."},
    )

    # Resuming
    trust_checkpoint: bool = field(
        default=False,
        metadata={
            "help": "Resume from pickled files (DeepSpeed, FSDP) that no run of yours on this machine wrote, which runs any"
            " code in them."
        },
    )

    # Changed defaults of TrainingArguments
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate; domain weights change then."})
    eval_steps: float | None = field(
        default=None,
        metadata={
            "help": "Steps between evaluations; below 1, a share of all. Default: as many evaluations, at most 10, as"
            " eval_token_share pays for."
        },
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of AdamW."})
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "Look for parameters without gradient in every step of DDP; every weight has one here."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Remove columns the model does not use."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN and inf losses when logging."})
    ignore_data_skip: bool = field(default=True, metadata={"help": "Do not replay data on resume."})

    # Named so since transformers 5.23, which knows these two; before it they are passed on under the old name.
    activation_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Recompute activations in the backward pass: less memory, more time.",
            "nargs": "?",
            "const": True,
        },  # fmt: skip
    )
    activation_checkpointing_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Keyword arguments of activation checkpointing; re-entrant is refused."}
    )

    def __post_init__(self):
        check_ranges(self)  # first of all, in our words: numbers, names, then what is read of files
        check_choices(self)
        check_json_arguments(self, self._VALID_DICT_FIELDS)
        if not _KNOWS_ACTIVATION_CHECKPOINTING:
            self.gradient_checkpointing = bool(self.activation_checkpointing or self.gradient_checkpointing)
            self.gradient_checkpointing_kwargs = (
                self.activation_checkpointing_kwargs or self.gradient_checkpointing_kwargs
            )
        if self.disable_tqdm is None and not bars_are_seen():
            self.disable_tqdm = True
        planned = self.has_planned_evaluations
        if self.eval_steps is None and self.eval_strategy == "steps":
            self.eval_steps = 0.1  # of those that are compared for the best, and none of logging for the others
        try:
            super().__post_init__()
        except ValueError as error:  # transformers' own checks, of combinations
            raise UsageError(f"{str(error).rstrip('.')}. Change or leave out what is named here.") from error
        self.eval_steps = None if planned else self.eval_steps
        if not _KNOWS_ACTIVATION_CHECKPOINTING:
            self.activation_checkpointing = self.gradient_checkpointing
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        check_launch(self.world_size)
        check_accelerator(self)
        check_options(self)
        check_optimizer_arguments(self)
        for name in ("mixture_weights", "reference_losses"):
            for domain, value in (getattr(self, name) or {}).items():
                RANGES[f"{name}[]"].check(f"{name}[{domain!r}]", value)
        budget_warmup_ratio = self.budget_warmup_ratio or 0.0
        if budget_warmup_ratio + self.hardening_ratio > 1:
            raise UsageError(
                f"`budget_warmup_ratio` ({budget_warmup_ratio}) and `hardening_ratio` ({self.hardening_ratio})"
                " must not exceed 1 together: masks have to reach the target before they harden. Lower one of them."
            )
        if self.mask_scheduler not in ("constant", "weights"):
            raise UsageError(f"`mask_scheduler` must be 'constant' or 'weights', but it is {self.mask_scheduler!r}.")
        if self.mixture_update not in (DAMPED, AS_MEASURED):
            raise UsageError(f"`mixture_update` must be 'damped' or 'paper', but it is {self.mixture_update!r}.")
        recovery_method(self.recovery_method, self.peft_config)
        self.distillation_settings()
        if self.label_smoothing_factor and self.distillation != NO_DISTILLATION:
            raise UsageError(
                f"`label_smoothing_factor={self.label_smoothing_factor}` has no effect on the loss of a distillation. Leave"
                " out one of the two."
            )
        if self.save_strategy == SaveStrategy.BEST and self.metric_for_best_model is None:
            raise UsageError(
                "`save_strategy='best'` needs `metric_for_best_model`: 'loss', or DOMAIN_loss of a domain."
            )

    @property
    def has_planned_evaluations(self) -> bool:
        """Whether ``eval_token_share`` decides when to evaluate: no steps are given, and no best model is sought."""
        compares = self.load_best_model_at_end or self.save_strategy == SaveStrategy.BEST
        return self.eval_steps is None and self.eval_strategy == IntervalStrategy.STEPS and not compares

    @property
    def named_output_dir(self) -> str | None:
        """``output_dir``, or None where it is the default: no folder was named."""
        return None if self.output_dir == ShearTrainingArguments.output_dir else self.output_dir

    @property
    def recovery(self) -> RecoveryMethod:
        """What recovery trains."""
        return RECOVERY_METHODS[self.recovery_method]

    def distillation_settings(self) -> DistillationSettings | None:
        """What is added to the cross-entropy; None without distillation."""
        if self.distillation == NO_DISTILLATION:
            return None
        return DistillationSettings(self.distillation, self.distillation_temperature, self.distillation_weight)

    def mask_rate(self, method: str, num_steps: int) -> float:
        """Learning rate of log_alpha for a mask method whose masks move freely for ``num_steps`` steps."""
        if self.mask_learning_rate is not None:
            return self.mask_learning_rate
        return STRATEGIES[method].default_rate(num_steps)

    def mask_schedule(self, total_steps: int, method: str) -> MaskSchedule:
        """The schedule of a mask method over ``total_steps`` optimizer steps."""
        warmup_ratio = self.budget_warmup_ratio
        if warmup_ratio is None:
            warmup_ratio = STRATEGIES[method].budget_warmup_ratio
        warmup_steps = round(warmup_ratio * total_steps)
        return MaskSchedule(
            total_steps=total_steps,
            budget_warmup_steps=warmup_steps,
            hardening_steps=min(round(self.hardening_ratio * total_steps), total_steps - warmup_steps),
            start_temperature=self.start_temperature,
            end_temperature=self.end_temperature,
            start_noise=self.start_noise,
        )

    def samples_per_step(self) -> int:
        """Samples of one optimizer step over all processes and micro-batches."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    def set_steps(self, sample_length: int) -> None:
        """Set ``max_steps`` from ``num_tokens``, for samples of ``sample_length`` tokens.

        Raises:
            ValueError: both are given, and differ.
        """
        if self.num_tokens is None:
            return
        steps = self.steps_for_tokens(self.num_tokens, sample_length)
        if self.max_steps not in (-1, steps):
            raise UsageError(
                f"`num_tokens={self.num_tokens}` is {steps} steps, but `max_steps` is {self.max_steps}. Give one of the"
                " two."
            )
        self.max_steps = steps

    def set_epochs(self, datasets: Mapping[str, Any]) -> None:
        """Set ``max_steps`` from ``num_train_epochs`` where nothing else sets it, and then the latter from the steps.

        Args:
            datasets: samples per domain. An epoch is as many samples as all domains hold together.

        Raises:
            ValueError: a domain is a stream, whose samples can not be counted.
        """
        streams = [name for name, dataset in datasets.items() if is_stream(dataset)]
        num_samples = sum(len(dataset) for name, dataset in datasets.items() if name not in streams)
        if self.max_steps <= 0 and self.num_train_epochs is not None:
            if streams:
                raise UsageError(
                    f"`num_train_epochs={self.num_train_epochs:g}` needs the number of samples, but {', '.join(streams)}"
                    " are streams, which have none. Give `num_tokens` or `max_steps`."
                )
            self.max_steps = math.ceil(self.num_train_epochs * num_samples / self.samples_per_step())
        if self.max_steps > 0:  # transformers and its model cards read both
            known = num_samples and not streams
            self.num_train_epochs = self.max_steps * self.samples_per_step() / num_samples if known else 1.0

    def steps_for_tokens(self, num_tokens: int, sample_length: int) -> int:
        """Optimizer steps that see at least ``num_tokens`` tokens in samples of ``sample_length``."""
        return math.ceil(num_tokens / (self.samples_per_step() * sample_length))
