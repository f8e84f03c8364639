"""Data by domain: reading, packing, dynamic batches and the rule that updates the domains' weights."""

from .calibration import Calibration
from .chat import MESSAGES, TEXT, column_names
from .documents import check_token_id, encode_texts, vocabulary_limit
from .domains import load_domains, split_domains
from .loader import TEACHER_COLUMNS, DynamicDataLoader, collate_domain_samples
from .mixture import (
    check_mixture_bounds,
    check_mixture_weights,
    damped_excess,
    update_mixture_weights,
    warn_of_runaway,
)
from .packing import check_max_length, enough_documents, pack_domains
from .reference_losses import reference_losses_by_size
from .sampler import DynamicBatchSampler
from .samples_digest import samples_digest
from .shared_text import shared_share, warn_of_shared_text
from .stream_loader import StreamDataLoader
from .streams import first_sample, is_stream

__all__ = [
    "Calibration",
    "MESSAGES",
    "TEACHER_COLUMNS",
    "TEXT",
    "DynamicBatchSampler",
    "DynamicDataLoader",
    "StreamDataLoader",
    "check_max_length",
    "check_mixture_bounds",
    "check_mixture_weights",
    "check_token_id",
    "collate_domain_samples",
    "column_names",
    "damped_excess",
    "encode_texts",
    "enough_documents",
    "first_sample",
    "is_stream",
    "load_domains",
    "pack_domains",
    "reference_losses_by_size",
    "samples_digest",
    "shared_share",
    "split_domains",
    "update_mixture_weights",
    "vocabulary_limit",
    "warn_of_runaway",
    "warn_of_shared_text",
]
