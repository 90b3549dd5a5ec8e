"""Learning rates: functions of the optimizer step.

A schedule is a frozen dataclass that is called with the number of steps already done, a scalar float32 tensor, and
returns a scalar float32 tensor.
"""

import abc
import dataclasses
import itertools
import math

from keras import ops


def _warmup(step, warmup_steps):
    """Rises linearly: the first step already moves, and step `warmup_steps` is the first at the full rate."""
    return ops.minimum(1.0, (step + 1.0) / (warmup_steps + 1.0))


def _warmup_steps(schedule):
    """Returns the steps of a schedule's warm-up, by default a tenth of all, at most 10,000."""
    return min(10_000, schedule.total_steps // 10) if schedule.warmup_steps is None else schedule.warmup_steps


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
        warmup = _warmup_steps(self)
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
class PolynomialSchedule(_WarmupThenDecay):
    """Linear warm-up, then a polynomial decay.

    Args:
        power: of the share of steps that are left; 1 is linear.
    """

    power: float = 1.0

    def _left(self, done):
        return ops.power(1.0 - done, self.power)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InverseSquareRootSchedule:
    """Linear warm-up, then decay with the inverse square root of the step (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        peak: highest learning rate.
        warmup_steps: steps of the warm-up, after which the rate is `peak * sqrt(warmup_steps / step)`.
    """

    peak: float
    warmup_steps: int = 10_000

    def __post_init__(self):
        if self.peak <= 0 or self.warmup_steps < 1:
            raise ValueError("the peak learning rate must be positive and warmup_steps at least 1")

    def __call__(self, step):
        """Returns the learning rate for scalar float32 `step`."""
        warmup = float(self.warmup_steps)
        number = step + 1.0
        return self.peak * ops.minimum(number / warmup, ops.sqrt(warmup / number))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupStableDecaySchedule:
    """Linear warm-up, a constant rate, and a decay with 1 - sqrt (Hu et al. 2024, arXiv 2404.06395; Haegele et al. 2024,
    arXiv 2405.18392).

    Args:
        peak: highest learning rate.
        total_steps: step at which the decay ends.
        warmup_steps: steps of the warm-up; None for a tenth of `total_steps`, at most 10,000.
        decay_steps: steps of the decay; None for a tenth of `total_steps`.
        final_share: share of `peak` that is left at the end.
    """

    peak: float
    total_steps: int
    warmup_steps: int | None = None
    decay_steps: int | None = None
    final_share: float = 0.0

    def __post_init__(self):
        if self.peak <= 0:
            raise ValueError(f"the peak learning rate must be positive, got {self.peak}")
        warmup = _warmup_steps(self)
        if warmup < 0 or warmup + self._decay > self.total_steps:
            raise ValueError(f"warm-up of {warmup} and decay of {self._decay} steps do not fit into {self.total_steps}")

    @property
    def _decay(self):
        return max(1, self.total_steps // 10) if self.decay_steps is None else self.decay_steps

    def __call__(self, step):
        """Returns the learning rate for scalar float32 `step`."""
        begin = self.total_steps - self._decay
        done = ops.clip((step - begin) / max(1, self._decay), 0.0, 1.0)
        share = self.final_share + (1 - self.final_share) * (1.0 - ops.sqrt(done))
        return self.peak * _warmup(step, _warmup_steps(self)) * share


@dataclasses.dataclass(frozen=True, kw_only=True)
class PiecewiseLinearSchedule:
    """Straight lines between knots, as in bert4keras.

    Args:
        peak: what the multipliers multiply.
        knots: `{step: multiplier}`. Before the first knot the line comes from (0, 0), unless the first knot is at 0, so
            `{1000: 1}` is a warm-up; after the last knot the multiplier stays.
    """

    peak: float
    knots: dict

    def __post_init__(self):
        knots = {int(step): float(multiplier) for step, multiplier in dict(self.knots).items()}
        if not knots or min(knots) < 0 or len(knots) != len(self.knots):
            raise ValueError(f"knots must be {{step: multiplier}} with different steps from 0 on, got {self.knots}")
        object.__setattr__(self, "knots", dict(sorted(knots.items())))

    def __call__(self, step):
        """Returns the learning rate for scalar float32 `step`."""
        points = [*([] if 0 in self.knots else [(0, 0.0)]), *self.knots.items()]
        rate = points[-1][1] + 0.0 * step
        for (begin, low), (end, high) in reversed(list(itertools.pairwise(points))):
            rate = ops.where(step < end, low + (high - low) * (step - begin) / (end - begin), rate)
        return self.peak * rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeStepSchedule:
    """AdaFactor's relative step size (Shazeer and Stern 2018, arXiv 1804.04235): min(peak, 1 / sqrt(step)).

    Args:
        peak: greatest rate.
        warmup_steps: of a linear warm-up (the paper's with 10,000: `1e-6 * step` up to a hundredth); 0 for none.
    """

    peak: float = 1e-2
    warmup_steps: int = 0

    def __call__(self, step):
        """Returns the learning rate for scalar float32 `step`."""
        number = step + 1.0
        most = self.peak * ops.minimum(1.0, number / self.warmup_steps) if self.warmup_steps else self.peak
        return ops.minimum(most, ops.rsqrt(number))


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
