"""How it is cut: from masks to a plain checkpoint."""

from .kept_units import KeptUnits, kept_units_from_masks
from .slice_model import slice_model

__all__ = ["KeptUnits", "kept_units_from_masks", "slice_model"]
