"""Configurations, models, and generation."""
