"""A shape whose layers have widths of their own, and may lack attention or MLP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PretrainedConfig

from ..core import UsageError
from .model_shape import ModelShape
from .parameter_count import count_parameters
from .shape_config import ShapeAcceptance
from .target_shape import TargetShape
from .uneven_count import LayerSizes, count_uneven_parameters


@dataclass(frozen=True)
class PerLayerShape:
    """What each layer of a source keeps. Heads of a layer spread evenly over its key/value heads.

    Attributes:
        source: what it is cut from.
        hidden_size: of all layers.
        layers: sizes, one for each layer of the source. A layer with neither heads nor neurons is removed.

    Raises:
        UsageError: another number of layers, a size that the source does not have, heads that do not spread evenly, or no
            layer with attention, or none with an MLP.
    """

    source: ModelShape
    hidden_size: int
    layers: tuple[LayerSizes, ...]

    def __post_init__(self):
        if self.source.num_experts is not None:
            raise UsageError("`layers` cannot differ in a mixture of experts: its config has one number of experts.")
        if len(self.layers) != self.source.num_hidden_layers:
            raise UsageError(
                f"`layers` must have one entry for each of the source's {self.source.num_hidden_layers} layers, but it has"
                f" {len(self.layers)}. Give a removed layer zeros."
            )
        if not 1 <= self.hidden_size <= self.source.hidden_size:
            raise UsageError(
                f"`hidden_size` must be between 1 and {self.source.hidden_size}, but it is {self.hidden_size}."
            )
        for index, sizes in enumerate(self.layers):
            if problem := self._problem(sizes):
                raise UsageError(f"`layers[{index}]` {problem}, but it is {sizes}.")
        for name, what in (("num_heads", "attention"), ("num_neurons", "an MLP")):
            if not any(getattr(sizes, name) for sizes in self.layers):
                raise UsageError(f"`layers` leaves no layer with {what}. Keep one at least.")

    def _problem(self, sizes: LayerSizes) -> str | None:
        heads, groups, source = sizes.num_heads, sizes.num_key_value_heads, self.source
        if not 0 <= sizes.num_neurons <= source.intermediate_size:
            return f"must keep 0 to {source.intermediate_size} neurons"
        if not 0 <= groups <= source.num_key_value_heads:
            return f"must keep 0 to {source.num_key_value_heads} key/value heads"
        if groups == 0 or heads == 0:
            return None if groups == heads else "must keep both query heads and key/value heads, or neither"
        if heads % groups or heads // groups > source.queries_per_group:
            return f"must keep 1 to {source.queries_per_group} query heads for each key/value head, as many for each"
        return None

    @classmethod
    def from_list(cls, config: PretrainedConfig, hidden_size: int, layers: Sequence[Sequence[int]]) -> PerLayerShape:
        """From (query heads, key/value heads, neurons) of each layer, as a record has them; ``config`` is the source's."""
        return cls(ModelShape.from_config(config), hidden_size, tuple(LayerSizes(*sizes) for sizes in layers))

    def to_list(self) -> list[list[int]]:
        """As ``from_list`` takes it."""
        return [[sizes.num_heads, sizes.num_key_value_heads, sizes.num_neurons] for sizes in self.layers]

    @property
    def kept_layers(self) -> list[LayerSizes]:
        """Those with attention or an MLP."""
        return [sizes for sizes in self.layers if sizes.num_heads or sizes.num_neurons]

    def num_parameters(self, config: PretrainedConfig) -> int:
        """Without padding, tied weights counted once."""
        return count_uneven_parameters(config, self.hidden_size, self.source.head_dim, self.kept_layers)

    def padded(self, config: PretrainedConfig) -> TargetShape:
        """The smallest shape that all layers fit into.

        Raises:
            UsageError: the config's class accepts none.
        """
        kept = self.kept_layers
        queries = [sizes.num_heads // sizes.num_key_value_heads for sizes in kept if sizes.num_heads]
        shape = smallest_holding(
            config, self.hidden_size, len(kept), max(sizes.num_key_value_heads for sizes in kept), max(queries),
            max(sizes.num_neurons for sizes in kept),
        )  # fmt: skip
        return TargetShape(**shape.sizes(), head_dim=shape.head_dim, source=self.source)


def smallest_holding(
    config: PretrainedConfig, hidden_size: int, num_layers: int, num_groups: int, num_queries: int, num_neurons: int
) -> ModelShape:
    """The shape with fewest parameters that the config's class accepts and that holds what is asked for.

    Args:
        config: of the source.
        num_groups, num_queries: key/value heads, and query heads of each, at least.
        num_neurons: of the MLP.
    """
    source, acceptance = ModelShape.from_config(config), ShapeAcceptance(config)
    fitting = [
        replace(
            source,
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=groups * queries,
            num_key_value_heads=groups,
            intermediate_size=num_neurons,
        )
        for groups in range(num_groups, source.num_key_value_heads + 1)
        for queries in range(num_queries, source.queries_per_group + 1)
        if acceptance.refusal(hidden_size, groups * queries, groups) is None
    ]
    if not fitting:
        raise UsageError(
            f"{acceptance.class_name} accepts no number of heads from {num_groups * num_queries} to the source's"
            f" {source.num_attention_heads} at `hidden_size` {hidden_size}, so the result cannot be padded to it."
        )
    return min(fitting, key=lambda shape: count_parameters(config, shape))
