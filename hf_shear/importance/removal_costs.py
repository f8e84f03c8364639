"""The LLM Surgeon's costs of a Llama's units: the expected rise of the mean loss, in nats per token, when one is removed.

A neuron is a column of down_proj; a query head is a set of columns of o_proj, a KV group the set of those of all its
query heads, each at its joint cost; attention and MLP are all columns of o_proj and of down_proj
(``hf_shear.calibration.costs``). Costs of one kind compare over layers, and those of all kinds with each other.

The cost of a layer is that of its attention plus that of its MLP. What a layer without one of them would do to the other
is not in it, nor anything else beyond second order; a layer is far from a small change.

Legend: L layers, KV key/value heads, g query heads of each, ff MLP width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibration import DAMPING, ColumnCosts, InputsByModule, stream_curvature, stream_inputs
from ..data import Calibration
from ..masks import ATTENTION, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, MLP, QUERY_HEAD
from ..modeling import ATTENTION_OUTPUT, MLP_OUTPUT, ShearingMixin, open_columns, written_weight
from .criterion import Scores


@dataclass(frozen=True)
class RemovalCosts:
    """Costs of one model, float64.

    Attributes:
        units: [*rows, units] for the kinds key_value_head, query_head, intermediate and layer. 0: closed or dead.
        attention, mlp: [L], of all columns of o_proj and of down_proj.
    """

    units: Scores
    attention: Tensor
    mlp: Tensor

    def scores(self) -> Scores:
        """Of every kind that they rank: units, and whole sub-layers."""
        return self.units | {ATTENTION: self.attention, MLP: self.mlp}


def removal_costs(
    model: ShearingMixin,
    calibration: Calibration,
    update: bool = True,
    gradients: bool = True,
    damping: float = DAMPING,
    layers_per_pass: int | None = None,
    activation_checkpointing: bool = False,
    store: str | None = None,
    shared_inputs: InputsByModule | None = None,
) -> RemovalCosts:
    """Costs of all units that ``model.gates_in_use`` leaves open.

    Args:
        model: a masked model; left as it is.
        update: whether the weights that stay are updated (``compensate``), so that costs are those after the update.
        gradients: False: G = I; costs are then half the squared error of a sub-layer's output per token, not nats, and
            forward passes suffice.
        damping: as in ``ColumnCosts``.
        layers_per_pass, activation_checkpointing, store: as in ``stream_curvature``.
        shared_inputs: filled with A of o_proj and down_proj of every layer, for what comes after; None: A is dropped layer
            by layer.

    Raises:
        ValueError: as ``stream_curvature`` and ``ColumnCosts``.
    """
    gates = model.gates_in_use
    is_open, shape = open_columns(model, gates), model.masks.source
    found = {name: [] for name in (KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE, ATTENTION_OUTPUT, MLP_OUTPUT)}
    columns = torch.arange(shape.num_attention_heads * shape.head_dim, device=model.device)
    groups, heads = columns.view(shape.num_key_value_heads, -1), columns.view(shape.num_attention_heads, -1)
    names = (ATTENTION_OUTPUT, MLP_OUTPUT)
    options = {"store": store, "inverted": update}
    if gradients:
        passes = stream_curvature(
            model, calibration.batches, names, layers_per_pass, activation_checkpointing, **options
        )
        layers = ((index, curvature.inputs, curvature.gradients) for index, curvature in passes)
    else:
        layers = ((index, inputs, {}) for index, inputs in stream_inputs(model, calibration.batches, names, **options))
    for index, inputs, outputs in layers:
        for name in names:
            if shared_inputs is not None:
                shared_inputs[index, name] = inputs[name]
            costs = ColumnCosts(
                written_weight(model, index, name, gates),
                inputs.pop(name).gram,
                outputs[name].gram if gradients else None,
                is_open[index][name],
                damping,
                update,
                f"model.layers.{index}.{name}",
            )
            found[name].append(costs.everything())
            if name == MLP_OUTPUT:
                found[INTERMEDIATE].append(costs.single())
            else:
                found[KEY_VALUE_HEAD].append(costs.sets(groups))
                found[QUERY_HEAD].append(costs.sets(heads).view(len(groups), -1))
            del costs  # with its float64 matrices, before the next ones are made
    stacked = {name: torch.stack(rows) for name, rows in found.items()}
    attention, mlp = stacked.pop(ATTENTION_OUTPUT), stacked.pop(MLP_OUTPUT)
    return RemovalCosts(stacked | {LAYER: attention + mlp}, attention, mlp)
