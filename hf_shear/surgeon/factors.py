"""The two curvature factors of every linear layer, from forward and backward passes.

Legend: y = W a, W [R, C]; N tokens read, P tokens predicted; g gradient by y of the *sum* of the tokens' losses.

The mean loss of a predicted token has the empirical Fisher (true labels) F ~ G (x) A with A = E[a a^T] over the tokens
read and G = sum(g g^T) / P, if tokens are taken as independent (arXiv 2312.17244, section 3.1): so all costs are in
nats per token and compare over layers. Layers that read the same tensor (q, k and v; gate and up) share A.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data import Calibration

TINY = 1e-20  # damping of a factor that is all zero: such outputs or inputs cost nothing


@dataclass
class KroneckerFactors:
    """A and G of one linear layer, float32 (float64 for a float64 model). ``None`` stands for the identity.

    Attributes:
        inputs: A, [C, C]; one tensor for all layers that read the same inputs.
        outputs: G, [R, R].
    """

    inputs: Tensor | None
    outputs: Tensor | None


def damped(factor: Tensor | None, size: int, damping: float, device: torch.device) -> Tensor:
    """A factor in float64 on ``device`` with ``damping`` times the mean of its diagonal added to the diagonal."""
    if factor is None:
        return torch.eye(size, dtype=torch.float64, device=device)
    wide = factor.to(device=device, dtype=torch.float64, copy=True)
    diagonal = wide.diagonal()
    diagonal += max(damping * float(diagonal.mean()), TINY)
    return wide


def inverse(factor: Tensor) -> Tensor:
    """Of a damped factor, by Cholesky.

    Raises:
        ValueError: it is not positive definite.
    """
    lower, failed = torch.linalg.cholesky_ex(factor)
    if bool(failed):
        raise ValueError(
            f"A factor of {len(factor)} rows is not positive definite: `calibration` has too few tokens for it, or "
            "`damping` is too small. Give more text, or more damping."
        )
    return torch.cholesky_inverse(lower)


class _Sums:
    """Hooks that sum what one pass over the calibration text shows of some linear layers."""

    def __init__(self, linears: dict[str, nn.Linear], needs_outputs: bool):
        self.needs_outputs = needs_outputs
        self.leaders: dict[str, str] = {}  # whose inputs a layer shares (its own for the first that reads them)
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.num_tokens: dict[str, int] = dict.fromkeys(linears, 0)
        self.last: tuple[str, Tensor] | None = None
        self.real: Tensor | None = None  # bool [samples * length]: tokens that are not padding
        self.scale = 1.0
        self.handles = []
        for name, module in linears.items():
            self.handles.append(module.register_forward_hook(self._hook(name)))

    def _hook(self, name: str):
        def after_forward(module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._add_inputs(name, args[0])
            if self.needs_outputs:
                output.register_hook(lambda gradient: self._add(self.outputs, name, gradient * self.scale))

        return after_forward

    def _add_inputs(self, name: str, inputs: Tensor) -> None:
        same = self.last is not None and self.last[1] is inputs
        leader = self.last[0] if same else name
        if self.leaders.setdefault(name, leader) != leader:
            raise RuntimeError(f"{name} shared its inputs with other layers in one batch, and not in another.")
        self.last = (leader, inputs)
        self.num_tokens[name] += inputs[..., 0].numel() if self.real is None else int(self.real.sum())
        if leader == name:
            self._add(self.inputs, name, inputs)

    def _add(self, sums: dict[str, Tensor], name: str, values: Tensor) -> None:
        flat = values.detach().flatten(end_dim=-2)
        if self.real is not None:
            flat = flat[self.real]
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        if name not in sums:
            sums[name] = torch.zeros(flat.shape[1], flat.shape[1], dtype=flat.dtype, device=flat.device)
        sums[name].addmm_(flat.t(), flat)


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
        sums = _Sums(part, needs_outputs)
        try:
            loss = _pass_over(model, calibration, sums)
        finally:
            for handle in sums.handles:
                handle.remove()
        shared: dict[str, Tensor] = {}
        for name in part:
            if not sums.num_tokens[name]:
                raise ValueError(f"{name} reads no token of `calibration`: nothing is known of it.")
            leader = sums.leaders[name]
            if leader not in shared:
                shared[leader] = _finite(f"inputs of {name}", sums.inputs[leader] / sums.num_tokens[leader])
                shared[leader] = shared[leader].cpu() if layers_at_once else shared[leader]
            outputs = None
            if needs_outputs:
                if name not in sums.outputs:
                    raise ValueError(f"The loss on `calibration` does not depend on {name}: it cannot be ranked.")
                outputs = _finite(f"output gradients of {name}", sums.outputs[name] / calibration.num_predicted)
                outputs = outputs.cpu() if layers_at_once else outputs
            factors[name] = KroneckerFactors(shared[leader], outputs)
    return factors, loss


def mean_loss(model: PreTrainedModel, calibration: Calibration) -> float:
    """Nats per predicted token, in evaluation mode."""
    return _pass_over(model, calibration, None)


def _pass_over(model: PreTrainedModel, calibration: Calibration, sums: _Sums | None) -> float:
    total = 0.0
    with _only_activations_have_gradients(model):
        for batch in calibration.on(model.device):
            num_predicted = Calibration([batch]).num_predicted
            mask = batch.get("attention_mask")
            backward = sums is not None and sums.needs_outputs
            if sums is not None:
                sums.real = None if mask is None or bool(mask.all()) else mask.flatten().bool()
                sums.scale = num_predicted  # the model's loss is a mean
            with torch.set_grad_enabled(backward):
                loss = model(**batch, use_cache=False).loss
            if not bool(loss.detach().isfinite()):
                raise ValueError(f"The model's loss on `calibration` must be finite, but it is {float(loss.detach())}.")
            if backward:
                loss.backward()
            if sums is not None:
                sums.last = None  # what is shared is shared within one batch
            total += float(loss.detach()) * num_predicted
    return total / calibration.num_predicted


@contextmanager
def _only_activations_have_gradients(model: PreTrainedModel):
    """Evaluation mode, weights without gradients, and a graph that starts at the embeddings' output."""
    was_training = model.training
    needing = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embeddings = model.get_input_embeddings()
    handle = embeddings.register_forward_hook(
        lambda _, __, output: output.requires_grad_() if torch.is_grad_enabled() else None
    )
    model.eval()
    for parameter in needing:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        handle.remove()
        for parameter in needing:
            parameter.requires_grad_(True)
        model.train(was_training)


def _finite(what: str, factor: Tensor) -> Tensor:
    if not bool(factor.isfinite().all()):
        raise ValueError(f"The {what} must be finite on `calibration`, but they hold infinite values or NaN.")
    return factor
