"""Schedules and optimizers; the mathematics is `keras.ops` only."""
