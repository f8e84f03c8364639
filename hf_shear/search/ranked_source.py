"""A source whose units were ranked once, from which models of any shape are cut without another backward pass."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel

from ..calibration import InputsByModule
from ..compensation import compensate, resolve_compensation
from ..criteria import Scores
from ..data import Calibration
from ..masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, RANKED_KINDS, unit_kinds
from ..modeling import AutoShearingModelForCausalLM, ShearingModel
from ..pruning import PruneConfig, score_units
from ..pruning.allocation import close_cheapest, per_layer_gates, smallest_count, uniform_gates
from ..pruning.open_units import OpenUnits
from ..pruning.plan import criteria_for
from ..shapes import LayerSizes, ModelShape, PerLayerShape, TargetShape
from ..slicing import slice_model, slice_uneven


class RankedSource:
    """Scores of a source's units and the second moments of what its modules read, collected once.

    Args:
        model: stock, of a supported family; left as it is.
        calibration: text to score on.
        config: criterion and compensation. Layers are ranked in the source, not in each candidate's trial cut.
        shapes: all that may be cut: kinds of units that none of them loses are not ranked.
    """

    def __init__(
        self, model: PreTrainedModel, calibration: Calibration, config: PruneConfig, shapes: Iterable[TargetShape]
    ):
        self.model, self.calibration, self.config = model, calibration, config
        self.whole = AutoShearingModelForCausalLM.from_model(model).eval()  # shares the weights
        self._inputs: InputsByModule = {}
        shapes = list(shapes)
        lost = {kind.name for shape in shapes for kind in unit_kinds(shape.source, shape).values() if not kind.frozen}
        kinds = [kind for kind in RANKED_KINDS if kind in lost]
        # Towards the shallowest one, layers are ranked in the order in which they go together: each depth keeps the last.
        depth = min(shape.num_hidden_layers for shape in shapes)
        shallow = TargetShape.from_source(model.config, num_hidden_layers=depth)
        masked = AutoShearingModelForCausalLM.from_model(model, shallow).eval()
        method = resolve_compensation(config.compensation).resolved(True, model.config)
        self.criteria = criteria_for(config.criterion, kinds, model.config, method)
        self.scores = score_units(masked, self.criteria, calibration, kinds, self._inputs)

    def cut(self, shape: TargetShape) -> PreTrainedModel:
        """A stock model of the shape: the best units of each kind, and what remains makes up for the others.

        A fit of modules to their own outputs takes what the scores collected, and runs no forward. One to the source's
        residual stream takes two of the pruned model and one of the source.
        """
        masked = AutoShearingModelForCausalLM.from_model(self.model, shape).eval()
        gates = self.gates(shape)
        self._compensate(masked, gates)
        model, _ = slice_model(masked, gates)
        return model

    def gates(self, shape: TargetShape) -> Scores:
        """1 for the best units of each kind that a shape loses some of, 0 for the others."""
        kinds = unit_kinds(shape.source, shape)
        losing = {name for name, kind in kinds.items() if not kind.frozen}
        scores = {kind: score for kind, score in self.scores.items() if kind in losing}
        return uniform_gates(scores, kinds, {})

    def allocated(self, budget: int) -> PerLayerShape | None:
        """What ``global`` allocation leaves of each layer: of heads and neurons the cheapest go, in one list.

        None where the scores of neither were collected, or what they are of does not bring the model to the budget.
        """
        kinds = [kind for kind in (KEY_VALUE_HEAD, INTERMEDIATE) if kind in self.scores]
        units = OpenUnits(self.model.config, ModelShape.from_config(self.model.config))
        if smallest_count(units, kinds) > budget:
            return None
        comparable = all(
            criterion.comparable_across_layers for kind, criterion in self.criteria.items() if kind in kinds
        )
        close_cheapest(units, {kind: self.scores[kind] for kind in kinds}, budget, comparable)
        return shape_of_gates(units.gates(), units.source)

    def cut_layers(self, shape: PerLayerShape) -> PreTrainedModel:
        """As ``cut``, of layers with widths of their own: padded with zeros to the largest."""
        masked = AutoShearingModelForCausalLM.from_model(self.model).eval()
        gates = per_layer_gates(self.scores, shape, masked.device)
        self._compensate(masked, gates)
        model, _ = slice_uneven(masked, gates)
        return model

    def _compensate(self, masked: ShearingModel, gates: Scores) -> None:
        method = resolve_compensation(self.config.compensation)
        compensate(masked, gates, self.calibration, method, self.whole, dict(self._inputs))


def shape_of_gates(gates: Scores, source: ModelShape) -> PerLayerShape:
    """What is left of each layer under gates of 0 and 1, in which all groups of a layer keep as many query heads."""

    def left(kind: str, width: int) -> list[int]:
        if kind not in gates:
            return [width] * source.num_hidden_layers
        rows = gates[kind].reshape(source.num_hidden_layers, -1, width)
        return rows[:, 0].sum(dim=1).int().tolist()

    groups, queries = left(KEY_VALUE_HEAD, source.num_key_value_heads), left(QUERY_HEAD, source.queries_per_group)
    neurons = left(INTERMEDIATE, source.intermediate_size)
    stays = gates[LAYER].tolist() if LAYER in gates else [1.0] * source.num_hidden_layers
    layers = (
        LayerSizes(number * each, number, width) if stay else LayerSizes(0, 0, 0)
        for number, each, width, stay in zip(groups, queries, neurons, stays, strict=True)
    )
    hidden = int(gates[HIDDEN].sum()) if HIDDEN in gates else source.hidden_size
    return PerLayerShape(source, hidden, tuple(layers))
