"""The LLM Surgeon's costs of a Llama's units (arXiv 2312.17244): the expected rise of the mean loss without one, in nats.

A neuron is a column of down_proj; a query head is a set of columns of o_proj, a KV group the set of those of all its
query heads, each at its joint cost; attention and MLP are all columns of o_proj and of down_proj
(``hf_shear.calibration.costs``). Costs of one kind compare over layers, and those of all kinds with each other.

The cost of a layer is that of its attention plus that of its MLP. What a layer without one of them would do to the other
is not in it, nor anything else beyond second order; a layer is far from a small change.

Legend: L layers, KV key/value heads, g query heads of each, ff MLP width.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch

from ..calibration import DAMPING, ColumnCosts, InputsByModule, stream_curvature, stream_inputs
from ..core import tracked
from ..data import Calibration
from ..masks import ATTENTION, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, MLP, QUERY_HEAD, SUB_LAYERS
from ..modeling import ShearingMixin, open_columns, written_weight
from ..shapes import ATTENTION_OUTPUT, MLP_OUTPUT
from .criterion import Scores, criterion

GRADIENT_TOKENS = 4096
"""Outputs have far fewer channels than there are neurons: G takes less text than A (examples/docs/calibration_cost.md)."""
KINDS = (KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE, LAYER, *SUB_LAYERS)
KINDS_OF_MODULES = {ATTENTION_OUTPUT: (ATTENTION, KEY_VALUE_HEAD, QUERY_HEAD), MLP_OUTPUT: (MLP, INTERMEDIATE)}
"""By the matrix whose columns are what units of these kinds write."""


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
    kinds: Collection[str] | None = None,
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
        kinds: as in ``removal_costs``.
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
    return removal_costs(model, calibration, True, gradients, damping, *passes, held, kinds)


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
    kinds: Collection[str] | None = None,
) -> Scores:
    """Costs of the units that ``model.gates_in_use`` leaves open.

    Args:
        model: a masked model; left as it is.
        update: whether the weights that stay are updated (``compensate``), so that costs are those after the update.
        gradients: False: G = I; costs are then half the squared error of a sub-layer's output per token, not nats, and
            forward passes suffice.
        damping: as in ``ColumnCosts``.
        layers_per_pass, activation_checkpointing, store: as in ``stream_curvature``.
        gradient_tokens: as in ``llm_surgeon``.
        shared_inputs: filled with A of every layer's o_proj and down_proj, or that of the two which kinds need; None: A
            is dropped layer by layer.
        kinds: of units that are wanted; None: all.

    Returns:
        float64 [*rows, units] for the kinds key_value_head, query_head, intermediate and layer, and [L] for whole
        sub-layers, attention and mlp; not of kinds that are not wanted. 0: closed or dead.

    Raises:
        ValueError: as ``stream_curvature`` and ``ColumnCosts``.
    """
    gates = model.gates_in_use
    is_open, shape = open_columns(model, gates), model.masks.source
    wanted = {*(KINDS if kinds is None else kinds)}
    wanted |= {*SUB_LAYERS} if LAYER in wanted else set()
    names = [name for name, own in KINDS_OF_MODULES.items() if wanted & {*own}]
    found = {kind: [] for name in names for kind in KINDS_OF_MODULES[name] if kind in wanted}
    places = torch.arange(shape.num_attention_heads * shape.head_dim, device=model.device)
    groups, heads = places.view(shape.num_key_value_heads, -1), places.view(shape.num_attention_heads, -1)
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
            cost_of = {
                MLP: columns.everything,
                INTERMEDIATE: columns.single,
                ATTENTION: columns.everything,
                KEY_VALUE_HEAD: partial(columns.sets, groups),
                QUERY_HEAD: partial(columns.sets, heads),
            }
            for kind in wanted & {*KINDS_OF_MODULES[name]}:
                found[kind].append(cost_of[kind]())
            del columns, cost_of  # with float64 matrices, before the next ones are made
    costs = {kind: torch.stack(rows) for kind, rows in found.items()}
    if QUERY_HEAD in costs:
        costs[QUERY_HEAD] = costs[QUERY_HEAD].view(len(is_open), len(groups), -1)
    return costs | ({LAYER: costs[ATTENTION] + costs[MLP]} if LAYER in wanted else {})
