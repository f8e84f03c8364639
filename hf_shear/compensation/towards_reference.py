"""The gaps of a pruned model to a reference, layer by layer, each after what runs before it was compensated.

Behind every o_proj and down_proj the residual stream of the pruned model, in its kept dimensions, is to be that of the
reference. So a module makes up for its own removed inputs and for all that was lost before it: removed hidden
dimensions, whole layers, what the modules below could not make up for. Where hidden dimensions are removed, the modules
that read the residual stream (q, k, v, gate, up) are to give what they give in the reference.

Of both models, only what enters the layer in hand is kept between layers: [tokens, d] each.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..calibration.layer_stream import LayerStream, WaitingBatch
from ..calibration.moments import full_float32
from ..calibration.stream import warn_if_short
from ..core import count_over_ranks, sum_over_ranks
from ..data import Calibration
from ..modeling import ShearingMixin
from .gap import Gap
from .layer_parts import MLP, Part, layer_parts

NORM = "post_attention_layernorm"  # what reads the residual stream behind o_proj


@torch.no_grad()
def gaps_to_reference(
    model: ShearingMixin,
    reference: ShearingMixin,
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
    modes = [(one, one.training) for one in (model, reference)]
    try:
        for one, _ in modes:
            one.eval()
        with model.use_gates(gates):
            pruned = LayerStream(model, calibration.batches, store)
        with reference.use_gates({}):
            wanted = LayerStream(reference, calibration.batches, store)
        warn_if_short(model, ("self_attn.o_proj", "mlp.down_proj"), pruned.num_tokens)
        for index in range(len(pruned.layers)):
            for parts in layer_parts(model, gates, index):
                for part, gap in zip(parts, _gaps(pruned, wanted, index, parts), strict=True):
                    yield f"model.layers.{index}.{part.name}", part, gap
            for stream in (pruned, wanted):
                for batch in stream:
                    batch.hidden = stream.run(index, batch.hidden, batch)
    finally:
        for one, was_training in modes:
            one.train(was_training)


class _Sums:
    """Sums over tokens, in float64, for the gap of one part."""

    def __init__(self, part: Part):
        kept, rows, self.num_tokens = int(part.columns.sum()), int(part.rows.sum()), 0
        sizes = ((rows, kept), rows, (), (kept, kept), kept, ())  # in the order of the fields of Gap
        self.totals = [torch.zeros(size, dtype=torch.float64, device=part.columns.device) for size in sizes]

    def add(self, inputs: Tensor, gap: Tensor, wanted: Tensor) -> None:
        with full_float32():
            new = (gap.t() @ inputs, gap.sum(0), gap.square().sum(), inputs.t() @ inputs, inputs.sum(0),
                   wanted.square().sum())  # fmt: skip
        for total, value in zip(self.totals, new, strict=True):
            total += value
        self.num_tokens += len(inputs)

    def means(self) -> Gap:
        """Over the tokens of all ranks."""
        num_tokens = count_over_ranks(self.num_tokens, self.totals[0].device)
        sum_over_ranks(self.totals)
        cross, mean, power, gram, input_mean, wanted = (total / num_tokens for total in self.totals)
        return Gap(cross, mean, float(power), gram, input_mean, float(wanted), num_tokens)


def _gaps(pruned: LayerStream, wanted: LayerStream, index: int, parts: list[Part]) -> list[Gap]:
    """The gaps of parts that read the same, from one pass of the calibration text through both layers."""
    sums = [_Sums(part) for part in parts]
    for mine, theirs in zip(pruned, wanted, strict=True):
        now, then = _run(pruned, index, parts, mine), _run(wanted, index, parts, theirs)
        for part, total in zip(parts, sums, strict=True):
            (inputs, outputs, stream), (_, wanted_outputs, wanted_stream) = now[part.name], then[part.name]
            gap = (wanted_stream - stream if part.writes else wanted_outputs - outputs)[:, part.rows]
            total.add(inputs[:, part.columns], gap, outputs[:, part.rows] + gap)
    return [total.means() for total in sums]


def _run(
    stream: LayerStream, index: int, parts: list[Part], batch: WaitingBatch
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """By part: its inputs [tokens, C] and outputs [tokens, R], and the residual stream behind its block [tokens, d]."""
    layer, seen, streams = stream.layers[index], {}, {}

    def note(name):
        def hook(_, args, output):
            seen[name] = args[0], output

        return hook

    handles = [layer.get_submodule(part.name).register_forward_hook(note(part.name)) for part in parts]
    handles.append(
        layer.get_submodule(NORM).register_forward_pre_hook(lambda _, args: streams.update({False: args[0]}))
    )
    try:
        streams[True] = stream.run(index, batch.hidden, batch)
    finally:
        for handle in handles:
            handle.remove()
    found = {name: (*values, streams[name.startswith(MLP)]) for name, values in seen.items()}
    return {name: tuple(batch.tokens_of(value).float() for value in values) for name, values in found.items()}
