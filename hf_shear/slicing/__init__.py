"""How it is cut: from masks to a plain checkpoint."""

from .export import PROVENANCE_NAME, provenance_record, read_provenance, save_checkpoint
from .kept_units import KeptUnits, kept_units_from_masks
from .nemotron_nas import FORMS, NEMOTRON_NAS, check_nemotron_nas, save_nemotron_nas
from .releasing import release_weights
from .select_kept import select_kept
from .slice_model import slice_model
from .uneven import count_kept_parameters, padded_shape, slice_uneven

__all__ = [
    "FORMS",
    "NEMOTRON_NAS",
    "PROVENANCE_NAME",
    "KeptUnits",
    "check_nemotron_nas",
    "count_kept_parameters",
    "kept_units_from_masks",
    "padded_shape",
    "provenance_record",
    "read_provenance",
    "release_weights",
    "save_checkpoint",
    "save_nemotron_nas",
    "select_kept",
    "slice_model",
    "slice_uneven",
]
