"""The linear layers of a causal language model whose weights are pruned: all in its decoder layers."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from ..core import UsageError


def decoder_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Every ``nn.Linear`` of the decoder layers by its name, in the order of the model.

    Decoder layers are the ``nn.ModuleList`` of ``num_hidden_layers`` modules; embeddings, projections of embeddings and
    the head lie outside of it. Found by structure, so that no family needs a table.

    Raises:
        ValueError: there is no such list; its layers hold weights of another form (a convolution, experts in one tensor,
            quantised weights); or two of the linear layers share a weight.
    """
    num_layers = model.config.get_text_config().num_hidden_layers
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    linears = {}
    for list_name, layers in lists:
        found = {
            f"{list_name}.{name}": module for name, module in layers.named_modules() if isinstance(module, nn.Linear)
        }
        if found and not any(list_name.startswith(f"{name}.") for name, _ in lists):
            _check_weights(list_name, layers, found)
            linears |= found
    if not linears:
        raise UsageError(
            f"`model` must hold its {num_layers} decoder layers, made of nn.Linear modules, in one nn.ModuleList, but "
            f"{type(model).__name__} does not."
        )
    return linears


def _check_weights(list_name: str, layers: nn.ModuleList, linears: dict[str, nn.Linear]) -> None:
    owners: dict[int, str] = {}
    for name, module in linears.items():
        if not module.weight.is_floating_point():
            raise UsageError(f"The weight of {name} must be of floating point, but it is {module.weight.dtype}.")
        if id(module.weight) in owners:
            raise UsageError(
                f"{name} shares its weight with {owners[id(module.weight)]}: a weight that is used twice has no factors "
                "of its own, and is not supported."
            )
        owners[id(module.weight)] = name
    for name, parameter in layers.named_parameters():
        if parameter.dim() > 1 and id(parameter) not in owners:
            raise UsageError(
                f"{list_name}.{name} {tuple(parameter.shape)} is a weight that belongs to no nn.Linear. Only models "
                "whose decoder layers are made of linear layers are supported."
            )
