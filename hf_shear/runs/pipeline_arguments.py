"""The arguments of the pipeline, beside those of training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ..core import RANGES, TARGET_NAMES, UsageError, check_ranges, json_object
from ..core.defaults import (
    COMPENSATION,
    MASK_DRAWS,
    MASK_METHODS,
    NUM_SHOTS,
    START_SPREAD,
    TARGET_BALANCES,
    TEACHER_PLACEMENTS,
    default_criterion_words,
)

if TYPE_CHECKING:
    from ..pruning import PruneConfig

QUANTISATIONS = ("none", "8bit", "4bit")
MASK_STARTS = ("taylor", "uniform")
"""Besides these, ``mask_start`` takes criteria as ``hf-shear prune`` does."""
SHAPE_ARGUMENTS = {"preset": TARGET_NAMES, "target_num_parameters": TARGET_NAMES, "from_search": TARGET_NAMES}
"""For ``parse_arguments(instead=...)``: a flag that names a shape takes the place of a file's sizes."""
OF_MASKS = ("mask_method", "mask_draw", "mask_start", "mask_start_spread", "paper")
"""What has no effect where units are chosen at once."""
LONG_RECOVERY, LONG_COMPENSATION = 0.3, "least_squares"
"""From this many training tokens per parameter on, modules are fitted to what they gave."""
STOPS = ("teacher_logits", "pruning", "mask_learning", "recovery")
BASELINES = ("random", "taylor", "scratch")
"""Of every run that ends with a comparison."""
PAPER, SURGEON = "paper", "llm_surgeon"
RIVALS = ("random", "taylor", PAPER, SURGEON, "scratch")
"""All that there are: besides ``BASELINES`` the paper's learned masks, where units are chosen at once, and this library's
choice at once, where masks are learned."""


def _one_of(choices: Iterable[str], default: str | None, help: str) -> Any:
    """The field of an argument that is one of the choices."""
    return field(default=default, metadata={"help": help, "choices": tuple(choices)})


def dry_run_field(help: str = "Check everything, tell FLOPs and time, and end; nothing is written.") -> Any:
    """The field of ``--dry_run``."""
    return field(default=False, metadata={"help": help})


def live_page_field() -> Any:
    """The field of ``--live_page``."""
    return field(default=True, metadata={"help": "Keep report.html in --output_dir up to date while the run goes."})


@dataclass(kw_only=True)
class CheckedNumbers:
    """Arguments whose numbers are in their ranges (``hf_shear.core.ranges``)."""

    def __post_init__(self):
        check_ranges(self)


@dataclass(kw_only=True)
class TextArguments(CheckedNumbers):
    """Where text comes from, and how it is read."""

    data_dir: str | None = field(default=None, metadata={"help": "Folder with one sub-folder or file per domain."})
    text_field: str = field(default="text", metadata={"help": "Field (json) or column (parquet) that holds the text."})
    skip_unreadable: bool = field(
        default=False, metadata={"help": "Leave out files that cannot be read, with a warning."}
    )
    skip_null_text: bool = field(
        default=False, metadata={"help": "Leave out rows whose text is null or missing, with a warning."}
    )
    parse_special_tokens: bool = field(
        default=False, metadata={"help": "Control tokens written in the text, as </s>, are such tokens."}
    )


@dataclass(kw_only=True)
class DataArguments(TextArguments):
    """Text, and how it is split and packed."""

    max_length: int = field(default=256, metadata={"help": "Tokens per sample."})
    eval_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Held-out tokens per domain behind the results. Default: 8192; of over two domains 16384 in all."
        },
    )
    held_out_fraction: float = field(default=0.1, metadata={"help": "Share of the documents kept from training."})
    block_diagonal: bool = field(default=False, metadata={"help": "No attention across packed documents."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise."})

    def __post_init__(self):
        super().__post_init__()
        check_judged_tokens(self.eval_tokens, self.max_length)


@dataclass(kw_only=True)
class TargetArguments(CheckedNumbers):
    """The shape to reach, named in one of four ways."""

    preset: str | None = field(default=None, metadata={"help": "A shape of the paper, such as sheared-llama-1.3b."})
    hidden_size: int | None = field(default=None, metadata={"help": "Target size; the source's if not named."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Target size."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Target size."})
    num_key_value_heads: int | None = field(default=None, metadata={"help": "Target size."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Target size."})
    num_experts: int | None = field(default=None, metadata={"help": "Target size of a mixture of experts."})
    target_num_parameters: int | None = field(default=None, metadata={"help": "Pick a shape of at most this size."})
    target_balance: str = _one_of(
        TARGET_BALANCES,
        TARGET_BALANCES[0],
        "How that shape is picked: weighted, MLPs and query heads shrink first; or all sizes alike.",
    )
    from_search: str | None = field(
        default=None, metadata={"help": "Folder of hf-shear search: take the shape that it found."}
    )
    search_rank: int = field(default=1, metadata={"help": "Of --from_search, which shape: 1 is the best."})
    as_family: str | None = field(
        default=None, metadata={"help": "'mistral': a Llama without biases as one, for any number of heads."}
    )


@dataclass(kw_only=True)
class RecoveryArguments(DataArguments):
    """How long recovery takes, and where its teacher lives."""

    recovery_tokens: int = field(default=752_000, metadata={"help": "Training tokens of recovery."})
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "Teacher of --distillation; the source if not named."}
    )
    teacher_placement: str = _one_of(
        TEACHER_PLACEMENTS, "device", "cpu: copied layer by layer; stored: its top-k logits, computed once."
    )
    distillation_top_k: int = field(default=32, metadata={"help": "Stored teacher logits per token."})
    quantize: str = _one_of(QUANTISATIONS, "none", "Frozen weights under 'lora' (bitsandbytes), merged at full.")
    keep_adapter: bool = field(
        default=False, metadata={"help": "Keep the adapter of 'lora' beside what it is merged to."}
    )


@dataclass(kw_only=True)
class PipelineArguments(TargetArguments, RecoveryArguments):
    """What is sheared, to which shape, on which text, for how long."""

    model_name_or_path: str = field(metadata={"help": "A plain checkpoint of a supported family."})
    mask_tokens: int = field(default=48_000, metadata={"help": "Training tokens of mask learning."})
    mask_method: str = _one_of(MASK_METHODS, "relaxed_topk", "hard_concrete: the paper.")
    mask_draw: str = _one_of(MASK_DRAWS, "per_step", "per_micro_batch: reference code.")
    mask_start: str = field(
        default=MASK_STARTS[0],
        metadata={"help": "uniform: the paper; or criteria: 'llm_surgeon hidden=taylor layer=loss_rise'."},
    )
    mask_start_spread: float = field(default=START_SPREAD, metadata={"help": "log_alpha starts within +- this."})
    calibration_batches: int = field(default=16, metadata={"help": "Batches of a step's size, for Taylor scores."})
    compensation: str = field(
        default="none", metadata={"help": "What makes up for the learned cut: least_squares:towards=source, ..."}
    )
    paper: bool = field(default=False, metadata={"help": "The paper's mask learning, whatever else is set."})
    baselines: bool = field(default=True, metadata={"help": "Train random, Taylor and scratch at equal tokens."})
    baseline_learning_rates: str | None = field(default=None, metadata={"help": "JSON: rate by baseline."})
    stop_after: str | None = _one_of(STOPS, None, "--resume goes on.")
    live_page: bool = live_page_field()
    resume: bool = field(default=False, metadata={"help": "Continue the run in --output_dir."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the run in --output_dir."})
    dry_run: bool = dry_run_field()

    def __post_init__(self):
        super().__post_init__()
        if self.learns_masks and self.mask_tokens == 0:
            raise UsageError("`mask_tokens` must be at least 1, but it is 0: masks are learned here. Give some.")
        if self.compensation not in (None, "none"):
            from ..compensation import resolve_compensation

            resolve_compensation(self.compensation)
        if self.mask_start not in MASK_STARTS:
            from ..criteria import criteria_from_words

            try:
                criteria_from_words(self.mask_start.split())
            except ValueError as error:
                raise UsageError(
                    f"`mask_start` must be {' or '.join(MASK_STARTS)}, or name criteria, but it is {self.mask_start!r}:"
                    f" {error}"
                ) from error
        baseline_learning_rates(self.baseline_learning_rates)  # refused now, not after recovery

    @property
    def learns_masks(self) -> bool:
        """Whether what to keep is learned in training, in place of chosen at once."""
        return True

    @property
    def is_pruned(self) -> bool:
        """Whether a pruned checkpoint is given, so that nothing is to be chosen."""
        return False

    @property
    def num_sizes(self) -> int:
        """How many sizes are trained."""
        return 1

    @property
    def teaches_sizes(self) -> bool:
        """Whether the largest of several sizes teaches the others."""
        return False

    @property
    def rivals(self) -> tuple[str, ...]:
        """The baselines."""
        return BASELINES


@dataclass(kw_only=True)
class ShearArguments(PipelineArguments):
    """As ``PipelineArguments``; without mask tokens, units are chosen at once."""

    mask_tokens: int = field(
        default=0, metadata={"help": "Training tokens of mask learning. 0: choose at once, by --criterion."}
    )
    criterion: list[str] = field(
        default_factory=default_criterion_words,
        metadata={"help": "Scores of the units, as in hf-shear prune; without --mask_tokens."},
    )
    num_shots: int = field(
        default=NUM_SHOTS, metadata={"help": "Steps in which units are removed; without --mask_tokens."}
    )
    calibration_batches: int = field(
        default=4, metadata={"help": "Batches of a step's size, for scores and compensation."}
    )
    compensation: str | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]  # a text after __post_init__
        default=None,
        metadata={"help": "What makes up for the cut. Default: by the length of recovery; with --mask_tokens none."},
    )

    def __post_init__(self):
        if self.compensation is None and self.learns_masks:
            self.compensation = "none"
        super().__post_init__()
        self.prune_config()
        if not self.learns_masks:
            self._refuse_options_of_masks()

    @property
    def learns_masks(self) -> bool:
        """Whether there are tokens to learn masks with."""
        return self.mask_tokens > 0

    @property
    def rivals(self) -> tuple[str, ...]:
        """The baselines, and the other way of choosing: the paper's learned masks, or this library's choice at once."""
        other = SURGEON if self.learns_masks else PAPER
        return tuple(name for name in RIVALS if name in (*BASELINES, other))

    def for_target(self, num_parameters: int) -> ShearArguments:
        """With the compensation that suits the length of recovery, where none was named.

        A fit to the source's residual stream starts recovery far lower where hidden dimensions or layers go. Long training
        makes up for that, and then a fit of each module to what it gave ends lower (model_cards/tried.md).

        Args:
            num_parameters: of the target.
        """
        if self.compensation is not None:
            return self
        is_long = self.recovery_tokens >= LONG_RECOVERY * num_parameters
        return replace(self, compensation=LONG_COMPENSATION if is_long else COMPENSATION)

    def prune_config(self) -> PruneConfig:
        """The choices of pruning at once."""
        return config_from_flags(self, **({"compensation": COMPENSATION} if self.compensation is None else {}))

    def _refuse_options_of_masks(self) -> None:
        for one in fields(PipelineArguments):
            if one.name not in OF_MASKS or getattr(self, one.name) == one.default:
                continue
            raise UsageError(
                f"`{one.name}` is of mask learning, but `mask_tokens` is 0, so that units are chosen at once. Give"
                f" `mask_tokens`, or leave `{one.name}` out."
            )


def check_judged_tokens(eval_tokens: int | None, max_length: int) -> None:
    """Raise UsageError unless one sample at least is judged."""
    check_ranges({"eval_tokens": eval_tokens, "max_length": max_length})
    if eval_tokens is not None and eval_tokens < max_length:
        raise UsageError(
            f"`eval_tokens` ({eval_tokens}) must be at least one sample of `max_length` ({max_length}) tokens. Raise it,"
            " or lower `max_length`."
        )


def baseline_learning_rates(text: str | None) -> dict[str, float]:
    """Learning rate by baseline from JSON such as ``{"scratch": 0.002}``; a baseline not named takes the run's rate."""
    rule = (
        f"`baseline_learning_rates` must be JSON that gives some of {', '.join(RIVALS)} a rate, such as"
        f" '{{\"scratch\": 0.002}}', but it is {text!r}"
    )
    try:
        rates = json_object(text or "{}", "it")
    except UsageError as error:
        raise UsageError(f"{rule}: {error}") from error
    for name, rate in rates.items():
        if name not in RIVALS:
            raise UsageError(f"{rule}. Leave {name!r} out.")
        RANGES["learning_rate"].check(f"baseline_learning_rates[{name!r}]", rate)
    return rates


def config_from_flags(arguments, **more: Any) -> PruneConfig:
    """The choices of a command: those of its flags that are named as in ``PruneConfig``, and ``more``."""
    from ..criteria import criteria_from_words
    from ..pruning import PruneConfig

    flags: dict[str, Any] = {
        field.name: getattr(arguments, field.name) for field in fields(PruneConfig) if hasattr(arguments, field.name)
    }
    flags["criterion"] = criteria_from_words(arguments.criterion)
    return PruneConfig(**flags | more)
