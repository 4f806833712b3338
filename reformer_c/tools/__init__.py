"""Benchmarks, reports, plots and the demo."""
