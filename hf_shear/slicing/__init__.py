"""How it is cut: from masks to a plain checkpoint."""

from .export import PROVENANCE_NAME, provenance_record, read_provenance, save_checkpoint
from .kept_units import KeptUnits, kept_units_from_masks
from .select_kept import select_kept
from .slice_model import slice_model

__all__ = [
    "PROVENANCE_NAME",
    "KeptUnits",
    "kept_units_from_masks",
    "provenance_record",
    "read_provenance",
    "save_checkpoint",
    "select_kept",
    "slice_model",
]
