"""``hf-shear``: one verb per stage, with flags and YAML as in the examples."""

from .main import main

__all__ = ["main"]
