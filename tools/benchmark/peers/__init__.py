"""Measured systems, each a script that runs in an interpreter of its own and imports nothing of the trainer."""
