"""Start tests/distributed_run.py under any backend, kill it, resume it, and compare what it noted."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tests" / "distributed_run.py"
CONFIGS = ROOT / "examples" / "accelerate"
_WHOLE_WEIGHTS, _OFFLOAD = ["--zero3_init_flag", "false"], ["--offload_optimizer_device", "cpu"]
BACKENDS: dict[str, tuple[str | None, list[str]]] = {
    "one_process": (None, ["--num_processes", "1"]),
    "ddp": ("ddp", []),
    "fsdp2": ("fsdp2", []),
    "zero1": ("zero3", ["--zero_stage", "1", *_WHOLE_WEIGHTS]),
    "zero2": ("zero3", ["--zero_stage", "2", *_WHOLE_WEIGHTS]),
    "zero3": ("zero3", []),
}
BACKENDS |= {f"{name}_offload": ("zero3", [*BACKENDS[name][1], *_OFFLOAD]) for name in ("zero1", "zero2", "zero3")}
"""Of each backend its file in examples/accelerate, and the flags of `accelerate launch` beside it."""
TIMEOUT = 240  # seconds for one launch of a tiny run; it takes 10 to 20


@dataclass
class Run:
    """What a run left: its records by (step, micro-batch, process), its end, its weights."""

    records: dict[tuple[int, int, int], list[dict]]
    end: dict
    weights: dict[str, torch.Tensor]

    @property
    def losses(self) -> list[float]:
        """The logged loss of each step."""
        return [row["loss"] for row in self.end["history"] if "loss" in row]

    @property
    def held_out(self) -> list[dict]:
        """The evaluations."""
        return [row for row in self.end["history"] if "eval_loss" in row]

    def samples(self) -> dict[int, list[list[int]]]:
        """Samples of each step over all processes and micro-batches, sorted."""
        steps: dict[int, list] = {}
        for (step, _, _), records in self.records.items():
            steps.setdefault(step, []).extend(records[0]["input_ids"])
        return {step: sorted(samples) for step, samples in steps.items()}


def read_run(folder: Path) -> Run:
    """Read a finished run. Records that a killed run and its successor both made are kept side by side."""
    records: dict[tuple[int, int, int], list[dict]] = {}
    for path in sorted(folder.glob("records-*.jsonl")):
        process = int(path.stem.removeprefix("records-"))
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # the line in progress when the run was killed
                continue
            records.setdefault((record["step"], record["micro_batch"], process), []).append(record)
    end = json.loads((folder / "end.json").read_text(encoding="utf-8"))
    (weights,) = (folder / "end").glob("*model.safetensors")  # of a model, or of its adapters
    return Run(records, end, load_file(weights))


def launch_flags(backend: str) -> list[str]:
    """What `accelerate launch` is given for a backend, before the number of processes."""
    config, flags = BACKENDS[backend]
    return [*(["--config_file", str(CONFIGS / f"{config}.yaml")] if config else []), *flags]


def start(backend: str, folder: Path, source: Path, case: str, *more: str, processes: int = 2) -> subprocess.Popen:
    """Launch with the shipped config of a backend, in a process group of its own, output to ``folder``/log.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    script = [str(SCRIPT), "--output_dir", str(folder), "--source", str(source), "--case", case, *more]
    launch = launch_flags(backend)
    if backend != "one_process":
        launch += ["--num_processes", str(processes), "--main_process_port", str(free_port())]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "accelerate.commands.launch", *launch, *script],
            env=environment, stdout=log, stderr=log, start_new_session=True, cwd=ROOT,
        )  # fmt: skip


def finish(process: subprocess.Popen, timeout: float = TIMEOUT) -> int:
    """Wait for a launch; kill all of it if it takes too long."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        raise


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the launcher and all its processes; torchrun's workers are in sessions of their own."""
    launcher = psutil.Process(process.pid)
    family = [launcher, *launcher.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family[1:], timeout=30)
    process.wait()


def wait_for_records(process: subprocess.Popen, folder: Path, num_records: int) -> bool:
    """Wait until the main process noted so many micro-batches; False if the run ended before."""
    path, stop = folder / "records-0.jsonl", time.monotonic() + TIMEOUT
    while time.monotonic() < stop:
        if path.is_file() and path.read_bytes().count(b"\n") >= num_records:
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    kill(process)
    raise TimeoutError(f"no {num_records} records in {path}: {log_of(folder)[-3000:]}")


def num_records(folder: Path) -> int:
    """Micro-batches that the main process noted so far."""
    path = folder / "records-0.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def log_of(folder: Path) -> str:
    """All output of the launches of a run."""
    return (folder / "log.txt").read_text(encoding="utf-8", errors="replace")


def run(backend: str, folder: Path, source: Path, case: str, *more: str, processes: int = 2) -> Run:
    """A run from start to end."""
    code = finish(start(backend, folder, source, case, *more, processes=processes))
    assert code == 0, log_of(folder)[-6000:]
    return read_run(folder)


def assert_same_run(found: Run, expected: Run) -> None:
    """Bit for bit: every record (also repeated ones), losses, masks, batches, domain weights, the end."""
    assert found.records.keys() == expected.records.keys()
    for place, records in found.records.items():
        for record in records:
            assert record == expected.records[place][0], place
    assert found.end == expected.end
    assert found.weights.keys() == expected.weights.keys()
    assert all(torch.equal(found.weights[name], value) for name, value in expected.weights.items())


def largest_gaps(found: Run, expected: Run) -> dict[str, float]:
    """Largest differences between two runs on different numbers of processes or backends."""

    def masks(run: Run) -> list[torch.Tensor]:
        steps = {step: records[0]["masks"] for (step, _, _), records in sorted(run.records.items())}
        values = [*steps.values(), run.end["masks"]]
        return [torch.tensor(values[i][name]) for i in range(len(values)) for name in sorted(values[i])]

    def gap(mine, theirs) -> float:
        return max((abs(a - b) for a, b in zip(mine, theirs, strict=True)), default=0.0)

    pairs = zip(masks(found), masks(expected), strict=True)
    return {
        "masks": max((float((a - b).abs().max()) for a, b in pairs), default=0.0),
        "losses": gap(found.losses, expected.losses),
        "held_out": gap(
            [row["eval_loss"] for row in found.held_out], [row["eval_loss"] for row in expected.held_out]
        ),
        "weights": max(float((found.weights[name] - value).abs().max()) for name, value in expected.weights.items()),
    }  # fmt: skip


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
