"""reformer_c beside others, on this machine: ``python -m benchmarks``."""
