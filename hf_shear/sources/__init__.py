"""How checkpoints are read, whatever reads them: a source is what its config says, or it is refused."""

from ..core.defaults import MASKED_PREFIX
from .computing import computing_dtype, dtype_note, in_dtype, ready_to_compute
from .config import NETWORK_ERRORS
from .generation_settings import read_generation_config, savable_generation_config
from .loading import HUB_OPTIONS, Source, open_source
from .places import find_place
from .weight_files import weight_files
from .whole_models import on_device, whole_models

__all__ = [
    "HUB_OPTIONS",
    "MASKED_PREFIX",
    "NETWORK_ERRORS",
    "Source",
    "computing_dtype",
    "dtype_note",
    "find_place",
    "in_dtype",
    "on_device",
    "open_source",
    "read_generation_config",
    "ready_to_compute",
    "savable_generation_config",
    "weight_files",
    "whole_models",
]
