"""What to keep, decided at once: importance scores."""

from .layer_loss_rise import layer_loss_rise
from .mask_start import mask_start_importance
from .one_shot import prune_one_shot
from .taylor import random_importance, taylor_importance

__all__ = ["layer_loss_rise", "mask_start_importance", "prune_one_shot", "random_importance", "taylor_importance"]
