"""Memory of a training step, calculated from a config: no weights are needed, so any size can be asked for.

Legend: d hidden size, L layers, Q = heads * head_dim, K = key/value heads * head_dim, ff MLP width, V vocabulary,
P parameters, N devices, T = micro_batch_size * sequence_length tokens. All results are bytes.

A step is followed through the moments at which memory can be greatest; the estimate is that of the greatest one:

    forward                 all activations, the logits and their log-softmax
    loss backward           all activations, log-softmax and two gradients of its size (float32, whatever weights are)
    head backward           all activations, the gradient of the logits, that of the output head
    top layer backward      all activations, and gradients inside one layer
    bottom layer backward   the gradients of all layers, and those inside one layer
    embedding backward      all gradients (a tied embedding's up to three times: its own part, the head's, their sum)
    optimizer step          all gradients, and what the optimizer makes of them

Before them a teacher has its forward. With frozen weights there is no gradient of the embedding, and distillation has
logits of one chunk only (``memory_recovery.py``).

Between them memory rises or falls evenly. What is kept for the backward pass was counted in transformers' Llama with sdpa
attention (``torch.autograd.graph.saved_tensors_hooks``); examples/research/benchmarks/memory.py compares with peaks.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from . import memory_recovery
from .memory_setup import FLOAT32, ModelParts, TrainingSetup
from .memory_sharding import ADAM_MOMENTS, buffer_bytes, optimizer_bytes, shard_moment

# Copies of all masks in the graph of one forward (noise, scores, gates, their products); an upper estimate.
GATE_COPIES = 12


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process at the moment of its greatest need.

    Attributes:
        moment: which moment of the step that is.
        device: bytes on the device, by what they are for.
        host: bytes in the host's memory because of offloading (one process's; a host holds those of all its devices).
    """

    moment: str
    device: dict[str, int]
    host: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes on the device."""
        return sum(self.device.values())


def estimate_memory(config: PretrainedConfig, setup: TrainingSetup) -> MemoryEstimate:
    """Memory of training what ``config`` describes: masks too for a ``ShearingLlamaConfig``, a plain model otherwise.

    These are bytes of tensors. Left out: what the device's context, communication libraries, the workspaces of kernels and
    a fragmented allocator take, so leave a margin.

    Raises:
        ValueError: the config's family is not supported, or a mixture of experts, or its sizes are malformed.
    """
    moments = estimate_moments(config, setup)
    return max(moments.values(), key=lambda estimate: estimate.peak)


def estimate_moments(config: PretrainedConfig, setup: TrainingSetup) -> dict[str, MemoryEstimate]:
    """The same for every moment of a step, not only the greatest one."""
    sizes = ModelParts(config, setup.frozen)
    device, host = _standing(sizes, setup)
    estimates = {}
    for moment, parts in _moments(sizes, setup).items():
        if setup.gradient_accumulation_steps > 1:  # from the second micro-batch on
            parts["gradients"] = sizes.trained * sizes.trained_bytes(setup.weight_bytes)
        parts = device | shard_moment(moment, parts, sizes, setup)
        estimates[moment] = MemoryEstimate(moment, _whole(parts), _whole(host))
    return estimates


def _whole(parts: dict[str, float]) -> dict[str, int]:
    """Whole bytes, without the parts that take none."""
    return {name: round(value) for name, value in parts.items() if value}


def _standing(sizes: ModelParts, setup: TrainingSetup) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes on the device and on the host that every moment of a step has in common."""
    device = {
        "weights": memory_recovery.weights_of(sizes, setup) / (setup.num_devices if setup.shards_weights else 1),
        "optimizer": optimizer_bytes(sizes, setup),
        # Value, gradient and two moments, in float32 and whole on every device, and the gates of one forward.
        "masks": sizes.masks * FLOAT32 * (2 + ADAM_MOMENTS + GATE_COPIES),
        "buffers": buffer_bytes(sizes, setup),
    }
    host: dict[str, float] = {}
    if setup.offload:
        wide = setup.weight_bytes if setup.backend == "fsdp2" else FLOAT32
        host = {"optimizer": device.pop("optimizer"), "gradients": sizes.trained * wide / setup.num_devices}
        if setup.backend == "fsdp2":
            host["weights"] = device.pop("weights")
    if setup.teaching is not None:
        teacher, teacher_host = memory_recovery.teacher_parts(setup.teaching, setup.tokens)
        device, host = device | teacher, host | teacher_host
    return device, host


def _moments(sizes: ModelParts, setup: TrainingSetup) -> dict[str, dict[str, float]]:
    """Bytes beyond the standing ones, by moment of the step and by what they are for."""
    tokens, compute, size = setup.tokens, setup.compute_bytes, setup.weight_bytes
    kept, inside, casts = _kept_of_layers(sizes, setup), _inside_of_layer(sizes, setup), _casts(sizes, setup)
    everything = kept + tokens * _norm_bytes(sizes, setup, consumers=0 if setup.frozen is not None else 1)
    logits, head = tokens * sizes.vocabulary, sizes.embedding
    last = sizes.total - sizes.outside_layers - sizes.layer + head  # parameters whose gradients are there by then
    in_forward, in_backward = logits * (compute + FLOAT32 + (FLOAT32 if compute < FLOAT32 else 0)), logits * 3 * FLOAT32
    moments = {}
    if (teaching := setup.teaching) is not None:
        everything += memory_recovery.hidden_of_both(sizes, teaching, tokens)
        logits = memory_recovery.chunk_logits(sizes, tokens)
        in_forward, in_backward = memory_recovery.logits_bytes(sizes, teaching, tokens)
        if teaching.teacher is not None:
            moments["teacher forward"] = memory_recovery.teacher_forward(teaching.teacher, teaching, tokens)
    if setup.frozen is not None:
        head, last, size = 0, sizes.trained, sizes.trained_bytes(size)
    moments |= {
        "forward": {"casts": casts["forward"], "activations": everything, "logits": in_forward},
        "loss backward": {"casts": casts["backward"], "activations": everything, "logits": in_backward},
        "head backward": {
            "casts": casts["backward"],
            "activations": everything,
            "logits": logits * compute,
            "gradients": head * size,
            "workspace": head * compute if setup.autocast else 0,
        },
        "top layer backward": {
            "casts": casts["backward"], "activations": kept, "gradients": head * size, "workspace": inside,
        },
        "bottom layer backward": {
            "casts": casts["layer"],
            "activations": kept / sizes.layers,
            "gradients": last * size,
            "workspace": inside,
        },
        "embedding backward": {
            "activations": tokens * sizes.hidden * size,
            "gradients": sizes.total * size,
            "workspace": head * size * _tied_copies(sizes, setup),
        },
        "optimizer step": {"gradients": sizes.trained * size},
    }  # fmt: skip
    if setup.frozen is not None:
        del moments["embedding backward"]
    return moments


def _tied_copies(sizes: ModelParts, setup: TrainingSetup) -> int:
    """Gradients of a tied embedding beyond the first; what came from a cast takes up the sum in place."""
    return (1 if setup.autocast else 2) if sizes.tied else 0


def _norm_bytes(sizes: ModelParts, setup: TrainingSetup, consumers: int) -> int:
    """Bytes per token that a norm and its ``consumers`` (linear layers) keep of their inputs."""
    if setup.frozen is not None:
        return memory_recovery.norm_bytes(sizes, setup, consumers)
    if setup.stream_bytes > setup.compute_bytes:  # autocast: the stream and its normed values, a cast per consumer
        return (2 * FLOAT32 + consumers * setup.compute_bytes) * sizes.hidden
    return (FLOAT32 + 2 * setup.compute_bytes) * sizes.hidden  # the stream in float32, normed, and times the weight


def _layer_bytes(sizes: ModelParts, setup: TrainingSetup) -> int:
    """Bytes per token that one layer keeps."""
    if setup.frozen is not None:
        return memory_recovery.layer_bytes(sizes, setup)
    attention = 2 * sizes.queries + 2 * sizes.keys  # rotated q and k, v, the output
    mlp = 4 * sizes.neurons  # gate, silu(gate), up, and their product
    norms = _norm_bytes(sizes, setup, consumers=3) + _norm_bytes(sizes, setup, consumers=2)
    return norms + setup.compute_bytes * (attention + mlp) + FLOAT32 * sizes.heads  # a log-sum-exp per head


def _kept_of_layers(sizes: ModelParts, setup: TrainingSetup) -> int:
    """Bytes that all layers keep for the backward pass, and the embedding before its mask."""
    stream = setup.stream_bytes * sizes.hidden
    layer = stream if setup.activation_checkpointing else _layer_bytes(sizes, setup)
    return setup.tokens * (sizes.layers * layer + stream * sizes.masks_hidden)


def _inside_of_layer(sizes: ModelParts, setup: TrainingSetup) -> int:
    """Bytes beyond what is kept while the backward pass is inside one layer."""
    again = setup.tokens * _layer_bytes(sizes, setup) if setup.activation_checkpointing else 0
    # The gradient of the stream and of a norm's float32 values, and either the three gradients of the MLP's product and
    # its factors (one takes the place of what is freed), or one of them and the masked weight's three gradients.
    stream = setup.tokens * 2 * FLOAT32 * sizes.hidden
    product = setup.tokens * setup.compute_bytes * sizes.neurons
    weight = sizes.masked_down * (2 * setup.weight_bytes + FLOAT32)
    return again + stream + max(2 * product, product + weight)


def _casts(sizes: ModelParts, setup: TrainingSetup) -> dict[str, int]:
    """Bytes of autocast's copies of weights, by direction; "layer" when only one layer is left."""
    if not setup.autocast or setup.shards_weights:  # ZeRO-3's linear layer casts again, FSDP2 gathers in bfloat16
        return {"forward": 0, "backward": 0, "layer": 0}
    layer, head = sizes.cast_weights * setup.compute_bytes, sizes.embedding * setup.compute_bytes
    layer += sizes.adapters * setup.compute_bytes // sizes.layers
    forward = sizes.layers * layer + head
    # Checkpointed layers keep none, but autocast remembers them until the forward ends, if their weights are trained.
    backward = layer + head if setup.activation_checkpointing else forward
    if setup.frozen is not None and setup.activation_checkpointing:
        forward = backward = head
    return {"forward": forward, "backward": backward, "layer": layer}
