"""Clocks and quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def wait_for(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def time_call(call: Callable[[], object], device: str) -> tuple[float, float]:
    """(wall, CPU) seconds of a call, the device's work included."""
    wait_for(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    wait_for(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    """Quotients of the values of the same round."""
    return [top / bottom for top, bottom in zip(numerators, denominators, strict=True)]


def quartiles(values: list[float]) -> dict[str, float]:
    """Median, lower and upper quartile."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def as_text(values: dict[str, float], form: str) -> str:
    """median [lower quartile, upper quartile]"""
    return f"{values['median']:{form}} [{values['lower_quartile']:{form}}, {values['upper_quartile']:{form}}]"
