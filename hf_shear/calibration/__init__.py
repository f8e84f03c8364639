"""Second moments of what linear layers read and of the gradients of what they write, and what follows from them."""

from .costs import ColumnCosts, row_costs
from .evaluating import evaluating
from .factors import DAMPING
from .least_squares import least_squares_columns, update_rows
from .moments import GradientMoments, InputMoments, InputsByModule
from .stream import OUTPUT_PROJECTIONS, LayerCurvature, ShortCalibrationWarning, stream_curvature, stream_inputs

__all__ = [
    "DAMPING",
    "OUTPUT_PROJECTIONS",
    "ColumnCosts",
    "GradientMoments",
    "InputMoments",
    "InputsByModule",
    "LayerCurvature",
    "ShortCalibrationWarning",
    "evaluating",
    "least_squares_columns",
    "row_costs",
    "stream_curvature",
    "stream_inputs",
    "update_rows",
]
