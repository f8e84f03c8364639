"""Second moments of what linear layers read and of the gradients of what they write, and what follows from them."""

from .least_squares import least_squares_columns
from .linear_inputs import InputMoments, input_moments

__all__ = ["InputMoments", "input_moments", "least_squares_columns"]
