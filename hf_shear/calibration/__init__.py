"""Second moments of what linear layers read and of the gradients of what they write, and what follows from them."""

from .activation_moments import ChannelMoments, write_input_moments
from .costs import ColumnCosts, row_costs
from .evaluating import evaluating
from .factors import DAMPING
from .gate_slopes import mean_over_slopes
from .least_squares import least_squares_columns, update_rows
from .measuring import measuring, requiring_gradients, sample_losses, watch
from .micro_batches import micro_batches
from .moments import GradientMoments, InputMoments, InputsByModule
from .stream import OUTPUT_PROJECTIONS, LayerCurvature, ShortCalibrationWarning, stream_curvature, stream_inputs

__all__ = [
    "DAMPING",
    "OUTPUT_PROJECTIONS",
    "ChannelMoments",
    "ColumnCosts",
    "GradientMoments",
    "InputMoments",
    "InputsByModule",
    "LayerCurvature",
    "ShortCalibrationWarning",
    "evaluating",
    "least_squares_columns",
    "mean_over_slopes",
    "measuring",
    "micro_batches",
    "requiring_gradients",
    "row_costs",
    "sample_losses",
    "stream_curvature",
    "stream_inputs",
    "update_rows",
    "watch",
    "write_input_moments",
]
