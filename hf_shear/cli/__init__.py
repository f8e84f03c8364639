"""``hf-shear``: one verb per stage, with flags and YAML as in the examples."""

from .main import VERBS, main

__all__ = ["VERBS", "main"]
