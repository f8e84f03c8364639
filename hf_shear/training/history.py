"""What an evaluation adds to the log, and how to read a run's history back from the log."""

from __future__ import annotations

from ..shapes import SHAPE_NAMES, TARGET_NAMES

_MIXTURE, _REFERENCE, _EXPECTED, _TARGET = "mixture/", "reference/", "expected/", "target/"


class EvaluationLog:
    """Flat scalar entries, so that every reporter of transformers can show them."""

    @staticmethod
    def extra(trainer) -> dict[str, float]:
        """Entries beside the held-out losses: tokens so far, domain weights, sizes and multipliers."""
        entries: dict[str, float] = {"num_tokens": trainer.tokens_seen()}
        entries |= {_MIXTURE + name: weight for name, weight in trainer.sampler.mixture_weights.items()}
        entries |= {_REFERENCE + name: loss for name, loss in (trainer.reference_losses or {}).items()}
        if trainer.learns_masks:
            masks = trainer.masked_model.masks
            entries |= EvaluationLog.sizes(trainer)
            if masks.has_multipliers:
                names = [kind.name for kind in masks.constrained]
                linear, quadratic = masks.multiplier_linear.tolist(), masks.multiplier_quadratic.tolist()
                entries |= {f"multiplier_linear/{name}": value for name, value in zip(names, linear, strict=True)}
                entries |= {f"multiplier_quadratic/{name}": value for name, value in zip(names, quadratic, strict=True)}
        return entries

    @staticmethod
    def sizes(trainer) -> dict[str, float]:
        """Entries with the tokens so far, the sizes that the masks expect, and the targets of the step."""
        masks = trainer.masked_model.masks
        trainer._set_phase(trainer.state.global_step)
        entries: dict[str, float] = {"num_tokens": trainer.tokens_seen()}
        entries |= {_EXPECTED + name: size for name, size in masks.expected_shape().items()}
        return entries | {_TARGET + name: size for name, size in masks.target_shape_now().items()}

    @staticmethod
    def read_sizes(log_history: list[dict]) -> list[dict]:
        """Rows with ``num_tokens``, ``expected_shape`` and ``target_shape``, one for each logged step that has them."""
        rows = {
            entry["num_tokens"]: {"num_tokens": entry["num_tokens"]} | _shapes(entry)
            for entry in log_history
            if "num_tokens" in entry and _EXPECTED + SHAPE_NAMES[0] in entry
        }
        return [rows[num_tokens] for num_tokens in sorted(rows)]  # an evaluation and a log of one step are one row

    @staticmethod
    def read(log_history: list[dict], stage: str, domains: list[str]) -> list[dict]:
        """One row per evaluation of ``trainer.state.log_history``.

        Args:
            log_history: as transformers keeps it.
            stage: written into each row ("mask_learning" or "recovery").
            domains: names of the domains.

        Returns:
            Rows with ``num_tokens``, ``stage``, ``loss``, ``mixture_weights``, ``reference_loss``, and for mask
            learning ``expected_shape`` and ``target_shape``.
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
                "mixture_weights": {name: entry[_MIXTURE + name] for name in domains},
            }
            if _REFERENCE + domains[0] in entry:
                row["reference_loss"] = {name: entry[_REFERENCE + name] for name in domains}
            if _EXPECTED + SHAPE_NAMES[0] in entry:
                row |= _shapes(entry)
            rows.append(row)
        return rows


def _shapes(entry: dict) -> dict[str, dict]:
    kinds = {"expected_shape": _EXPECTED, "target_shape": _TARGET}
    return {
        kind: {name: entry[prefix + name] for name in TARGET_NAMES if prefix + name in entry}
        for kind, prefix in kinds.items()
    }
