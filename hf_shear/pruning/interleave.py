"""Prune and train by turns, under one optimizer and one learning-rate schedule.

Adapt-Pruner (arXiv 2502.03460) prunes a little, trains a little, and so on; EfficientLLM (arXiv 2502.06663) does the
same during pre-training. Here all stages train one full-size model, on which gates of 0 hold removed units closed. A
closed unit gets no gradient, so what is trained is the pruned model, and no shape between source and target has to be a
valid one.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from ..compensation import add_biases
from ..core import UsageError
from ..core.defaults import PRUNING_SHARE
from ..data import Calibration
from ..distillation import sampled_digest
from ..modeling import AutoShearingModelForCausalLM, ShearingModel
from ..slicing import KeptUnits, count_kept_parameters
from ..slicing.kept_units import kept_units_from_masks
from ..sources import on_device
from ..training import ShearTrainer, ShearTrainingArguments
from ..training.part import Part
from ..training.same_run import DIGEST
from .config import PruneConfig
from .cost import CalibrationCost
from .plan import Target, make_plan
from .prune import OneShotPruning, cut, remove_units

GATES_NAME = "gates.safetensors"
Prune = Callable[[ShearingModel, dict[str, Tensor], float], dict[str, Tensor]]
"""(model, gates in use, share of the way to the target that is to be gone) -> gates; may write to weights in place."""


def pruning_steps(total_steps: int, config: PruneConfig) -> dict[int, float]:
    """Before which optimizer steps units are removed, and how far on the way to the target: step -> progress.

    The first shot is taken before the first step; the last ends at ``pruning_share`` of all steps, and what remains is
    trained at the target's size. So training follows every shot, and the last one longest where the share is below 1.

    Raises:
        UsageError: there are fewer steps than shots.
    """
    num_stages, share = config.num_shots, PRUNING_SHARE if config.pruning_share is None else config.pruning_share
    steps = [int(total_steps * share * stage / num_stages) for stage in range(num_stages)]
    if len(set(steps)) < num_stages:
        raise UsageError(
            f"`num_shots` (`num_stages` of the command line) must be at most the {int(total_steps * share)} optimizer steps"
            f" that units are removed in, but it is {num_stages}. Train on more tokens, or in fewer stages."
        )
    return {step: (stage + 1) / num_stages for stage, step in enumerate(steps)}


class InterleavedTrainer(ShearTrainer):
    """A :class:`ShearTrainer` that removes units at the steps of ``pruning_steps``.

    Args:
        model: a masked model without a target of its own (``ShearingLlamaForCausalLM.from_model(source)``): its masks
            learn nothing. Everything ``prune`` may write to, such as biases, must be there already.
        prune: chooses what is closed next.
        config: its ``num_shots`` are the stages, which are taken within its ``pruning_share`` of the training steps.
        choices: JSON-ready values, by name, that decide what ``prune`` does. A resumed run must have the same, and the
            same ``config``.
        restart_moments: start the moments of AdamW anew at each removal; False: go on with them, which lost more
            (model_cards/bench.md).
        args, kwargs: as for :class:`ShearTrainer`; ``num_tokens`` is the budget of all stages together.

    Attributes:
        gates: in use, 0 or 1, by kind of unit; {} before the first stage.

    Raises:
        ValueError: the model has no masks or learns them, the backend spreads weights over processes, or the stages do
            not fit the steps.
    """

    def __init__(
        self,
        model: ShearingModel,
        args: ShearTrainingArguments,
        *arguments,
        prune: Prune,
        config: PruneConfig,
        restart_moments: bool = True,
        choices: dict | None = None,
        **kwargs,
    ):
        if not isinstance(model, ShearingModel) or model.masks.constrained:
            raise UsageError(
                "`model` must have masks and no target of its own, since units are chosen here and not learned: make it"
                " with ShearingLlamaForCausalLM.from_model(source)."
            )
        super().__init__(model, args, *arguments, **kwargs)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise UsageError("Interleaved pruning scores whole models: use one process or DDP, not DeepSpeed or FSDP.")
        self.prune, self.restart_moments = prune, restart_moments
        self._choices = config.to_dict() | (choices or {}) | {"restart_moments": restart_moments}
        self.gates: dict[str, Tensor] = {}
        self.parts.append(Gates(self.gates, self.args.device))
        self.events = pruning_steps(self.args.max_steps, config)
        self.add_callback(PruneCallback(self))

    def train(self, *args, **kwargs):
        """As ``ShearTrainer.train``, with the gates of each stage held closed."""
        with self.masked_model.use_gates(self.gates):  # changed in place
            return super().train(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        """As ``ShearTrainer.evaluate``, with the gates in use."""
        with self.masked_model.use_gates(self.gates):
            return super().evaluate(*args, **kwargs)

    def kept_units(self) -> KeptUnits:
        """The units that no stage has removed yet."""
        masks = self.masked_model.masks
        kept = {name: torch.ones(kind.mask_shape, dtype=torch.bool) for name, kind in masks.kinds.items()}
        kept |= {name: gate.bool().cpu() for name, gate in self.gates.items()}
        return kept_units_from_masks(kept, masks.kinds, masks.source, uneven=True)

    def more_that_decides(self) -> dict:
        """Overridden: what is removed, when, and how."""
        return self._choices

    def remove_units(self, progress: float) -> None:
        """Let ``prune`` close units, and go on with what is left."""
        self.gates.update(self.prune(self.masked_model, dict(self.gates), progress))
        if self.restart_moments:
            assert isinstance(self.optimizer, torch.optim.Optimizer)
            self.optimizer.state.clear()


class Gates(Part):
    """Keeps the gates in use in every checkpoint.

    Args:
        gates: in use, by kind of unit; changed in place.
        device: of the training.
    """

    def __init__(self, gates: dict[str, Tensor], device: torch.device):
        self.gates, self.device = gates, device

    def save_files(self, checkpoint: str) -> None:
        """Write the gates."""
        gates = {name: gate.cpu().contiguous() for name, gate in self.gates.items()}
        save_file(gates, os.path.join(checkpoint, GATES_NAME))

    def load_files(self, checkpoint: str) -> None:
        """Use the gates of the checkpoint again."""
        path = os.path.join(checkpoint, GATES_NAME)
        if not os.path.isfile(path):
            raise UsageError(f"The checkpoint {str(checkpoint)!r} has no {GATES_NAME}: it is of another training.")
        self.gates.update({name: gate.to(self.device) for name, gate in load_file(path).items()})


class PruneCallback(TrainerCallback):
    """Removes units before the steps that are named for it."""

    def __init__(self, trainer: InterleavedTrainer):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        progress = self.trainer.events.get(state.global_step)
        if progress is not None:
            self.trainer.remove_units(progress)


@dataclass(frozen=True)
class InterleavedPruning(OneShotPruning):
    """What interleaved pruning made: ``model`` is trained, ``scores``, ``compensation`` and ``cost`` are of this
    call's shots.

    Attributes:
        trainer: after training; its ``gates`` are those of the last stage.
    """

    trainer: InterleavedTrainer


def prune_interleaved(
    model: PreTrainedModel,
    target: Target,
    calibration: Calibration,
    config: PruneConfig,
    args: ShearTrainingArguments,
    train_dataset: Mapping,
    eval_dataset: Mapping | None = None,
    *,
    restart_moments: bool = True,
    resume_from_checkpoint: str | bool | None = None,
    watch: Callable[[InterleavedTrainer], None] | None = None,
) -> InterleavedPruning:
    """Prune ``model`` to ``target`` in shots, and train it in between and after, on ``args.num_tokens`` in all.

    Args:
        model: a stock or a masked model of a supported family; left as it is.
        target, calibration: as in ``prune_one_shot``.
        config: all other choices, such as ``num_shots=5``. The shots are taken within its ``pruning_share`` of the
            training steps.
        args, train_dataset, eval_dataset: as for ``ShearTrainer``.
        restart_moments: as for ``InterleavedTrainer``.
        resume_from_checkpoint: as for ``Trainer.train``.
        watch: called with the trainer before it trains.

    Raises:
        UsageError: as in ``make_plan`` and ``InterleavedTrainer``; before any training.
    """
    if config.pruning_share is None:
        config = replace(config, pruning_share=PRUNING_SHARE)
    plan = make_plan(model.config, target, config)
    masked = AutoShearingModelForCausalLM.from_model(copy.deepcopy(model), as_family=config.as_family)
    on_device(masked, args.device)
    if plan.compensation.needs_bias:
        add_biases(masked)
    source = copy.deepcopy(masked).eval() if plan.compensation.reads_source else None
    scores, reports, cost = {}, [], CalibrationCost.on(calibration)

    def prune(now: ShearingModel, gates: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        twin = AutoShearingModelForCausalLM.from_model(now, plan.shape).eval()
        chosen, found, report = remove_units(twin, gates, progress, plan, calibration, source, cost, scores)
        scores.update(found)
        reports.append(report)
        _copy_weights(twin, now)
        return chosen

    choices = {
        "target shape": plan.shape.sizes(),
        "budget": plan.budget,
        "calibration seed": calibration.seed,
        "the calibration text": DIGEST + calibration.digest(),
    }
    if source is not None:
        choices["the source"] = DIGEST + sampled_digest(source)
    trainer = InterleavedTrainer(
        masked, args, train_dataset, eval_dataset, prune=prune, config=config, restart_moments=restart_moments,
        choices=choices,
    )  # fmt: skip
    if watch is not None:
        watch(trainer)
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    cost.over_ranks(args.device)
    full = AutoShearingModelForCausalLM.from_model(trainer.masked_model, plan.shape)
    sliced, kept = cut(full, trainer.gates, plan)
    return InterleavedPruning(
        sliced, kept, config, full.config, scores, reports, count_kept_parameters(full.config, kept), plan.budget,
        plan.uneven, cost, trainer,
    )  # fmt: skip


@torch.no_grad()
def _copy_weights(twin: ShearingModel, model: ShearingModel) -> None:
    """Into the parameters that the optimizer knows, what compensation replaced in a twin that shares the others."""
    new = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() != new[name].data_ptr():
            parameter.copy_(new[name])
