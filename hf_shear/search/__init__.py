"""The search of shapes: which shape of a budget loses least."""

from .budget import ShapeBudget
from .candidate import ShapeCandidate
from .grid import ShapeFilter, shapes_within
from .record import SEARCH_NAME, read_candidates
from .search import search_shapes

__all__ = [
    "SEARCH_NAME",
    "ShapeBudget",
    "ShapeCandidate",
    "ShapeFilter",
    "read_candidates",
    "search_shapes",
    "shapes_within",
]
