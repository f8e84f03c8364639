"""What to keep, decided at once: importance scores."""

from .one_shot import prune_one_shot
from .taylor import random_importance, taylor_importance

__all__ = ["prune_one_shot", "random_importance", "taylor_importance"]
