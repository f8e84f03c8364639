"""What sharding leaves on each device: optimizer, gradients, gathered weights and buffers, by backend.

The numbers are those of DeepSpeed 0.19 and of FSDP2 in torch 2.13: buffers and defaults were read in their source, their
sum was compared with two processes of each (examples/docs/memory.md).
"""

from __future__ import annotations

from .memory_setup import FLOAT32, ModelParts, TrainingSetup

ADAM_MOMENTS = 2  # each as large as the parameter

# DeepSpeed's defaults (deepspeed/runtime/zero/config.py), in parameters.
MAX_LIVE_PARAMETERS = 1_000_000_000  # ZeRO-3 keeps up to this many gathered
PREFETCH_BUCKET_SIZE = 50_000_000  # ZeRO-3 gathers this many ahead, through a buffer of its own
SUB_GROUP_SIZE = 1_000_000_000  # ZeRO-3 updates this many at once

# FSDP2 holds of whole layers: the one computed, the next one arriving, and the buffer of its all-gather; in the backward
# pass also the layer's gradients and the buffer of their reduce-scatter.
FSDP_GATHERED_LAYERS = 3
FSDP_GRADIENT_LAYERS = 2


def optimizer_bytes(sizes: ModelParts, setup: TrainingSetup) -> float:
    """AdamW's moments, and with DeepSpeed the float32 copy of the weights (even of float32 ones) that it updates."""
    if setup.is_zero:
        return sizes.trained * (ADAM_MOMENTS + 1) * FLOAT32 / setup.num_devices
    share = setup.num_devices if setup.backend == "fsdp2" else 1
    return sizes.trained * ADAM_MOMENTS * sizes.trained_bytes(setup.weight_bytes) / share


def buffer_bytes(sizes: ModelParts, setup: TrainingSetup) -> float:
    """What is allocated once, for all steps."""
    size = setup.weight_bytes
    if setup.backend == "ddp":
        return sizes.trained * sizes.trained_bytes(size)  # gradients are reduced in buckets, copies of them
    if setup.backend == "zero3":  # one bucket is filled while another is reduced; gradients have their place for good
        gradients = 0 if setup.offload else sizes.trained * sizes.trained_bytes(size) / setup.num_devices
        return 2 * setup.reduce_bucket_size * size + gradients
    return setup.reduce_bucket_size * size if setup.is_zero else 0


def shard_moment(moment: str, parts: dict[str, float], sizes: ModelParts, setup: TrainingSetup) -> dict[str, float]:
    """The bytes of one moment of a step, given unsharded, as the backend has them on each device."""
    if setup.is_zero:
        return _zero_moment(moment, parts, sizes, setup)
    return _fsdp_moment(moment, parts, sizes, setup) if setup.backend == "fsdp2" else parts


def _zero_moment(moment: str, parts: dict[str, float], sizes: ModelParts, setup: TrainingSetup) -> dict[str, float]:
    parts, size = dict(parts), setup.weight_bytes
    share, gradients = 1 / setup.num_devices, parts.get("gradients", 0)
    if setup.backend == "zero3":
        parts["gradients"] = 0  # in the buffers
        if moment != "optimizer step":
            live = min(sizes.total, MAX_LIVE_PARAMETERS) + min(sizes.total, PREFETCH_BUCKET_SIZE)
            parts["gathered"] = live * size
    elif setup.backend == "zero2" or moment == "optimizer step":
        parts["gradients"] = 0 if setup.offload else gradients * share
    if setup.backend in ("zero1", "zero2") and moment == "embedding backward" and not setup.offload:
        parts["gradients"] += gradients * share  # the device's share is copied before the rest is freed
    if moment == "optimizer step" and not setup.offload:  # a float32 copy of the gradients
        updated = sizes.trained * share
        parts["workspace"] = FLOAT32 * (min(updated, SUB_GROUP_SIZE) if setup.backend == "zero3" else updated)
    return parts


def _fsdp_moment(moment: str, parts: dict[str, float], sizes: ModelParts, setup: TrainingSetup) -> dict[str, float]:
    """Embedding and head belong to the outermost unit: gathered from forward to backward, reduced at the very end."""
    parts, gathered, gradients = dict(parts), sizes.outside_layers, 0
    if moment in ("top layer backward", "bottom layer backward"):
        gathered += FSDP_GATHERED_LAYERS * sizes.layer
    if setup.frozen is not None:  # what is trained is small: its gradients are counted unsharded
        gradients = sizes.trained
    elif moment == "head backward":
        gradients = sizes.embedding
    elif moment in ("top layer backward", "bottom layer backward"):
        gradients = sizes.embedding + FSDP_GRADIENT_LAYERS * sizes.layer
    elif moment == "embedding backward":
        gradients = 2 * sizes.outside_layers
    if moment == "optimizer step":
        gathered = 0
    size = setup.compute_bytes
    sharded = 0 if setup.offload else parts.get("gradients", 0) / setup.num_devices
    return parts | {"gradients": sharded + gradients * size, "gathered": gathered * size}
