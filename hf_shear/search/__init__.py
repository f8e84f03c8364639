"""The search of shapes: which shape of a budget loses least."""

from typing import TYPE_CHECKING

from ..core.lazy_names import lazy_names

if TYPE_CHECKING:
    from .budget import ShapeBudget
    from .candidate import ShapeCandidate
    from .grid import Accepts, ShapeFilter, shapes_within
    from .record import SEARCH_NAME, read_candidates
    from .rises import single_cuts
    from .search import Recover, search_shapes
    from .short_recovery import ShortRecovery
else:  # unseen by type checkers, to which it would allow any name
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Accepts",
    "Recover",
    "SEARCH_NAME",
    "ShapeBudget",
    "ShapeCandidate",
    "ShapeFilter",
    "ShortRecovery",
    "read_candidates",
    "search_shapes",
    "shapes_within",
    "single_cuts",
]
