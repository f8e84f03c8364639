"""Compensation as a stage of its own: under any criterion, and for learned masks.

Removed heads are columns of o_proj, removed neurons columns of down_proj: the remaining columns (or a bias) take over
what can be told of the removed ones from them. Removed rows (hidden dimensions) need nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..curvature import least_squares_columns, stream_inputs
from ..data import Calibration
from ..modeling import ShearingMixin, open_columns

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
    model: ShearingMixin,
    gates: dict[str, Tensor],
    calibration: Calibration,
    method: str = "least_squares",
    store: str | None = None,
) -> CompensationReport:
    """Update o_proj and down_proj of ``model`` for the units that ``gates`` closes and that are open in it now.

    Open now are those of ``model.gates_in_use`` (all, outside of ``use_gates``). The weights that change are replaced by
    new parameters, not written over: models that share them keep theirs.

    Args:
        model: a masked model.
        gates: 0 or 1, [*rows, units] per kind of unit.
        store: where hidden states wait between layers, such as "cpu"; None: the model's device. One layer's statistics
            are held at a time (``hf_shear.curvature.stream``).

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
    now, later = open_columns(model, model.gates_in_use), open_columns(model, gates)
    losing = {
        (index, name)
        for index, columns in enumerate(now)
        for name in columns
        if bool((now[index][name] & ~later[index][name]).any())
    }
    names = sorted({name for _, name in losing})
    if not losing:
        return report
    with model.use_gates(model.gates_in_use):
        for index, inputs in stream_inputs(model, calibration.batches, names, store=store):
            for name in names:
                if (index, name) not in losing:
                    continue
                module, gram = model.model.layers[index].get_submodule(name), inputs.pop(name).gram
                errors = _compensate_module(module, gram, now[index][name], later[index][name])
                label = f"model.layers.{index}.{name}"
                report.before[label], report.after[label] = errors
    return report


def _compensate_module(module: nn.Linear, gram: Tensor, open_now: Tensor, open_later: Tensor) -> tuple[float, float]:
    """Give a linear layer its new weight; returns its relative errors without and with it."""
    weight = module.weight
    kept, removed = open_later.nonzero().flatten(), (open_now & ~open_later).nonzero().flatten()
    new = weight.detach().clone()
    new[:, kept], new[:, removed] = least_squares_columns(weight, gram, kept, removed), 0
    closed = weight.detach().clone()
    closed[:, ~open_later] = 0
    whole = weight.detach().clone()
    whole[:, ~open_now] = 0
    module.weight = nn.Parameter(new, requires_grad=weight.requires_grad)
    return _relative_error(whole, closed, gram), _relative_error(whole, new, gram)


def _relative_error(weight: Tensor, other: Tensor, gram: Tensor) -> float:
    gap, weight, gram = (weight - other).double(), weight.double(), gram.double()
    error, whole = ((gap @ gram) * gap).sum(), ((weight @ gram) * weight).sum()
    return float(error / whole) if float(whole) > 0 else 0.0  # a module that writes nothing loses nothing
