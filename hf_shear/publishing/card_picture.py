"""The picture of what was kept, which a card shows."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.record_types import without_nulls
from ..report import plot_kept_units

PICTURE_NAME = "kept.png"


def kept_picture(results: Mapping[str, Any] | None, provenance: Mapping[str, Any] | None) -> bytes | None:
    """The picture as a PNG file; None where nothing says what was kept, or without matplotlib.

    Args:
        results, provenance: contents of results.json and shear_provenance.json.
    """
    results = without_nulls(results or {})
    kept = results.get("kept") or (provenance or {}).get("kept")
    shape = results.get("source", {}).get("shape")
    if not kept or not shape or not can_draw():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PICTURE_NAME
        plot_kept_units(kept, shape, path)
        return path.read_bytes()


def can_draw() -> bool:
    """Whether matplotlib is there, which `pip install 'hf-shear[plots]'` installs."""
    return importlib.util.find_spec("matplotlib") is not None
