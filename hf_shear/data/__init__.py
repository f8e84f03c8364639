"""Data by domain: reading, packing, dynamic batches and the rule that updates the domains' weights."""

from hf_shear.data.calibration import Calibration
from hf_shear.data.counted_tokens import IGNORED_LABEL, counted_tokens
from hf_shear.data.documents import check_token_id, encode_texts, vocabulary_limit
from hf_shear.data.domains import load_domains, split_domains
from hf_shear.data.loader import (
    TEACHER_COLUMNS,
    DomainSamples,
    DynamicDataLoader,
    collate_domain_samples,
)
from hf_shear.data.mixture import check_mixture_bounds, check_mixture_weights, update_mixture_weights, warn_of_runaway
from hf_shear.data.packing import check_max_length, pack_domains
from hf_shear.data.reference_losses import reference_losses_by_size
from hf_shear.data.sampler import DynamicBatchSampler
from hf_shear.data.samples_digest import samples_digest
from hf_shear.data.shared_text import shared_share, warn_of_shared_text
from hf_shear.data.stream_loader import StreamDataLoader
from hf_shear.data.streams import PackedStream, first_sample, is_stream

__all__ = [
    "Calibration",
    "IGNORED_LABEL",
    "TEACHER_COLUMNS",
    "DomainSamples",
    "DynamicBatchSampler",
    "DynamicDataLoader",
    "PackedStream",
    "StreamDataLoader",
    "check_max_length",
    "check_mixture_bounds",
    "check_mixture_weights",
    "check_token_id",
    "collate_domain_samples",
    "counted_tokens",
    "encode_texts",
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
