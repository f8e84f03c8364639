"""Which units of the source a sliced model keeps, by index."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..core import UsageError
from ..masks import EXPERT, HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, UnitKind
from ..shapes import ModelShape


@dataclass(frozen=True)
class KeptUnits:
    """Indices into the source, ascending. Per-layer entries are keyed by the source's layer index.

    Attributes:
        layers: kept layers.
        hidden: kept hidden dimensions.
        key_value_heads: kept KV heads of each kept layer.
        heads: kept query heads of each kept layer, group by group.
        intermediate: kept MLP neurons of each kept layer; of experts all.
        experts: kept experts of each kept layer; empty where there are none.
    """

    layers: list[int]
    hidden: list[int]
    key_value_heads: dict[int, list[int]]
    heads: dict[int, list[int]]
    intermediate: dict[int, list[int]]
    experts: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, kept: dict) -> KeptUnits:
        """What ``to_dict`` wrote."""
        layered = {
            name: {int(layer): list(indices) for layer, indices in kept[name].items()}
            for name in ("key_value_heads", "heads", "intermediate", "experts")
            if name in kept
        }
        return cls(list(kept["layers"]), list(kept["hidden"]), **layered)

    def within(self, outer: KeptUnits) -> KeptUnits:
        """The same units by their indices one model further up: ``outer`` is what was kept of that."""
        layers = {layer: outer.layers[layer] for layer in self.layers}

        def indices(inner: dict[int, list[int]], of: dict[int, list[int]]) -> dict[int, list[int]]:
            return {layers[layer]: [of[layers[layer]][unit] for unit in units] for layer, units in inner.items()}

        return KeptUnits(
            list(layers.values()),
            [outer.hidden[dimension] for dimension in self.hidden],
            indices(self.key_value_heads, outer.key_value_heads),
            indices(self.heads, outer.heads),
            indices(self.intermediate, outer.intermediate),
            indices(self.experts, outer.experts),
        )

    def to_dict(self) -> dict:
        """JSON-ready, layer indices as strings; without ``experts`` where there are none."""
        names = ("key_value_heads", "heads", "intermediate", *(["experts"] if self.experts else []))
        return {
            "layers": self.layers,
            "hidden": self.hidden,
            **{name: {str(layer): indices for layer, indices in getattr(self, name).items()} for name in names},
        }


def kept_units_from_masks(
    kept: dict[str, Tensor], kinds: dict[str, UnitKind], source: ModelShape, uneven: bool = False
) -> KeptUnits:
    """Turn boolean masks (every kind, shapes as in ``unit_kinds``) into indices.

    Args:
        uneven: whether rows may keep any number of units, none included.

    Raises:
        ValueError: a row keeps another number of units than the target has. Rows of removed layers and groups are not
            looked at.
    """

    def indices(row: Tensor, name: str, where: str) -> list[int]:
        return row.nonzero().flatten().tolist() if uneven else _indices(row, kinds[name], where)

    group_size = kinds[QUERY_HEAD].num_units
    layers = indices(kept[LAYER], LAYER, "the model")
    hidden = indices(kept[HIDDEN], HIDDEN, "the model")
    groups, heads, neurons, experts = {}, {}, {}, {}
    for layer in layers:
        where = f"layer {layer}"
        groups[layer] = indices(kept[KEY_VALUE_HEAD][layer], KEY_VALUE_HEAD, where)
        if EXPERT in kinds:
            neurons[layer] = list(range(source.intermediate_size))
            experts[layer] = indices(kept[EXPERT][layer], EXPERT, where)
        else:
            neurons[layer] = indices(kept[INTERMEDIATE][layer], INTERMEDIATE, where)
        heads[layer] = [
            group * group_size + query
            for group in groups[layer]
            for query in indices(kept[QUERY_HEAD][layer, group], QUERY_HEAD, f"{where}, KV head {group}")
        ]
    return KeptUnits(layers, hidden, groups, heads, neurons, experts)


def _indices(row: Tensor, kind: UnitKind, where: str) -> list[int]:
    indices = row.nonzero().flatten().tolist()
    if len(indices) != kind.num_kept:
        raise UsageError(
            f"The {kind.name} mask of {where} keeps {len(indices)} of {kind.num_units} units, but the target keeps"
            f" {kind.num_kept}. A sliced model has the target's shape in every layer: keep exactly that many."
        )
    return indices
