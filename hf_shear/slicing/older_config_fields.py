"""Write into a config.json also the fields where readers of before transformers 5 look.

transformers 5 writes `rope_parameters` and `dtype` alone. Readers that know only `rope_theta`, `rope_scaling` and
`torch_dtype` (mlx-lm, transformers 4 and the exporters that need it) then take defaults, without a complaint, and the
model computes something else, or in float32. transformers 5 itself reads a config with both as it reads one with its own.
"""

from __future__ import annotations

import json
from pathlib import Path


def add_older_config_fields(folder: Path) -> None:
    """Add `torch_dtype`, and `rope_theta` and its kin, to the config.json in ``folder``, where they can say the same."""
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    older = older_rope_fields(fields.get("rope_parameters") or {})
    if fields.get("dtype") is not None:
        older["torch_dtype"] = fields["dtype"]
    text = json.dumps({**older, **fields}, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def older_rope_fields(rope: dict) -> dict:
    """`rope_theta` and `rope_scaling` (None for the default), which say what these `rope_parameters` say.

    Of parameters for each type of layer, as Gemma 3 has them, those of sliding windows are `rope_local_base_freq`; other
    sets can not be said, and give no fields.
    """
    if "rope_theta" in rope:
        return _one_rope(rope)
    whole, local = rope.get("full_attention"), rope.get("sliding_attention")
    if set(rope) != {"full_attention", "sliding_attention"} or not whole or not local or not _is_default(local):
        return {}
    return _one_rope(whole) | {"rope_local_base_freq": local["rope_theta"]}


def _one_rope(rope: dict) -> dict:
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    older = {"rope_theta": rope["rope_theta"], "rope_scaling": None if _is_default(scaling) else scaling}
    if "partial_rotary_factor" in rope:
        older["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return older


def _is_default(scaling: dict) -> bool:
    return scaling.get("rope_type", "default") == "default"
