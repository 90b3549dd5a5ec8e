"""Learning rates: functions of the optimizer step.

A schedule is a frozen dataclass that is called with the number of steps already done, a scalar float32 tensor, and
returns a scalar float32 tensor.
"""

import abc
import dataclasses
import math

from keras import ops


def _warmup(step, warmup_steps):
    """Rises linearly: the first step already moves, and step `warmup_steps` is the first at the full rate."""
    return ops.minimum(1.0, (step + 1.0) / (warmup_steps + 1.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _WarmupThenDecay(abc.ABC):
    """Linear warm-up to `peak`, then a decay to `final_share * peak` at `total_steps`, constant afterwards.

    Args:
        peak: highest learning rate.
        total_steps: step at which the decay ends.
        warmup_steps: steps of the warm-up; None for a tenth of `total_steps`, at most 10,000.
        final_share: share of `peak` that is left at the end.
    """

    peak: float
    total_steps: int
    warmup_steps: int | None = None
    final_share: float = 0.0

    def __post_init__(self):
        if self.peak <= 0:
            raise ValueError(f"the peak learning rate must be positive, got {self.peak}")
        if self.warmup_steps is not None and not 0 <= self.warmup_steps <= self.total_steps:
            raise ValueError(
                f"warmup_steps must lie between 0 and total_steps {self.total_steps}, got {self.warmup_steps}"
            )

    def __call__(self, step):
        """Returns the learning rate for scalar float32 `step`."""
        warmup = min(10_000, self.total_steps // 10) if self.warmup_steps is None else self.warmup_steps
        done = ops.clip((step - warmup) / max(1, self.total_steps - warmup), 0.0, 1.0)
        share = self.final_share + (1 - self.final_share) * self._left(done)
        return self.peak * _warmup(step, warmup) * share

    @abc.abstractmethod
    def _left(self, done):
        """Returns the share of the way from `peak` down that is left, 1 to 0, when a share `done` of the decay is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearSchedule(_WarmupThenDecay):
    """Linear warm-up, then linear decay, as in BERT."""

    def _left(self, done):
        return 1.0 - done


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineSchedule(_WarmupThenDecay):
    """Linear warm-up, then half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983)."""

    def _left(self, done):
        return 0.5 * (1.0 + ops.cos(math.pi * done))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantSchedule:
    """The same rate at every step.

    Args:
        peak: the learning rate.
    """

    peak: float

    def __call__(self, step):
        """Returns the learning rate for scalar float32 `step`."""
        return self.peak + 0.0 * step
