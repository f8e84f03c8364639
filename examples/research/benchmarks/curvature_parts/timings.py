"""Time of calibration against the plain passes that it contains, in rounds that take turns."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from transformers import LlamaForCausalLM

from hf_shear import ShearingLlamaForCausalLM
from hf_shear.calibration import ColumnCosts, least_squares_columns, stream_curvature, stream_inputs
from hf_shear.criteria import resolve_criterion
from hf_shear.data import Calibration

from ..speed_parts.model_sizes import SIZES, llama_config
from ..speed_parts.report import verdict
from ..speed_parts.timing import as_text, quartiles, ratios, time_call

FORWARD, FORWARD_BACKWARD = "forward", "forward and backward"
LEAST_SQUARES, SURGEON = "least-squares statistics", "LLM Surgeon statistics"
LIMITS = {LEAST_SQUARES: 1.8, SURGEON: 1.5}
CRITERION_LIMIT = 1.15  # of criteria by activations

Arm = Callable[[], object]


def calibration_of(args: argparse.Namespace, vocab_size: int) -> Calibration:
    """Random tokens on the device, in ``args.batches`` batches."""
    size = (args.batches * args.batch_size, args.max_length)
    ids = torch.randint(vocab_size, size, generator=torch.Generator().manual_seed(0)).to(args.device)
    return Calibration.from_batches([{"input_ids": ids, "labels": ids}], args.batch_size)


def build(args: argparse.Namespace, name: str) -> ShearingLlamaForCausalLM:
    """A masked model with random weights, all gates open."""
    torch.manual_seed(0)
    with torch.device(args.device):
        model = LlamaForCausalLM(llama_config(SIZES[name], args.max_length))
    model = model.to(torch.bfloat16 if args.dtype == "bfloat16" else torch.float32)
    return ShearingLlamaForCausalLM.from_model(model).eval()


def plain_forward(model: ShearingLlamaForCausalLM, calibration: Calibration) -> None:
    """Forwards up to the last hidden state: statistics of inputs need no logits."""
    with torch.no_grad(), _without_head(model):
        for batch in calibration.batches:
            model(input_ids=batch["input_ids"], use_cache=False)


@contextmanager
def _without_head(model: ShearingLlamaForCausalLM) -> Iterator[None]:
    model.lm_head.forward = lambda hidden_states: hidden_states
    try:
        yield
    finally:
        del model.lm_head.forward


def plain_forward_backward(model: ShearingLlamaForCausalLM, calibration: Calibration) -> None:
    """Forward and backward with frozen weights: the gradients of activations alone, down to the embeddings."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    first = []

    def start_here(module, args, output):
        first.append(output.requires_grad_())

    handle = model.model.embed_tokens.register_forward_hook(start_here)
    for batch in calibration.batches:
        first.clear()
        torch.autograd.grad(model(**batch, use_cache=False).loss, first)
    handle.remove()


def drain(stream: Iterator) -> None:
    """Take all statistics, and let each go."""
    for _ in stream:
        pass


def make_arms(args: argparse.Namespace, model: ShearingLlamaForCausalLM, calibration: Calibration) -> dict[str, Arm]:
    """What takes turns, by name; criteria are those of ``args.criteria``."""
    arms = {
        FORWARD: partial(plain_forward, model, calibration),
        LEAST_SQUARES: lambda: drain(stream_inputs(model, calibration.batches)),
        FORWARD_BACKWARD: partial(plain_forward_backward, model, calibration),
        SURGEON: lambda: drain(stream_curvature(model, calibration.batches)),
    }
    for name in args.criteria:
        arms[name] = partial(resolve_criterion(name), model, calibration)
    return arms


def measure_time(args: argparse.Namespace, name: str) -> dict:
    """Seconds of each arm, ratios formed within a round, and the solves apart."""
    model = build(args, name)
    calibration = calibration_of(args, model.config.vocab_size)
    with model.use_gates({}):
        wall, cpu = time_rounds(args, make_arms(args, model, calibration))
        solves = measure_solves(args, model, calibration)
    against = {LEAST_SQUARES: FORWARD, SURGEON: FORWARD_BACKWARD} | dict.fromkeys(args.criteria, FORWARD)
    result = {
        "num_parameters": sum(p.numel() for key, p in model.named_parameters() if not key.startswith("masks.")),
        "tokens": calibration.num_tokens,
        "rounds": args.rounds,
        "seconds": {arm: quartiles(values) for arm, values in wall.items()},
        "against": against,
        "ratio": {arm: quartiles(ratios(wall[arm], wall[base])) for arm, base in against.items()},
        "solves_seconds": solves,
    }
    if args.device == "cpu":  # time of this process alone: programs that share the machine count for less
        result["cpu_time_ratio"] = {arm: quartiles(ratios(cpu[arm], cpu[base])) for arm, base in against.items()}
    shown = result.get("cpu_time_ratio", result["ratio"])
    result["targets"] = {
        arm: verdict(ratio["median"], LIMITS.get(arm, CRITERION_LIMIT), or_equal=True) for arm, ratio in shown.items()
    }
    return result


def time_rounds(args: argparse.Namespace, arms: dict[str, Arm]) -> tuple[dict, dict]:
    """(wall, CPU) seconds of each arm by round; the first round is not counted, each begins with another arm."""
    wall, cpu = ({name: [] for name in arms} for _ in range(2))
    names = list(arms)
    for number in range(args.rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = time_call(arms[name], args.device)
            if number:
                wall[name].append(seconds[0])
                cpu[name].append(seconds[1])
    return wall, cpu


def measure_solves(args: argparse.Namespace, model: ShearingLlamaForCausalLM, calibration: Calibration) -> dict:
    """Seconds of what follows the statistics, over all layers: costs of neurons, and the update for half of them."""
    totals = {"costs": 0.0, "update": 0.0}
    for index, found in stream_curvature(model, calibration.batches):
        weight = model.model.layers[index].mlp.down_proj.weight
        gram, gradients = found.inputs["mlp.down_proj"].gram, found.gradients["mlp.down_proj"].gram
        kept = torch.arange(0, len(gram), 2, device=gram.device)
        totals["costs"] += time_call(partial(_costs, weight, gram, gradients), args.device)[0]
        totals["update"] += time_call(
            partial(least_squares_columns, weight.detach(), gram, kept, kept[: len(gram) // 2] + 1), args.device
        )[0]
    return totals


def _costs(weight: torch.Tensor, gram: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    return ColumnCosts(weight, gram, gradients).single()


def time_table(times: dict) -> list[str]:
    """Lines to print."""
    lines = [f"Seconds for {times['tokens']} tokens; medians over {times['rounds']} rounds [quartiles]"]
    for name, values in times["seconds"].items():
        line = f"  {name:<28}{as_text(values, '.4f'):<28}"
        if name in times["ratio"]:
            line += f"  x {times['against'][name]} {as_text(times['ratio'][name], '.3f')}"
            if "cpu_time_ratio" in times:
                line += f"   in CPU time {as_text(times['cpu_time_ratio'][name], '.3f')}"
        lines.append(line.rstrip())
    solves = ", ".join(f"{name} {seconds:.4f}" for name, seconds in times["solves_seconds"].items())
    return [*lines, f"  solves of down_proj, all layers, seconds: {solves}"]
