"""What every `run_*.py` of this folder does around its engine: read jobs, open each precision, write what came out.

A runner is started with any Python that has its engine; nothing of hf_shear is needed there:

    python -m examples.research.engines.run_llama_cpp JOB_FOLDER [JOB_FOLDER ...]

A folder holds ``job.json``: ``checkpoint`` (folder), ``precisions`` (names), ``prompts`` and ``texts`` (lists of lists
of token ids), ``strings`` (texts to tokenise), ``new_tokens`` (tokens to generate). For each precision the runner writes
``PRECISION.json`` (``status`` opening, then accepted or refused) and ``PRECISION.npz`` (logits [tokens, vocabulary] of
each text). A precision whose file is there is done; one left at ``opening`` ended the process, and is not tried again.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

OPENING, ACCEPTED, REFUSED = "opening", "accepted", "refused"
MAX_REASON_CHARACTERS = 400


class Engine(Protocol):
    """A loaded model."""

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits, or log-probabilities, [tokens, vocabulary] after each of the tokens."""

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The most likely continuation by the engine's own generation, without the prompt; may end at EOS."""

    def tokenize(self, text: str) -> list[int] | None:
        """The engine's own token ids of a text, None if it takes ids only."""

    def write_dequantized(self, output: Path) -> None:
        """Write the quantised weights, as numbers again, as a Hugging Face checkpoint; nothing if it can not."""


def run(packages: Sequence[str], open_engine: Callable[[Path, str, Path], Engine]) -> None:
    """Run the jobs in the folders that the command line names.

    Args:
        packages: distributions whose versions are noted; the first is the engine's.
        open_engine: (checkpoint, precision, folder for converted files) -> the loaded model.
    """
    versions = {name: importlib.metadata.version(name) for name in packages}
    for folder in map(Path, sys.argv[1:]):
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        for precision in job["precisions"]:
            if not (folder / f"{precision}.json").exists():
                _run_one(job, precision, folder, versions, open_engine)


def _run_one(job: dict, precision: str, folder: Path, versions: dict, open_engine: Callable) -> None:
    record = {"status": OPENING, "versions": versions, "date": datetime.date.today().isoformat()}
    _write(folder, precision, record)
    try:
        engine = open_engine(Path(job["checkpoint"]), precision, folder)
        logits = {f"{number}": engine.logits(text) for number, text in enumerate(job["texts"])}
        record["greedy"] = [engine.greedy(prompt, job["new_tokens"]) for prompt in job["prompts"]]
        record["tokenized"] = [engine.tokenize(text) for text in job["strings"]]
        engine.write_dequantized(folder / f"{precision}.dequantized")
    except (MemoryError, ImportError):  # of this machine or environment: it says nothing about the checkpoint
        (folder / f"{precision}.json").unlink()
        raise
    except Exception as error:  # a refusal, whatever its type, is what is measured here
        reason = without_paths(f"{type(error).__name__}: {error}", folder, job)[-MAX_REASON_CHARACTERS:]
        _write(folder, precision, record | {"status": REFUSED, "reason": reason})
        return
    np.savez(folder / f"{precision}.npz", **logits)
    _write(folder, precision, record | {"status": ACCEPTED})


def without_paths(text: str, folder: Path, job: dict) -> str:
    """A message without the paths of the machine where it was said."""
    return text.replace(str(job["checkpoint"]), "CHECKPOINT").replace(str(folder), "FOLDER")


def _write(folder: Path, precision: str, record: dict) -> None:
    (folder / f"{precision}.json").write_text(json.dumps(record), encoding="utf-8")
