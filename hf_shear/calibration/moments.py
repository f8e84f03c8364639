"""Accumulators over tokens: of second moments A = E[a a^T] of what a linear layer reads and G = E[g g^T] of the
gradients of what it writes, of means and variances by channel, and of any sums.

Legend: C inputs and R outputs of a linear layer, a [C] its input at a token, g [R] the gradient of the summed negative
log-likelihood (nats) of the token's sequence with regard to its output, N tokens read, P tokens predicted.

A is a mean over the N tokens read, G is the sum over tokens divided by P. Then the Kronecker product G (x) A is K-FAC's
estimate of the Fisher information of the *mean* loss per predicted token, and 1/2 vec(dW)^T (G (x) A) vec(dW) is the
rise of that mean loss in nats that a change dW of the weight is expected to cause (LLM Surgeon, arXiv 2312.17244,
section 3.1). A and G of one layer are sums over tokens of single sequences: they do not depend on the batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core import charge_flops, count_over_ranks, sum_over_ranks
from ..modeling import ShearingMixin
from ..shapes import OUTPUT_PROJECTIONS
from .engine import into, observe

NUM_BLOCKS = 4  # block rows of a symmetric sum, of which the upper triangle is computed: 10 of 16 blocks
MIN_BLOCKED_SIZE = 256  # below, the extra calls cost more than they save


def _steps(size: int) -> range:
    step = -(-size // NUM_BLOCKS) if size >= MIN_BLOCKED_SIZE else size
    return range(0, size, max(step, 1))  # a part may have lost all its inputs


def one_of(every: int, rows: Tensor, num_before: int) -> Tensor:
    """A copy of the first of every so many rows, those counted that came before."""
    return rows[-num_before % every :: every].clone()


@contextmanager
def full_float32(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Products of float32 matrices without rounding of their factors, whatever the user allowed; sums are float32.

    Args:
        dtype: that all factors came from. A GPU multiplies what was half precision exactly in TF32, and a CPU what was
            bfloat16 in bfloat16, both at several times the speed.
    """
    mkldnn: Any = torch.backends.mkldnn  # whose settings torch adds as it is imported
    backends: dict[Any, str] = {
        torch.backends.cuda.matmul: "tf32" if dtype in (torch.bfloat16, torch.float16) else "ieee",
        mkldnn.matmul: "bf16" if dtype == torch.bfloat16 else "ieee",
    }
    before = {backend: backend.fp32_precision for backend in backends}
    try:
        for backend, precision in backends.items():
            backend.fp32_precision = precision
        yield
    finally:
        for backend, precision in before.items():
            backend.fp32_precision = precision


def add_products(total: Tensor, rows: Tensor) -> None:
    """Add rows^T rows to the diagonal blocks and all blocks above them of ``total`` [C, C]; ``mirror`` fills the rest.

    Args:
        rows: [N, C]; converted to the dtype of ``total``, which must hold all their values.
    """
    steps, dtype = _steps(len(total)), rows.dtype
    rows = rows.to(total.dtype)
    charge_flops(sum(2 * rows.shape[0] * steps.step * (len(total) - start) for start in steps))
    with full_float32(dtype):
        for start in steps:
            end = start + steps.step
            total[start:end, start:].addmm_(rows[:, start:end].t(), rows[:, start:])


def mirror(total: Tensor) -> Tensor:
    """``total`` with the blocks below the diagonal filled in, in place."""
    steps = _steps(len(total))
    for start in steps:
        end = start + steps.step
        total[end:, start:end] = total[start:end, end:].t()
    return total


@dataclass
class Moments:
    """Sums over tokens of what a linear layer reads, or of gradients of what it writes, in float32 or wider.

    Attributes:
        second: [C, C], sum of a a^T; only its diagonal blocks and those above are filled (see ``add_products``).
        first: [C], sum of a; None where no mean is asked for.
        count: what means are taken over: N of inputs, P of gradients.
        keep_every, kept_parts: of so many rows of this process one is kept as it is as well; 0: none.
    """

    second: Tensor
    first: Tensor | None
    count: int = 0
    keep_every: int = 0
    kept_parts: list[Tensor] = field(default_factory=list)

    @classmethod
    def zeros(
        cls,
        size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        mean: bool = True,
        keep_every: int = 0,
    ) -> Moments:
        """Of ``size`` channels, before any token."""
        second = torch.zeros(size, size, dtype=dtype, device=device)
        return cls(second, torch.zeros(size, dtype=dtype, device=device) if mean else None, keep_every=keep_every)

    def add(self, rows: Tensor, count: int | None = None) -> None:
        """Count rows [..., C] as ``count`` tokens; None: as many as they are."""
        rows = rows.detach().flatten(end_dim=-2)
        add_products(self.second, rows)
        if self.first is not None:
            self.first.add_(rows.sum(dim=0, dtype=self.first.dtype))
        if self.keep_every:
            self.kept_parts.append(one_of(self.keep_every, rows, self.count))
        self.count += len(rows) if count is None else count

    def over_ranks(self) -> None:
        """Sum over the ranks; rows that are kept stay with their rank."""
        self.count = count_over_ranks(self.count, self.second.device)
        sum_over_ranks(self.second, () if self.first is None else self.first)

    @property
    def kept_rows(self) -> Tensor:
        """[n, C], in their order."""
        return torch.cat(self.kept_parts) if self.kept_parts else self.second.new_zeros(0, len(self.second))

    @property
    def gram(self) -> Tensor:
        """A = E[a a^T], or G = sum of g g^T / P, [C, C]."""
        return mirror(self.second / self.count)

    @property
    def mean(self) -> Tensor:
        """E[a], [C]."""
        assert self.first is not None, "made without a mean"
        return self.first / self.count


class ChannelMoments:
    """Running means and variances of [C] channels, in float32.

    Batches, and processes, are merged by the update of Chan, Golub and LeVeque (1979), which subtracts no large numbers
    from one another: a variance far below the squared mean survives float32.

    Attributes:
        count: of tokens.
        mean: [C].
        deviations: [C], sum of (a - mean)^2.
    """

    def __init__(self, num_channels: int, device: torch.device | str):
        self.count = 0
        self.mean, self.deviations = torch.zeros(num_channels, device=device), torch.zeros(num_channels, device=device)

    def add(self, rows: Tensor) -> None:
        """Count rows [N, C]."""
        if not len(rows):
            return
        rows = rows.float()
        mean = rows.mean(dim=0)
        deviations = (rows - mean).square_().sum(dim=0)
        gap, self.count = mean - self.mean, self.count + len(rows)
        share = len(rows) / self.count
        self.deviations += deviations + gap.square() * (self.count - len(rows)) * share
        self.mean += gap * share

    def over_ranks(self) -> None:
        """Merge with the other processes' moments."""
        count, mean = count_over_ranks(self.count, self.mean.device), self.mean * self.count
        sum_over_ranks(mean)
        mean /= max(count, 1)
        self.deviations += (self.mean - mean).square() * self.count
        sum_over_ranks(self.deviations)
        self.count, self.mean = count, mean

    @property
    def variance(self) -> Tensor:
        """[C], divided by the count."""
        return self.deviations / self.count

    @property
    def mean_square(self) -> Tensor:
        """E[a^2], [C]."""
        return self.variance + self.mean.square()


def write_input_moments(model: ShearingMixin, batches: Iterable[dict[str, Tensor]]) -> dict[str, ChannelMoments]:
    """Moments of the inputs of every o_proj and down_proj, by the name of the matrix, from one forward per batch.

    Inputs of closed units are counted as they are; their columns are 0 in the model and must be left out by the caller.

    Raises:
        ValueError: no token counts.
    """
    found, inputs = {}, {}
    for index, layer in enumerate(model.model.layers):
        for name in OUTPUT_PROJECTIONS:
            module = layer.get_submodule(name)
            moments = ChannelMoments(module.in_features, model.device)
            found[f"model.layers.{index}.{name}.weight"] = moments
            inputs[module] = into(moments)
    observe(model, batches, inputs)
    for moments in found.values():
        moments.over_ranks()
    return found


class Sums:
    """Sums of anything over tokens, by name, in float64.

    Attributes:
        count: of tokens.
    """

    def __init__(self):
        self.count, self._totals = 0, {}

    def add(self, count: int, **values: Tensor) -> None:
        """Add the sums over ``count`` tokens more."""
        for name, value in values.items():
            if name in self._totals:
                self._totals[name] += value
            else:
                self._totals[name] = value.double()
        self.count += count

    def means(self) -> dict[str, Tensor]:
        """Over the tokens of all ranks; ``count`` is theirs from then on."""
        self.count = count_over_ranks(self.count, next(iter(self._totals.values())).device)
        sum_over_ranks(self._totals.values())
        return {name: total / max(self.count, 1) for name, total in self._totals.items()}
