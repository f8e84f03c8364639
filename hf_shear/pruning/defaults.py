"""What one-shot pruning does unless it is told otherwise: the bench's choice (model_cards/bench.md).

At equal training tokens over three seeds the LLM Surgeon's costs with least squares lost least. The Surgeon ranks heads
and neurons. Hidden dimensions, which it cannot rank, go by the size of their activations, which lost less than Taylor
scores there; whole layers, which are too far from a small change for costs of second order, by the loss without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..criteria import DEFAULT_KIND
from ..masks import HIDDEN, LAYER

DEFAULT_CRITERION: Mapping[str, str] = MappingProxyType(
    {DEFAULT_KIND: "llm_surgeon", HIDDEN: "activation", LAYER: "loss_rise"}
)
DEFAULT_COMPENSATION = "least_squares"
DEFAULT_NUM_SHOTS = 5  # each scores and compensates anew: pruning takes that many times as long as in one


def default_criterion_words() -> list[str]:
    """``DEFAULT_CRITERION`` as a command line has it."""
    return [choice if kind == DEFAULT_KIND else f"{kind}={choice}" for kind, choice in DEFAULT_CRITERION.items()]
