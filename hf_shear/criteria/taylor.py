"""Taylor importance of every unit: how the loss would change without it, by a polynomial around the model as it is.

Two ways lead there. The gate of a unit multiplies what it hands on, so the loss rise from closing it is -dL/dz to first
order (``hf_shear/calibration/gate_slopes.py``). Or the unit's weights theta are set to zero, each of which changes the
loss by -theta * g + 1/2 * theta^2 * h, h the squared gradient in place of the curvature (LLM-Pruner, arXiv 2305.11627,
section 3.2; ``weight_gradients.py``).

The gradient g of a frozen weight W can be estimated from LoRA adapters on it (LoRAPrune, arXiv 2305.18403, section 3.2).
With adapters B A, a step of size one along dB and dA changes B A by dB A + B dA - dB dA, which stands for the gradient
of W. No weight needs a gradient, so nothing of the weights' size is kept besides the estimate itself, one matrix at a
time. Fresh adapters have B = 0: the estimate is then the gradient's projection on the rows of A.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration import mean_over_slopes, measuring, sample_losses
from ..core import MissingExtraError, UsageError, sum_over_ranks, tracked
from ..data import Calibration
from ..masks import ALL_UNIT_KINDS, EXPERT
from ..modeling import ShearingMixin
from .coupled_weights import sum_over_units, values_of
from .criterion import Options, Scores, criterion
from .weight_gradients import WeightGradients, weight_gradients

ORDERS = ("first", "mixed", "norm")
GATE_AGGREGATIONS = ("gate", "token")
WEIGHT_AGGREGATIONS = ("element", "vector", "fused")
ADAPTERS = "adapters"
LEARNING_RATE = 1e-3  # of the steps that adapters may take before their gradients are read
_ADAPTER_NAME = "importance"


def _ranks(options: Options) -> list[str]:
    """All kinds; adapters are not put on experts."""
    return [kind for kind in ALL_UNIT_KINDS if kind != EXPERT or options["gradient"] != ADAPTERS]


@criterion(ranks=_ranks, comparable_across_layers=lambda options: options["aggregation"] != "fused")
def taylor(
    model: ShearingMixin,
    calibration: Calibration,
    *,
    order: str = "first",
    aggregation: str = "gate",
    gradient: str = "weights",
    rank: int = 8,
    adapter_steps: int = 0,
) -> Scores:
    """How the loss changes without a unit, by the slope of its gate or of its weights.

    Args:
        order: with s a sample's slope theta * g (or dL/dz of a gate), "first": |s|; "mixed": |s - 1/2 s^2|; "norm":
            the root mean square of s over samples. Of weights, "first" takes the gradient of the mean loss, "mixed"
            that and the mean of squares, and "norm" is |theta| * sqrt(E[g^2]), GBLM's (arXiv 2311.04902).
        aggregation: "gate": the mean over samples of the gate's slope; "token": the same with a magnitude per token
            (activation times gradient); "element": the sum of each weight's magnitude over the unit's weights;
            "vector": the magnitude of their sum; "fused": both of these, each over its deviation among the kind's
            units (after SAAP, arXiv 2412.15127, which learns the two scales).
        gradient: "weights", or "adapters": estimated from LoRA adapters, the weights frozen; first order, over weights.
        rank, adapter_steps: of those adapters, and steps that they are trained before.

    Returns:
        float32 [*rows, units] per kind of unit, frozen kinds included. It does not depend on how samples are batched.

    Raises:
        ValueError: unknown options, or ones that do not go together; no tokens to predict, or a gradient that is not
            finite.
    """
    for name, value, known in (
        ("order", order, ORDERS),
        ("aggregation", aggregation, GATE_AGGREGATIONS + WEIGHT_AGGREGATIONS),
        ("gradient", gradient, ("weights", ADAPTERS)),
    ):
        if value not in known:
            raise UsageError(f"`{name}` of Taylor scores must be one of {', '.join(known)}, but it is {value!r}.")
    if gradient == ADAPTERS:
        if order != "first" or aggregation not in WEIGHT_AGGREGATIONS:
            raise UsageError(
                "gradient=adapters estimates the gradient of the mean loss by each weight, so it needs order=first and an"
                f" aggregation over weights ({', '.join(WEIGHT_AGGREGATIONS)}), but they are {order!r} and"
                f" {aggregation!r}."
            )
        return _aggregated(_adapter_saliency(model, calibration, rank, adapter_steps), model, aggregation)
    if aggregation in GATE_AGGREGATIONS:
        scores = mean_over_slopes(model, calibration.batches, _MAGNITUDES[order], aggregation == "token")
        return {name: score.sqrt() for name, score in scores.items()} if order == "norm" else scores
    gradients = weight_gradients(model, calibration, second=order != "first")
    return _aggregated(_saliency(values_of(model), gradients, order), model, aggregation)


_MAGNITUDES = {"first": torch.abs, "mixed": lambda slope: (slope - slope.square() / 2).abs(), "norm": torch.square}


@torch.no_grad()
def _saliency(
    weights: Iterable[tuple[str, Tensor]], gradients: WeightGradients, order: str
) -> Iterator[tuple[str, Tensor]]:
    """What each weight adds to the slope, or to the loss, with its sign."""
    for name, weight in weights:
        weight = weight.float()
        if order == "norm":
            yield name, weight.abs() * gradients.second[name].sqrt()
        elif order == "mixed":
            yield name, weight * gradients.mean[name] - weight.square() * gradients.second[name] / 2
        else:
            yield name, weight * gradients.mean[name]


def _aggregated(saliency: Iterable[tuple[str, Tensor]], model: ShearingMixin, aggregation: str) -> Scores:
    """Scores of units from signed numbers of their weights; ``aggregation`` is one of ``WEIGHT_AGGREGATIONS``."""
    if aggregation == "element":
        return sum_over_units(((name, tensor.abs()) for name, tensor in saliency), model)
    if aggregation == "vector":
        return {kind: total.abs() for kind, total in sum_over_units(saliency, model).items()}
    saliency = list(saliency)
    coarse, fine = (_aggregated(saliency, model, part) for part in ("vector", "element"))
    return {kind: _over_deviation(coarse[kind]) + _over_deviation(fine[kind]) for kind in coarse}


def _over_deviation(scores: Tensor) -> Tensor:
    """Scores over their standard deviation; equal ones are left as they are."""
    deviation = scores.std(correction=0)
    return scores / torch.where(deviation > 0, deviation, 1.0)


def _adapter_saliency(
    model: ShearingMixin, calibration: Calibration, rank: int, num_steps: int
) -> Iterator[tuple[str, Tensor]]:
    """(name, (W + B A) * g) for each linear layer's weight W of the blocks, g the estimate of its gradient.

    Args:
        model: a masked model, through whose gates in use all passes go; it is left without adapters.
        calibration: one gradient of the mean loss over all of its text is read; its seed is that of A.
        rank: of the adapters; alpha is the same, so that they are not scaled.
        num_steps: AdamW steps that the adapters take before, one batch each, so that B is not 0.
    """
    batches = calibration.batches
    with measuring(model, weights_require_grad=False), _adapters(model, rank, calibration.seed) as adapted:
        pairs = {name: _weights(layer) for name, layer in adapted.items()}
        parameters = [weight for pair in pairs.values() for weight in pair]
        with torch.enable_grad():
            _train(model, parameters, [batches[step % len(batches)] for step in range(num_steps)])
            total = [torch.zeros_like(weight) for weight in parameters]
            num_tokens = torch.zeros((), dtype=torch.float64, device=model.device)
            for batch in tracked(batches, "Gradients of adapters"):
                losses, counts = sample_losses(model, batch)
                num_tokens += counts.sum()
                for one, gradient in zip(total, torch.autograd.grad(losses.sum(), parameters), strict=True):
                    one += gradient
        sum_over_ranks(num_tokens, total)
        if num_tokens == 0:
            raise UsageError("The calibration text has no token to predict: gradients of adapters need some.")
        found = []
        for place, (name, (a, b)) in enumerate(pairs.items()):
            slopes = [(gradient / num_tokens).float() for gradient in total[2 * place : 2 * place + 2]]
            found.append((name, adapted[name].base_layer.weight.detach(), a.detach(), b.detach(), *slopes))
    for name, weight, a, b, grad_a, grad_b in found:
        yield name, (weight.float() + b @ a) * estimated_gradient(a, b, grad_a, grad_b)


def estimated_gradient(a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor) -> Tensor:
    """dB A + B dA - dB dA, [R, C], of A [rank, C] and B [R, rank]."""
    return grad_b @ a + b @ grad_a - grad_b @ grad_a


def _train(model: ShearingMixin, parameters: list[Tensor], batches: list[dict[str, Tensor]]) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    for batch in batches:
        losses, counts = sample_losses(model, batch)
        gradients, num_tokens = torch.autograd.grad(losses.sum(), parameters), counts.sum()
        sum_over_ranks(num_tokens, gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient / num_tokens.clamp(min=1)
        optimizer.step()


@contextmanager
def _adapters(model: ShearingMixin, rank: int, seed: int) -> Iterator[dict[str, Any]]:
    """LoRA layers of peft on the projections within, by the names of the weights they adapt; then the layers themselves."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("gradient=adapters needs peft: pip install 'hf-shear[lora]'.") from error
    names = [name for name, _ in model.family.projections()]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, lora_dropout=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER_NAME)
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    try:
        for layer in layers.values():
            for weight in _weights(layer):
                weight.data = weight.data.float()
            # Masks are set on what stands in the layer's place; there they act as they do on the layer.
            layer.register_forward_pre_hook(_close_inputs)
            layer.register_forward_hook(_close_outputs)
        yield {f"{name}.weight": layer for name, layer in layers.items()}
    finally:
        for name, layer in layers.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.base_layer)
        del model.peft_config


def _weights(layer: Any) -> tuple[Tensor, Tensor]:
    """A and B of a LoRA layer."""
    return layer.lora_A[_ADAPTER_NAME].weight, layer.lora_B[_ADAPTER_NAME].weight


def _close_inputs(layer: nn.Module, args: tuple) -> tuple:
    mask = getattr(layer, "input_mask", None)
    return args if mask is None else (args[0] * mask.to(args[0].dtype), *args[1:])


def _close_outputs(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
    mask = getattr(layer, "output_mask", None)
    return output if mask is None else output * mask.to(output.dtype)
