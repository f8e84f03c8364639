"""Several sizes of one model in one training: each lies within the next larger one.

The largest size is cut out of the source and its units are ranked once. A smaller size keeps the first units of the same
ranking, so that its weights are a part of the larger one's (slimmable networks, arXiv 1812.08928; MatFormer,
arXiv 2310.07707; Flextron, arXiv 2406.10260). Each training step trains one size: the largest model with gates of 0 on all
units that the size does not have. A closed unit gets no gradient, so what is trained is the small model, under DDP and any
sharding as any masked model. The price is that every step costs the largest size's FLOPs.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ..core import UsageError, read_json_object, write_json_atomically
from ..criteria import CriterionChoice
from ..data import TEACHER_COLUMNS, Calibration
from ..distillation import DistillationSettings, DistillationTarget, check_teacher
from ..masks import LAYER, UnitKind, unit_kinds
from ..masks.strategy import hard_topk
from ..modeling import AutoShearingModelForCausalLM, ShearingModel
from ..shapes import (
    ModelShape,
    TargetShape,
    count_parameters,
    forward_flops_per_token,
    shape_for_budget,
    training_flops_per_token,
)
from ..slicing import KeptUnits, slice_model
from ..training import SampleLosses, ShearTrainer, ShearTrainingArguments
from ..training.distilling import Distiller, computing_of
from ..training.history import evaluation_history
from ..training.same_run import DIGEST
from ..training.trainer_inputs import shear_arguments
from .config import DEFAULT_CRITERION
from .cost import CalibrationCost
from .plan import Target
from .prune import Gates, score_units

GATES_NAME, SHAPES_NAME = "nested_gates.safetensors", "nested_sizes.json"
LEAST_SIZES = 2
LARGEST, NO_TEACHER = "largest", "none"
SIZE_TEACHERS = (NO_TEACHER, LARGEST)
TEACHING = DistillationSettings()
"""How the smaller sizes learn from the largest: half cross-entropy, half forward divergence at temperature 1."""


@dataclass(frozen=True)
class NestedSizes:
    """Sizes of one model, each within the one before it.

    Attributes:
        shapes: by name, the largest first: it is the model's own shape. Counts of parameters fall.
        gates: by name, 0 or 1, [*rows, units] by kind of unit; kinds that a size keeps whole are absent.
    """

    shapes: dict[str, TargetShape]
    gates: dict[str, Gates]

    @property
    def names(self) -> list[str]:
        """Of the sizes, the largest first."""
        return list(self.shapes)

    @property
    def largest(self) -> str:
        """The size that holds the others."""
        return self.names[0]

    def at_step(self, step: int, seed: int) -> str:
        """The size that optimizer step ``step`` trains (0 is the first).

        In each round of as many steps as there are sizes, every size has one, in a random order: a function of seed and
        step alone, so that processes agree and a resumed run goes on with the same sizes.
        """
        lap, place = divmod(step, len(self.names))
        return self.names[int(np.random.default_rng([seed, lap]).permutation(len(self.names))[place])]

    def cut(
        self, model: ShearingModel, name: str, dtype: torch.dtype | None = None
    ) -> tuple[PreTrainedModel, KeptUnits]:
        """One size as a stock model, and its units by their indices in the largest; arguments as in ``slice_model``."""
        gates = {kind: gate.to(model.device) for kind, gate in self.gates[name].items()}
        return slice_model(model, gates, dtype, target=self.shapes[name])

    def digest(self) -> str:
        """SHA-256 over shapes and gates."""
        found = hashlib.sha256()
        for name, shape in self.shapes.items():
            found.update(f"{name} {shape.sizes()}".encode())
            for kind, gate in sorted(self.gates[name].items()):
                found.update(kind.encode() + gate.cpu().bool().numpy().tobytes())
        return found.hexdigest()

    def save(self, folder: str | os.PathLike) -> None:
        """Write the ranking's result to a folder."""
        gates = {f"{name}/{kind}": gate.cpu() for name, found in self.gates.items() for kind, gate in found.items()}
        save_file(gates, os.path.join(folder, GATES_NAME))
        write_json_atomically(
            os.path.join(folder, SHAPES_NAME), {name: shape.to_dict() for name, shape in self.shapes.items()}
        )

    @classmethod
    def load(cls, folder: str | os.PathLike, config: PretrainedConfig) -> NestedSizes:
        """What ``save`` wrote.

        Args:
            config: of the largest size.
        """
        sizes = read_json_object(os.path.join(folder, SHAPES_NAME))
        gates: dict[str, Gates] = {name: {} for name in sizes}
        for name, gate in load_file(os.path.join(folder, GATES_NAME)).items():
            size, _, kind = name.rpartition("/")
            gates[size][kind] = gate
        return cls({name: TargetShape.from_dict(config, shape) for name, shape in sizes.items()}, gates)


# ---- shapes -----------------------------------------------------------------------------------------------------------


def nested_shapes(config: PretrainedConfig, sizes: Sequence[Target]) -> dict[str, TargetShape]:
    """Shapes of falling size that can be cut out of ``config``'s, each of which lies within the one before.

    Args:
        config: of the source.
        sizes: the largest first: shares of the source's parameters (float, below 1), numbers of parameters (int), or
            shapes (dicts). A budget's shape is that which ``shape_for_budget`` picks within the shape before it.

    Returns:
        Targets of the source by name: "0.75" for a share, "1200000" for a number, the number of parameters for a shape.

    Raises:
        UsageError: fewer than two sizes, one that is not smaller than the one before or has the same shape, or a shape that
            does not lie within it.
    """
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Sequence) or len(sizes) < LEAST_SIZES:
        raise UsageError(
            f"`sizes` must be a list of {LEAST_SIZES} or more sizes, the largest first, but it is {sizes!r}. Give some,"
            " such as 0.75,0.5,0.35; a single one is a target (`target_num_parameters`)."
        )
    num_source = count_parameters(config)
    found: dict[str, TargetShape] = {}
    within, before = ModelShape.from_config(config), num_source
    for size in sizes:
        shape = _shape(config, size, within, num_source, before, sizes)
        count = count_parameters(config, shape)
        name = str(count) if isinstance(size, (dict, ModelShape)) else f"{size:g}" if _is_share(size) else str(size)
        wider = [part for part, value in shape.sizes().items() if value > within.sizes()[part]]
        if wider:
            raise UsageError(
                f"`sizes` must be nested, but {size!r} has a larger {wider[0]} ({shape.sizes()[wider[0]]}) than the size"
                f" before it ({within.sizes()[wider[0]]}). Give shapes that are no larger in any dimension."
            )
        if count >= before or name in found:
            raise UsageError(_not_falling(size, count, before, sizes))
        found[name] = shape
        within, before = shape, count
    return found


def _shape(
    config: PretrainedConfig, size: Target, within: ModelShape, num_source: int, before: int, sizes: Sequence[Target]
) -> TargetShape:
    """The shape of one size, within another shape of the same source."""
    if isinstance(size, (dict, TargetShape)):
        return TargetShape.from_dict(config, size.to_dict() if isinstance(size, TargetShape) else size)
    if isinstance(size, bool) or not isinstance(size, Real) or not math.isfinite(size):
        raise UsageError(f"`sizes` must be numbers or shapes, but it holds {size!r}. Give such as 0.75,0.5,0.35.")
    if not isinstance(size, Integral) and not 0 < float(size) < 1:
        raise UsageError(
            f"`sizes` must be shares of the source's parameters, above 0 and below 1, or whole numbers of parameters, but"
            f" it holds {size!r}. Give such as 0.75,0.5,0.35."
        )
    budget = int(size) if isinstance(size, Integral) else math.floor(float(size) * num_source)
    if not 1 <= budget < num_source:
        raise UsageError(f"`sizes` must be below the source's {num_source:,} parameters, but it holds {size!r}.")
    if budget >= before:
        raise UsageError(_not_falling(size, budget, before, sizes))
    try:
        return shape_for_budget(config, num_parameters=budget, within=within).shape
    except UsageError as error:
        raise UsageError(f"`sizes`, {size!r}: {error}") from error


def _not_falling(size: Target, count: int, before: int, sizes: Sequence[Target]) -> str:
    return (
        f"`sizes` must fall, the largest first, but {size!r} ({count:,} parameters) follows a size of {before:,}, in"
        f" {', '.join(map(str, sizes))}. Sort them, and leave out what is there twice or hardly smaller."
    )


def _is_share(size: Target) -> bool:
    return isinstance(size, Real) and not isinstance(size, Integral)


# ---- the ranking ------------------------------------------------------------------------------------------------------


def rank_nested(
    model: PreTrainedModel,
    shapes: Mapping[str, ModelShape],
    calibration: Calibration,
    criterion: CriterionChoice | None = None,
    cost: CalibrationCost | None = None,
) -> NestedSizes:
    """Rank the units of the largest size once, and give each size the first of them.

    Args:
        model: the largest size, plain; left as it is.
        shapes: as ``nested_shapes`` gave them, whatever they were cut out of.
        calibration: text to score on.
        criterion: scores of units; by default as in ``PruneConfig``. Layers go in the order in which it removes them.
            Smaller sizes are not compensated: they share the largest size's weights.
        cost: what is computed is added to it.

    Raises:
        UsageError: the model is not of the first shape, or as ``score_units``.
    """
    own = {name: TargetShape.from_dict(model.config, shape.to_dict()) for name, shape in shapes.items()}
    names = list(own)
    _check_largest(own, model.config)
    masked = AutoShearingModelForCausalLM.from_model(model, own[names[-1]]).eval()
    kinds = [kind.name for kind in masked.masks.constrained]
    choice = dict(DEFAULT_CRITERION) | {LAYER: "joint_rise:mean=false"} if criterion is None else criterion
    cost = CalibrationCost.on(calibration) if cost is None else cost
    with cost.charge("scores"):
        scores = score_units(masked, choice, calibration, kinds)
    return NestedSizes(own, {name: _gates(unit_kinds(shape.source, shape), scores) for name, shape in own.items()})


def _gates(kinds: Mapping[str, UnitKind], scores: Mapping[str, Tensor]) -> Gates:
    return {kind.name: hard_topk(scores[kind.name], kind.num_kept).cpu() for kind in kinds.values() if not kind.frozen}


def _check_largest(shapes: Mapping[str, TargetShape], config: PretrainedConfig) -> None:
    largest, shape = next(iter(shapes.items()))
    own = ModelShape.from_config(config)
    if shape.sizes() != own.sizes():
        raise UsageError(
            f"`model` must be of the largest size, {largest!r} ({shape.sizes_text()}), but it has {own.sizes_text()}. Cut"
            " it first, with `prune_one_shot(source, shapes[...], calibration).model`."
        )


# ---- the training -----------------------------------------------------------------------------------------------------


class NestedTrainer(ShearTrainer):
    """A :class:`ShearTrainer` each of whose steps trains one of several nested sizes.

    Evaluations give ``eval_size_<name>_loss`` for each size, the mean over domains, and
    ``eval_size_<name>_<domain>_loss``. ``eval_loss`` and the losses of domains are means over sizes, by which domain
    weights are steered. An evaluation reads its text once for each size, and ``eval_token_share`` pays for all of them.

    Args:
        model: the largest size, plain or with masks and no target of its own, or a folder of one; its
            weights are trained in place.
        args, arguments, kwargs: as for :class:`ShearTrainer`; ``num_tokens`` are those of all sizes together.
        sizes: as ``rank_nested`` gave them.
        size_teacher: "largest": the smaller sizes learn from the largest, too, which says without gradient what it predicts
            of the same batch (half cross-entropy, half forward divergence); "none": they do not.

    Raises:
        UsageError: the model is not of the largest size, or there would be two teachers, or as :class:`ShearTrainer`.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike,
        args: ShearTrainingArguments | None = None,
        *arguments,
        sizes: NestedSizes,
        size_teacher: str = NO_TEACHER,
        **kwargs,
    ):
        if size_teacher not in SIZE_TEACHERS:
            raise UsageError(f"`size_teacher` must be one of {', '.join(SIZE_TEACHERS)}, but it is {size_teacher!r}.")
        args = shear_arguments(args)
        args = replace(args, eval_token_share=args.eval_token_share / len(sizes.names))
        self.sizes, self.size_teacher = sizes, size_teacher
        self.size_losses: dict[str, dict[str, float]] = {}
        self.evaluated_tokens = 0
        super().__init__(model, args, *arguments, **kwargs)
        self._gates = {
            name: {kind: gate.to(self.args.device) for kind, gate in gates.items()}
            for name, gates in sizes.gates.items()
        }
        if size_teacher == LARGEST:
            self._add_teacher()

    def load_model_and_tokenizer(
        self, model: PreTrainedModel | str | os.PathLike, processing_class
    ) -> tuple[PreTrainedModel, Any]:
        """Overridden: the model has masks, and is of the largest size."""
        model, processing_class = super().load_model_and_tokenizer(model, processing_class)
        if not isinstance(model, ShearingModel):
            model = AutoShearingModelForCausalLM.from_model(model)
        if model.masks.constrained:
            raise UsageError(
                "`model` must have no target of its own, since sizes are chosen and not learned. Give a plain model, or"
                " AutoShearingModelForCausalLM.from_model(largest)."
            )
        _check_largest(self.sizes.shapes, model.config)
        return model, processing_class

    def _add_teacher(self) -> None:
        if self.distiller is not None:
            raise UsageError(
                f"`distillation={self.args.distillation!r}` gives all sizes a teacher, and `size_teacher` 'largest' gives"
                " the smaller ones a second. Leave one of the two out."
            )
        check_teacher(self.model.config, self.model.config)
        self.distiller = LargestTeacher(self, TEACHING)
        self._learn_from(self.distiller)
        self.parts.append(self.distiller)

    @property
    def size_now(self) -> str:
        """The size that the present step trains."""
        return self.sizes.at_step(self.state.global_step, self.args.seed)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Overridden: the step's size is trained, in all its micro-batches."""
        with self.masked_model.use_gates(self._gates[self.size_now]):
            return super().training_step(model, inputs, num_items_in_batch)

    def domain_losses(self, datasets: Mapping) -> dict[str, SampleLosses]:
        """Overridden: the mean over sizes of each sample's loss; ``size_losses`` keeps those of each size."""
        found = {}
        for name, gates in self._gates.items():
            with self.masked_model.use_gates(gates):
                found[name] = super().domain_losses(datasets)
        self.size_losses = {name: {domain: it.mean for domain, it in losses.items()} for name, losses in found.items()}
        first = found[self.sizes.largest]
        self.evaluated_tokens = len(found) * sum(sum(it.num_tokens) for it in first.values())
        return {
            domain: SampleLosses(
                [
                    math.fsum(sums) / len(found)
                    for sums in zip(*(losses[domain].sums for losses in found.values()), strict=True)
                ],
                it.num_tokens,
            )
            for domain, it in first.items()
        }

    def more_metrics(self, prefix: str) -> dict[str, float]:
        """Overridden: the losses of each size, and the text that all of them read."""
        entries: dict[str, float] = {f"{prefix}_tokens": self.evaluated_tokens}
        for name, losses in self.size_losses.items():
            entries[f"{prefix}_size_{name}_loss"] = sum(losses.values()) / len(losses)
            entries |= {f"{prefix}_size_{name}_{domain}_loss": loss for domain, loss in losses.items()}
        return entries

    def history_of(self, name: str, stage: str) -> list[dict]:
        """The evaluations of one size, as in ``stage_record``."""
        domains, rows = list(self.train_dataset or ()), []
        for row in self.state.log_history:
            own = {f"eval_{domain}_loss": row.get(f"eval_size_{name}_{domain}_loss") for domain in domains}
            rows.append(row if None in own.values() else row | own)
        return evaluation_history(rows, stage, domains)

    def source_losses(self) -> dict[str, SampleLosses]:
        """Overridden: of the largest size, before any training."""
        with self.masked_model.use_gates({}):
            return super().domain_losses(self.domains.steering_samples())

    def more_that_decides(self) -> dict:
        """Overridden: the sizes, their units, and what teaches them."""
        return {
            "the sizes": {name: shape.sizes() for name, shape in self.sizes.shapes.items()},
            "the units of the sizes": DIGEST + self.sizes.digest(),
            "size_teacher": self.size_teacher,
        }

    def flops(self) -> float:
        """Of all training steps so far: each is the largest size's, and with it as teacher a forward pass more."""
        config, length = self.masked_model.config, self.sample_length
        taught = 0.0
        if self.size_teacher == LARGEST:
            steps = range(self.state.global_step)
            taught = sum(self.sizes.at_step(step, self.args.seed) != self.sizes.largest for step in steps)
            taught *= self.args.samples_per_step() * length * forward_flops_per_token(config, length)
        return self.tokens_seen() * training_flops_per_token(config, length) + taught

    def cut(self, name: str, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, KeptUnits]:
        """One size as a stock model, as in ``NestedSizes.cut``; all processes must call this."""
        return self.sizes.cut(self.masked_model, name, dtype)


class LargestTeacher(Distiller):
    """The largest size teaches the others what it predicts of the same batch; by itself it learns from the text alone."""

    def __init__(self, trainer: NestedTrainer, settings: DistillationSettings):
        super().__init__(settings, trainer.model, None, **computing_of(trainer))
        self.trainer, self.teaches = trainer, False

    def set_target(self, inputs: dict[str, Tensor]) -> None:
        """Overridden: the largest size is run with all gates open, before the student is."""
        for name in TEACHER_COLUMNS:
            inputs.pop(name, None)
        target = DistillationTarget(inputs["labels"], self.vocab_size, self.settings)
        self.teaches = self.trainer.size_now != self.trainer.sizes.largest
        if self.teaches:
            target.teacher_hidden = self._hidden_states(inputs)
            target.teacher_head = self.head.logits
        self.head.distillation_target = target

    @torch.no_grad()
    def _hidden_states(self, inputs: dict[str, Tensor]) -> Tensor:
        """[b, S, d] what the largest size gives its head."""
        trainer = self.trainer
        read = {name: inputs[name] for name in ("input_ids", "position_ids") if name in inputs}
        model = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
        self.head.gives_hidden_states = True
        try:
            with trainer.masked_model.use_gates({}), self.autocast():
                return model(**read, use_cache=False).logits
        finally:
            self.head.gives_hidden_states = False

    def weighted(self, means: Tensor) -> Tensor:
        """Overridden: the largest size's own loss is the cross-entropy."""
        return super().weighted(means) if self.teaches else means[0]

    def teaching_setup(self, sample: Mapping) -> Any:
        """Overridden: no memory is held for a teacher beside the model."""
        return None
