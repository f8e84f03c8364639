"""Compensation as a stage of its own: under any criterion, and for learned masks.

Removed heads are columns of o_proj, removed neurons columns of down_proj: the remaining columns (or a bias) take over
what can be told of the removed ones from them. Removed rows (hidden dimensions) need nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..curvature import input_moments, least_squares_columns
from ..data import Calibration
from ..masks import INTERMEDIATE
from ..modeling import ShearingMixin, head_channel_masks

COMPENSATIONS = ("none", "least_squares")


@dataclass
class CompensationReport:
    """Relative squared error of each compensated module's output on the calibration text.

    Attributes:
        before, after: by module name, E|W a - W' a'|^2 / E|W a|^2 without and with compensation.
    """

    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def compensate(
    model: ShearingMixin, gates: dict[str, Tensor], calibration: Calibration, method: str = "least_squares"
) -> CompensationReport:
    """Update o_proj and down_proj of ``model`` for the units that ``gates`` closes and that are open in it now.

    Open now are those of ``model.gates_in_use`` (all, outside of ``use_gates``). The weights that change are replaced by
    new parameters, not written over: models that share them keep theirs.

    Args:
        model: a masked model.
        gates: 0 or 1, [*rows, units] per kind of unit.

    Returns:
        The errors of every module that lost inputs.

    Raises:
        ValueError: an unknown method.
    """
    if method not in COMPENSATIONS:
        raise ValueError(f"`compensation` must be one of {', '.join(COMPENSATIONS)}, but it is {method!r}.")
    report = CompensationReport()
    if method == "none":
        return report
    now, later = _column_gates(model, model.gates_in_use), _column_gates(model, gates)
    losing = {name: later[name] for name in later if bool((now[name] & ~later[name]).any())}
    with model.use_gates(model.gates_in_use):
        moments = input_moments(model, losing, calibration.on(model.device))
    for name, open_later in losing.items():
        module: nn.Linear = model.get_submodule(name)
        gram, weight = moments[name].gram, module.weight
        kept, removed = open_later.nonzero().flatten(), (now[name] & ~open_later).nonzero().flatten()
        columns = least_squares_columns(weight, gram, kept, removed)
        new = weight.detach().clone()
        new[:, kept], new[:, removed] = columns, 0
        closed = weight.detach().clone()
        closed[:, ~open_later] = 0
        whole = weight.detach().clone()
        whole[:, ~now[name]] = 0
        report.before[name] = _relative_error(whole, closed, gram)
        report.after[name] = _relative_error(whole, new, gram)
        module.weight = nn.Parameter(new, requires_grad=weight.requires_grad)
    return report


def _relative_error(weight: Tensor, other: Tensor, gram: Tensor) -> float:
    gap, weight, gram = (weight - other).double(), weight.double(), gram.double()
    return float(((gap @ gram) * gap).sum() / ((weight @ gram) * weight).sum())


def _column_gates(model: ShearingMixin, gates: dict[str, Tensor]) -> dict[str, Tensor]:
    """Which inputs of every o_proj and down_proj are open: bool [C] by module name."""
    rows = {
        "self_attn.o_proj": head_channel_masks(gates, model.masks.source),
        "mlp.down_proj": gates.get(INTERMEDIATE),
    }
    found = {}
    for index, layer in enumerate(model.model.layers):
        for name, masks in rows.items():
            size = layer.get_submodule(name).in_features
            open_now = torch.ones(size, dtype=torch.bool, device=model.device) if masks is None else masks[index] != 0
            found[f"model.layers.{index}.{name}"] = open_now
    return found
