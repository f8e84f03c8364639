"""Gradients of frozen weights, estimated from LoRA adapters on them (LoRAPrune, arXiv 2305.18403, section 3.2).

With adapters B A on a weight W, a step of size one along dB and dA changes B A by dB A + B dA - dB dA, which stands for
the gradient of W. No weight needs a gradient, so nothing of the weights' size is kept besides the estimate itself, one
matrix at a time. Fresh adapters have B = 0: the estimate is then the gradient's projection on the rows of A.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..calibration import measuring, requiring_gradients, sample_losses
from ..core import MissingExtraError, UsageError, check_ranges, sum_over_ranks
from ..modeling import ShearingMixin
from .taylor import WEIGHT_AGGREGATIONS, aggregate_weights

LEARNING_RATE = 1e-3  # of the steps that adapters may take before their gradients are read
_NAME = "importance"


def adapter_importance(
    model: ShearingMixin,
    batches: Iterable[dict[str, Tensor]],
    order: str,
    aggregation: str,
    rank: int,
    num_steps: int,
    seed: int,
) -> dict[str, Tensor]:
    """First-order Taylor scores of all kinds of units from ``adapter_saliency``.

    Raises:
        ValueError: an order or aggregation that gradients of adapters do not give.
    """
    if order != "first" or aggregation not in WEIGHT_AGGREGATIONS:
        raise UsageError(
            "gradient=adapters estimates the gradient of the mean loss by each weight, so it needs order=first and an"
            f" aggregation over weights ({', '.join(WEIGHT_AGGREGATIONS)}), but they are {order!r} and {aggregation!r}."
        )
    return aggregate_weights(adapter_saliency(model, batches, rank, num_steps, seed), model, aggregation)


def adapter_saliency(
    model: ShearingMixin, batches: Iterable[dict[str, Tensor]], rank: int, num_steps: int = 0, seed: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """(name, (W + B A) * g) for each linear layer's weight W of the blocks, g the estimate of its gradient.

    Args:
        model: a masked model, through whose gates in use all passes go; it is left without adapters.
        batches: one gradient of the mean loss over all of them is read.
        rank: of the adapters; alpha is the same, so that they are not scaled.
        num_steps: AdamW steps that the adapters take before, one batch each, so that B is not 0.
        seed: of A.

    Raises:
        ValueError: no tokens to predict, or a rank below 1.
    """
    check_ranges({"adapter_rank": rank})
    batches = list(batches)
    with requiring_gradients(model, False), measuring(model), _adapters(model, rank, seed) as adapted:
        pairs = {name: (layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight) for name, layer in adapted.items()}
        parameters = [weight for pair in pairs.values() for weight in pair]
        with torch.enable_grad():
            _train(model, parameters, [batches[step % len(batches)] for step in range(num_steps)])
            total = [torch.zeros_like(weight) for weight in parameters]
            num_tokens = torch.zeros((), dtype=torch.float64, device=model.device)
            for batch in batches:
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
def _adapters(model: ShearingMixin, rank: int, seed: int) -> Iterator[dict[str, nn.Module]]:
    """LoRA layers of peft on the projections within, by the names of the weights they adapt; then the layers themselves."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("gradient=adapters needs peft: pip install 'hf-shear[lora]'.") from error
    names = [name for name, _ in model.family.projections()]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, lora_dropout=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=_NAME)
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    try:
        for layer in layers.values():
            for weight in (layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight):
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


def _close_inputs(layer: nn.Module, args: tuple) -> tuple:
    mask = getattr(layer, "input_mask", None)
    return args if mask is None else (args[0] * mask.to(args[0].dtype), *args[1:])


def _close_outputs(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
    mask = getattr(layer, "output_mask", None)
    return output if mask is None else output * mask.to(output.dtype)
