"""Compensation as a stage of its own: under any criterion, and for learned masks.

Removed heads are columns of o_proj, removed neurons columns of down_proj: the remaining columns, or a bias, take over
what can be told of the removed ones from them. Removed hidden dimensions are made up for with ``towards=source`` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..calibration import InputsByModule, Moments, stream_inputs
from ..calibration.layer_stream import is_plenty
from ..calibration.moments import full_float32
from ..core import UsageError
from ..data import Calibration
from ..masks import HIDDEN, LAYER
from ..modeling import ShearingModel
from .add_biases import add_biases
from .gap import ChoosingTokenRows, ChoosingTokens, Gap
from .layer_parts import Part, layer_parts
from .methods import Compensation, resolve_compensation
from .towards_reference import gaps_to_reference


@dataclass
class CompensationReport:
    """Relative squared error of each compensated module's output on the calibration text.

    Attributes:
        before, after: by module name, E|y - W' a' - b'|^2 / E|y|^2 without and with compensation, y what is wanted.
        left_alone: names of the modules whose update would have raised that error once rounded to their dtype, and
            was not made.
    """

    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    left_alone: list[str] = field(default_factory=list)


@torch.no_grad()
def compensate(
    model: ShearingModel,
    gates: dict[str, Tensor],
    calibration: Calibration,
    method: str | Compensation = "least_squares",
    reference: ShearingModel | None = None,
    shared_inputs: InputsByModule | None = None,
) -> CompensationReport:
    """Update o_proj and down_proj of ``model`` for the units that ``gates`` closes and that are open in it now.

    Open now are those of ``model.gates_in_use`` (all, outside of ``use_gates``). The weights that change are replaced by
    new parameters, not written over: models that share them keep theirs.

    With ``towards=module`` each module is made to give what it gives now, from the inputs that it has now. With
    ``towards=source`` the residual stream behind it is fitted to that of ``reference``, from the inputs that the module
    has once all layers below are pruned and compensated: this makes up for removed hidden dimensions and layers as well.
    Where hidden dimensions are removed, the modules that read the residual stream are fitted to their outputs in
    ``reference``, too. ``towards=auto`` is the latter where ``gates`` closes layers or hidden dimensions and the family
    admits it, else the former.

    Args:
        model: a masked model.
        gates: 0 or 1, [*rows, units] per kind of unit.
        calibration: the text that errors are measured on.
        method: a name with options, such as "least_squares:damping=0.1" (``hf_shear.compensation.methods.COMPENSATIONS``).
        reference: a masked model with the source's shape and other weights, run with all gates open, for
            ``towards=source``; default: ``model`` as it comes.
        shared_inputs: A of o_proj or down_proj of every layer, or both, as collected on ``calibration`` from ``model``
            with the weights and gates that it has now, for ``towards=module``; used up. Where it lacks some, A is
            collected here.

    Returns:
        The errors of every module that was looked at.

    Raises:
        ValueError: a method that is unknown or that the family does not admit, gates that are not 0 or 1, or inputs
            that are not finite.
    """
    closed = [kind for kind in (HIDDEN, LAYER) if kind in gates and not bool(gates[kind].all())]
    chosen = resolve_compensation(method).resolved(bool(closed), model.config)
    chosen.check(model.config)
    report = CompensationReport()
    if chosen.does_nothing:
        return report
    for kind, gate in gates.items():
        if not bool(((gate == 0) | (gate == 1)).all()):
            raise UsageError(
                f"`gates[{kind!r}]` must be 0 or 1 for compensation, but masks have values between. Harden them"
                " (`hardening_ratio` above 0) before they are cut."
            )
    if chosen.needs_bias:
        add_biases(model)
    if chosen.reads_own_inputs:
        _towards_own_outputs(model, gates, calibration, chosen, report, shared_inputs)
        return report
    reference = type(model).from_model(model if reference is None else reference)
    if chosen.needs_bias:
        add_biases(reference)
    for name, part, gap in gaps_to_reference(model, reference, gates, calibration, chosen.store, chosen.holds_out):
        _update(model, name, gap, part, chosen, report)
    return report


def _towards_own_outputs(
    model: ShearingModel,
    gates: dict[str, Tensor],
    calibration: Calibration,
    chosen: Compensation,
    report: CompensationReport,
    shared_inputs: InputsByModule | None,
) -> None:
    now, later = _writing_parts(model, model.gates_in_use), _writing_parts(model, gates)
    losing = [key for key in later if bool((now[key].columns & ~later[key].columns).any())]
    names = sorted({name for _, name in losing})
    if not losing:
        return
    known = shared_inputs or {}
    all_known = all((index, name) in known for index in range(len(model.model.layers)) for name in names)
    with model.use_gates(model.gates_in_use):
        for index, moments in stream_inputs(
            model,
            calibration.batches,
            names,
            store=chosen.store,
            shared=known if all_known else None,
            holds_out=chosen.holds_out,
        ):
            for name in names:
                if (index, name) in losing:
                    part = later[index, name]
                    weight = model.model.layers[index].get_submodule(name).weight[part.rows]
                    removed = now[index, name].columns & ~part.columns
                    gap = _gap_of_removed(weight, moments.pop(name), part.columns, removed, chosen.holds_out)
                    _update(model, f"model.layers.{index}.{name}", gap, part, chosen, report)


def _writing_parts(model: ShearingModel, gates: dict[str, Tensor]) -> dict[tuple[int, str], Part]:
    """Every o_proj and down_proj of the layers that stay, by layer and name within it."""
    return {
        (index, part.name): part
        for index in range(len(model.model.layers))
        for parts in layer_parts(model, gates, index)
        for part in parts
        if part.writes
    }


def _gap_of_removed(weight: Tensor, moments: Moments, kept: Tensor, removed: Tensor, holds_out: bool) -> Gap:
    """d = W_S a_S for the removed inputs S; y = W a over those that are open."""
    holds_out = holds_out and not is_plenty(moments.count, len(kept))
    choosing = _choosing(weight, moments, kept, removed) if holds_out else None
    weight, gram, mean = weight.double(), moments.gram.double(), moments.mean.double()
    lost, everything = weight[:, removed], weight * (kept | removed)
    return Gap(
        cross=lost @ gram[removed][:, kept],
        mean=lost @ mean[removed],
        power=float(((lost @ gram[removed][:, removed]) * lost).sum()),
        gram=gram[kept][:, kept],
        input_mean=mean[kept],
        wanted_power=float(((everything @ gram) * everything).sum()),
        num_tokens=moments.count,
        choosing=choosing,
    )


def _choosing(weight: Tensor, moments: Moments, kept: Tensor, removed: Tensor) -> ChoosingTokens:
    inputs, rows = moments.kept_rows.float(), ChoosingTokenRows(1, len(weight), weight.device)
    with full_float32():
        lost = inputs[:, removed] @ weight[:, removed].float().t()
    rows.add(inputs[:, kept], lost)
    return rows.found(int(kept.sum()), moments.count)


def _update(
    model: ShearingModel, name: str, gap: Gap, part: Part, chosen: Compensation, report: CompensationReport
) -> None:
    """Update one module by the method, if that lowers its error, and note both errors."""
    _check(name, gap)
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear) and chosen.update is not None
    update, bias = chosen.update(gap)
    new_weight, new_bias = module.weight.detach().clone(), None
    if update is not None:
        block = (part.rows.nonzero(), part.columns.nonzero().t())
        old = new_weight[block].double()
        new_weight[block] = (old + update).to(new_weight.dtype)
        update = new_weight[block].double() - old  # as rounded
    if bias is not None and module.bias is None:
        bias = None  # of a module that reads: its family has no bias there
    if bias is not None:
        new_bias = module.bias.detach().clone()
        old = new_bias[part.rows].double()
        new_bias[part.rows] = (old + bias).to(new_bias.dtype)
        bias = new_bias[part.rows].double() - old
    before, after = gap.error(), gap.error(update, bias)
    if after > before:
        report.left_alone.append(name)
        after = before
    else:
        if update is not None:
            module.weight = nn.Parameter(new_weight, requires_grad=module.weight.requires_grad)
        if new_bias is not None:
            module.bias = nn.Parameter(new_bias, requires_grad=module.bias.requires_grad)
    report.before[name], report.after[name] = before, after


def _check(name: str, gap: Gap) -> None:
    if not bool(torch.isfinite(gap.gram).all() & torch.isfinite(gap.cross).all()):
        raise UsageError(
            f"The inputs of {name} are not finite on the calibration text. Check the checkpoint and its dtype (float16"
            " often overflows; bfloat16 or float32 does not)."
        )
