"""Tokenizers, and text on a terminal."""
