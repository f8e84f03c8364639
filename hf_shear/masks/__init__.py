"""What is kept: gates, their constraint and their schedule."""

from .schedule import MaskPhase, MaskSchedule
from .settings import MASK_DRAWS, STRATEGIES, MaskSettings
from .shearing_masks import START_SPREAD, ShearingMasks
from .strategy import MaskStrategy, hard_topk
from .unit_kinds import (
    ALL_UNIT_KINDS,
    ATTENTION,
    EXPERT,
    HIDDEN,
    INTERMEDIATE,
    KEY_VALUE_HEAD,
    LAYER,
    MLP,
    QUERY_HEAD,
    RANKED_KINDS,
    SUB_LAYERS,
    UnitKind,
    unit_kinds,
)
from .unit_parameters import unit_parameters

__all__ = [
    "ALL_UNIT_KINDS",
    "ATTENTION",
    "EXPERT",
    "HIDDEN",
    "INTERMEDIATE",
    "KEY_VALUE_HEAD",
    "LAYER",
    "MASK_DRAWS",
    "MLP",
    "QUERY_HEAD",
    "RANKED_KINDS",
    "START_SPREAD",
    "STRATEGIES",
    "SUB_LAYERS",
    "MaskPhase",
    "MaskSchedule",
    "MaskSettings",
    "MaskStrategy",
    "ShearingMasks",
    "UnitKind",
    "hard_topk",
    "unit_kinds",
    "unit_parameters",
]
