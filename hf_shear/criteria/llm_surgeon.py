"""The LLM Surgeon's costs of a Llama's units (arXiv 2312.17244): the expected rise of the mean loss without one, in nats.

A neuron is a column of down_proj; a query head is a set of columns of o_proj, a KV group the set of those of all its
query heads, each at its joint cost; attention and MLP are all columns of o_proj and of down_proj
(``hf_shear.calibration.costs``). Costs of one kind compare over layers, and those of all kinds with each other.

The cost of a layer is that of its attention plus that of its MLP. What a layer without one of them would do to the other
is not in it, nor anything else beyond second order; a layer is far from a small change.

Legend: L layers, KV key/value heads, g query heads of each, ff MLP width.
"""

from __future__ import annotations

import torch

from ..calibration import DAMPING, ColumnCosts, InputsByModule, stream_curvature, stream_inputs
from ..core import tracked
from ..data import Calibration
from ..masks import ATTENTION, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, MLP, QUERY_HEAD, SUB_LAYERS
from ..modeling import ShearingMixin, open_columns, written_weight
from ..shapes import MLP_OUTPUT, OUTPUT_PROJECTIONS
from .criterion import Scores, criterion

GRADIENT_TOKENS = 4096
"""Outputs have far fewer channels than there are neurons: G takes less text than A (examples/docs/calibration_cost.md)."""
KINDS = (KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE, LAYER, *SUB_LAYERS)


@criterion(
    ranks=KINDS,
    presumes_compensation=True,
    comparable_across_layers=lambda options: options["gradients"],
    shares_inputs=True,
)
def llm_surgeon(
    model: ShearingMixin,
    calibration: Calibration,
    shared_inputs: InputsByModule | None = None,
    *,
    gradients: bool = True,
    damping: float = DAMPING,
    layers_per_pass: int = 0,
    activation_checkpointing: bool = False,
    store: str = "",
    gradient_tokens: int = GRADIENT_TOKENS,
) -> Scores:
    """Expected rise of the mean loss, nats per token, after the weights that stay were updated.

    Args:
        shared_inputs: filled with A of all layers where all are held at once: with gradients and no layers_per_pass.
        gradients: False: the activation-only variant, G = I, from forward passes alone; units of error, not nats.
        damping: a share of the mean diagonal, added to the diagonals of A and G.
        layers_per_pass: layers whose statistics are held at once; 0: all, the fastest.
        activation_checkpointing: less memory for the backward pass, which runs each layer again.
        store: where hidden states wait between passes, such as "cpu"; "": the model's device.
        gradient_tokens: of the first samples of the calibration text, which G is of; A is of all. 0: all.

    Returns:
        as ``removal_costs``.
    """
    passes = (layers_per_pass or None, activation_checkpointing, store or None, gradient_tokens)
    held = shared_inputs if gradients and not layers_per_pass else None
    return removal_costs(model, calibration, True, gradients, damping, *passes, held)


@criterion(ranks=KINDS, comparable_across_layers=lambda options: options["gradients"])
def kobd(
    model: ShearingMixin,
    calibration: Calibration,
    *,
    gradients: bool = True,
    layers_per_pass: int = 0,
    activation_checkpointing: bool = False,
    store: str = "",
    gradient_tokens: int = GRADIENT_TOKENS,
) -> Scores:
    """K-OBD (section 3): expected rise of the mean loss, nats per token, when nothing makes up for what is removed.

    Args:
        gradients, layers_per_pass, activation_checkpointing, store, gradient_tokens: as in ``llm_surgeon``.

    Returns:
        as ``removal_costs``.
    """
    passes = (layers_per_pass or None, activation_checkpointing, store or None, gradient_tokens)
    return removal_costs(model, calibration, False, gradients, 0.0, *passes)


def removal_costs(
    model: ShearingMixin,
    calibration: Calibration,
    update: bool = True,
    gradients: bool = True,
    damping: float = DAMPING,
    layers_per_pass: int | None = None,
    activation_checkpointing: bool = False,
    store: str | None = None,
    gradient_tokens: int = 0,
    shared_inputs: InputsByModule | None = None,
) -> Scores:
    """Costs of all units that ``model.gates_in_use`` leaves open.

    Args:
        model: a masked model; left as it is.
        update: whether the weights that stay are updated (``compensate``), so that costs are those after the update.
        gradients: False: G = I; costs are then half the squared error of a sub-layer's output per token, not nats, and
            forward passes suffice.
        damping: as in ``ColumnCosts``.
        layers_per_pass, activation_checkpointing, store: as in ``stream_curvature``.
        gradient_tokens: as in ``llm_surgeon``.
        shared_inputs: filled with A of o_proj and down_proj of every layer; None: A is dropped layer by layer.

    Returns:
        float64 [*rows, units] for the kinds key_value_head, query_head, intermediate and layer, and [L] for whole
        sub-layers, attention and mlp. 0: closed or dead.

    Raises:
        ValueError: as ``stream_curvature`` and ``ColumnCosts``.
    """
    gates = model.gates_in_use
    is_open, shape = open_columns(model, gates), model.masks.source
    found = {kind: [] for kind in (KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE, ATTENTION, MLP)}
    places = torch.arange(shape.num_attention_heads * shape.head_dim, device=model.device)
    groups, heads = places.view(shape.num_key_value_heads, -1), places.view(shape.num_attention_heads, -1)
    names = OUTPUT_PROJECTIONS
    options = {"store": store, "inverted": update, "shared": shared_inputs}
    if gradients:
        passes = stream_curvature(
            model,
            calibration.batches,
            names,
            layers_per_pass,
            activation_checkpointing,
            gradient_samples=calibration.num_samples_of(gradient_tokens),
            **options,
        )
        layers = ((index, curvature.inputs, curvature.gradients) for index, curvature in passes)
    else:
        layers = ((index, inputs, {}) for index, inputs in stream_inputs(model, calibration.batches, names, **options))
    for index, inputs, outputs in tracked(layers, "Scores of layers", len(model.model.layers), unit="layer"):
        for name in names:
            columns = ColumnCosts(
                written_weight(model, index, name, gates),
                inputs.pop(name).gram,
                outputs[name].gram if gradients else None,
                is_open[index][name],
                damping,
                update,
                f"model.layers.{index}.{name}",
            )
            if name == MLP_OUTPUT:
                found[MLP].append(columns.everything())
                found[INTERMEDIATE].append(columns.single())
            else:
                found[ATTENTION].append(columns.everything())
                found[KEY_VALUE_HEAD].append(columns.sets(groups))
                found[QUERY_HEAD].append(columns.sets(heads).view(len(groups), -1))
            del columns  # with its float64 matrices, before the next ones are made
    costs = {kind: torch.stack(rows) for kind, rows in found.items()}
    return costs | {LAYER: costs[ATTENTION] + costs[MLP]}
