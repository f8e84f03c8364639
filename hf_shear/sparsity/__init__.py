"""The LLM Surgeon's own structures for any causal language model of linear layers: weights become zeros.

For reproducing the paper's tables. Nothing here makes a model smaller or faster; ``hf_shear.prune_one_shot`` does.
"""

from .factors import collect_factors
from .linear_layers import decoder_linears
from .prune_to_zeros import prune_to_zeros
from .settings import STRUCTURES, SurgeonSettings

__all__ = [
    "STRUCTURES",
    "SurgeonSettings",
    "collect_factors",
    "decoder_linears",
    "prune_to_zeros",
]
