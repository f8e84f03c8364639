"""Data by domain: reading, packing, dynamic batches and the rule that updates the domains' weights."""

from hf_shear.data.domains import load_domains, split_domains
from hf_shear.data.packing import check_max_length, check_tokenizer_fits, pack_domains

__all__ = [
    "check_max_length",
    "check_tokenizer_fits",
    "load_domains",
    "pack_domains",
    "split_domains",
]
