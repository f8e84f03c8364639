"""Other libraries' own ways to cut a model, one in a file, for comparisons at equal shape and on equal text.

A peer is a function of the model, the target's sizes and the calibration text that gives the model as the library cuts it,
or None where it has no way to this shape. Each is taken where its package is installed:

    pip install --no-deps optipfair==0.4.2 torch-pruning==1.6.1 nvidia-modelopt==0.47.0
    pip install nvidia-ml-py omegaconf pulp                            # which nvidia-modelopt imports
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

from transformers import PreTrainedModel

from hf_shear.data import Calibration

from .modelopt_hooks import cut_by_modelopt
from .optipfair_prune import cut_by_optipfair
from .torch_pruning_taylor import cut_by_torch_pruning

Peer = Callable[[PreTrainedModel, dict[str, int], Calibration], PreTrainedModel | None]
PEERS: dict[str, Peer] = {
    "optipfair": cut_by_optipfair,
    "torch-pruning": cut_by_torch_pruning,
    "nvidia-modelopt": cut_by_modelopt,
}


def installed_peers() -> dict[str, Peer]:
    """Those whose package is installed, by name and version."""
    found = {}
    for name, cut in PEERS.items():
        try:
            found[f"{name} {importlib.metadata.version(name)}"] = cut
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is not installed, so that it is not measured.")
    return found
