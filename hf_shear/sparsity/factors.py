"""The two curvature factors of every linear layer, from forward and backward passes.

Legend: y = W a, W [R, C]; N tokens read, P tokens predicted; g gradient by y of the *sum* of the tokens' losses.

The mean loss of a predicted token has the empirical Fisher (true labels) F ~ G (x) A with A = E[a a^T] over the tokens
read and G = sum(g g^T) / P, if tokens are taken as independent (arXiv 2312.17244, section 3.1): so all costs are in
nats per token and compare over layers. Layers that read the same tensor (q, k and v; gate and up) share A. Tokens of
padding and with ignored labels do not count. Where torch.distributed is initialised, factors and losses are those of all
ranks' text together.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..calibration import GradientMoments, InputMoments
from ..calibration.factors import check_finite, damped
from ..calibration.stream import frozen
from ..core import UsageError, count_over_ranks, counted_tokens, sum_over_ranks
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
    """Hooks that sum what one pass over the calibration text shows of some linear layers.

    The sums are those of ``hf_shear.calibration``. The pass is not: ``stream_curvature`` leads families that it knows from
    decoder layer to decoder layer, while this is for any causal language model, and one threshold over all layers needs
    all factors at once anyway.
    """

    def __init__(self, linears: dict[str, nn.Linear], needs_outputs: bool):
        self.needs_outputs = needs_outputs
        self.leaders: dict[str, str] = {}  # whose inputs a layer shares (its own for the first that reads them)
        self.inputs: dict[str, InputMoments] = {}
        self.outputs: dict[str, GradientMoments] = {}
        self.last: tuple[str, Tensor] | None = None
        self.counted: Tensor | None = None  # bool [samples, length]: tokens that count; None: all
        self.scale = 1.0
        self.handles = [module.register_forward_hook(self._hook(name)) for name, module in linears.items()]

    def _hook(self, name: str):
        def after_forward(module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._add_inputs(name, args[0])
            if self.needs_outputs:
                output.register_hook(lambda gradient: self._add_gradients(name, gradient))

        return after_forward

    def _add_inputs(self, name: str, inputs: Tensor) -> None:
        same = self.last is not None and self.last[1] is inputs
        leader = self.last[0] if same else name
        if self.leaders.setdefault(name, leader) != leader:
            raise RuntimeError(f"{name} shared its inputs with other layers in one batch, and not in another.")
        self.last = (leader, inputs)
        if leader == name:
            if name not in self.inputs:
                self.inputs[name] = InputMoments.zeros(inputs.shape[-1], inputs.device, _sum_dtype(inputs))
            # Models differ in whether linear layers read [samples, length, C] or [samples * length, C].
            flat = inputs.flatten(end_dim=-2)
            self.inputs[name].add(flat if self.counted is None else flat[self.counted.flatten()])

    def _add_gradients(self, name: str, gradients: Tensor) -> None:
        if name not in self.outputs:
            self.outputs[name] = GradientMoments.zeros(gradients.shape[-1], gradients.device, _sum_dtype(gradients))
        self.outputs[name].add(gradients * self.scale)


def _sum_dtype(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


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
        try:
            loss = _pass_over(model, calibration, collector)
        finally:
            for handle in collector.handles:
                handle.remove()
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
                moments = collector.outputs.pop(name)
                moments.num_predicted = calibration.num_predicted
                outputs = _factor(f"G of {name}", moments, device)
            factors[name] = KroneckerFactors(shared[collector.leaders[name]], outputs)
    return factors, loss


def _factor(what: str, moments: InputMoments | GradientMoments, device: str | None) -> Tensor:
    """The factor over all ranks, on ``device``; None: where it was collected."""
    moments.all_reduce()
    factor = moments.gram
    check_finite(factor, what)
    return factor.to(device=device)


def mean_loss(model: PreTrainedModel, calibration: Calibration) -> float:
    """Nats per predicted token over all ranks, in evaluation mode."""
    return _pass_over(model, calibration, None)


def _pass_over(model: PreTrainedModel, calibration: Calibration, collector: _Collector | None) -> float:
    total = torch.zeros((), dtype=torch.float64)
    with _only_activations_have_gradients(model):
        for batch in calibration.on(model.device):
            num_predicted = Calibration([batch]).num_predicted
            backward = collector is not None and collector.needs_outputs
            if collector is not None:
                counted = counted_tokens(batch)
                collector.counted = None if bool(counted.all()) else counted
                collector.scale = num_predicted  # the model's loss is a mean
            with torch.set_grad_enabled(backward):
                loss = model(**batch, use_cache=False).loss
            if not bool(loss.detach().isfinite()):
                raise UsageError(f"The model's loss on `calibration` must be finite, but it is {float(loss.detach())}.")
            if backward:
                loss.backward()
            if collector is not None:
                collector.last = None  # what is shared is shared within one batch
            total += float(loss.detach()) * num_predicted
    num_predicted = count_over_ranks(calibration.num_predicted, model.device)
    total = total.to(model.device)
    sum_over_ranks(total)
    return float(total) / num_predicted


@contextmanager
def _only_activations_have_gradients(model: PreTrainedModel):
    """Evaluation mode, weights without gradients, and a graph that starts at the embeddings' output."""
    handle = model.get_input_embeddings().register_forward_hook(
        lambda _, __, output: output.requires_grad_() if torch.is_grad_enabled() else None
    )
    try:
        with frozen(model):
            yield
    finally:
        handle.remove()
