"""One linear layer in one shot: what each of its structures costs, and its weight after the removal.

Legend: weight W and mask ``kept`` [R, C]; A [C, C], G [R, R]. Everything is computed in float64 on the weight's device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..calibration.factors import inverse
from .costs import (
    GROUP_SIZE,
    column_costs,
    entry_costs,
    pair_costs,
    pair_matrices_damage,
    pair_matrices_surgeon,
    row_costs,
)
from .factors import KroneckerFactors, damped_factor
from .settings import SurgeonSettings
from .updates import quadratic_form, remove_entries_in_blocks, remove_entries_jointly, remove_rows_and_columns


class LayerSurgery:
    """A layer with its damped factors."""

    def __init__(self, weight: Tensor, kept: Tensor, factors: KroneckerFactors, settings: SurgeonSettings):
        self.weight, self.kept, self.settings = weight.detach().double(), kept, settings
        size, damping = weight.shape, settings.damping if settings.update != "none" else 0.0  # nothing to invert
        self.inputs = damped_factor(factors.inputs, size[1], damping, weight.device)
        self.outputs = damped_factor(factors.outputs, size[0], damping, weight.device)

    def row_and_column_costs(self) -> tuple[Tensor, Tensor]:
        """[R] and [C], float32; infinite for what is gone, and for a kind that is not to be removed.

        What was removed before stays zero, so what can change is the grid of kept rows and columns: its curvature is
        that of the two factors without the others.
        """
        rows, columns = self.kept.any(dim=1), self.kept.any(dim=0)
        weight = self.weight[rows][:, columns]
        inputs, outputs = self.inputs[columns][:, columns], self.outputs[rows][:, rows]
        of_rows, of_columns = (torch.full((len(kept),), torch.inf, device=weight.device) for kept in (rows, columns))
        if self.settings.structure != "columns":
            of_rows[rows] = row_costs(weight, inputs, self._scales(outputs)).float()
        if self.settings.structure != "rows":
            of_columns[columns] = column_costs(weight, outputs, self._scales(inputs)).float()
        return of_rows, of_columns

    def entry_costs(self) -> Tensor:
        """[R, C], float32; infinite for what is gone.

        With the curvature of the whole layer, as in the paper: that of the kept entries alone is no Kronecker product.
        """
        costs = entry_costs(self.weight, self._scales(self.outputs), self._scales(self.inputs))
        return costs.float().masked_fill(~self.kept, torch.inf)

    def pair_costs(self) -> tuple[Tensor, Tensor]:
        """Of the cheapest pair of each group, float32 and infinite for groups that have lost one, and which pair."""
        if self.settings.update == "none":
            matrices = pair_matrices_damage(self.inputs)
        else:
            matrices = pair_matrices_surgeon(inverse(self.inputs, "A"))
        costs, which = pair_costs(self.weight, self._scales(self.outputs), matrices)
        whole = self.kept.view(len(self.kept), -1, GROUP_SIZE).all(dim=-1)
        return costs.float().masked_fill(~whole, torch.inf), which.to(torch.int8)

    def remove(self, kept: Tensor) -> tuple[Tensor, float, int]:
        """The weight in float64 with zeros outside ``kept`` and the update of the rest.

        Returns:
            The weight; the rise of the loss in nats per token that the quadratic form expects; iterations used.
        """
        iterations, update = 0, self.settings.update
        if update == "none":
            new = torch.where(kept, self.weight, 0.0)
        elif self.settings.is_grid:
            new = remove_rows_and_columns(self.weight, self.inputs, self.outputs, kept.any(dim=1), kept.any(dim=0))
        elif update == "joint":
            new, iterations = remove_entries_jointly(
                self.weight,
                self.inputs,
                self.outputs,
                kept,
                inverse(self.inputs, "A"),
                inverse(self.outputs, "G"),
                self.settings.tolerance,
                self.settings.max_iterations,
            )
        else:
            block_size = 1 if update == "independent" else self.settings.block_size
            factors = inverse(self.inputs, "A"), inverse(self.outputs, "G")
            new = remove_entries_in_blocks(self.weight, *factors, kept, block_size)
        return new, float(quadratic_form(new - self.weight, self.inputs, self.outputs)), iterations

    def _scales(self, factor: Tensor) -> Tensor:
        """1 / diag(X^-1), or diag(X) where what remains is not updated."""
        if self.settings.update == "none" or not len(factor):
            return factor.diagonal()
        return 1 / inverse(factor, "A factor of what remains").diagonal()
