"""Time of every kind of step, and the ratio of masked to plain in the same round."""

from __future__ import annotations

import argparse

import torch

from .model_sizes import Size, llama_config, peak_flops, training_flops_per_token
from .timing import as_text, quartiles, ratios, time_call
from .training_steps import PLAIN, make_arms, random_batches

MIN_TOKENS = 2048  # of a micro-batch: masks are folded into weights, so that fewer tokens make them look dear


def measure_steps(args: argparse.Namespace, size: Size) -> dict:
    """Seconds of every kind of step; tokens per second and model FLOP utilisation (MFU) from their medians.

    Rounds start with another kind each, so that none always runs in the other's cache or just after its garbage.
    """
    if args.compile:
        torch.compiler.reset()  # the models before this one count towards the limit of compilations of the same code
    names = [PLAIN, *args.arms]
    arms = make_arms(args, size, names, args.warmup_steps + args.rounds)
    wall, cpu = time_rounds(args, arms, random_batches(args, size.vocab_size))
    num_parameters = sum(parameter.numel() for parameter in arms[0].weights)
    tokens = args.batch_size * args.max_length
    flops = training_flops_per_token(llama_config(size, args.max_length), num_parameters, args.max_length)
    gpu = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else None
    peak = peak_flops(gpu, args.dtype)
    seconds = {name: quartiles(values) for name, values in wall.items()}
    result = {
        "tokens": tokens,
        "rounds": args.rounds,
        "num_parameters": num_parameters,
        "num_mask_parameters": {arm.name: sum(p.numel() for p in arm.model.masks.parameters()) for arm in arms[1:]},
        "model_flops_per_token": flops,
        "peak_flops_per_second": peak,
        "seconds": seconds,
        "tokens_per_second": {name: tokens / values["median"] for name, values in seconds.items()},
        "mfu": {name: peak and tokens * flops / values["median"] / peak for name, values in seconds.items()},
        "ratio": {name: quartiles(ratios(wall[name], wall[PLAIN])) for name in names[1:]},
    }
    if args.device == "cpu":  # time of this process alone: programs that share the machine count for less
        result["cpu_time_ratio"] = {name: quartiles(ratios(cpu[name], cpu[PLAIN])) for name in names[1:]}
    return result


def time_rounds(args: argparse.Namespace, arms: list, batches) -> tuple[dict, dict]:
    """(wall, CPU) seconds of each counted step, by kind; all kinds take the batch of a round."""
    wall, cpu = ({arm.name: [] for arm in arms} for _ in range(2))
    for round_number in range(args.warmup_steps + args.rounds):
        input_ids = next(batches)
        turn = round_number % len(arms)
        for arm in arms[turn:] + arms[:turn]:
            seconds = time_call(lambda arm=arm, batch=input_ids: arm.step(batch), args.device)
            if round_number >= args.warmup_steps:
                wall[arm.name].append(seconds[0])
                cpu[arm.name].append(seconds[1])
    return wall, cpu


def steps_table(steps: dict) -> list[str]:
    """Lines to print."""
    lines = [f"Seconds per step of {steps['tokens']} tokens; medians over {steps['rounds']} rounds [quartiles]"]
    for name, values in steps["seconds"].items():
        line = f"  {name:<18}{as_text(values, '.4f'):<28}{steps['tokens_per_second'][name]:10,.0f} tokens/s"
        line += "  MFU not known" if steps["mfu"][name] is None else f"  MFU {steps['mfu'][name]:.1%}"
        if name in steps["ratio"]:
            line += f"   x plain {as_text(steps['ratio'][name], '.3f')}"
            if "cpu_time_ratio" in steps:
                line += f"   in CPU time {as_text(steps['cpu_time_ratio'][name], '.3f')}"
        lines.append(line)
    if steps["tokens"] < MIN_TOKENS:
        lines.append(f"  Fewer than {MIN_TOKENS} tokens: masks weigh more than in real training.")
    return lines
