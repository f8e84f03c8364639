"""Masks folded into the small tensors of a layer, inside the owning module's forward.

A mask over the inputs or outputs of a projection scales columns or rows of its weight; a mask behind a norm scales the
norm's weight. Weights are much smaller than the activations of a training batch, so this is cheaper than multiplying
activations, and it is exactly what slicing does later: masked and sliced model compute the same function.

The classes below are mixed into the classes of existing modules (``masked_class``), which keep their weights and
names; each has the least as its base that it is mixed into. Masks are set on them before each forward, outside any
checkpointed code.
"""

from __future__ import annotations

from functools import cache
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_Masked = TypeVar("_Masked", bound=nn.Module)


def scale_weight(weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Scale a weight [out, in] by ``rows`` [out] or [1] and ``columns`` [in]; None = 1. The forward and slicing use it."""
    scaled = weight if rows is None else weight * rows.to(weight.dtype).unsqueeze(1)
    return scaled if columns is None else scaled * columns.to(weight.dtype)


class _ScaledLinear(torch.autograd.Function):
    """inputs @ (weight * rows[:, None] * columns[None, :]).T + bias, keeping the weight and not its scaled copy.

    Written as two operations, the linear layer would save the scaled weight for the backward pass: another copy of the
    weight for every layer, which no backend shards. Here the backward scales the weight again, at a cost of about
    1 / tokens of the matrix products beside it.
    """

    @staticmethod
    def forward(
        ctx, inputs: Tensor, weight: Tensor, rows: Tensor | None, columns: Tensor | None, bias: Tensor | None, dtype
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, rows, columns)
        ctx.dtype = dtype
        return F.linear(inputs, scale_weight(weight, rows, columns).to(dtype), bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        with torch.autocast(grad.device.type, enabled=False):  # its own dtypes, wherever `backward` is called
            return _ScaledLinear._gradients(ctx, grad)

    @staticmethod
    def _gradients(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, rows, columns = ctx.saved_tensors
        grad_inputs = grad_weight = grad_rows = grad_columns = grad_bias = None
        flat = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[0]:
            grad_inputs = grad @ scale_weight(weight, rows, columns).to(ctx.dtype)
        if any(ctx.needs_input_grad[1:4]):
            grad_scaled = (flat.t() @ inputs.reshape(-1, inputs.shape[-1])).to(weight.dtype)
            grad_weight, grad_rows, grad_columns = _scale_backward(
                grad_scaled, weight, rows, columns, ctx.needs_input_grad[1:4]
            )
        if ctx.needs_input_grad[4]:
            grad_bias = flat.sum(dim=0)
        return grad_inputs, grad_weight, grad_rows, grad_columns, grad_bias, None


def _scale_backward(
    grad: Tensor, weight: Tensor, rows: Tensor | None, columns: Tensor | None, needed: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of weight, rows and columns from that of the scaled weight [out, in]; sums run in float32 or wider."""
    grad_weight = scale_weight(grad, rows, columns) if needed[0] else None
    grad_rows = grad_columns = None
    if needed[1] or needed[2]:
        wide = torch.promote_types(weight.dtype, torch.float32)
        product = grad.to(wide) * weight
        if rows is not None and needed[1]:
            grad_rows = product @ columns.to(wide) if columns is not None else product.sum(dim=1)
            grad_rows = grad_rows.to(rows.dtype)
        if columns is not None and needed[2]:
            grad_columns = rows.to(wide) @ product if rows is not None else product.sum(dim=0)
            grad_columns = grad_columns.to(columns.dtype)
    return grad_weight, grad_rows, grad_columns


def _linear_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which a linear layer takes this tensor: autocast's where it is on, which leaves float64 alone."""
    device = tensor.device.type
    if tensor.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


class MaskedLinear(nn.Linear):
    """Mixed into a linear layer: ``input_mask`` [in] scales its columns, ``output_mask`` [out] its rows and bias."""

    input_mask: Tensor | None = None
    output_mask: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        rows, columns, bias = self.output_mask, self.input_mask, self.bias
        if rows is None and columns is None:
            return super().forward(inputs)
        if rows is not None:
            rows = rows.expand(len(self.weight))  # where layers are masked and hidden dimensions are not, one number
            bias = bias if bias is None else bias * rows.to(bias.dtype)
        # Autocast does not reach the arguments of a function of our own, so they are cast here as it would.
        if bias is not None:
            bias = bias.to(_linear_dtype(bias))
        return _ScaledLinear.apply(
            inputs.to(_linear_dtype(inputs)), self.weight, rows, columns, bias, _linear_dtype(self.weight)
        )


class MaskedEmbedding(nn.Embedding):
    """Mixed into an embedding: ``output_mask`` [d] scales its output (smaller than the table for most batches)."""

    output_mask: Tensor | None = None

    def forward(self, input_ids: Tensor) -> Tensor:
        embedded = super().forward(input_ids)
        return embedded if self.output_mask is None else embedded * self.output_mask.to(embedded.dtype)


class MaskedRMSNorm(nn.Module):
    """Mixed into an RMSNorm: its mean runs over kept dimensions only, and ``output_mask`` [d] or [1] scales its weight.

    Removed dimensions of its input are exactly 0, so the sum of squares needs no mask. With d dimensions of which k are
    kept:  x / sqrt(sum / k + eps) = sqrt(k / d) * x / sqrt(sum / d + eps * k / d).

    Attributes:
        kept_count: k, a scalar; None: all.
        weight_offset, scales_in_float32: as ``Family.norm_offset`` and ``Family.norm_scales_in_float32``.
    """

    weight: nn.Parameter
    output_mask: Tensor | None = None
    kept_count: Tensor | None = None
    weight_offset: float = 0.0
    scales_in_float32: bool = False

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.output_mask is None and self.kept_count is None:
            return super().forward(hidden_states)
        weight = scale_norm_weight(self.weight.float(), self.output_mask, self.weight_offset) + self.weight_offset
        epsilon = getattr(self, "variance_epsilon" if hasattr(self, "variance_epsilon") else "eps")
        if self.kept_count is not None:
            kept_share = self.kept_count / hidden_states.shape[-1]
            weight, epsilon = weight * kept_share.sqrt(), epsilon * kept_share
        values = hidden_states.float()
        values = values * torch.rsqrt(values.pow(2).mean(dim=-1, keepdim=True) + epsilon)
        if self.scales_in_float32:
            return (weight * values).to(hidden_states.dtype)
        return weight.to(self.weight.dtype) * values.to(hidden_states.dtype)


def scale_norm_weight(weight: Tensor, mask: Tensor | None, offset: float = 0.0) -> Tensor:
    """The weight [d] of a norm whose output is scaled by ``mask`` [d] or [1]; the norm adds ``offset`` to its weight."""
    return weight if mask is None else (weight + offset) * mask.to(weight.dtype) - offset


@cache
def masked_class(mixin: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``base`` with ``mixin``'s forward.

    It keeps the name of ``base``: FSDP and ``device_map`` find the layers that stay whole by the name of their class.
    """
    return type(base.__name__, (mixin, base), {"__module__": mixin.__module__})


def make_masked(module: nn.Module, mixin: type[_Masked]) -> _Masked:
    """Give an existing module the masked forward of ``mixin``; weights, names and hooks stay as they are."""
    module.__class__ = masked_class(mixin, type(module))
    return cast(_Masked, module)
