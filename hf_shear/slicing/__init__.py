"""How it is cut: from masks to a plain checkpoint."""

from ..core.defaults import PROVENANCE_NAME, PRUNE_CONFIG_NAME
from .export import provenance_record, read_provenance, save_checkpoint
from .kept_units import KeptUnits
from .nemotron_nas import (
    CONFIGURATION,
    FORMS,
    NEMOTRON_NAS,
    check_nemotron_nas,
    save_nemotron_nas,
)
from .preflight import check_saves
from .releasing import release_weights
from .slice_model import slice_model
from .tokenizer_files import write_for_older_readers
from .uneven import count_kept_parameters, slice_uneven
from .whole_folders import UNFINISHED, begin_folder, put_in_place

__all__ = [
    "CONFIGURATION",
    "FORMS",
    "NEMOTRON_NAS",
    "PROVENANCE_NAME",
    "PRUNE_CONFIG_NAME",
    "UNFINISHED",
    "KeptUnits",
    "begin_folder",
    "check_nemotron_nas",
    "check_saves",
    "count_kept_parameters",
    "provenance_record",
    "put_in_place",
    "read_provenance",
    "release_weights",
    "save_checkpoint",
    "save_nemotron_nas",
    "slice_model",
    "slice_uneven",
    "write_for_older_readers",
]
