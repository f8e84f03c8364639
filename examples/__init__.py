"""Scripts and configs to copy. What measures and proves is `examples.research`: `python -m examples.research.NAME`."""
