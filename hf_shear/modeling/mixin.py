"""What every masked model has, whatever its family: masks, their places, and how they reach them.

Legend: d hidden size, L layers, H query heads, KV key/value heads, g = H / KV, ff MLP width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, MaskPhase, ShearingMasks
from ..shapes import ModelShape
from .folding import MaskedEmbedding, MaskedLinear, MaskedRMSNorm, make_masked


@dataclass
class ShearingCausalLMOutput(CausalLMOutputWithPast):
    """Output of a masked model.

    Attributes:
        lagrangian_loss: penalty of the sparsity constraint, in training mode and where masks need one. It is never
            part of ``loss``; a training loop adds it, once per optimizer step.
    """

    lagrangian_loss: torch.FloatTensor | None = None


class ShearingMixin:
    """Gives masks to a stock causal language model: ``class ShearingX(ShearingMixin, X)``.

    Masks act at places that every family has: embeddings, norms, o_proj and down_proj. They are drawn once per
    forward, before any layer runs, so that a checkpointed layer sees the same masks when it is recomputed.
    """

    _keep_in_fp32_modules_strict = ["masks"]

    def _add_masks(self) -> None:
        config = self.config
        if config.mask_phase is None:
            # Only a plain source may lack masks; a masked checkpoint records its phase when it is saved.
            self._keys_to_ignore_on_load_missing = [r"^masks\."]
        self.masks = ShearingMasks(
            ModelShape.from_config(config), config.resolved_target(), config.resolved_settings()
        )
        self.masks.phase = config.resolved_phase()
        self._gates_override: dict[str, Tensor] | None = None
        make_masked(self.model.embed_tokens, MaskedEmbedding)
        for norm in self._norms():
            make_masked(norm, MaskedRMSNorm)
        for layer in self.model.layers:
            make_masked(layer.self_attn.o_proj, MaskedLinear)
            make_masked(layer.mlp.down_proj, MaskedLinear)

    def _norms(self) -> Iterator[nn.Module]:
        for layer in self.model.layers:
            yield layer.input_layernorm
            yield layer.post_attention_layernorm
        yield self.model.norm

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Called for whatever a checkpoint does not hold; on a plain source that is the masks.
        if isinstance(module, ShearingMasks):
            start = module.start_parameters()
            for name, parameter in module.named_parameters():
                init.copy_(parameter, start[name])
        else:
            super()._init_weights(module)

    # ---- masks ------------------------------------------------------------------------------------------------

    def set_mask_phase(self, phase: MaskPhase) -> None:
        """Set where mask learning stands; the next forward draws its masks accordingly."""
        self.masks.phase = phase

    @contextmanager
    def use_gates(self, gates: dict[str, Tensor]):
        """Run forwards with these gates (keyed by kind of unit; absent = open) in place of the model's own.

        Shapes as in ``hf_shear.masks.unit_kinds``. Gradients reach the tensors given.
        """
        known = self.masks.kinds
        for name, gate in gates.items():
            if name not in known or tuple(gate.shape) != known[name].mask_shape:
                shapes = {kind.name: kind.mask_shape for kind in known.values()}
                raise ValueError(f"`gates[{name!r}]` has shape {tuple(gate.shape)}; kinds and shapes are {shapes}.")
        self._gates_override = gates
        try:
            yield self
        finally:
            self._gates_override = None
            self._install({})

    def _install(self, gates: dict[str, Tensor]) -> None:
        """Hand the gates to the modules that fold them in."""
        hidden = gates.get(HIDDEN)
        count = self.masks.hidden_count(gates)
        self.model.embed_tokens.output_mask = hidden
        for norm in self._norms():
            norm.output_mask, norm.kept_count = hidden, count
        writes = residual_write_masks(gates, len(self.model.layers))
        heads = head_channel_masks(gates, self.masks.source)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn.o_proj.input_mask = None if heads is None else heads[index]
            layer.self_attn.o_proj.output_mask = writes[index]
            layer.mlp.down_proj.input_mask = gates[INTERMEDIATE][index] if INTERMEDIATE in gates else None
            layer.mlp.down_proj.output_mask = writes[index]

    def forward(self, *args, **kwargs) -> ShearingCausalLMOutput:
        """As the stock model's, through the masks: drawn in training mode, deterministic in evaluation mode."""
        gates = self.masks() if self._gates_override is None else self._gates_override
        self._install(gates)
        kwargs["return_dict"] = True
        outputs = super().forward(*args, **kwargs)
        return ShearingCausalLMOutput(
            lagrangian_loss=self.masks.lagrangian() if self.training else None,
            **{name: getattr(outputs, name) for name in outputs.keys()},
        )

    # ---- what transformers asks of a model --------------------------------------------------------------------

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs=None, **kwargs) -> None:
        """As the stock method; re-entrant checkpointing is refused."""
        if (activation_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ValueError(
                "`use_reentrant=True` does not work with masks: re-entrant checkpointing computes no gradient for"
                " tensors, like masks, that reach a layer other than through its arguments. Use"
                " `activation_checkpointing_kwargs={'use_reentrant': False}`, which is the default."
            )
        super().activation_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    def save_pretrained(self, *args, **kwargs):
        """Save the masked model; its config records how far mask learning has come."""
        self.config.mask_phase = asdict(self.masks.phase)
        return super().save_pretrained(*args, **kwargs)


def residual_write_masks(gates: dict[str, Tensor], num_layers: int) -> list[Tensor | None]:
    """Per layer the mask [d] (or [1]) on what attention and MLP write to the residual stream: layer gate x hidden."""
    hidden, layer = gates.get(HIDDEN), gates.get(LAYER)
    if layer is None:
        return [hidden] * num_layers
    return list((layer.unsqueeze(1) * (hidden if hidden is not None else layer.new_ones(1))).unbind(0))


def head_channel_masks(gates: dict[str, Tensor], shape: ModelShape) -> Tensor | None:
    """Mask on the inputs of o_proj, [L, H * head_dim]: the gate of a query head is its own times its group's."""
    groups, queries = gates.get(KEY_VALUE_HEAD), gates.get(QUERY_HEAD)
    if groups is None and queries is None:
        return None
    size = (shape.num_hidden_layers, shape.num_key_value_heads, shape.num_attention_heads // shape.num_key_value_heads)
    heads = groups.unsqueeze(-1).expand(size) if queries is None else queries
    if groups is not None and queries is not None:
        heads = groups.unsqueeze(-1) * queries
    return heads.reshape(size[0], size[1] * size[2]).repeat_interleave(shape.head_dim, dim=1)
