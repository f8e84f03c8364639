"""A plain and masked training steps of one model, which share its weights.

Shapes: b = sequences of a micro-batch, S = tokens of a sequence, d = hidden size.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_shear import MaskSettings, ShearingLlamaConfig, ShearingLlamaForCausalLM, TargetShape
from hf_shear.masks import STRATEGIES, MaskSchedule, ShearingMasks
from hf_shear.modeling import MaskedLinear, MaskedRMSNorm
from hf_shear.modeling.folding import masked_class

from .model_sizes import Size, llama_config

PLAIN = "plain"
ACTIVATION_MASKS = "activation_masks"  # the masks of relaxed_topk, on activations in place of weights
ARMS = (*STRATEGIES, ACTIVATION_MASKS)
LEARNING_RATE, MASK_RATE, MULTIPLIER_RATE = 1e-4, 0.05, 1.0


class ActivationLinear(MaskedLinear):
    """A linear layer whose inputs and outputs [b, S, *] are multiplied by masks, not its weight."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.input_mask is not None:
            inputs = inputs * self.input_mask.to(inputs.dtype)
        outputs = F.linear(inputs, self.weight, self.bias)
        return outputs if self.output_mask is None else outputs * self.output_mask.to(outputs.dtype)


class ActivationRMSNorm(MaskedRMSNorm):
    """An RMSNorm whose output [b, S, d] is multiplied by a mask, not its weight; its mean is that of kept dimensions."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        values = hidden_states.float()
        count = values.shape[-1] if self.kept_count is None else self.kept_count
        variance = values.pow(2).sum(dim=-1, keepdim=True) / count
        outputs = self.weight * (values * torch.rsqrt(variance + self.variance_epsilon)).to(hidden_states.dtype)
        return outputs if self.output_mask is None else outputs * self.output_mask.to(outputs.dtype)


def mask_activations(model: ShearingLlamaForCausalLM) -> None:
    """Let masks act on activations, where reference implementations have them, in place of weights."""
    for module in model.modules():
        for folded, on_activations in ((MaskedLinear, ActivationLinear), (MaskedRMSNorm, ActivationRMSNorm)):
            if isinstance(module, folded):
                module.__class__ = masked_class(on_activations, type(module).__bases__[1])


class Arm:
    """One kind of training step of a plain model, whose weights are trained as they are or under masks.

    Args:
        args: the command's.
        name: PLAIN or one of ARMS.
        plain: the model; every arm made of it has its weights, so that they are in memory once.
        optimizer: of those weights.
        total_steps: length of the schedule of masks.
    """

    def __init__(self, args: argparse.Namespace, name: str, plain: LlamaForCausalLM, optimizer, total_steps: int):
        self.args, self.name, self.steps_done = args, name, 0
        self.weights, self.optimizer = list(plain.parameters()), optimizer
        self.model, self.schedule, self.mask_optimizer = plain, None, None
        if name != PLAIN:
            method = next(iter(STRATEGIES)) if name == ACTIVATION_MASKS else name
            self.model = masked_model(plain, method, args.device)
            if name == ACTIVATION_MASKS:
                mask_activations(self.model)
            self.schedule = mask_schedule(method, total_steps)
            self.mask_optimizer = mask_optimizer(self.model.masks)
        prepare(self.model, args)
        self.forward = torch.compile(self.model) if args.compile else self.model

    def step(self, input_ids: Tensor) -> Tensor:
        """Forward, backward, clip, AdamW; for masks as ShearTrainer does it. Returns the loss, on the device."""
        if self.schedule is not None:
            self.model.set_mask_phase(self.model.masks.strategy.phase(self.schedule, self.steps_done))
        mixed = self.args.dtype == "mixed"
        with torch.autocast(input_ids.device.type, torch.bfloat16) if mixed else contextlib.nullcontext():
            outputs = self.forward(input_ids=input_ids, labels=input_ids, use_cache=False)
        penalty = getattr(outputs, "lagrangian_loss", None)
        (outputs.loss if penalty is None else outputs.loss + penalty).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.mask_optimizer is not None:
            self.mask_optimizer.step()
            self.mask_optimizer.zero_grad()
            self.model.masks.clamp_log_alpha()
        self.steps_done += 1
        return outputs.loss.detach()


def make_arms(args: argparse.Namespace, size: Size, names: list[str], total_steps: int) -> list[Arm]:
    """The kinds of step called ``names``, of one model with random weights."""
    plain = plain_model(args, size)
    # Fused AdamW is the Trainer's default, and the fastest: nothing hides the masks' share of a step.
    optimizer = torch.optim.AdamW(plain.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    return [Arm(args, name, plain, optimizer, total_steps) for name in names]


def plain_model(args: argparse.Namespace, size: Size) -> LlamaForCausalLM:
    """A Llama with random weights, on its device and in its dtype."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.dtype == "bfloat16" else torch.float32
    with torch.device(args.device):
        return AutoModelForCausalLM.from_config(
            llama_config(size, args.max_length), dtype=dtype, attn_implementation=args.attention
        )


def masked_model(plain: LlamaForCausalLM, method: str, device: str) -> ShearingLlamaForCausalLM:
    """A masked model that has the weights of ``plain``: the same tensors, not copies."""
    settings = MaskSettings.paper() if method == "hard_concrete" else MaskSettings(method=method)
    target = half_of_every_size(plain.config)
    config = ShearingLlamaConfig.from_source(plain.config, target, settings)
    with torch.device("meta"):
        model = ShearingLlamaForCausalLM(config)
    model.set_attn_implementation(plain.config._attn_implementation)
    for name, module in plain.named_modules():
        own = model.get_submodule(name)
        own._parameters.update(module._parameters)
        own._buffers.update(module._buffers)
    masks = ShearingMasks(model.masks.source, model.masks.target, settings)
    masks.load_state_dict(masks.start_parameters())
    model.masks = masks.to(device)
    return model


def prepare(model: LlamaForCausalLM, args: argparse.Namespace) -> None:
    """Training mode, gradient checkpointing and fused kernels, as asked for."""
    if args.gradient_checkpointing:
        # The second name is all that transformers before 5.23 knows, and what later releases warn of.
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable()
        else:
            model.gradient_checkpointing_enable()
    if args.liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        # What goes with masks (hf_shear.training.trainer_options); the same for every arm.
        kernels = {"rope": True, "swiglu": True, "rms_norm": False, "fused_linear_cross_entropy": False}
        apply_liger_kernel_to_llama(model=model, **kernels)
    model.train()


def mask_schedule(method: str, total_steps: int) -> MaskSchedule:
    """All of mask learning within the timed steps: annealing, noise and hardening, or the Lagrangian's warm-up."""
    if method == "hard_concrete":
        return MaskSchedule(total_steps, budget_warmup_steps=total_steps // 5)
    return MaskSchedule(total_steps, hardening_steps=total_steps // 5, start_noise=0.3)


def mask_optimizer(masks: ShearingMasks) -> torch.optim.AdamW:
    """AdamW over masks and multipliers, as ShearTrainer has it: one of their own."""
    groups = [{"params": list(masks.log_alpha.values()), "lr": MASK_RATE}]
    if masks.has_multipliers:
        groups.append({"params": masks.multipliers(), "lr": MULTIPLIER_RATE})
    return torch.optim.AdamW(groups, weight_decay=0.0)


def half_of_every_size(config: LlamaConfig) -> TargetShape:
    """Half the units of each of the five kinds, so that every kind of mask is learned."""
    groups = max(config.num_key_value_heads // 2, 1)
    group_size = max(config.num_attention_heads // config.num_key_value_heads // 2, 1)
    return TargetShape.from_source(
        config,
        hidden_size=config.hidden_size // 2,
        num_hidden_layers=max(config.num_hidden_layers // 2, 1),
        num_attention_heads=groups * group_size,
        num_key_value_heads=groups,
        intermediate_size=config.intermediate_size // 2,
    )


def random_batches(args: argparse.Namespace, vocab_size: int) -> Iterator[Tensor]:
    """Random token ids [b, S] without end, from a few batches made beforehand."""
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch_size, args.max_length)
    batches = [torch.randint(vocab_size, shape, generator=generator).to(args.device) for _ in range(4)]
    while True:
        yield from batches
