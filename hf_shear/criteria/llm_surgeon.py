"""The LLM Surgeon's costs of coupled units (arXiv 2312.17244)."""

from __future__ import annotations

from ..calibration import DAMPING, InputsByModule
from ..data import Calibration
from ..importance import Scores, criterion, removal_costs
from ..masks import INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, SUB_LAYERS
from ..modeling import ShearingMixin


@criterion(
    ranks=(KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE, LAYER, *SUB_LAYERS),
    presumes_compensation=True,
    comparable_across_layers=lambda options: options.get("gradients", True),
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
) -> Scores:
    """Expected rise of the mean loss, nats per token, after the weights that stay were updated.

    Args:
        shared_inputs: is given A of all layers, if they are held at once anyway: with gradients and no layers_per_pass.
        gradients: False: the activation-only variant, G = I, from forward passes alone; units of error, not nats.
        damping: a share of the mean diagonal, added to the diagonals of A and G.
        layers_per_pass: layers whose statistics are held at once; 0: all, the fastest.
        activation_checkpointing: less memory for the backward pass, which runs each layer again.
        store: where hidden states wait between passes, such as "cpu"; "": the model's device.
    """
    passes = (layers_per_pass or None, activation_checkpointing, store or None)
    held = shared_inputs if gradients and not layers_per_pass else None
    return removal_costs(model, calibration, True, gradients, damping, *passes, held).scores()
