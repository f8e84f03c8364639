"""Cut a masked model down to a stock one that computes the same function.

Each mask value is folded in once, where the masked forward has it (the reference code folded hidden masks three times
over, into embeddings, final norm and head). With tied embeddings E' = E * diag(z) serves both ends, so the final norm
keeps its weight without z.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ..core import UsageError, is_main_process
from ..masks import EXPERT, HIDDEN, INTERMEDIATE, ShearingMasks, unit_kinds
from ..modeling import (
    ShearingModel,
    copy_implementations,
    head_channel_masks,
    residual_write_masks,
    scale_norm_weight,
    scale_weight,
)
from ..shapes import OUTPUT_PROJECTIONS, Family, ModelShape, TargetShape, config_for_shape
from ..sources import savable_generation_config
from .gathering import check_dtype, full_parameters, is_sharded
from .kept_units import KeptUnits, kept_units_from_masks
from .select_kept import head_channels, select_kept

_EXPERT_WRITES = ".experts.down_proj"


@torch.no_grad()
def slice_model(
    model: ShearingModel,
    gates: dict[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    release_source: bool = False,
    target: TargetShape | None = None,
) -> tuple[PreTrainedModel, KeptUnits]:
    """Slice a masked model to its target shape.

    A model that DeepSpeed ZeRO-3 or FSDP2 spread over processes is gathered and cut one weight after another; all
    processes must call this. The main process gets the sliced model, on the CPU; the others get one without weights (on
    the meta device) and the same kept units.

    Args:
        model: the masked model, without what a backend wraps around it; left as it is.
        gates: values in [0, 1] per kind of unit, in place of the model's deterministic masks; a unit whose gate is 0
            is removed, and each row must keep the target's number. Kinds left out are kept whole. The same in every
            process.
        dtype: of the sliced weights, which are cast after masks are folded in; by default the source's.
        release_source: let go of each weight of ``model`` once it is cut, which leaves it without weights (on the meta
            device): the two models are then never in memory together. Not for a sharded model, which its backend holds.

        target: the shape to cut to, out of the model's own, in place of the one that its masks have; needs ``gates``.

    Returns:
        A stock model of the target's shape, in the dtype and on the device of the source if nothing else is said, in
        evaluation mode, and the units that were kept. Its logits equal the masked model's in evaluation mode.

    Raises:
        ValueError: the model has no masks, a row of ``gates`` keeps another number of units than the target,
            ``dtype`` is not a floating-point one, or a sharded source is to be released.
    """
    if not isinstance(model, ShearingModel):
        raise UsageError(
            f"`model` must be masked, but it is a {type(model).__name__}. Load it with"
            " AutoShearingModelForCausalLM.from_pretrained(path, target_shape=...)."
        )
    check_dtype(dtype)
    masks = _whole_masks(model.masks)
    kinds = masks.kinds if target is None else unit_kinds(masks.source, target)
    if gates is None:
        if target is not None:
            raise UsageError(
                "`target` is given without `gates`: masks are learned towards their own. Give `gates`, too."
            )
        masks.check_finite()
        gates, kept_masks = masks.deterministic(), masks.kept_units()
    else:
        _check_gates(gates, kinds)
        kept_masks = {
            kind.name: gates[kind.name].bool().cpu()
            if kind.name in gates
            else torch.ones(kind.mask_shape, dtype=torch.bool)
            for kind in kinds.values()
        }
    kept = kept_units_from_masks(kept_masks, kinds, masks.source)
    config = config_for_shape(model.config, target or masks.target, kept.layers, config_class=model.family.config_class)
    return build_sliced(model, config, gates, kept, dtype, release_source=release_source), kept


def _check_gates(gates: dict[str, Tensor], kinds: Collection[str]) -> None:
    for name, gate in gates.items():
        if name not in kinds:
            raise UsageError(
                f"`gates` must name kinds of units of the model, {', '.join(kinds)}, but it names {name!r}."
                " Rename it, or leave it out."
            )
        if not bool(((gate >= 0) & (gate <= 1)).all()):  # NaN is in no range
            raise UsageError(
                f"`gates[{name!r}]` must be between 0 and 1, but it holds other values, or NaN. Clamp them."
            )


def build_sliced(
    model: ShearingModel,
    config: PretrainedConfig,
    gates: dict[str, Tensor],
    kept: KeptUnits,
    dtype: torch.dtype | None,
    finish: Callable[[str, Tensor], Tensor] | None = None,
    release_source: bool = False,
) -> PreTrainedModel:
    """A stock model of ``config`` with the kept rows and columns of a masked one, gates folded in.

    Args:
        finish: what is done to each weight of the sliced model, given its name there.
        release_source: as in ``slice_model``.
    """
    family, device = model.family, model.device
    config.dtype = dtype or model.dtype
    with torch.device("meta"):
        sliced = family.model_class(config)
    sharded = is_sharded(model)
    if sharded and release_source:
        raise UsageError(
            "`release_source` must be False for a model that is spread over processes, but it is True. Its backend holds"
            " the weights: leave it out, and delete the model with its engine."
        )
    state = _sliced_state_dict(model, gates, kept, dtype, finish, release_source)
    if sharded and not is_main_process():
        sliced.to(config.dtype)  # pyright: ignore[reportArgumentType]  # transformers wraps `to` without its types
    else:
        sliced.load_state_dict(state, assign=True, strict=True)
        # What a backend has hooked into the source's own must not come along.
        rotary = type(sliced.model.rotary_emb)(config) if sharded else copy.deepcopy(model.model.rotary_emb)
        sliced.model.rotary_emb = rotary
        rotary.config = config
        if family.scaled_embedding:
            sliced.model.embed_tokens.embed_scale = torch.tensor(config.hidden_size**0.5, device=device)
    sliced.tie_weights()
    sliced.generation_config = savable_generation_config(copy.deepcopy(model.generation_config))
    copy_implementations(model.config, sliced)
    for parameter in sliced.parameters():
        parameter.requires_grad_(True)
    return sliced.eval()


def _whole_masks(masks: ShearingMasks) -> ShearingMasks:
    """Masks that every process holds all of: as they are, or a copy where a backend took them for weights."""
    if not is_sharded(masks):
        return masks
    whole = ShearingMasks(masks.source, masks.target, masks.settings)
    whole.phase = masks.phase
    for values in full_parameters(masks):
        for name, value in values.items():
            whole.get_parameter(name).copy_(value)
    return whole


def _sliced_state_dict(
    model: ShearingModel,
    gates: dict[str, Tensor],
    kept: KeptUnits,
    dtype: torch.dtype | None,
    finish: Callable[[str, Tensor], Tensor] | None,
    release: bool,
) -> dict[str, Tensor]:
    """The kept rows and columns, with the masks folded into embeddings, norms, o_proj and down_proj.

    Of a sharded model they are on the CPU, and in the main process alone; the others only help to gather.
    """
    keep = is_main_process() or not is_sharded(model)
    device = "cpu" if is_sharded(model) else None
    state = {}
    for weights in full_parameters(model, release):
        if keep:
            cut = _cut(weights, model, gates, kept)
            for name in list(cut):
                # Out of `cut`: what is kept may be a copy of it, that needs no room beside what comes next.
                weight = _own(cut.pop(name).to(device=device, dtype=dtype), weights)
                state[name] = weight if finish is None else finish(name, weight)
    if keep and model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


def _own(weight: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """A weight in memory of its own: what no kind of unit cuts (a norm over each head) is the source's tensor so far."""
    sources = {source.untyped_storage().data_ptr() for source in weights.values()}
    return weight.clone() if weight.untyped_storage().data_ptr() in sources else weight


def _cut(
    weights: dict[str, Tensor], model: ShearingModel, gates: dict[str, Tensor], kept: KeptUnits
) -> dict[str, Tensor]:
    """Weights of whole modules of the source, by name, as the sliced model has them."""
    source, family = model.masks.source, model.family
    weights = {name: weight for name, weight in weights.items() if not name.startswith("masks.")}
    state = select_kept(weights, kept, source, family)
    tied = model.config.tie_word_embeddings
    if HIDDEN in gates:
        _fold_hidden(state, gates[HIDDEN][kept.hidden], tied, family)
    if family.scaled_embedding and len(kept.hidden) < source.hidden_size:
        _fold_embedding_scale(state, (source.hidden_size / len(kept.hidden)) ** 0.5, tied, family)
    writes, post_norms = residual_write_masks(gates, source.num_hidden_layers, family)
    for name in [name for name in state if name.endswith(_EXPERT_WRITES)]:
        index = kept.layers[int(name.split(".")[2])]
        state[name] = _scaled_experts(state[name], _kept_write(writes[index], kept), _expert_mask(gates, kept, index))
    for name in [name for name in state if name.endswith(".weight")]:
        module = name.removesuffix(".weight")
        if module.endswith(OUTPUT_PROJECTIONS):
            index = kept.layers[int(module.split(".")[2])]
            write = _kept_write(writes[index], kept)
            _fold_write(state, module, write, _column_mask(module, gates, kept, index, source))
        elif module.split(".")[-1] in family.post_norms:
            mask = post_norms[kept.layers[int(module.split(".")[2])]]
            state[name] = _scaled_norm(state[name], mask, family)
    return state


def _kept_write(write: Tensor | None, kept: KeptUnits) -> Tensor | None:
    """The mask [d] or [1] on a write into the residual stream, as that of the kept dimensions."""
    if write is None:
        return None
    return write[kept.hidden] if write.numel() > 1 else write.expand(len(kept.hidden))


def _expert_mask(gates: dict[str, Tensor], kept: KeptUnits, index: int) -> Tensor | None:
    """The gates of the kept experts of the source's layer ``index``; None = open."""
    return gates[EXPERT][index][kept.experts[index]] if EXPERT in gates else None


def _scaled_experts(weight: Tensor, write: Tensor | None, experts: Tensor | None) -> Tensor:
    """down_proj of all experts, [E, d, ff], its outputs scaled by ``write`` [d] and ``experts`` [E]; None = 1."""
    if write is not None:
        weight = weight * write.to(weight).unsqueeze(-1)
    return weight if experts is None else weight * experts.to(weight).view(-1, 1, 1)


def _column_mask(
    module: str, gates: dict[str, Tensor], kept: KeptUnits, index: int, source: ModelShape
) -> Tensor | None:
    """The mask on what an o_proj (heads) or a down_proj (neurons) of the source's layer ``index`` reads; None = open."""
    if module.endswith("down_proj"):
        return gates[INTERMEDIATE][index][kept.intermediate[index]] if INTERMEDIATE in gates else None
    heads = head_channel_masks(gates, source)
    if heads is None:
        return None
    return heads[index][head_channels(kept.heads[index], source.head_dim, heads.device)]


def _fold_hidden(state: dict[str, Tensor], mask: Tensor, tied: bool, family: Family) -> None:
    """Masks of hidden dimensions into embeddings and the norms that read the residual stream."""
    for name, weight in state.items():
        module = name.split(".")[-2]
        if module == "embed_tokens":
            state[name] = weight * mask.to(device=weight.device, dtype=weight.dtype)
        elif module in family.pre_norms or (module == "norm" and not tied):
            state[name] = _scaled_norm(weight, mask, family)


def _fold_embedding_scale(state: dict[str, Tensor], scale: float, tied: bool, family: Family) -> None:
    """Make up for an embedding that is multiplied by the root of a smaller hidden size; a tied head must not see it."""
    for name, weight in state.items():
        module = name.split(".")[-2]
        if module == "embed_tokens":
            state[name] = (weight.float() * scale).to(weight.dtype)
        elif module == "norm" and tied:
            state[name] = _scaled_norm(weight, torch.tensor([1 / scale]), family)


def _scaled_norm(weight: Tensor, mask: Tensor | None, family: Family) -> Tensor:
    if mask is None:
        return weight
    return scale_norm_weight(weight.float(), mask.to(weight.device), family.norm_offset).to(weight.dtype)


def _fold_write(state: dict[str, Tensor], module: str, write: Tensor | None, columns: Tensor | None) -> None:
    """Masks of a write into the residual stream (rows, bias) and of what it reads (columns)."""
    weight = state[f"{module}.weight"]
    write, columns = (mask if mask is None else mask.to(weight.device) for mask in (write, columns))
    state[f"{module}.weight"] = scale_weight(weight, write, columns)
    if write is not None and f"{module}.bias" in state:
        bias = state[f"{module}.bias"]
        state[f"{module}.bias"] = bias * write.to(bias.dtype)
