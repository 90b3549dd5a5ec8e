"""Measured processes that run the trainer itself, one module each."""
