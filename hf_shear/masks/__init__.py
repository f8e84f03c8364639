"""What is kept: gates, their constraint and their schedule."""

from .hard_concrete import closed_probability, sample_gates, soft_gates
from .lagrangian import ascend, lagrangian_penalty
from .relaxed_topk import hard_topk, relaxed_topk
from .schedule import MaskPhase, MaskSchedule
from .settings import MASK_DRAWS, MASK_METHODS, MaskSettings
from .shearing_masks import START_SPREAD, ShearingMasks
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
    UNIT_KINDS,
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
    "MASK_METHODS",
    "MLP",
    "QUERY_HEAD",
    "RANKED_KINDS",
    "START_SPREAD",
    "SUB_LAYERS",
    "UNIT_KINDS",
    "MaskPhase",
    "MaskSchedule",
    "MaskSettings",
    "ShearingMasks",
    "UnitKind",
    "ascend",
    "closed_probability",
    "hard_topk",
    "lagrangian_penalty",
    "relaxed_topk",
    "sample_gates",
    "soft_gates",
    "unit_kinds",
    "unit_parameters",
]
