"""The kinds of units that masks remove, and how many of each a source has and a target keeps.

Legend: d hidden size, L layers, H query heads, KV key/value heads, g = H / KV query heads per KV head, ff MLP width,
E experts.

| kind           | rows    | units | acts on                                                        | reference |
|----------------|---------|-------|----------------------------------------------------------------|-----------|
| hidden         | []      | d     | every norm, every write into the residual stream               | hidden_z  |
| layer          | []      | L     | output of attention and of the MLP                             | *layer_z, mlp_z |
| key_value_head | [L]     | KV    | all query heads of the group, before o_proj                    | head_z (g = 1) |
| query_head     | [L, KV] | g     | one query head of the group, before o_proj                     | -         |
| intermediate   | [L]     | ff    | input of down_proj                                             | intermediate_z |
| expert         | [L]     | E     | the router's logits (closed: none is routed to) and weights    | -         |

A mixture of experts has experts in place of neurons: its kinds are the others and ``expert``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..shapes import ModelShape

HIDDEN = "hidden"
LAYER = "layer"
KEY_VALUE_HEAD = "key_value_head"
QUERY_HEAD = "query_head"
INTERMEDIATE = "intermediate"
EXPERT = "expert"
UNIT_KINDS = (HIDDEN, LAYER, KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE)
"""Those of a dense model."""
ALL_UNIT_KINDS = (*UNIT_KINDS, EXPERT)

ATTENTION = "attention"
MLP = "mlp"
SUB_LAYERS = (ATTENTION, MLP)
"""Sub-layers have no gates of their own: one is removed when all KV heads, or all neurons, of its layer are closed."""

RANKED_KINDS = (*ALL_UNIT_KINDS, *SUB_LAYERS)
"""What a criterion may score: the kinds of units that have gates, and sub-layers, [L] each."""


@dataclass(frozen=True)
class UnitKind:
    """One kind of unit: ``rows`` rows of ``num_units`` units each, of which each row keeps ``num_kept``."""

    name: str
    rows: tuple[int, ...]
    num_units: int
    num_kept: int

    @property
    def frozen(self) -> bool:
        """True where nothing is to be removed: such a mask is open for good and has no parameter."""
        return self.num_kept == self.num_units

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Shape of the mask: rows, then units."""
        return (*self.rows, self.num_units)

    def budget(self, progress: float) -> float:
        """Units to keep per row when the way from source (0) to target (1) is ``progress``."""
        return self.num_units - (self.num_units - self.num_kept) * progress


def unit_kinds(source: ModelShape, target: ModelShape) -> dict[str, UnitKind]:
    """The five kinds for a source and a target, keyed by name, in the order of ``ALL_UNIT_KINDS``."""
    layers, groups = source.num_hidden_layers, source.num_key_value_heads
    source_group_size = source.num_attention_heads // groups
    target_group_size = target.num_attention_heads // target.num_key_value_heads
    if source.num_experts is None or target.num_experts is None:
        in_mlp = UnitKind(INTERMEDIATE, (layers,), source.intermediate_size, target.intermediate_size)
    else:
        in_mlp = UnitKind(EXPERT, (layers,), source.num_experts, target.num_experts)
    kinds = (
        UnitKind(HIDDEN, (), source.hidden_size, target.hidden_size),
        UnitKind(LAYER, (), layers, target.num_hidden_layers),
        UnitKind(KEY_VALUE_HEAD, (layers,), groups, target.num_key_value_heads),
        UnitKind(QUERY_HEAD, (layers, groups), source_group_size, target_group_size),
        in_mlp,
    )
    return {kind.name: kind for kind in kinds}
