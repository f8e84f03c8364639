"""Which units of each layer are open, and what the model costs in parameters, kept exact while units are closed.

Legend: d hidden size, L layers, KV key/value heads, g query heads per KV head, ff MLP width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from ..masks import ATTENTION, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, MLP, QUERY_HEAD, SUB_LAYERS
from ..shapes import LayerSizes, ModelShape, count_attention, count_mlp, count_uneven_parameters


class Unit(NamedTuple):
    """One unit of one layer; ``index`` is a KV head, a neuron, KV head * g + query head, or 0 for the layer's own."""

    kind: str
    layer: int
    index: int


class Closed(NamedTuple):
    """A unit that was closed, and what was open before: the units ``places`` of a row of gates."""

    unit: Unit
    kind_of_row: str
    places: slice
    before: np.ndarray


_ROWS_OF_SUB_LAYERS = {ATTENTION: KEY_VALUE_HEAD, MLP: INTERMEDIATE}


class OpenUnits:
    """Open units, and the parameters of the model that has them alone.

    A unit is refused if it is the last of its row: the last neuron, KV head, query head of its group, attention, MLP or
    layer. A sub-layer goes as a whole, or not at all. A layer without both sub-layers is removed.

    Args:
        config: of the source.
        source: its shape.
        gates: 0 or 1 by kind of unit; absent = open.
        protected: units that are never closed.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        source: ModelShape,
        gates: dict[str, Tensor] | None = None,
        protected: frozenset[Unit] = frozenset(),
    ):
        self.config, self.source, self.protected = config, source, protected
        num_layers = source.num_hidden_layers
        widths = {
            LAYER: 1,
            **{kind: units_per_layer(kind, source) for kind in (KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE)},
        }
        self._open = {
            kind: (gates[kind] != 0).reshape(num_layers, width).cpu().numpy().copy()
            if gates and kind in gates
            else np.ones((num_layers, width), dtype=bool)
            for kind, width in widths.items()
        }
        self._attention = [self._attention_size(layer) for layer in range(num_layers)]
        self._num_neurons = self._open[INTERMEDIATE].sum(axis=1).tolist()
        outside_layers = count_uneven_parameters(config, source.hidden_size, source.head_dim, [])
        self.num_parameters = outside_layers + sum(map(self.layer_parameters, range(num_layers)))

    # ---- sizes ------------------------------------------------------------------------------------------------

    def sizes(self, layer: int) -> LayerSizes:
        """Widths of a layer; all 0 if it is removed."""
        if not self._open[LAYER][layer, 0]:
            return LayerSizes(0, 0, 0)
        return LayerSizes(*self._attention[layer], self._num_neurons[layer])

    def layer_parameters(self, layer: int) -> int:
        """Parameters of one layer; 0 if it is removed, or has neither sub-layer."""
        sizes, hidden = self.sizes(layer), self.source.hidden_size
        if sizes.num_heads == 0 and sizes.num_neurons == 0:
            return 0
        heads, groups = sizes.num_heads, sizes.num_key_value_heads
        attention = count_attention(self.config, hidden, heads, groups, self.source.head_dim)
        return attention + count_mlp(self.config, hidden, sizes.num_neurons)

    def _attention_size(self, layer: int) -> tuple[int, int]:
        """Query heads and KV heads."""
        groups = self._open[KEY_VALUE_HEAD][layer]
        queries = self._open[QUERY_HEAD][layer].reshape(len(groups), -1)
        return int(queries[groups].sum()), int(groups.sum())

    # ---- closing and opening ----------------------------------------------------------------------------------

    def close(self, unit: Unit) -> Closed | None:
        """Close a unit, and count without it; None, and no change, if it was closed already or must stay."""
        kind, layer, index = unit
        if unit in self.protected or not self._open[LAYER][layer, 0] or not self._may_close(kind, layer, index):
            return None
        kind_of_row = _ROWS_OF_SUB_LAYERS.get(kind, kind)
        places = slice(None) if kind in SUB_LAYERS else slice(index, index + 1)
        closed = Closed(unit, kind_of_row, places, self._open[kind_of_row][layer, places].copy())
        self._set(closed, False)
        return closed

    def reopen_within(self, closed: Closed, budget: int) -> bool:
        """Open again what was closed, if that changes anything and leaves at most ``budget`` parameters."""
        kind, layer, _ = closed.unit
        sizes, before = self.sizes(layer), self.num_parameters
        sub_layer = sizes.num_neurons if kind == INTERMEDIATE else sizes.num_heads
        if kind in (INTERMEDIATE, KEY_VALUE_HEAD, QUERY_HEAD) and sub_layer == 0:
            return False  # a sub-layer that was removed as a whole does not come back by one of its units
        self._set(closed, closed.before)
        if before < self.num_parameters <= budget:
            return True
        self._set(closed, False)
        return False

    def reopen(self, closed: Closed) -> None:
        """Undo ``close``, in the reverse order."""
        self._set(closed, closed.before)

    def _set(self, change: Closed, values: np.ndarray | bool) -> None:
        layer = change.unit.layer
        row = self._open[change.kind_of_row][layer]
        parameters, num_open = self.layer_parameters(layer), int(row[change.places].sum())
        row[change.places] = values
        if change.kind_of_row == INTERMEDIATE:
            # By difference: to sum the row for each of its units would take minutes at 11,008 neurons.
            self._num_neurons[layer] += int(row[change.places].sum()) - num_open
        else:
            self._attention[layer] = self._attention_size(layer)
        self.num_parameters += self.layer_parameters(layer) - parameters

    def _may_close(self, kind: str, layer: int, index: int) -> bool:
        """Whether a unit of an open layer is open, and not the last of its row."""
        if kind == INTERMEDIATE:
            return bool(self._open[kind][layer, index]) and self._num_neurons[layer] > 1
        if kind == KEY_VALUE_HEAD:
            return bool(self._open[kind][layer, index]) and self._attention[layer][1] > 1
        if kind == QUERY_HEAD:
            size = self.source.queries_per_group
            group = index // size
            queries = self._open[kind][layer, group * size : (group + 1) * size]
            open_group = bool(self._open[KEY_VALUE_HEAD][layer, group])
            return open_group and bool(self._open[kind][layer, index]) and int(queries.sum()) > 1
        others = [self.sizes(other) for other in range(self.source.num_hidden_layers) if other != layer]
        attention_elsewhere = any(sizes.num_heads for sizes in others)
        mlp_elsewhere = any(sizes.num_neurons for sizes in others)
        if kind == ATTENTION:
            return self._attention[layer][0] > 0 and attention_elsewhere
        if kind == MLP:
            return self._num_neurons[layer] > 0 and mlp_elsewhere
        return attention_elsewhere and mlp_elsewhere

    # ---- gates ------------------------------------------------------------------------------------------------

    def gates(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Gates of 0 and 1 for the kinds that lost units; a layer without both sub-layers has a closed gate."""
        source = self.source
        gates = {kind: torch.from_numpy(values.copy()) for kind, values in self._open.items()}
        gates[LAYER] = torch.tensor([self.layer_parameters(layer) > 0 for layer in range(source.num_hidden_layers)])
        gates[QUERY_HEAD] = gates[QUERY_HEAD].reshape(-1, source.num_key_value_heads, source.queries_per_group)
        return {kind: gate.float().to(device) for kind, gate in gates.items() if not bool(gate.all())}


def units_per_layer(kind: str, source: ModelShape) -> int:
    """Units of a kind in each layer; a layer and a sub-layer are one."""
    counts = {
        KEY_VALUE_HEAD: source.num_key_value_heads,
        QUERY_HEAD: source.num_attention_heads,
        INTERMEDIATE: source.intermediate_size,
    }
    return counts.get(kind, 1)
