"""Results that are kept run by run: a JSON file with a run a line, and records of the code that made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_shear.core import write_text_atomically

from .provenance import code_record, with_record


def read(path: Path, *lists: str) -> dict[str, Any]:
    """What is kept; these lists, empty, where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {name: [] for name in lists}


def find(runs: list[dict], **key: Any) -> dict | None:
    """The run whose key has these entries."""
    return next((run for run in runs if key.items() <= run.items()), None)


def add(path: Path, kept: dict[str, Any], name: str, run: dict, digest: str) -> dict:
    """Keep one more run in the list ``name``, made by the code with this digest; the run."""
    kept[name].append(run)
    kept["code"] = with_record(kept.get("code", ()), code_record(digest))
    print(run, flush=True)
    write(path, kept)
    return run


def write(path: Path, kept: dict[str, Any]) -> None:
    """An entry of each list a line, the code first."""
    parts = []
    for name, value in ({"code": kept["code"]} | kept).items():
        lines = ",\n".join(json.dumps(one, allow_nan=False) for one in value) if isinstance(value, list) else None
        parts.append(f'"{name}": ' + (json.dumps(value) if lines is None else f"[\n{lines}\n]"))
    write_text_atomically(path, "{" + ",\n".join(parts) + "}\n")
