"""All masks of one model: parameters, draws, deterministic values, expected sizes and the Lagrangian.

Legend: d hidden size, L layers, KV key/value heads, g query heads per KV head, ff MLP width.
A *gate* is a value in [0, 1]; a dict of gates is keyed by the kind of unit (``unit_kinds``); frozen kinds are absent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..core import UsageError, check_ranges
from ..core.defaults import START_SPREAD
from ..shapes import ModelShape
from .schedule import MaskPhase
from .settings import MaskSettings
from .strategy import hard_topk
from .unit_kinds import EXPERT, HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, UnitKind, unit_kinds

_UNIFORM_EPS = 1e-6
_Number = TypeVar("_Number", int, float)


class ShearingMasks(nn.Module):
    """Learned masks that take a ``source`` shape to a ``target`` shape.

    Parameters are float32 on every device and stay so when the model is cast:
        log_alpha_<kind>: [*rows, units], one score per unit; higher = keep.
        multiplier_linear, multiplier_quadratic: [constrained kinds], lambda_1 and lambda_2, where the strategy has them.
    """

    def __init__(self, source: ModelShape, target: ModelShape, settings: MaskSettings):
        super().__init__()
        self.source, self.target, self.settings = source, target, settings
        self.strategy = settings.strategy
        self.kinds = unit_kinds(source, target)
        self.phase = MaskPhase()
        self.rank = 0
        # Direct parameters, not a ParameterDict: from_pretrained initialises missing parameters module by module, and
        # takes a module without parameters of its own for initialised.
        for kind in self.constrained:
            self.register_parameter(_name(kind), nn.Parameter(torch.empty(kind.mask_shape, dtype=torch.float32)))
        if self.has_multipliers:
            self.multiplier_linear = nn.Parameter(torch.empty(len(self.constrained), dtype=torch.float32))
            self.multiplier_quadratic = nn.Parameter(torch.empty(len(self.constrained), dtype=torch.float32))

    # ---- parameters -------------------------------------------------------------------------------------------

    @property
    def constrained(self) -> list[UnitKind]:
        """The kinds that lose units, in the order of ``ALL_UNIT_KINDS``."""
        return [kind for kind in self.kinds.values() if not kind.frozen]

    @property
    def has_multipliers(self) -> bool:
        """Whether a penalty is needed to meet the target."""
        return self.strategy.has_multipliers and bool(self.constrained)

    @property
    def log_alpha(self) -> dict[str, nn.Parameter]:
        """Scores per constrained kind."""
        return {kind.name: getattr(self, _name(kind)) for kind in self.constrained}

    def multipliers(self) -> list[nn.Parameter]:
        """lambda_1 and lambda_2, or nothing."""
        return [self.multiplier_linear, self.multiplier_quadratic] if self.has_multipliers else []

    @torch.no_grad()
    def start_parameters(self) -> dict[str, Tensor]:
        """Seeded start values of every parameter, keyed as in ``named_parameters``; made on the CPU."""
        generator = torch.Generator().manual_seed(_mix_seed(self.settings.seed, "start"))
        start = {}
        for kind in self.constrained:
            jitter = torch.randn(kind.mask_shape, generator=generator) * self.settings.log_alpha_jitter
            start[_name(kind)] = self._bounded(self.settings.start_value + jitter)
        for name, _ in self.named_parameters():
            start.setdefault(name, torch.zeros(len(self.constrained)))
        return start

    @torch.no_grad()
    def start_from_importance(self, importance: dict[str, Tensor], spread: float = START_SPREAD) -> None:
        """Start log_alpha from importance scores: ranks within each row, mapped to start_value + [-spread, spread].

        Ranks, not values, since scores of different rows and criteria have different scales.
        """
        check_ranges({"spread": spread})
        for kind in self.constrained:
            if kind.name not in importance:
                raise UsageError(f"`importance` has no scores for {kind.name!r}; it has {sorted(importance)}.")
            scores = importance[kind.name].to(self.log_alpha[kind.name].device)
            if scores.shape != kind.mask_shape:
                raise UsageError(
                    f"`importance[{kind.name!r}]` must be {kind.mask_shape}, but is {tuple(scores.shape)}."
                )
            if not bool(scores.isfinite().all()):
                raise UsageError(
                    f"`importance[{kind.name!r}]` must be finite, but it holds NaN or infinite scores. Measure it again on"
                    " text for which the model's loss is finite."
                )
            # From the best, ties as `hard_topk` breaks them: equal scores keep the same units here and there.
            places = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1).float()
            centred = 1 - 2 * places / max(kind.num_units - 1, 1)
            self.log_alpha[kind.name].copy_(self._bounded(self.settings.start_value + spread * centred))

    @torch.no_grad()
    def clamp_log_alpha(self) -> None:
        """Apply ``settings.log_alpha_bound``; called after every optimizer step."""
        for log_alpha in self.log_alpha.values():
            log_alpha.copy_(self._bounded(log_alpha))

    def _bounded(self, log_alpha: Tensor) -> Tensor:
        bound = self.settings.log_alpha_bound
        return log_alpha if bound is None else log_alpha.clamp(-bound, bound)

    def _apply(self, fn, recurse=True):
        # Casting the model (model.to(torch.bfloat16), .half()) must not touch masks: they move, but stay float32.
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(device=moved.device)

        return super()._apply(move_only, recurse)

    # ---- gates ------------------------------------------------------------------------------------------------

    def forward(self) -> dict[str, Tensor]:
        """Gates for one forward: drawn in training mode, deterministic in evaluation mode."""
        return self.sample() if self.training else self.deterministic()

    def sample(self) -> dict[str, Tensor]:
        """Draw gates of the current phase; the same seed, phase (and rank, if asked for) give the same gates."""
        noise = self._uniform_noise()
        return {
            kind.name: self.strategy.sample(kind, self.log_alpha[kind.name], self.phase, noise[kind.name])
            for kind in self.constrained
        }

    @torch.no_grad()
    def deterministic(self) -> dict[str, Tensor]:
        """Noise-free gates for evaluation and export: exactly the target's number of units is open in every row."""
        return {
            kind.name: self.strategy.deterministic(kind, self.log_alpha[kind.name], self.phase)
            for kind in self.constrained
        }

    def check_finite(self) -> None:
        """Raise UsageError for masks that training left without an order of their units."""
        for name, log_alpha in self.log_alpha.items():
            if not bool(log_alpha.isfinite().all()):
                raise UsageError(
                    f"The masks of {name!r} hold NaN or infinite values, so that none of their units is better than"
                    " another: training diverged. Take a checkpoint from before that."
                )

    def kept_units(self) -> dict[str, Tensor]:
        """Boolean masks of the units an export now would keep, for every kind, frozen ones included."""
        kept = {}
        for kind in self.kinds.values():
            if kind.frozen:
                kept[kind.name] = torch.ones(kind.mask_shape, dtype=torch.bool)
            else:
                kept[kind.name] = hard_topk(self.log_alpha[kind.name].detach(), kind.num_kept).bool().cpu()
        return kept

    def hidden_count(self, gates: dict[str, Tensor]) -> Tensor | None:
        """Number of hidden dimensions that a norm averages over: a scalar on the device, or None if none is masked.

        Open gates are counted (the paper). Where no draw closes a gate their sum, which is the budget, stands in: it is
        the same number once the gates are 0 and 1.
        """
        if HIDDEN not in gates:
            return None
        hidden = gates[HIDDEN].detach()
        if self.training and not self.strategy.draws_zeros:
            return hidden.sum()
        return (hidden != 0).sum().to(hidden.dtype)

    def _uniform_noise(self) -> dict[str, Tensor]:
        """Uniform numbers per kind. Seeding a device's generator needs no wait for the device."""
        if not self.constrained:
            return {}
        device = self.log_alpha[self.constrained[0].name].device
        key = [self.phase.optimizer_step]
        if self.settings.draw == "per_micro_batch":
            key += [self.phase.micro_batch, self.rank]
        generator = torch.Generator(device=device).manual_seed(_mix_seed(self.settings.seed, "draw", *key))
        return {
            kind.name: torch.empty(kind.mask_shape, device=device).uniform_(
                _UNIFORM_EPS, 1 - _UNIFORM_EPS, generator=generator
            )
            for kind in self.constrained
        }

    # ---- sizes and constraint ---------------------------------------------------------------------------------

    def expected_open(self, kind: UnitKind) -> Tensor:
        """Expected open share of each unit, [*rows, units]."""
        if kind.frozen:
            return torch.ones(kind.mask_shape)
        return self.strategy.expected_open(kind, self.log_alpha[kind.name], self.phase)

    def expected_sparsity(self, kind: UnitKind) -> Tensor:
        """Expected share of closed units in each row, [rows] (at least one row)."""
        return 1.0 - self.expected_open(kind).mean(dim=-1).reshape(-1)

    def lagrangian(self) -> Tensor | None:
        """Sum of the penalties of all constrained kinds at the current phase, or None if nothing is constrained so."""
        if not self.has_multipliers:
            return None
        multipliers = zip(self.constrained, self.multiplier_linear, self.multiplier_quadratic, strict=True)
        penalties = [
            self.strategy.penalty(self.expected_sparsity(kind), self.target_sparsity(kind), linear, quadratic)
            for kind, linear, quadratic in multipliers
        ]
        return torch.stack(penalties).sum()

    def target_sparsity(self, kind: UnitKind) -> float:
        """Share of units to close at the current phase, rising linearly to 1 - target / source."""
        return 1.0 - kind.budget(self.phase.budget_progress) / kind.num_units

    @torch.no_grad()
    def expected_shape(self) -> dict[str, float]:
        """Expected size per shape name, the mean over layers where layers differ."""
        groups = self.expected_open(self.kinds[KEY_VALUE_HEAD]).cpu()
        queries = self.expected_open(self.kinds[QUERY_HEAD]).cpu()
        return {
            "hidden_size": self.expected_open(self.kinds[HIDDEN]).sum().item(),
            "num_hidden_layers": self.expected_open(self.kinds[LAYER]).sum().item(),
            "num_attention_heads": (groups * queries.sum(dim=-1)).sum(dim=-1).mean().item(),
            "num_key_value_heads": groups.sum(dim=-1).mean().item(),
            **self._mlp_sizes(
                lambda kind: self.expected_open(kind).sum(dim=-1).mean().item(), float(self.source.intermediate_size)
            ),
        }

    def target_shape_now(self) -> dict[str, float]:
        """Target size per shape name at the current phase of the warm-up."""
        budgets = {name: kind.budget(self.phase.budget_progress) for name, kind in self.kinds.items()}
        return {
            "hidden_size": budgets[HIDDEN],
            "num_hidden_layers": budgets[LAYER],
            "num_attention_heads": budgets[KEY_VALUE_HEAD] * budgets[QUERY_HEAD],
            "num_key_value_heads": budgets[KEY_VALUE_HEAD],
            **self._mlp_sizes(lambda kind: budgets[kind.name], float(self.source.intermediate_size)),
        }

    def swapped_units(self, start: dict[str, Tensor]) -> dict[str, int]:
        """Units that an export now would keep and one at the start would not have kept, per shape name, over all layers.

        Args:
            start: ``kept_units()`` of the start.
        """
        now = self.kept_units()
        return self._counted({name: now[name] & ~start[name] for name in now}, _heads(now) & ~_heads(start))

    @torch.no_grad()
    def kept_below_half(self) -> dict[str, int]:
        """Units that an export now would keep although their noise-free value is below one half, per shape name.

        A query head's value is the product of its own gate and its group's. Counted over all layers.
        """
        kept, values = self.kept_units(), {}
        for kind in self.kinds.values():
            if kind.frozen:
                values[kind.name] = torch.ones(kind.mask_shape)
            else:
                values[kind.name] = self.strategy.soft_value(kind, self.log_alpha[kind.name], self.phase).cpu()
        groups, queries = values[KEY_VALUE_HEAD], values[QUERY_HEAD]
        low = {name: kept[name] & (values[name] < 0.5) for name in kept}
        return self._counted(low, _heads(kept) & (groups.unsqueeze(-1) * queries < 0.5))

    def _counted(self, units: dict[str, Tensor], heads: Tensor) -> dict[str, int]:
        """Numbers of units per shape name, over all layers; ``heads``: query heads with their groups."""
        counts = {name: int(found.sum()) for name, found in units.items()}
        return {
            "hidden_size": counts[HIDDEN],
            "num_hidden_layers": counts[LAYER],
            "num_attention_heads": int(heads.sum()),
            "num_key_value_heads": counts[KEY_VALUE_HEAD],
            **self._mlp_sizes(lambda kind: counts[kind.name], 0),
        }

    def _mlp_sizes(self, of: Callable[[UnitKind], _Number], neurons: _Number) -> dict[str, _Number]:
        """What ``of`` says of an MLP's units, by shape name; ``neurons``: of those of experts, which all stay."""
        if EXPERT not in self.kinds:
            return {"intermediate_size": of(self.kinds[INTERMEDIATE])}
        return {"intermediate_size": neurons, "num_experts": of(self.kinds[EXPERT])}


def _heads(kept: dict[str, Tensor]) -> Tensor:
    """Query heads that stay, which takes their group too, [layers, groups, heads of a group]."""
    return kept[KEY_VALUE_HEAD].unsqueeze(-1) & kept[QUERY_HEAD]


def _name(kind: UnitKind) -> str:
    return f"log_alpha_{kind.name}"


def _mix_seed(seed: int, purpose: str, *key: int) -> int:
    """A 63-bit seed that differs for every (seed, purpose, key)."""
    words = [int(seed), *purpose.encode(), *(int(part) for part in key)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
