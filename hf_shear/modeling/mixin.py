"""What every masked model has, whatever its family: masks, their places, and how they reach them.

Legend: d hidden size, L layers, H query heads, KV key/value heads, g = H / KV, ff MLP width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from typing_extensions import Self

from ..core import UsageError
from ..masks import EXPERT, HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, MaskPhase, ShearingMasks
from ..shapes import Family, ModelShape, family_of
from .experts import MaskedExperts, MaskedRouter
from .folding import MaskedEmbedding, MaskedLinear, MaskedRMSNorm, make_masked


@dataclass
class ShearingCausalLMOutput(CausalLMOutputWithPast):
    """Output of a masked model.

    Attributes:
        lagrangian_loss: penalty of the sparsity constraint, in training mode and where masks need one. It is never
            part of ``loss``; a training loop adds it, once per optimizer step.
    """

    lagrangian_loss: Tensor | None = None


class LayerGates:
    """The masks of one layer; None = open.

    Not a dataclass, list or dict: FSDP2 looks for tensors in those, and would cast masks with a layer's inputs.

    Attributes:
        hidden, hidden_count: [d] and a scalar, for the norms.
        heads: [H * head_dim], on the inputs of o_proj.
        neurons: [ff], on the inputs of down_proj.
        experts: [E], on the router of a mixture of experts.
        writes: [d] or [1], on the outputs of o_proj and down_proj, or of the experts; where a norm stands behind them,
            without the layer.
        post_norms: [1], the layer, on the norms behind them.
    """

    def __init__(
        self,
        hidden: Tensor | None,
        hidden_count: Tensor | None,
        heads: Tensor | None,
        neurons: Tensor | None,
        experts: Tensor | None,
        writes: Tensor | None,
        post_norms: Tensor | None,
    ):
        self.hidden, self.hidden_count = hidden, hidden_count
        self.heads, self.neurons, self.experts = heads, neurons, experts
        self.writes, self.post_norms = writes, post_norms


_Method = TypeVar("_Method", bound=Callable)


def _never_compiled(method: _Method) -> _Method:
    """As ``torch.compiler.disable``, which has no types."""
    return cast(_Method, torch.compiler.disable(method))


_LAYER_GATES = "shearing_layer_gates"


class MaskedDecoderLayer(nn.Module):
    """Mixed into a decoder layer: hands its modules the masks that travel as an argument of the layer.

    This happens inside the layer's forward, so a checkpointed layer gets the masks of its own forward again when it is
    recomputed, even if another forward, with other masks, ran in between.
    """

    family: Family
    self_attn: Any
    mlp: Any

    def forward(self, *args, **kwargs):
        if _LAYER_GATES not in kwargs:
            raise UsageError(
                "A layer of a masked model ran without its masks. They are drawn in the forward of the masked model, not"
                " in that of its `model.model` or of a single layer: call the masked model itself, as"
                " `model(input_ids, output_hidden_states=True)` if hidden states are wanted."
            )
        gates: LayerGates = kwargs.pop(_LAYER_GATES)[self.self_attn.layer_idx]
        norms = dict.fromkeys(self.family.pre_norms, gates.hidden)
        norms |= dict.fromkeys(self.family.post_norms, gates.post_norms)
        for name, mask in norms.items():
            norm: Any = self.get_submodule(name)
            norm.output_mask, norm.kept_count = mask, gates.hidden_count
        attention = self.self_attn.o_proj
        attention.input_mask, attention.output_mask = gates.heads, gates.writes
        if self.family.has_experts:
            self.mlp.gate.output_mask, self.mlp.experts.output_mask = gates.experts, gates.writes
        else:
            self.mlp.down_proj.input_mask, self.mlp.down_proj.output_mask = gates.neurons, gates.writes
        return super().forward(*args, **kwargs)


class ShearingMixin(PreTrainedModel, GenerationMixin):
    """Gives masks to a stock causal language model: ``class ShearingX(ShearingMixin, X)``.

    Masks act at places that every family has: embeddings, norms, o_proj and down_proj, or router and experts. They are
    drawn once per forward, before any layer runs, so that a checkpointed layer sees the same masks when it is recomputed.
    """

    _keep_in_fp32_modules_strict = ["masks"]

    model: Any  # the family's decoder, with embed_tokens, layers and norm
    masks: ShearingMasks

    def _add_masks(self) -> None:
        config = self.config
        if config.mask_phase is None:
            # Only a plain source may lack masks; a masked checkpoint records its phase when it is saved.
            self._keys_to_ignore_on_load_missing = [r"^masks\."]
        self.masks = ShearingMasks(ModelShape.from_config(config), config.resolved_target(), config.resolved_settings())
        self.masks.phase = config.resolved_phase()
        self._gates_override: dict[str, Tensor] | None = None
        make_masked(self.model.embed_tokens, MaskedEmbedding)
        for norm in self._norms():
            norm = make_masked(norm, MaskedRMSNorm)
            norm.weight_offset = self.family.norm_offset
            norm.scales_in_float32 = self.family.norm_scales_in_float32
        for layer in self.model.layers:
            make_masked(layer.self_attn.o_proj, MaskedLinear)
            if self.family.has_experts:
                router = make_masked(layer.mlp.gate, MaskedRouter)
                router.weights_sum_to_one = self.family.routing_weights_sum_to_one_in(config)
                make_masked(layer.mlp.experts, MaskedExperts)
            else:
                make_masked(layer.mlp.down_proj, MaskedLinear)
            make_masked(layer, MaskedDecoderLayer).family = self.family

    @property
    def family(self) -> Family:
        """What the model's family is made of."""
        return family_of(self.config)

    def _norms(self) -> Iterator[nn.Module]:
        for layer in self.model.layers:
            for name in self.family.pre_norms + self.family.post_norms:
                yield layer.get_submodule(name)
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

    def take_masks_apart(self) -> None:
        """Take the masks out of the model's modules; ``model.masks`` stays, and forwards draw from it as before.

        What wraps, shards, casts, offloads or clips the model's parameters (DDP, DeepSpeed, FSDP) then leaves masks
        and multipliers alone: replicated, float32, with gradients of their own. ``save_pretrained`` still saves them.
        """
        if "masks" in self._modules:
            self.__dict__["masks"] = self._modules.pop("masks")

    def put_masks_back(self) -> None:
        """Undo ``take_masks_apart``."""
        if "masks" in self.__dict__:
            self.masks = self.__dict__.pop("masks")

    def replicate_masks(self, saved: bool) -> None:
        """Make masks that DeepSpeed partitioned while it built the model (ZeRO-3) whole again, in float32.

        Args:
            saved: whether they came from a masked checkpoint; else they get their start values.

        Raises:
            ValueError: saved masks were cast to half precision on the way.
        """
        partitioned = [parameter for parameter in self.masks.parameters() if hasattr(parameter, "ds_id")]
        if not partitioned:
            return
        import deepspeed

        old = self.masks
        self.masks = ShearingMasks(old.source, old.target, old.settings).train(old.training)
        self.masks.phase, self.masks.rank = old.phase, old.rank
        if not saved:
            self.masks.load_state_dict(self.masks.start_parameters())
            return
        if any(parameter.dtype != torch.float32 for parameter in partitioned):
            raise UsageError(
                f"The masks of this checkpoint were cast to {partitioned[0].dtype} while the model was built, because"
                " the DeepSpeed config has `bf16` or `fp16` enabled. Use `torch_autocast` in its place, which keeps"
                " weights in float32."
            )
        with deepspeed.zero.GatheredParameters(partitioned):
            self.masks.load_state_dict({name: value.detach().clone() for name, value in old.named_parameters()})

    def train(self, mode: bool = True) -> Self:
        """As the stock method; masks that were taken apart follow."""
        super().train(mode)
        if "masks" in self.__dict__:
            self.__dict__["masks"].train(mode)
        return self

    def _apply(self, fn, recurse=True):
        # Masks that were taken apart move with the model.
        if "masks" in self.__dict__:
            self.__dict__["masks"]._apply(fn)
        return super()._apply(fn, recurse)

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
                raise UsageError(f"`gates[{name!r}]` has shape {tuple(gate.shape)}; kinds and shapes are {shapes}.")
        outer, self._gates_override = self._gates_override, gates
        self._release_gates()  # else a module that is wrapped within would keep those of the last forward
        try:
            yield self
        finally:
            self._gates_override = outer
            self._release_gates()

    @property
    def gates_in_use(self) -> dict[str, Tensor]:
        """The gates of the innermost ``use_gates``; empty outside of one, and where all are open."""
        return dict(self._gates_override or {})

    def _release_gates(self) -> None:
        """Let go of the gates of the last forward and their graph."""
        for module in self.modules():
            for name in ("input_mask", "output_mask", "kept_count"):
                if name in vars(module):
                    delattr(module, name)

    def layer_keywords(self, gates: dict[str, Tensor]) -> dict[str, Any]:
        """What the forward of each decoder layer takes besides a stock layer's arguments, to run under ``gates``."""
        return {_LAYER_GATES: self._gates_for_layers(gates)}

    def _gates_for_layers(self, gates: dict[str, Tensor]) -> list[LayerGates]:
        num_layers = len(self.model.layers)
        writes, post_norms = residual_write_masks(gates, num_layers, self.family)
        heads = _per_layer(head_channel_masks(gates, self.masks.source), num_layers)
        neurons, experts = (_per_layer(gates.get(kind), num_layers) for kind in (INTERMEDIATE, EXPERT))
        hidden, count = gates.get(HIDDEN), self.masks.hidden_count(gates)
        return [
            LayerGates(hidden, count, heads[index], neurons[index], experts[index], writes[index], post_norms[index])
            for index in range(num_layers)
        ]

    def forward(self, input_ids: Tensor | None = None, *args, **kwargs) -> ShearingCausalLMOutput:
        """As the stock model's, through the masks: drawn in training mode, deterministic in evaluation mode.

        Raises:
            ValueError: ``inputs_embeds`` are given in place of ``input_ids``, or ``output_router_logits``.
        """
        if input_ids is None:
            raise UsageError(
                "`input_ids` must be given to a masked model, but it is None. `inputs_embeds` in its place would keep"
                " removed hidden dimensions open, since masks close them behind the model's own embedding: pass"
                " `input_ids`."
            )
        if kwargs.get("output_router_logits"):
            raise UsageError(
                "`output_router_logits` must be False or left out with masks, but it is True: the loss for the balance of"
                " experts, which comes with it, would count those that are removed."
            )
        layer_gates, lagrangian_loss = self._draw_gates()
        outputs = super().forward(input_ids, *args, **(kwargs | {"return_dict": True, _LAYER_GATES: layer_gates}))
        return ShearingCausalLMOutput(
            lagrangian_loss=lagrangian_loss, **{name: getattr(outputs, name) for name in outputs.keys()}
        )

    @_never_compiled
    def _draw_gates(self) -> tuple[list[LayerGates], Tensor | None]:
        """Gates of one forward, of which those around the layers are set already, and the Lagrangian.

        Never compiled: the phase is made of numbers that change at every step, for which torch.compile would compile
        the whole model anew each time, and the draw seeds a generator. What is drawn enters the compiled part as
        tensors.
        """
        gates = self.masks() if self._gates_override is None else self._gates_override
        self.model.embed_tokens.output_mask = gates.get(HIDDEN)
        self.model.norm.output_mask = gates.get(HIDDEN)
        self.model.norm.kept_count = self.masks.hidden_count(gates)
        return self._gates_for_layers(gates), self.masks.lagrangian() if self.training else None

    # ---- what transformers asks of a model --------------------------------------------------------------------

    def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=checkpoint, **kwargs) -> None:
        """As the stock method; re-entrant checkpointing is refused.

        Every release of transformers comes through here, whether its public method is spelled
        ``activation_checkpointing_enable`` or, before 5.23, ``gradient_checkpointing_enable``.
        """
        reentrant = getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant")  # of a partial
        if enable and reentrant:
            raise UsageError(
                "`use_reentrant=True` does not work with masks: re-entrant checkpointing computes no gradient for"
                " tensors, like masks, that reach a layer other than through its arguments. Set it to False, or leave"
                " it out."
            )
        if reentrant is None:  # torch's own default is re-entrant
            gradient_checkpointing_func = partial(gradient_checkpointing_func, use_reentrant=False)
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)

    def __reduce_ex__(self, protocol):
        # copy.deepcopy asks this first: gates of the last forward belong to its graph, which can not be copied.
        self._release_gates()
        return super().__reduce_ex__(protocol)

    def save_pretrained(self, save_directory, *args, state_dict: dict | None = None, **kwargs):
        """Save the masked model; its config records how far mask learning has come."""
        self.config.mask_phase = asdict(self.masks.phase)
        if "masks" in self.__dict__:
            masks = {f"masks.{name}": tensor for name, tensor in self.masks.state_dict().items()}
            state_dict = (self.state_dict() if state_dict is None else state_dict) | masks
        return super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)


def _per_layer(masks: Tensor | None, num_layers: int) -> list[Tensor | None]:
    """Masks [L, n] as L masks [n]. Unbound, since the gradient of an index is a tensor of all layers for each layer."""
    return [None] * num_layers if masks is None else list(masks.unbind(0))


def residual_write_masks(
    gates: dict[str, Tensor], num_layers: int, family: Family
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Masks on what attention and MLP of each layer write to the residual stream.

    Returns:
        Per layer the mask [d] or [1] on the outputs of o_proj and down_proj, and that [1] on the norms behind them. A
        norm would undo a layer's gate before it: where there is one, the gate acts on the norm.
    """
    hidden, layer = gates.get(HIDDEN), gates.get(LAYER)
    nothing: list[Tensor | None] = [None] * num_layers
    if layer is None:
        return [hidden] * num_layers, nothing
    if family.post_norms:
        return [hidden] * num_layers, list(layer.unsqueeze(1).unbind(0))
    writes = layer.unsqueeze(1) * (hidden if hidden is not None else layer.new_ones(1))
    return list(writes.unbind(0)), nothing


def head_channel_masks(gates: dict[str, Tensor], shape: ModelShape) -> Tensor | None:
    """Mask on the inputs of o_proj, [L, H * head_dim]: the gate of a query head is its own times its group's."""
    groups, queries = gates.get(KEY_VALUE_HEAD), gates.get(QUERY_HEAD)
    size = (shape.num_hidden_layers, shape.num_key_value_heads, shape.num_attention_heads // shape.num_key_value_heads)
    if groups is None:
        heads = queries
    elif queries is None:
        heads = groups.unsqueeze(-1).expand(size)
    else:
        heads = groups.unsqueeze(-1) * queries
    if heads is None:
        return None
    return heads.reshape(size[0], size[1] * size[2]).repeat_interleave(shape.head_dim, dim=1)
