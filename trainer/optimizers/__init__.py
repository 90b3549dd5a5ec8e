"""Schedules and optimizers; the mathematics is `keras.ops` only."""

from trainer.optimizers.accumulation import GradientAccumulation
from trainer.optimizers.fitting import CountsExamples, FitsInSeveralProcesses
from trainer.optimizers.keras_optimizer import KerasOptimizer

__all__ = ["CountsExamples", "FitsInSeveralProcesses", "GradientAccumulation", "KerasOptimizer"]
