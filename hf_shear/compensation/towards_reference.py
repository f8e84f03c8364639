"""The gaps of a pruned model to a reference, layer by layer, each after what runs before it was compensated.

Behind every o_proj and down_proj the residual stream of the pruned model, in its kept dimensions, is to be that of the
reference. So a module makes up for its own removed inputs and for all that was lost before it: removed hidden
dimensions, whole layers, what the modules below could not make up for. Where hidden dimensions are removed, the modules
that read the residual stream (q, k, v, gate, up) are to give what they give in the reference.

Of both models, only what enters the layer in hand is kept between layers: [tokens, d] each.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..calibration import Batch, LayerStream, Sums, measuring, watching
from ..calibration.layer_stream import WaitingBatch, warn_if_short
from ..calibration.moments import full_float32
from ..data import Calibration
from ..modeling import ShearingModel
from ..shapes import OUTPUT_PROJECTIONS
from .gap import Gap
from .layer_parts import MLP, Part, layer_parts

NORM = "post_attention_layernorm"  # what reads the residual stream behind o_proj


@torch.no_grad()
def gaps_to_reference(
    model: ShearingModel,
    reference: ShearingModel,
    gates: dict[str, Tensor],
    calibration: Calibration,
    store: str | None = None,
) -> Iterator[tuple[str, Part, Gap]]:
    """(name in the model, part of its layer, gap) one after another; the caller updates each before the next.

    Args:
        model: pruned by ``gates``.
        reference: of the same shape, run with all gates open.
        store: where hidden states wait between layers; None: the model's device.
    """
    with measuring(model), measuring(reference):
        with model.use_gates(gates):
            pruned = LayerStream(model, calibration.batches, store)
        with reference.use_gates({}):
            wanted = LayerStream(reference, calibration.batches, store)
        warn_if_short(model, OUTPUT_PROJECTIONS, pruned.num_tokens)
        for index in range(len(pruned.layers)):
            for parts in layer_parts(model, gates, index):
                for part, gap in zip(parts, _gaps(pruned, wanted, index, parts), strict=True):
                    yield f"model.layers.{index}.{part.name}", part, gap
            for stream in (pruned, wanted):
                for batch in stream:
                    batch.hidden = stream.run(index, batch.hidden, batch)


def _gaps(pruned: LayerStream, wanted: LayerStream, index: int, parts: list[Part]) -> list[Gap]:
    """The gaps of parts that read the same, from one pass of the calibration text through both layers."""
    sums = [Sums() for _ in parts]
    for mine, theirs in zip(pruned, wanted, strict=True):
        now, then = _run(pruned, index, parts, mine), _run(wanted, index, parts, theirs)
        for part, total in zip(parts, sums, strict=True):
            (inputs, outputs, stream), (_, wanted_outputs, wanted_stream) = now[part.name], then[part.name]
            gap = (wanted_stream - stream if part.writes else wanted_outputs - outputs)[:, part.rows]
            inputs, aim = inputs[:, part.columns], outputs[:, part.rows] + gap
            with full_float32():
                total.add(
                    len(inputs),
                    cross=gap.t() @ inputs,
                    mean=gap.sum(dim=0),
                    power=gap.square().sum(),
                    gram=inputs.t() @ inputs,
                    input_mean=inputs.sum(dim=0),
                    wanted_power=aim.square().sum(),
                )
    return [_gap(total) for total in sums]


def _gap(sums: Sums) -> Gap:
    means = sums.means()
    power, wanted_power = float(means.pop("power")), float(means.pop("wanted_power"))
    return Gap(**means, power=power, wanted_power=wanted_power, num_tokens=sums.count)


def _run(
    stream: LayerStream, index: int, parts: list[Part], batch: WaitingBatch
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """By part: its inputs [tokens, C] and outputs [tokens, R], and the residual stream behind its block [tokens, d]."""
    layer, seen, streams = stream.layers[index], {}, {}

    def note(name: str, inputs: Tensor, outputs: Tensor, batch: Batch) -> None:
        seen[name] = inputs, outputs

    def note_stream(values: Tensor, batch: Batch) -> None:
        streams[False] = values

    pairs = {layer.get_submodule(part.name): partial(note, part.name) for part in parts}
    with watching(batch, {layer.get_submodule(NORM): note_stream}, pairs=pairs):
        streams[True] = stream.run(index, batch.hidden, batch)

    def rows(values: Tensor) -> Tensor:
        return batch.rows(values).float()

    return {
        name: (rows(inputs), rows(outputs), rows(streams[name.startswith(MLP)]))
        for name, (inputs, outputs) in seen.items()
    }
