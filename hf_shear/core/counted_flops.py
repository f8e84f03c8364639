"""Floating-point operations of what runs, counted as it runs: so that every pass over calibration text can be charged.

A multiply-add counts as two. Counted are linear layers, attention and experts, forward and, where a gradient comes back
through them, backward; and what code charges itself (``charge_flops``), such as second moments and their factorisation.
It is what ``hf_shear.shapes.training_flops_per_token`` counts: of attention the causal half of the pairs of tokens,
without cached ones, and nothing of embeddings, norms and softmax.

Modules are counted by their shapes, as they are called. ``torch.utils.flop_counter`` would see every operation, but takes
10 to 20 % longer on a model of one million parameters and changes the last bits of gradients; this takes about 1 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_counting: list[CountedFlops] = []  # those in use; gradients come back in other threads, so it is no ContextVar


class CountedFlops:
    """What ``counted_flops`` yields.

    Attributes:
        total: operations so far, of this process.
    """

    def __init__(self):
        self.total = 0

    def _see(self, module: nn.Module, args: tuple, output: Any) -> None:
        from torch import nn

        flops = _matrix_flops(module, args, output)
        if flops:
            weights_too = any(weight.requires_grad for weight in module.parameters(recurse=False))
            self._add(flops, _first(output), int(_requires_grad(args)) + int(weights_too))
        elif isinstance(projection := getattr(module, "o_proj", None), nn.Linear):
            written = _first(output)  # [B, S, d]; scores and values of S / 2 tokens for each, of all heads together
            self._add(2 * written.shape[:-1].numel() * written.shape[-2] * projection.in_features, written, 2)

    def _add(self, flops: int, output: Tensor, times_backward: int) -> None:
        self.total += flops
        if output.requires_grad and times_backward:
            output.register_hook(lambda _: self._charge(flops * times_backward))

    def _charge(self, flops: int) -> None:
        self.total += flops


def _matrix_flops(module: nn.Module, args: tuple, output: Any) -> int:
    """Of a linear layer, of a router or of experts in one module; 0 of others."""
    from torch import nn

    if isinstance(module, nn.Linear):
        return 2 * output.numel() * module.in_features
    router, gate_up = getattr(module, "weight", None), getattr(module, "gate_up_proj", None)
    if hasattr(module, "top_k") and isinstance(router, nn.Parameter):
        return 2 * args[0].numel() * len(router)
    if isinstance(gate_up, nn.Parameter):
        routed, matrices = args[1], (gate_up, module.get_parameter("down_proj"))
        return 2 * routed.numel() * sum(matrix.shape[1:].numel() for matrix in matrices)
    return 0


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _requires_grad(args: tuple) -> bool:
    from torch import Tensor

    return any(isinstance(value, Tensor) and value.requires_grad for value in args)


def charge_flops(flops: float) -> None:
    """Add operations that no module does to what is being counted; nothing where nobody counts."""
    for counted in _counting:
        counted.total += int(flops)


@contextmanager
def counted_flops() -> Iterator[CountedFlops]:
    """Count the operations of forwards, backward passes and solves within; it may be nested.

        with counted_flops() as counted:
            model(**batch).loss.backward()
        counted.total

    What is computed stays the same, bit by bit. A backward pass after the end counts too, if its forward was within.
    """
    from torch.nn.modules.module import register_module_forward_hook

    counted = CountedFlops()
    _counting.append(counted)
    hook = register_module_forward_hook(counted._see)
    try:
        yield counted
    finally:
        hook.remove()
        _counting.remove(counted)
