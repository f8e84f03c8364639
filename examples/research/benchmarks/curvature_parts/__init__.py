"""Parts of the benchmark of curvature: time, memory, and the formulas of memory."""
