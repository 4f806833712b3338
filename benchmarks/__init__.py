"""Measurements of reformer_c and of other libraries on this machine: ``python -m benchmarks``."""
