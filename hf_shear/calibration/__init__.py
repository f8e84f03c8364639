"""One engine that shows calibration text to a model, moments of what is seen, and what follows from them."""

from .columns import ColumnCosts, least_squares_columns
from .engine import Batch, measuring, observe, sample_losses, shown, watching
from .factors import DAMPING
from .gate_slopes import mean_over_slopes
from .layer_stream import (
    InputsByModule,
    LayerRunner,
    LayerStream,
    ShortCalibrationWarning,
    stream_curvature,
    stream_inputs,
)
from .moments import Moments, Sums, write_input_moments

__all__ = [
    "DAMPING",
    "Batch",
    "ColumnCosts",
    "InputsByModule",
    "LayerRunner",
    "LayerStream",
    "Moments",
    "ShortCalibrationWarning",
    "Sums",
    "least_squares_columns",
    "mean_over_slopes",
    "measuring",
    "observe",
    "sample_losses",
    "shown",
    "stream_curvature",
    "stream_inputs",
    "watching",
    "write_input_moments",
]
