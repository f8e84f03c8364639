"""The masks' part of a training: their phase, their optimizer, the Lagrangian, and a report before they harden."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..core import UsageError
from ..masks import ShearingMasks
from ..modeling import ShearingMixin
from .arguments import ShearTrainingArguments
from .history import EXPECTED, SWAPPED, TARGET
from .mask_optimizer import MASKS, MULTIPLIERS, MaskOptimizer
from .part import Part
from .progress import tell
from .schedules import peak_share


class MaskLearning(Part):
    """Learns the masks of a model beside its weights.

    Args:
        args: of the training.
        model: gives the masked model, without what a backend wraps around it.
        stay_apart: leave masks out of the model after a training: the backend goes on owning every parameter it finds.

    Attributes:
        schedule: of the masks' phases; None without a number of steps.
        lagrangian: sum of the penalties since the last log, a scalar.
        report: ``mask_report`` of the masks just before they harden; None before that.
        kept_at_start: units that the start would keep, by kind.
    """

    name = "masks"

    def __init__(self, args: ShearTrainingArguments, model: Callable[[], ShearingMixin], stay_apart: bool = False):
        self.args, self.model, self.stay_apart = args, model, stay_apart
        masks = model().masks
        masks.rank = args.process_index
        method = masks.settings.method
        self.schedule = args.mask_schedule(args.max_steps, method) if args.max_steps > 0 else None
        self.rate = args.mask_rate(method, self.schedule.hardening_start if self.schedule else 1)
        self.kept_at_start: dict[str, Tensor] = {}
        self._optimizer: MaskOptimizer | None = None
        self.start()

    @property
    def masks(self) -> ShearingMasks:
        """Of the model."""
        return self.model().masks

    @property
    def optimizer(self) -> MaskOptimizer:
        """Of masks and multipliers."""
        assert self._optimizer is not None, "a training has begun"
        return self._optimizer

    def start(self) -> None:
        """Forget what an earlier training has added up."""
        self.lagrangian = torch.zeros((), device=self.args.device)
        self.report: dict[str, Any] | None = None
        self.logged_at = 0

    def weights_are_loaded(self) -> None:
        """Take the masks out of what a backend will wrap, and make their optimizer.

        Their learning rate is constant until they harden, unless told otherwise.
        """
        args, hardening = self.args, self._schedule().hardening_start
        self.kept_at_start = self.masks.kept_units()
        self.model().take_masks_apart()
        constant = args.mask_scheduler == "constant"
        self._optimizer = MaskOptimizer(
            self.masks.to(args.device),
            {MASKS: self.rate, MULTIPLIERS: args.multiplier_learning_rate},
            (lambda step: 1.0 if step < hardening else 0.0) if constant else peak_share(args),
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
        )

    def end(self) -> None:
        """Put the masks back into the model."""
        if not self.stay_apart:
            self.model().put_masks_back()

    def _schedule(self) -> Any:
        assert self.schedule is not None, "a training has steps"
        return self.schedule

    def set_phase(self, step: int, micro_batch: int = 0) -> None:
        """Set what the masks do in a micro-batch of a step."""
        if self.schedule is not None:
            self.model().set_mask_phase(self.masks.strategy.phase(self.schedule, step, micro_batch))

    def penalised(self, loss: Tensor, outputs: Any, accumulation_steps: int) -> Tensor:
        """The loss of a micro-batch and its share of the Lagrangian, which counts once per step."""
        penalty = outputs.lagrangian_loss
        if penalty is None:
            return loss
        # transformers sums micro-batch losses that are already divided by the step's token count.
        share = penalty / accumulation_steps
        self.lagrangian += share.detach()
        return loss + share

    def clip(self, model: nn.Module, max_norm: float) -> Tensor:
        """Clip weights, masks and multipliers by one common norm (the paper), which is returned."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        norm = torch.linalg.vector_norm(torch.stack([norm, self.optimizer.gradient_norm()]))
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        for gradient in gradients:
            gradient.mul_(scale)
        self.optimizer.scale_gradients(scale)
        return norm

    def after_optimizer_step(self, step: int) -> None:
        """Take the step of masks and multipliers."""
        self.optimizer.step(step)

    def report_if_due(self, step: int) -> None:
        """Compare expected and target size just before masks harden, or at the end if they never do."""
        schedule = self._schedule()
        if self.report is not None or step < schedule.hardening_start:
            return
        self.set_phase(schedule.hardening_start - (1 if schedule.hardening_steps else 0))
        self.report = mask_report(self.masks) | {
            "swapped": self.masks.swapped_units(self.kept_at_start), "learning_rate": self.rate,
        }  # fmt: skip
        warn_if_off_target(self.report, self.args.shape_gap_tolerance)
        self._tell_swaps(self.report["swapped"])

    def _tell_swaps(self, swapped: dict[str, int]) -> None:
        """Say how many units mask learning has changed, and warn if it has changed none."""
        shown = ", ".join(f"{name} {number}" for name, number in swapped.items() if number)
        if self.args.process_index == 0:
            tell(self.args, f"Kept units that the masks' start would have cut: {shown or 'none'}.")
        least = self.args.min_swapped_units
        if self.masks.constrained and sum(swapped.values()) < least:
            warnings.warn(
                f"Mask learning has changed {sum(swapped.values())} units of what its start keeps, fewer than"
                f" `min_swapped_units` ({least}): the masks have hardly learned. Learn masks for more tokens, raise"
                f" `mask_learning_rate` ({self.rate:g}), or choose at once (`hf-shear prune`), which costs less. Silence"
                " this with `min_swapped_units=0`.",
                UserWarning,
                stacklevel=2,
            )

    def check_steps(self, step: int) -> None:
        """Warn if a training has ended at ``step``, before its last."""
        if step < self.args.max_steps:
            warnings.warn(
                f"Mask learning stopped at step {step} of {self.args.max_steps}, before its masks were settled: a slice now"
                " differs from what was trained. Resume from a checkpoint to finish.",
                UserWarning,
                stacklevel=3,
            )

    def log_entries(self, step: int) -> dict[str, float]:
        """The mean Lagrangian since the last log, and the sizes of the masks."""
        entries = {}
        if self.masks.has_multipliers:
            entries["lagrangian_loss"] = self.lagrangian.item() / max(step - self.logged_at, 1)
            self.lagrangian.zero_()
            self.logged_at = step
        return entries | self.sizes(step)

    def evaluation_entries(self, step: int) -> dict[str, float]:
        """The sizes of the masks, the units that they have swapped, and the multipliers."""
        masks, entries = self.masks, self.sizes(step)
        entries |= {SWAPPED + name: float(number) for name, number in masks.swapped_units(self.kept_at_start).items()}
        if masks.has_multipliers:
            names = [kind.name for kind in masks.constrained]
            linear, quadratic = masks.multiplier_linear.tolist(), masks.multiplier_quadratic.tolist()
            entries |= {f"multiplier_linear/{name}": value for name, value in zip(names, linear, strict=True)}
            entries |= {f"multiplier_quadratic/{name}": value for name, value in zip(names, quadratic, strict=True)}
        return entries

    def sizes(self, step: int) -> dict[str, float]:
        """The sizes that the masks expect at a step, and the targets of the step."""
        self.set_phase(step)
        entries = {EXPECTED + name: size for name, size in self.masks.expected_shape().items()}
        return entries | {TARGET + name: size for name, size in self.masks.target_shape_now().items()}

    def state_dict(self) -> dict[str, Any]:
        """What has been added up, and the report."""
        return {"lagrangian": self.lagrangian.item(), "logged_at": self.logged_at, "report": self.report}

    def load_state_dict(self, state: dict[str, Any], own: dict[str, Any], same_processes: bool) -> None:
        """Go on adding up."""
        self.lagrangian.fill_(state["lagrangian"])
        self.logged_at, self.report = state["logged_at"], state["report"]

    def save_files(self, checkpoint: str) -> None:
        """Masks, multipliers and their moments."""
        self.optimizer.save(checkpoint, self.kept_at_start)

    def load_files(self, checkpoint: str) -> None:
        """Masks, multipliers and their moments."""
        found = self.optimizer.load(checkpoint)
        if found.keys() != self.kept_at_start.keys():
            raise UsageError(
                f"The checkpoint {checkpoint!r} does not say which units its masks' start keeps, as one of another version"
                " of hf_shear: swaps could not be counted. Resume it with that version, or learn the masks anew."
            )
        self.kept_at_start = found


def mask_report(masks: ShearingMasks) -> dict:
    """``expected_shape`` (floats), ``kept_below_half`` (counts) and ``gap`` (shares), keyed by the shape names.

    The gap is |expected - target| / target. Call it at the phase whose masks are to be judged.
    """
    expected, target = masks.expected_shape(), masks.target
    return {
        "expected_shape": expected,
        "kept_below_half": masks.kept_below_half(),
        "gap": {name: abs(expected[name] - getattr(target, name)) / getattr(target, name) for name in expected},
    }


def warn_if_off_target(report: dict, tolerance: float) -> None:
    """Warn if any size is off by more than ``tolerance`` (a share): what is cut is then not what was trained."""
    off = {name: gap for name, gap in report["gap"].items() if gap > tolerance}
    if off:
        sizes = ", ".join(f"{name} {report['expected_shape'][name]:.1f} ({gap:.1%} off)" for name, gap in off.items())
        warnings.warn(
            f"The learned masks have not met the target: expected {sizes}. What is cut differs from what was trained."
            " Learn masks for more steps, raise `mask_learning_rate` or `multiplier_learning_rate`, or use the"
            " relaxed_topk masks, which meet the target at every step. Silence this with a larger"
            " `shape_gap_tolerance`.",
            UserWarning,
            stacklevel=2,
        )
