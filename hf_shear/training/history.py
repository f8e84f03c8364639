"""A run's history, read back from its log, where every evaluation stands as flat numbers that any reporter can show."""

from __future__ import annotations

from ..core import SHAPE_NAMES, TARGET_NAMES

MIXTURE, REFERENCE, EXCESS, NOISE = "mixture/", "reference/", "excess/", "stderr/"
EXPECTED, TARGET, SWAPPED = "expected/", "target/", "swapped/"
"""What the names of entries begin with: weights, reference losses and excess losses of domains with the standard errors
of these, sizes that masks expect, targets, and units kept by now that the masks' start would have cut."""


def size_history(log_history: list[dict]) -> list[dict]:
    """Rows with ``num_tokens``, ``expected_shape`` and ``target_shape``, one for each logged step that has them."""
    rows = {
        entry["num_tokens"]: {"num_tokens": entry["num_tokens"]} | _shapes(entry)
        for entry in log_history
        if "num_tokens" in entry and EXPECTED + SHAPE_NAMES[0] in entry
    }
    return [rows[num_tokens] for num_tokens in sorted(rows)]  # an evaluation and a log of one step are one row


def evaluation_history(log_history: list[dict], stage: str, domains: list[str]) -> list[dict]:
    """One row per evaluation of ``trainer.state.log_history``.

    Args:
        log_history: as transformers keeps it.
        stage: written into each row ("mask_learning" or "recovery").
        domains: names of the domains.

    Returns:
        Rows with ``num_tokens``, ``stage``, ``loss``, ``mixture_weights``, with dynamic batches ``reference_loss``,
        ``excess_loss`` and its ``standard_error`` (of domains of more than one sample), and for mask learning
        ``expected_shape`` and ``target_shape``.
    """
    rows = []
    for entry in log_history:
        if "num_tokens" not in entry or "eval_loss" not in entry:
            continue
        row = {
            "num_tokens": entry["num_tokens"],
            "stage": stage,
            "loss": {name: entry[f"eval_{name}_loss"] for name in domains},
            "eval_tokens": entry["eval_tokens"],
            "eval_seconds": entry["eval_runtime"],
            "mixture_weights": {name: entry[MIXTURE + name] for name in domains},
        }
        if REFERENCE + domains[0] in entry:
            row["reference_loss"] = {name: entry[REFERENCE + name] for name in domains}
        if EXCESS + domains[0] in entry:
            row["excess_loss"] = {name: entry[EXCESS + name] for name in domains}
            row["standard_error"] = {name: entry[NOISE + name] for name in domains if NOISE + name in entry}
        if EXPECTED + SHAPE_NAMES[0] in entry:
            row |= _shapes(entry)
        rows.append(row)
    return rows


def _shapes(entry: dict) -> dict[str, dict]:
    kinds = {"expected_shape": EXPECTED, "target_shape": TARGET}
    return {
        kind: {name: entry[prefix + name] for name in TARGET_NAMES if prefix + name in entry}
        for kind, prefix in kinds.items()
    }
