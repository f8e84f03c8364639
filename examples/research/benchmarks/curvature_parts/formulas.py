"""Memory of the LLM Surgeon's statistics and costs, calculated from the sizes of a Llama.

Legend: d hidden size, L layers, Q = heads * head_dim, K = key/value heads * head_dim, ff MLP width, V vocabulary, T tokens
of a forward, N tokens of the calibration text, c bytes of a weight, w layers of a pass. All results are bytes.

Weights are frozen, so that a linear layer keeps nothing for the backward pass. What a layer keeps is the stream before
its two norms (float32, beside the stream itself where that is narrower), rotated queries and keys, values and the
attention's output, and gate, silu(gate) and up; with activation checkpointing it is the stream in front of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlamaConfig

from hf_shear.shapes import count_parameters

FLOAT32, FLOAT64, INT64 = 4, 8, 8
LOGITS = 3  # float32 tensors of the size of the logits, when the loss is differentiated


@dataclass(frozen=True)
class Setup:
    """One way to take statistics.

    Attributes:
        batch_size, sequence_length: of a forward; T is their product.
        num_samples: of the calibration text.
        weight_bytes: c.
        gradients: whether G is taken, or A alone (streamed by forward passes).
        layers_per_pass: w; 0: all. Without gradients always 1.
        activation_checkpointing: as in ``stream_curvature``.
        store_on_host: whether hidden states wait on the host.
        update: costs of the Surgeon, which invert A, or those of K-OBD.
    """

    batch_size: int
    sequence_length: int
    num_samples: int
    weight_bytes: int = FLOAT32
    gradients: bool = True
    layers_per_pass: int = 0
    activation_checkpointing: bool = False
    store_on_host: bool = False
    update: bool = True

    @property
    def tokens(self) -> int:
        """T."""
        return self.batch_size * self.sequence_length

    @property
    def num_batches(self) -> int:
        """Forwards through each layer."""
        return -(-self.num_samples // self.batch_size)


def moments(config: LlamaConfig, setup: Setup) -> dict[str, dict[str, float]]:
    """Bytes on the device by moment and by what they are for; the peak is that of the greatest moment.

    Weights are among them, and hidden states unless they wait on the host.
    """
    d, ff, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    tokens, c = setup.tokens, setup.weight_bytes
    window = 1 if not setup.gradients else min(setup.layers_per_pass or layers, layers)
    layer_statistics = FLOAT32 * (queries**2 + ff**2 + queries + ff + (2 * d**2 if setup.gradients else 0))
    standing = {
        "weights": count_parameters(config) * c,
        "hidden states": 0 if setup.store_on_host else setup.num_samples * setup.sequence_length * d * c,
        "other arguments": 0 if setup.store_on_host else setup.num_batches * _arguments(config, setup),
    }
    with_statistics = standing | {"statistics": window * layer_statistics}
    widened = tokens * FLOAT32 * max(ff, d) if c < FLOAT32 else 0  # of what is summed up
    stream = tokens * d * c
    found = {}
    if setup.gradients:
        narrow = c < FLOAT32
        inner = tokens * (c * (2 * queries + 2 * keys + 3 * ff) + FLOAT32 * config.num_attention_heads)
        norms = tokens * d * (2 * FLOAT32 + 2 * c * narrow)
        layer = inner + norms
        kept = layers * stream if setup.activation_checkpointing else layers * layer
        again = layer if setup.activation_checkpointing else 0
        logits = tokens * config.vocab_size * FLOAT32
        found["loss"] = with_statistics | {"activations": kept + stream, "logits": LOGITS * logits}
        found["backward of the top layer"] = with_statistics | {
            "activations": kept + again,
            "workspace": stream + tokens * c * 2 * ff + widened,
        }
    else:
        found["forward"] = with_statistics | {"activations": 4 * stream + tokens * c * 3 * ff + widened}
    found["costs"] = (
        standing
        | {"statistics": window * layer_statistics - FLOAT32 * (queries**2 + queries)}  # o_proj's A went before
        | {"matrices": _cost_matrices(d, ff, setup)}
    )
    found["costs"]["statistics"] -= FLOAT32 * (ff**2 + ff)  # counted among the matrices
    return found


def _arguments(config: LlamaConfig, setup: Setup) -> int:
    """Of one batch: rotary embeddings (cosine and sine) and positions."""
    return setup.sequence_length * (2 * config.head_dim * setup.weight_bytes + INT64)


def _cost_matrices(d: int, ff: int, setup: Setup) -> float:
    """Most of what ``ColumnCosts`` of down_proj needs at once: A, its factor and its inverse, W, G W, and a product."""
    weights = FLOAT64 * d * ff * 2 if setup.gradients else FLOAT64 * d * ff
    if not setup.update:
        return FLOAT64 * ff**2 + weights + 2 * FLOAT64 * d * ff
    return FLOAT64 * 3 * ff**2 + weights


def peak(config: LlamaConfig, setup: Setup) -> tuple[str, float]:
    """(moment, bytes) of the greatest need."""
    totals = {moment: sum(parts.values()) for moment, parts in moments(config, setup).items()}
    moment = max(totals, key=totals.get)
    return moment, totals[moment]
