"""What the Surgeon removes, by which curvature, and what it does with the rest."""

from __future__ import annotations

from dataclasses import dataclass

from ..calibration import DAMPING
from ..core import UsageError, check_ranges

STRUCTURES = ("rows", "columns", "rows_and_columns", "2:4", "unstructured")
CURVATURES = ("kronecker", "inputs", "none")
UPDATES = ("joint", "blocks", "independent", "none")
GRID_STRUCTURES = STRUCTURES[:3]  # what remains of a matrix is a smaller matrix


@dataclass(frozen=True)
class SurgeonSettings:
    """Choices that hold for all layers and shots.

    Attributes:
        structure: what is removed as a whole: rows, columns, both in one ranking, two of every four neighbouring inputs
            (2:4), or single entries.
        curvature: "kronecker" (A and G: the LLM Surgeon), "inputs" (A alone: the squared error of each layer's output),
            or "none" (both the identity: squared magnitude, with no use of the text).
        update: of what remains. "joint": the exact minimum of the quadratic form. For entries and 2:4 also "blocks" of
            ``block_size`` removed entries each, summed; "independent", blocks of one; and "none", which also takes
            the costs of removal without an update (with "kronecker": K-OBD).
        block_size: removed entries of one block. Each is a dense system of that size in float64.
        tolerance, max_iterations: of the joint update of entries and 2:4 (``updates.remove_entries_jointly``).
        damping: of both factors, times the mean of the diagonal (the value of the paper's code).
        layers_at_once: linear layers whose factors are collected in one pass over the text; None: all. A number moves
            the factors to the CPU after each pass, and the costs of entries and 2:4 likewise.
    """

    structure: str = "rows_and_columns"
    curvature: str = "kronecker"
    update: str = "joint"
    block_size: int = 512
    tolerance: float = 1e-3
    max_iterations: int = 100
    damping: float = DAMPING
    layers_at_once: int | None = None

    def __post_init__(self):
        check_ranges(self)
        for name, allowed in (("structure", STRUCTURES), ("curvature", CURVATURES), ("update", UPDATES)):
            if getattr(self, name) not in allowed:
                raise UsageError(f"`{name}` must be one of {', '.join(allowed)}, but it is {getattr(self, name)!r}.")
        if self.is_grid and self.update in ("blocks", "independent"):
            raise UsageError(
                f"`update` must be 'joint' or 'none' for {self.structure}, whose joint update has a closed form, but it "
                f"is {self.update!r}."
            )

    @property
    def is_grid(self) -> bool:
        return self.structure in GRID_STRUCTURES

    @property
    def smallest_size(self) -> float:
        """The share of entries that remains when nothing more can be removed."""
        return 0.5 if self.structure == "2:4" else 0.0
