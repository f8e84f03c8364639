"""The allowed values of every number that a user gives: one table, for flags, YAML and Python alike."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from .errors import UsageError


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number may be. NaN, infinities, booleans and texts are in no range.

    Attributes:
        low, high: bounds, part of the range unless ``above`` or ``below`` says otherwise.
        above, below: whether ``low`` or ``high`` itself is left out.
        whole: whether only whole numbers are in the range.
        steps: a share of all steps below 1, and a whole number of steps from 1 on.
        optional: whether None is allowed.
        several: a list of one or more such numbers.
        apart: one number that is allowed besides, such as transformers' -1 for "not given".
        example: a value and what it means, for the message.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    steps: bool = False
    optional: bool = False
    several: bool = False
    apart: float | None = None
    example: str = ""

    def holds(self, value: Any) -> bool:
        """Whether one value is in the range."""
        if value is None:
            return self.optional
        if not self._is_number(value):
            return False
        if value == self.apart:
            return True
        if self.steps and value > 1 and value != int(value):
            return False
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def _is_number(self, value: Any) -> bool:
        kind = Integral if self.whole else Real
        return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)

    def check(self, name: str, value: object) -> None:
        """Raise UsageError unless the value is in the range.

        Args:
            name: of the argument, for the message.
            value: one number, or a list where the range is of several.
        """
        if self.several and isinstance(value, Sequence) and not isinstance(value, str) and len(value):
            found = [one for one in value if not self.holds(one)][:1]
        else:
            found = [] if not self.several and self.holds(value) else [value]
        if not found:
            return
        bounds = self._bounds()
        if self._is_number(found[0]):
            rule = bounds + (", and whole from 1 on" if self.steps else "")
        else:
            kind = "a whole number " if self.whole else "a finite number "
            rule = kind + bounds.replace("at least", "of at least")
            rule = f"one or more of {rule}" if self.several else rule
        shown = found[0] if isinstance(found[0], Real) else reprlib.repr(found[0])
        fix = f" Give {self.example}{', or leave it out' if self.optional else ''}." if self.example else ""
        raise UsageError(f"`{name}` must be {rule.strip()}, but it is {shown}.{fix}")

    def _bounds(self) -> str:
        low, high = (f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" for bound in (self.low, self.high))
        if math.isinf(self.low):
            return "" if math.isinf(self.high) else f"{'below' if self.below else 'at most'} {high}"
        if math.isinf(self.high):
            text = f"{'above' if self.above else 'at least'} {low}"
        elif not self.above and not self.below:
            text = f"between {low} and {high}"
        else:
            text = f"{'above' if self.above else 'at least'} {low} and {'below' if self.below else 'at most'} {high}"
        return text if self.apart is None else f"{text} (or {self.apart})"


def check_ranges(given: Any) -> None:
    """Raise UsageError for the first number that is out of its range.

    Args:
        given: an instance of a dataclass of arguments, of which the fields that the table names are checked; or values
            by name, all of them in the table.
    """
    if isinstance(given, Mapping):
        values = given
    else:
        values = {field.name: getattr(given, field.name) for field in dataclasses.fields(given) if field.name in RANGES}
    for name, value in values.items():
        RANGES[name].check(name, value)


def _count(example: str, **changes) -> Range:
    return dataclasses.replace(Range(1, whole=True, example=example), **changes)


def _share(example: str, **changes) -> Range:
    return dataclasses.replace(Range(0, 1, example=example), **changes)


def _positive(example: str, **changes) -> Range:
    return dataclasses.replace(Range(0, above=True, example=example), **changes)


def _not_negative(example: str, **changes) -> Range:
    return dataclasses.replace(Range(0, example=example), **changes)


_SEED = Range(0, 2**32 - 1, whole=True, example="a seed such as 42")
_RATE = _not_negative("a rate such as 1e-4; 0 freezes")
_TARGET_SIZE = _count("a size of the target", optional=True)
_TOKENS = _count("a number of tokens such as 48000")
_INTERVAL = Range(0, above=True, steps=True, example="steps such as 500, or a share of all such as 0.1")

FINITE = Range(example="a number such as 1.5")
"""Of values that have no bounds."""

RANGES: dict[str, Range] = {
    # Training: lengths and batches
    "num_tokens": dataclasses.replace(_TOKENS, optional=True),
    "max_steps": _count("a number of steps such as 1000", apart=-1),
    "num_train_epochs": _positive("a number of passes such as 3", optional=True),
    "per_device_train_batch_size": _count("a number of samples such as 8"),
    "per_device_eval_batch_size": _count("a number of samples such as 8"),
    "gradient_accumulation_steps": _count("1 for no accumulation"),
    # Training: optimisation
    "learning_rate": _RATE,
    "mask_learning_rate": dataclasses.replace(_RATE, optional=True),
    "multiplier_learning_rate": _RATE,
    "warmup_steps": _not_negative("steps such as 100, or a share of all such as 0.03", steps=True),
    "weight_decay": _not_negative("a decay such as 0.1; 0 is none"),
    "adam_beta1": _share("a decay rate such as 0.9", below=True),
    "adam_beta2": _share("a decay rate such as 0.95", below=True),
    "adam_epsilon": _positive("a small number such as 1e-8"),
    "max_grad_norm": _not_negative("a norm such as 1; 0 does not clip"),
    "label_smoothing_factor": _share("a share such as 0.1; 0 is none", below=True),
    "neftune_noise_alpha": _not_negative("a noise such as 5", optional=True),
    # Training: intervals and limits
    "logging_steps": _INTERVAL,
    "eval_steps": dataclasses.replace(_INTERVAL, optional=True),
    "save_steps": _INTERVAL,
    "eval_delay": _not_negative("a number of steps such as 100; 0 is none"),
    "save_total_limit": _count("a number of checkpoints such as 3", optional=True),
    "eval_accumulation_steps": _count("a number of batches such as 8", optional=True),
    "torch_empty_cache_steps": _count("a number of steps such as 100", optional=True),
    # Training: machines
    "seed": _SEED,
    "data_seed": dataclasses.replace(_SEED, optional=True),
    "dataloader_num_workers": Range(0, whole=True, example="a number of processes such as 4; 0 is none"),
    "dataloader_prefetch_factor": _count("a number of batches such as 2", optional=True),
    "ddp_bucket_cap_mb": _count("a number of MB such as 25", optional=True),
    "ddp_timeout": _count("a number of seconds such as 1800"),
    # Masks
    "budget_warmup_ratio": _share("a share of the steps such as 0.2", optional=True),
    "hardening_ratio": _share("a share of the steps such as 0.4; 0 never hardens"),
    "start_temperature": _positive("a temperature such as 1"),
    "end_temperature": _positive("a temperature such as 0.05"),
    "start_noise": _not_negative("a scale such as 0.5; 0 is none"),
    "min_swapped_units": _not_negative("a number of units such as 1", whole=True),
    "shape_gap_tolerance": _not_negative("a share such as 0.01"),
    "mask_start_spread": _positive("a spread such as 4"),
    "spread": _positive("a spread such as 4"),
    "log_alpha_start": Range(optional=True, example="a start value such as 5"),
    "log_alpha_jitter": _not_negative("a standard deviation such as 0.01; 0 is none"),
    "log_alpha_bound": _positive("a bound such as 4.6", optional=True),
    "total_steps": _count("a number of steps such as 1000"),
    "budget_warmup_steps": Range(0, whole=True, example="a number of steps such as 100; 0 is none"),
    "hardening_steps": Range(0, whole=True, example="a number of steps such as 100; 0 never hardens"),
    # Recovery
    "recovery_tokens": _TOKENS,
    "mask_tokens": dataclasses.replace(_TOKENS, apart=0, optional=True),
    "distillation_temperature": _positive("a temperature such as 1"),
    "distillation_weight": _share(
        "a share such as 0.5; without a teacher's, leave `distillation` at 'none'", above=True
    ),
    "distillation_top_k": _count("a number of tokens such as 32"),
    # Data
    "max_length": Range(2, whole=True, example="a length such as 256: one token to read, one to predict, at least"),
    "eval_tokens": Range(2, whole=True, optional=True, example="a number of tokens such as 16384"),
    "held_out_fraction": _share("a share of the documents such as 0.1", above=True, below=True),
    "num_proc": _count("a number of processes such as 4", optional=True),
    "eval_token_share": _share("a share such as 0.05; `eval_strategy='no'` evaluates nothing", above=True),
    "mixture_weights[]": _not_negative("a share such as 0.25; 0 leaves a domain out"),
    "reference_losses[]": Range(example="a loss in nats per token such as 2.1"),
    "mixture_floor": _share("a share of every batch such as 0.05; 0 is none"),
    "mixture_ceiling": _share("a share of every batch such as 0.8; 1 is none", above=True),
    "smoothing": _share("a share of the uniform mixture such as 1e-4"),
    "domain_sizes[]": _count("a domain with samples; remove an empty one, or add text to it"),
    "batch_size": _count("a number of samples such as 8"),
    "global_batch_index": Range(0, whole=True, example="the state of an undamaged checkpoint"),
    "samples_consumed[]": Range(0, whole=True, example="the state of an undamaged checkpoint"),
    "num_processes": _count("1 for a single process"),
    "world_size": _count("1 for a single process"),
    # Target
    "hidden_size": _TARGET_SIZE,
    "num_hidden_layers": _TARGET_SIZE,
    "num_attention_heads": _TARGET_SIZE,
    "num_key_value_heads": _TARGET_SIZE,
    "intermediate_size": _TARGET_SIZE,
    "num_experts": _TARGET_SIZE,
    "target_num_parameters": _count("a number of parameters such as 1300000000", optional=True),
    # Pruning
    "calibration_batches": _count("a number of batches such as 16"),
    "calibration_batch_size": _count("a number of samples such as 8"),
    "num_shots": _count("a number of shots such as 5"),
    "search_rank": _count("1, the best shape of a search"),
    "context": _count("a number of tokens such as 1024"),
    "serving_batch_size": _count("a number of sequences such as 1"),
    "max_parameters": _count("a number of parameters such as 100000000", optional=True),
    "max_flops": Range(0, above=True, optional=True, example="FLOPs per token such as 2e8"),
    "max_latency": Range(0, above=True, optional=True, example="milliseconds per token such as 20"),
    "tensor_parallel": _count("a number of devices such as 1"),
    "finalist_tokens": Range(0, whole=True, example="a number of tokens such as 50000; 0 trains none"),
    "num_generations": Range(0, whole=True, example="a number of generations such as 40; 0 looks at none"),
    "num_finalists": _count("a number of shapes such as 3"),
    "num_stages": _count("a number of stages such as 5"),
    "pruning_share": _share("a share of the steps such as 0.5", above=True),
    "seeds": dataclasses.replace(_SEED, several=True),
    "num_steps": _count("a number of steps such as 200"),
    "num_batches": _count("a number of batches such as 1"),
    "amplitude": _not_negative("an amplitude such as 0.5; 0 is none"),
    "adapter_rank": _count("a rank such as 8"),
    "layers_per_pass": _count("a number of layers such as 4", optional=True),
    "masks_per_step": Range(2, whole=True, example="a number of masks such as 4"),
    "step_size": _positive("a step size such as 0.05"),
    "block_size": _count("a number of entries such as 512"),
    "max_iterations": _count("a number of iterations such as 100"),
    "layers_at_once": _count("a number of layers such as 4", optional=True),
    "tolerance": _positive("a tolerance such as 1e-3"),
    "damping": _positive("a damping such as 0.01"),
    # Evaluation
    "window": _count("a number of tokens such as 2048", optional=True),
    "stride": _count("a number of tokens such as 1024", optional=True),
    "max_documents": _count("a number of documents such as 1000", optional=True),
    "limit": _count("a number of items such as 100", optional=True),
    "prompt_length": _count("a number of tokens such as 256"),
    "new_tokens": _count("a number of tokens such as 64"),
    "rounds": _count("a number of rounds such as 7"),
    "speed_batch_size": _count("a number of sequences such as 1"),
    # Memory and FLOPs
    "sequence_length": _count("a number of tokens such as 4096", optional=True),
    "micro_batch_size": _count("a number of sequences such as 1"),
    "num_devices": _count("a number of devices such as 8"),
    "reduce_bucket_size": _count("a number of elements such as 500000000"),
    # Scaling law
    "drop_start": _share("a share of each run's tokens such as 0.1; 0 leaves none out", below=True),
    "bootstrap": Range(0, whole=True, example="a number of fits such as 100; 0 is none"),
    "num_starts": Range(0, whole=True, example="a number of random starts such as 16; 0 is none"),
    "f_scale": _positive("nats from which on a residual is an outlier, such as 0.01", optional=True),
    "num_resamples": _count("a number of draws such as 2000"),
    "num_bootstrap": Range(0, whole=True, example="a number of fits such as 100; 0 is none"),
    "num_parameters": _positive("a number such as 1.3e9", optional=True),
    "source_loss": _positive("a loss in nats per token such as 2.4", optional=True),
    "source_tokens": _positive("a number such as 2e12", optional=True),
    "fractions": _share("shares such as 0.15 0.25", above=True, below=True, several=True),
    "target_loss": _positive("a loss in nats per token such as 2.6", optional=True),
    "max_loss": _positive("a loss in nats per token such as 2.6", optional=True),
    "gain": _positive("a gain in nats such as 0.01"),
    "min_gain": _positive("a gain in nats such as 0.01", optional=True),
    "patience": _count("a number of evaluations such as 4"),
    "tokens_per_step": _positive("a number of tokens such as 65536", optional=True),
    "price": _positive("a price in nats per FLOP such as 1e-20", optional=True),
    "flops": _positive("a budget such as 1e19", optional=True),
    "total_flops": _positive("a budget such as 1e19"),
    "mask_share": _share("a share of the tokens such as 0.06; 0 is one-shot", below=True),
}
"""By the name of the argument; NAME[] of each value in a dict by domain."""

OPTION_RANGES: dict[str, Range] = {
    "damping": _not_negative("a share of the mean diagonal such as 0.01"),
    "gradient_weight": _not_negative("a weight such as 100; 0 is none"),
    "gradient_tokens": Range(0, whole=True, example="a number of tokens such as 4096; 0 is all"),
    "layers_per_pass": Range(0, whole=True, example="a number of layers such as 4; 0 is all"),
    "power": _positive("a power such as 2"),
    "rank": _count("a rank such as 8"),
    "adapter_steps": Range(0, whole=True, example="a number of steps such as 10; 0 is none"),
    "steps": RANGES["num_steps"],
    "masks_per_step": RANGES["masks_per_step"],
    "step_size": RANGES["step_size"],
    "num_steps": RANGES["num_steps"],
    "num_batches": RANGES["num_batches"],
    "num_samples": Range(0, whole=True, example="a number of samples such as 32; 0 is all"),
    "num_tokens": Range(0, whole=True, example="a number of tokens such as 4096; 0 is all"),
    "shortlist": Range(0, whole=True, example="a number of candidates such as 2; 0 is all"),
    "amplitude": RANGES["amplitude"],
    "stages": RANGES["num_stages"],
    "share": RANGES["pruning_share"],
}
"""Of criteria, compensations, allocations and bench methods, by the name in ``NAME:OPTION=VALUE``."""
