"""The two curvature factors of every linear layer, from forward and backward passes.

Legend: y = W a, W [R, C]; N tokens read, P tokens predicted; g gradient by y of the *sum* of the tokens' losses.

The mean loss of a predicted token has the empirical Fisher (true labels) F ~ G (x) A with A = E[a a^T] over the tokens
read and G = sum(g g^T) / P, if tokens are taken as independent (arXiv 2312.17244, section 3.1): so all costs are in
nats per token and compare over layers. Layers that read the same tensor (q, k and v; gate and up) share A. Tokens of
padding and with ignored labels do not count. Where torch.distributed is initialised, factors and losses are those of all
ranks' text together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..calibration import Batch, Moments, measuring, shown, watching
from ..calibration.engine import Watcher
from ..calibration.factors import check_finite, damped
from ..core import UsageError, sum_over_ranks
from ..data import Calibration

TINY = 1e-20  # more damping, of no weight unless there is nothing else


@dataclass
class KroneckerFactors:
    """A and G of one linear layer, float32 (float64 for a float64 model). ``None`` stands for the identity.

    Attributes:
        inputs: A, [C, C]; one tensor for all layers that read the same inputs.
        outputs: G, [R, R].
    """

    inputs: Tensor | None
    outputs: Tensor | None


def damped_factor(factor: Tensor | None, size: int, damping: float, device: torch.device) -> Tensor:
    """A factor in float64 on ``device``, damped as everywhere (``hf_shear.calibration.factors.damped``); None: I."""
    if factor is None:
        return torch.eye(size, dtype=torch.float64, device=device)
    wide = damped(factor.to(device), damping)
    # Costs of units leave what is dead out of the system. Here all entries have a place in the masks: a dead factor must
    # have an inverse, and entries of dead inputs, which all cost nothing without damping, go in the order of their size.
    if not bool(wide.diagonal().all()):
        wide.diagonal().add_(TINY)
    return wide


class _Collector:
    """Sums what one pass over the calibration text shows of some linear layers.

    The pass runs whole, not layer by layer: this is for any causal language model, and one threshold over all layers
    needs all factors at once anyway.
    """

    def __init__(self, linears: dict[str, nn.Linear], needs_outputs: bool):
        self.leaders: dict[str, str] = {}  # whose inputs a layer shares (its own for the first that reads them)
        self.inputs: dict[str, Moments] = {}
        self.outputs: dict[str, Moments] = {}
        self.last: tuple[str, Tensor, Batch] | None = None
        self.watch_inputs: dict[nn.Module, Watcher] = {
            module: partial(self._add_inputs, name) for name, module in linears.items()
        }
        self.watch_gradients: dict[nn.Module, Watcher] = {
            module: partial(self._add_gradients, name) for name, module in linears.items() if needs_outputs
        }

    def _add_inputs(self, name: str, inputs: Tensor, batch: Batch) -> None:
        last = self.last
        leader = last[0] if last is not None and last[1] is inputs and last[2] is batch else name
        if self.leaders.setdefault(name, leader) != leader:
            raise RuntimeError(f"{name} shared its inputs with other layers in one batch, and not in another.")
        self.last = (leader, inputs, batch)
        if leader == name:
            _moments(self.inputs, name, inputs).add(batch.rows(inputs))

    def _add_gradients(self, name: str, gradients: Tensor, batch: Batch) -> None:
        # The model's loss is a mean, of which the sum is wanted.
        _moments(self.outputs, name, gradients).add(gradients * batch.num_predicted, batch.num_predicted)


def _moments(found: dict[str, Moments], name: str, values: Tensor) -> Moments:
    if name not in found:
        dtype = torch.promote_types(values.dtype, torch.float32)
        found[name] = Moments.zeros(values.shape[-1], values.device, dtype, mean=False)
    return found[name]


def collect_factors(
    model: PreTrainedModel,
    linears: dict[str, nn.Linear],
    calibration: Calibration,
    needs_outputs: bool = True,
    layers_at_once: int | None = None,
) -> tuple[dict[str, KroneckerFactors], float]:
    """Factors of ``linears`` under the weights that ``model`` has now, without dropout.

    Args:
        needs_outputs: also G, by backward passes; else forward passes alone, and G is None.
        layers_at_once: linear layers of one pass over the text, whose factors then move to the CPU; None: all in one
            pass, and the factors stay where the model is.

    Returns:
        The factors, and the mean loss in nats per predicted token.

    Raises:
        ValueError: the model gives a loss or factors that are not finite, or a layer reads no token.
    """
    names, factors, loss = list(linears), {}, 0.0
    for start in range(0, len(names), layers_at_once or len(names)):
        part = {name: linears[name] for name in names[start : start + (layers_at_once or len(names))]}
        collector = _Collector(part, needs_outputs)
        loss = _pass_over(model, calibration, collector)
        for name in part:
            if name not in collector.leaders:
                raise UsageError(f"{name} reads no token of `calibration`: nothing is known of it.")
            if needs_outputs and name not in collector.outputs:
                raise UsageError(f"The loss on `calibration` does not depend on {name}: it cannot be ranked.")
        device = "cpu" if layers_at_once else None
        shared = {name: _factor(f"A of {name}", moments, device) for name, moments in collector.inputs.items()}
        for name in part:
            outputs = None
            if needs_outputs:
                outputs = _factor(f"G of {name}", collector.outputs.pop(name), device)
            factors[name] = KroneckerFactors(shared[collector.leaders[name]], outputs)
    return factors, loss


def _factor(what: str, moments: Moments, device: str | None) -> Tensor:
    """The factor over all ranks, on ``device``; None: where it was collected."""
    moments.over_ranks()
    factor = moments.gram
    check_finite(factor, what)
    return factor.to(device=device)


def mean_loss(model: PreTrainedModel, calibration: Calibration) -> float:
    """Nats per predicted token over all ranks, in evaluation mode."""
    return _pass_over(model, calibration, _Collector({}, needs_outputs=False))


def _pass_over(model: PreTrainedModel, calibration: Calibration, collector: _Collector) -> float:
    backward = bool(collector.watch_gradients)
    # The graph starts at the embeddings' output: weights have no gradients.
    start = {model.get_input_embeddings(): lambda output, batch: output.requires_grad_()} if backward else {}
    total = 0.0
    with measuring(model, weights_require_grad=False), torch.set_grad_enabled(backward):
        for batch in shown(calibration.batches, model.device, "Curvature" if backward else "Loss"):
            with watching(batch, collector.watch_inputs, start, collector.watch_gradients):
                loss = model(**batch.inputs, use_cache=False).loss
            if not bool(loss.detach().isfinite()):
                raise UsageError(f"The model's loss on `calibration` must be finite, but it is {float(loss.detach())}.")
            if backward:
                loss.backward()
            total += float(loss.detach()) * batch.num_predicted
        collector.last = None
    over_ranks = torch.tensor([total, calibration.num_predicted], dtype=torch.float64, device=model.device)
    sum_over_ranks(over_ranks)
    return float(over_ranks[0] / over_ranks[1])
