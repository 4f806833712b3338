"""Optimizers, data, and the training loop."""
