"""The paper's mask learning, as its reference code runs it (arXiv 2310.06694, section 3.1 and appendix A)."""

from __future__ import annotations

PAPER_MASK_LEARNING = {
    "mask_learning_rate": 1.0,
    "multiplier_learning_rate": 1.0,
    "mask_scheduler": "weights",  # cosine with warm-up for masks and multipliers too
    "budget_warmup_ratio": 0.2,  # 640 of 3200 steps
    "hardening_ratio": 0.0,  # masks are never hardened; export folds their soft values in
    "clip_masks": True,  # one norm over weights, masks and multipliers
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": 0.1,  # 320 of 3200 steps
}
"""Fields of ShearTrainingArguments. The paper's weights learn at 1e-4; `learning_rate` stays the user's."""
