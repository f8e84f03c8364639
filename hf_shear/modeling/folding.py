"""Masks folded into the small tensors of a layer, inside the owning module's forward.

A mask over the inputs or outputs of a projection scales columns or rows of its weight; a mask behind a norm scales the
norm's weight. Weights are much smaller than the activations of a training batch, so this is cheaper than multiplying
activations, and it is exactly what slicing does later: masked and sliced model compute the same function.

The classes below are mixed into the classes of existing modules (``masked_class``), which keep their weights and
names. Masks are set on them before each forward, outside any checkpointed code.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _ScaleRowsColumns(torch.autograd.Function):
    """weight * rows[:, None] * columns[None, :], saving nothing but its three inputs."""

    @staticmethod
    def forward(ctx, weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, rows, columns)
        return _scale(weight, rows, columns)

    @staticmethod
    def backward(ctx, grad: Tensor):
        weight, rows, columns = ctx.saved_tensors
        grad_weight = _scale(grad, rows, columns) if ctx.needs_input_grad[0] else None
        grad_rows = grad_columns = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            wide = torch.promote_types(weight.dtype, torch.float32)
            product = grad.to(wide) * weight
            if ctx.needs_input_grad[1]:
                grad_rows = product @ columns.to(wide) if columns is not None else product.sum(dim=1)
                grad_rows = grad_rows.to(rows.dtype)
            if ctx.needs_input_grad[2]:
                grad_columns = rows.to(wide) @ product if rows is not None else product.sum(dim=0)
                grad_columns = grad_columns.to(columns.dtype)
        return grad_weight, grad_rows, grad_columns


def _scale(weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    scaled = weight if rows is None else weight * rows.to(weight.dtype).unsqueeze(1)
    return scaled if columns is None else scaled * columns.to(weight.dtype)


def scale_weight(weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Scale a weight [out, in] by ``rows`` [out] or [1] and ``columns`` [in]; None = 1. The forward and slicing use it."""
    if rows is None and columns is None:
        return weight
    if rows is not None:
        rows = rows.expand(len(weight))  # where layers are masked and hidden dimensions are not, it is one number
    return _ScaleRowsColumns.apply(weight, rows, columns)


class MaskedLinear:
    """Mixed into a linear layer: ``input_mask`` [in] scales its columns, ``output_mask`` [out] its rows and bias."""

    input_mask: Tensor | None = None
    output_mask: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        weight = scale_weight(self.weight, self.output_mask, self.input_mask)
        bias = self.bias
        if bias is not None and self.output_mask is not None:
            bias = bias * self.output_mask.to(bias.dtype)
        return F.linear(inputs, weight, bias)


class MaskedEmbedding:
    """Mixed into an embedding: ``output_mask`` [d] scales its output (smaller than the table for most batches)."""

    output_mask: Tensor | None = None

    def forward(self, input_ids: Tensor) -> Tensor:
        embedded = super().forward(input_ids)
        return embedded if self.output_mask is None else embedded * self.output_mask.to(embedded.dtype)


class MaskedRMSNorm:
    """Mixed into an RMSNorm: its mean runs over kept dimensions only, and ``output_mask`` [d] scales its weight.

    Removed dimensions of the residual stream are exactly 0, so the sum of squares needs no mask. With d dimensions of
    which k are kept:  x / sqrt(sum / k + eps) = sqrt(k / d) * x / sqrt(sum / d + eps * k / d).
    """

    output_mask: Tensor | None = None
    kept_count: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.output_mask is None:
            return super().forward(hidden_states)
        kept_share = self.kept_count / hidden_states.shape[-1]
        weight = self.weight.float() * self.output_mask * kept_share.sqrt()
        values = hidden_states.float()
        variance = values.pow(2).mean(dim=-1, keepdim=True) + self.variance_epsilon * kept_share
        return weight.to(self.weight.dtype) * (values * torch.rsqrt(variance)).to(hidden_states.dtype)


@cache
def masked_class(mixin: type, base: type) -> type:
    """The subclass of ``base`` with ``mixin``'s forward.

    It keeps the name of ``base``: FSDP and ``device_map`` find the layers that stay whole by the name of their class.
    """
    return type(base.__name__, (mixin, base), {"__module__": mixin.__module__})


def make_masked(module: nn.Module, mixin: type) -> None:
    """Give an existing module the masked forward of ``mixin``; weights, names and hooks stay as they are."""
    module.__class__ = masked_class(mixin, type(module))
