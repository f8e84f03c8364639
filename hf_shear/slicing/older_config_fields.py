"""Write the rotary embedding of a checkpoint also in the fields where readers of before transformers 5 look for it.

transformers 5 writes `rope_parameters` alone. Readers that know only `rope_theta` and `rope_scaling` (mlx-lm, transformers
4 and the exporters that need it) then take the default theta, without a complaint, and the model computes something else.
transformers 5 itself reads a config with both as it reads one with `rope_parameters`.
"""

from __future__ import annotations

import json
from pathlib import Path


def add_older_rope_fields(folder: Path) -> None:
    """Add `rope_theta` and `rope_scaling` to the config.json in ``folder``, if its layers share one rotary embedding."""
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    rope = fields.get("rope_parameters") or {}
    if "rope_theta" not in rope:  # none, or one for each type of layer, which the older fields cannot say
        return
    text = json.dumps({**older_rope_fields(rope), **fields}, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def older_rope_fields(rope: dict) -> dict:
    """`rope_theta` and `rope_scaling` (None for the default), which say what these `rope_parameters` say."""
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    older = {"rope_theta": rope["rope_theta"], "rope_scaling": None if _is_default(scaling) else scaling}
    if "partial_rotary_factor" in rope:
        older["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return older


def _is_default(scaling: dict) -> bool:
    return scaling.get("rope_type", "default") == "default"
