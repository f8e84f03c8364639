"""Which model families can be sheared, and what differs between them."""

from .family import (
    EXPERTS,
    GROUPS,
    HEADS,
    HIDDEN,
    NEURONS,
    Axis,
    Family,
    family_named,
    family_of,
    supported_model_types,
)
from .table import FAMILIES

__all__ = [
    "EXPERTS",
    "FAMILIES",
    "GROUPS",
    "HEADS",
    "HIDDEN",
    "NEURONS",
    "Axis",
    "Family",
    "family_named",
    "family_of",
    "supported_model_types",
]
