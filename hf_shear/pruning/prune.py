"""One path for every criterion: calibrate, score, allocate, compensate, slice."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ..compensation import CompensationReport, compensate, reads_own_inputs
from ..core import UsageError, check_ranges
from ..criteria import CriterionChoice, Scores
from ..data import Calibration
from ..modeling import AutoShearingModelForCausalLM, check_model
from ..modeling import as_family as config_as_family
from ..shapes import family_named
from ..slicing import FORMS, KeptUnits, count_kept_parameters, release_weights, slice_model, slice_uneven
from .defaults import DEFAULT_COMPENSATION, DEFAULT_CRITERION, DEFAULT_NUM_SHOTS
from .plan import UNIFORM, Target, make_plan
from .protected_layers import protect_layers
from .score import score_units

Gates = dict[str, Tensor]  # 0 or 1, [*rows, units] by kind


@dataclass(frozen=True)
class OneShotPruning:
    """What one-shot pruning made.

    Attributes:
        model: a stock model, in evaluation mode: of the target's shape, or of the largest layer's, with zeros where
            others are narrower.
        kept: the units of the source that it keeps.
        masked_config: of the masked model that was cut, for ``provenance_record``.
        scores: of the last shot, [*rows, units] per kind of unit that lost some; infinite for protected layers.
        compensation: errors of what was compensated, one report per shot.
        num_parameters: of the kept units, without padding; never above a budget.
        budget: parameters that were allowed; None where a shape was the target.
        uneven: whether layers were free to end with different widths.
    """

    model: PreTrainedModel
    kept: KeptUnits
    masked_config: PretrainedConfig
    scores: Scores
    compensation: list[CompensationReport]
    num_parameters: int
    budget: int | None
    uneven: bool

    @property
    def num_padded_parameters(self) -> int:
        """Parameters of ``model``, padding included."""
        return self.model.num_parameters()


def prune_one_shot(
    model: PreTrainedModel,
    target: Target,
    calibration: Calibration | Iterable[dict[str, Tensor]],
    criterion: CriterionChoice = DEFAULT_CRITERION,
    compensation: str = DEFAULT_COMPENSATION,
    num_shots: int = DEFAULT_NUM_SHOTS,
    as_family: str | None = None,
    protect: str | Sequence[int] = (),
    allocation: str = UNIFORM,
    units: Collection[str] | None = None,
    form: str = FORMS[0],
    release_source: bool = False,
) -> OneShotPruning:
    """Prune ``model`` to ``target``: keep what ``criterion`` scores highest, and make up for the rest.

    Args:
        model: a stock or a masked model of a supported family; left as it is, but for ``release_source``.
        target: the shape to reach, any subset of its names of sizes; or a budget, the largest number of parameters (an int)
            or the share of the source's to keep (a float), embeddings included and tied weights counted once.
        calibration: text to score and compensate on (batches with ``input_ids`` and ``labels``).
        criterion: a name with options (``"taylor"``, ``"flap"``), a function declared by
            ``hf_shear.criteria.criterion``, or a dict with one per kind of unit (and ``"default"``). Default: what lost
            least in model_cards/bench.md, the LLM Surgeon for heads and neurons, the size of activations for hidden
            dimensions, the rise of the loss for layers.
        compensation: a name with options (``"none"``, ``"least_squares"``, ``"least_squares_bias:towards=source"``; see
            ``hf_shear.compensation.compensate``); the source is ``model``, whatever the shot. The default holds under any
            criterion, because it lowered the loss under each that was measured.
        num_shots: steps in which units are removed; each scores and compensates anew what the ones before left, and takes
            as long as a pruning in one.
        as_family: model_type that the result shall have, as in ``AutoShearingModelForCausalLM.from_pretrained``.
        protect: layers that stay under any criterion: indices, or a text such as "first:4,last:2".
        allocation: how layers share what is removed. "uniform": all have the target's shape, which a budget lets
            ``shape_for_budget`` pick. Under a budget also "global", one list of the units of all layers, and "adaptive",
            layers by their influence; options as in "global:per_parameter=false", "adaptive:num_steps=20,amplitude=0.5".
        units: kinds that the allocations global ("layer", "attention", "mlp", "key_value_head", "query_head",
            "intermediate") and adaptive ("key_value_head", "intermediate") remove; by default these last two.
        form: how the result is to be saved: "padded", or "nemotron_nas" (``save_nemotron_nas``), for which what that
            format cannot hold is refused here.
        release_source: let go of each weight of ``model`` once it is cut, as in ``slice_model``.

    Raises:
        ValueError: the target does not fit, the criterion cannot rank what is to be removed, more layers are protected
            than the target keeps, the family does not admit the compensation, or ``form`` cannot hold the result; before
            any forward runs.
    """
    check_ranges({"num_shots": num_shots})
    check_model(model)
    calibration = calibration if isinstance(calibration, Calibration) else Calibration(list(calibration))
    largest = max(int(batch["input_ids"].max()) for batch in calibration.batches)
    if largest >= model.config.vocab_size:
        raise UsageError(
            f"`calibration` must hold token ids below the model's vocabulary of {model.config.vocab_size}, but it holds"
            f" {largest}. Tokenise the text with the model's own tokenizer."
        )
    config = (
        model.config if as_family is None else config_as_family(model.config, family_named(as_family, "`as_family`: "))
    )
    plan = make_plan(config, target, criterion, allocation, units, form, protect, compensation)
    masked = AutoShearingModelForCausalLM.from_model(model, plan.shape, as_family=as_family).eval()
    whole = AutoShearingModelForCausalLM.from_model(model, as_family=as_family).eval()  # shares the weights

    def one_shot(gates: Gates, progress: float) -> tuple[Gates, Scores, CompensationReport]:
        # Scores and compensation see one model: the same weights, gates and text. So A is collected once, and dropped here.
        shared_inputs = {} if reads_own_inputs(compensation) else None
        with masked.use_gates(gates):
            scores = score_units(masked, criterion, calibration, plan.kinds, shared_inputs)
            scores = protect_layers(scores, plan.protected_layers)
            chosen = plan.allocate(masked, calibration, scores, criterion, progress)
            return chosen, scores, compensate(masked, chosen, calibration, compensation, whole, shared_inputs)

    gates, scores, reports = {}, {}, []
    for shot in range(num_shots):
        gates, scores, report = one_shot(gates, (shot + 1) / num_shots)
        reports.append(report)
    if release_source:
        for holder in (model, whole):
            release_weights(holder)  # `masked` shares them, and lets go of one after another
    cut = slice_uneven if plan.uneven else slice_model
    sliced, kept = cut(masked, gates, release_source=release_source)
    num_parameters = count_kept_parameters(masked.config, kept)
    return OneShotPruning(sliced, kept, masked.config, scores, reports, num_parameters, plan.budget, plan.uneven)
