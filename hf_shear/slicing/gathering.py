"""Weights that DeepSpeed ZeRO-3 or FSDP2 spread over processes, made whole one linear layer, embedding or norm at a time.

Everything that gathers is collective: all processes must call it, with the same model, in the same order. A model that
is not sharded passes through as it is, in one process or in several.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..core import UsageError
from .releasing import release_weights, return_freed_memory, return_mapped_pages

# Parts of a parameter's name that wrappers add: torch's checkpoint_wrapper and torch.compile.
_WRAPPER_NAMES = ("_checkpoint_wrapped_module", "_orig_mod")


def is_sharded(module: nn.Module) -> bool:
    """Whether any process holds only a part of the parameters (ZeRO-3, FSDP2 or another use of DTensor)."""
    return any(_is_partitioned(parameter) or isinstance(parameter, DTensor) for parameter in _parameters(module))


@contextmanager
def gathered(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The whole tensors of sharded parameters, for reading, on the device that they are used on.

    They are valid within the block only: ZeRO-3 frees them at its end.
    """
    parameters = list(parameters)
    partitioned = [parameter for parameter in parameters if _is_partitioned(parameter)]
    with _gathered_by_deepspeed(partitioned) if partitioned else nullcontext():
        yield [_whole(parameter) for parameter in parameters]


def full_parameters(model: nn.Module, release: bool = False) -> Iterator[dict[str, Tensor]]:
    """The whole parameters of a model by name, those of one module (a linear layer, an embedding, a norm) at a time.

    The largest come first: what is gathered, and needs room for itself twice, then stands beside little that is kept. A
    tied parameter comes once, under its first name. Each dict is emptied at the next step, and what ZeRO-3 gathered for
    it is freed: copy what is to stay.

    Args:
        release: let the model itself go of each module's parameters at the next step as well. Not for a sharded model.
    """
    sharded = is_sharded(model)
    units = _units(model)
    while units:
        unit = units.popleft()
        with gathered(unit.values()) as tensors:
            whole = dict(zip(unit, tensors, strict=True))
            del tensors
            yield whole
            if release:
                return_mapped_pages(whole.values())
            whole.clear()  # a loop's variable would keep it while the next one is gathered
        if release:
            release_weights(model, unit.values())
            unit.clear()
        if sharded or release:
            return_freed_memory()


def check_dtype(dtype: torch.dtype | None) -> None:
    """Refuse what weights can not be kept in."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UsageError(
            f"`dtype` must be a floating-point torch.dtype, such as torch.bfloat16, or None to keep the model's own, but"
            f" it is {dtype!r}."
        )


def _units(model: nn.Module) -> deque[dict[str, Tensor]]:
    """Parameters by name, grouped by the module that has them; the largest groups first."""
    units: dict[str, dict[str, Tensor]] = {}
    for name, parameter in _named_parameters(model):
        parts = [part for part in name.split(".") if part not in _WRAPPER_NAMES]
        units.setdefault(".".join(parts[:-1]), {})[".".join(parts)] = parameter
    return deque(
        sorted(
            units.values(), key=lambda unit: sum(_whole_size(parameter) for parameter in unit.values()), reverse=True
        )
    )


def _named_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    # After an evaluation FSDP2 leaves the weights of the outermost module whole; sharded again they are the parameters
    # that the optimizer writes to.
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    yield from module.named_parameters()


def _parameters(module: nn.Module) -> Iterator[Tensor]:
    return (parameter for _, parameter in _named_parameters(module))


def _is_partitioned(parameter: Tensor) -> bool:
    return hasattr(parameter, "ds_id")


def _whole_size(parameter: Tensor) -> int:
    """Elements of the whole tensor: the same in every process, which must all gather in the same order."""
    return getattr(parameter, "ds_numel", parameter.numel())


def _gathered_by_deepspeed(parameters: list[Tensor]):
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def _whole(parameter: Tensor) -> Tensor:
    tensor = parameter.detach()
    if not isinstance(tensor, DTensor):
        return tensor
    # Offloaded to the CPU, a shard has to be where the process group of its mesh communicates.
    moved = tensor.to(tensor.device_mesh.device_type)
    assert isinstance(moved, DTensor)
    return moved.full_tensor()
