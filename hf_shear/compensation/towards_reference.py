"""The gaps of a pruned model to a reference, layer by layer, each after what runs before it was compensated.

Behind every o_proj and down_proj the residual stream of the pruned model, in its kept dimensions, is to be that of the
reference. So a module makes up for its own removed inputs and for all that was lost before it: removed hidden
dimensions, whole layers, what the modules below could not make up for. Where hidden dimensions are removed, the modules
that read the residual stream (q, k, v, gate, up) are to give what they give in the reference.

A layer runs in halves, attention and MLP. The reference goes through each half once, and through its projections that
read the residual stream once more. The pruned model goes through each half twice, before and after its writing
projection is updated. Of both models, only what enters the half in hand is kept between passes: [tokens, d] each.
Layers in front of the first that differs run once, for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration import Batch, LayerStream, Moments, Sums, measuring, watching
from ..calibration.layer_stream import WaitingBatch, forwards_replaced, warn_if_short
from ..calibration.moments import full_float32
from ..core import charge_flops, tracked
from ..data import Calibration
from ..modeling import ShearingModel
from ..shapes import OUTPUT_PROJECTIONS
from .gap import ChoosingTokenRows, Gap
from .layer_parts import ATTENTION, MLP, Part, layer_parts

NORM = "post_attention_layernorm"  # what reads the residual stream behind o_proj


class _Seen(Exception):
    """Ends the forward of a layer where all that is wanted was seen."""


@torch.no_grad()
def gaps_to_reference(
    model: ShearingModel,
    reference: ShearingModel,
    gates: dict[str, Tensor],
    calibration: Calibration,
    store: str | None = None,
    holds_out: bool = False,
) -> Iterator[tuple[str, Part, Gap]]:
    """(name in the model, part of its layer, gap) one after another; the caller updates each before the next.

    Args:
        model: pruned by ``gates``.
        reference: of the same shape, run with all gates open.
        store: where hidden states wait between passes; None: the model's device.
        holds_out: whether gaps tell apart the tokens that choose a damping.
    """
    with measuring(model), measuring(reference):
        with model.use_gates(gates):
            pruned = LayerStream(model, calibration.batches, store)
        with reference.use_gates({}):
            wanted = LayerStream(reference, calibration.batches, store)
        warn_if_short(model, OUTPUT_PROJECTIONS, pruned.num_tokens)
        same = all(torch.equal(mine.hidden, theirs.hidden) for mine, theirs in zip(pruned, wanted, strict=True))
        for index in tracked(range(len(pruned.layers)), "Compensation", unit="layer"):
            groups = layer_parts(model, gates, index)
            same = same and _is_whole(pruned, wanted, index, groups)
            if same:
                for mine, theirs in zip(pruned, wanted, strict=True):
                    mine.hidden = theirs.hidden = wanted.run(index, theirs.hidden, theirs)
                continue
            if not groups:  # a removed layer hands on what it is given
                for batch in wanted:
                    batch.hidden = wanted.run(index, batch.hidden, batch)
            for parts in groups:
                for part, gap in zip(parts, _gaps(pruned, wanted, index, parts, holds_out), strict=True):
                    yield f"model.layers.{index}.{part.name}", part, gap
                if parts[0].writes:
                    for batch in pruned:
                        behind, _ = _run(pruned, index, parts, batch)
                        assert behind is not None, "these parts write"
                        batch.hidden = behind


def _is_whole(pruned: LayerStream, wanted: LayerStream, index: int, groups: list[list[Part]]) -> bool:
    """Whether a layer computes what that of the reference does: nothing is removed of it, and weights are the same."""
    parts = [part for group in groups for part in group]
    mine, theirs = pruned.layers[index].state_dict(), wanted.layers[index].state_dict()
    whole = bool(parts) and all(bool(part.columns.all() & part.rows.all()) for part in parts)
    return whole and mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def _gaps(pruned: LayerStream, wanted: LayerStream, index: int, parts: list[Part], holds_out: bool) -> list[Gap]:
    """The gaps of parts that read the same, from one pass of the calibration text through their half of both layers.

    Behind parts that write, the reference waits behind the half.
    """
    columns, sums = parts[0].columns, [Sums() for _ in parts]
    shared = Moments.zeros(int(columns.sum()), columns.device)
    choosing = [
        ChoosingTokenRows(pruned.choosing_every, int(part.rows.sum()), columns.device) if holds_out else None
        for part in parts
    ]
    for mine, theirs in zip(pruned, wanted, strict=True):
        stream, now = _run(pruned, index, parts, mine)
        wanted_stream, then = _run(wanted, index, parts, theirs)
        inputs = mine.rows(now[parts[0].name][0])[:, columns]
        shared.add(inputs)
        inputs = inputs.float()
        for part, total, rows in zip(parts, sums, choosing, strict=True):
            outputs = mine.rows(now[part.name][1]).float()[:, part.rows]
            if part.writes:
                assert stream is not None and wanted_stream is not None
                gap = theirs.rows(wanted_stream).float() - mine.rows(stream).float()
                gap = gap[:, part.rows]
            else:
                gap = theirs.rows(then[part.name][1]).float()[:, part.rows] - outputs
            with full_float32():
                charge_flops(2 * inputs.numel() * gap.shape[1])
                total.add(
                    len(inputs),
                    cross=gap.t() @ inputs,
                    mean=gap.sum(dim=0),
                    power=gap.square().sum(),
                    wanted_power=(outputs + gap).square().sum(),
                )
            if rows is not None:
                rows.add(inputs, gap)
        if wanted_stream is not None:
            theirs.hidden = wanted_stream
    shared.over_ranks()
    gram, input_mean = shared.gram.double(), shared.mean.double()
    return [_gap(total, gram, input_mean, rows) for total, rows in zip(sums, choosing, strict=True)]


def _gap(sums: Sums, gram: Tensor, input_mean: Tensor, rows: ChoosingTokenRows | None) -> Gap:
    means, choosing = sums.means(), None if rows is None else rows.found(len(gram), sums.count)
    power, wanted_power = float(means["power"]), float(means["wanted_power"])
    return Gap(means["cross"], means["mean"], power, gram, input_mean, wanted_power, sums.count, choosing)


def _run(
    stream: LayerStream, index: int, parts: list[Part], batch: WaitingBatch
) -> tuple[Tensor | None, dict[str, tuple[Tensor, Tensor]]]:
    """Run the half of a layer that parts are of, as far as they need.

    Returns:
        The residual stream behind the half [samples, length, d], None of parts that do not write to it; and by part its
        inputs [samples, length, C] and outputs [samples, length, R].
    """
    layer, seen, behind = stream.layers[index], {}, []
    in_mlp = parts[0].name.startswith(MLP)

    def note(name: str, inputs: Tensor, outputs: Tensor, batch: Batch) -> None:
        seen[name] = inputs, outputs
        if len(seen) == len(parts) and not parts[0].writes:
            raise _Seen

    def stop(values: Tensor, batch: Batch) -> None:
        behind.append(values)
        raise _Seen

    pairs = {layer.get_submodule(part.name): partial(note, part.name) for part in parts}
    norm = {} if in_mlp else {layer.get_submodule(NORM): stop}
    try:
        with _attention_left_out(layer) if in_mlp else nullcontext(), watching(batch, norm, pairs=pairs):
            behind.append(stream.run(index, batch.hidden, batch))
    except _Seen:
        pass
    return behind[0] if behind else None, seen


@contextmanager
def _attention_left_out(layer: nn.Module) -> Iterator[None]:
    """The layer's attention adds nothing within: hidden states that stand behind it go through the MLP alone."""

    def nothing(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None

    with forwards_replaced([layer.get_submodule(ATTENTION)], lambda _: nothing):
        yield
