"""Optimizers as pure functions of values, gradients and slots, in `keras.ops`.

An optimizer says which slots a parameter has and how one parameter is updated; who holds the variables, and on which
device, is the training step's business.
"""

import dataclasses

from keras import ops

from trainer.optimizers.parameters import ROLES


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2).

    Args:
        learning_rate: a schedule, see `trainer.optimizers.schedules`.
        weight_decay: the decay of a step is this times the learning rate.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        epsilon: added to the root of the second moment.
        clip_norm: greatest global norm of the gradients; None for no clipping. Applied by the step after the gradients
            of all replicas and microbatches are summed.
        no_decay: roles of the parameters that do not decay.
    """

    learning_rate: object
    weight_decay: float = 0.01
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6
    clip_norm: float | None = 1.0
    no_decay: tuple = ("bias", "normalization")

    slots = ("momentum", "velocity")

    def __post_init__(self):
        object.__setattr__(self, "no_decay", tuple(self.no_decay))
        if unknown := set(self.no_decay) - set(ROLES):
            raise ValueError(f"no_decay may hold {', '.join(ROLES)}, got {', '.join(sorted(unknown))}")
        for name in ("beta_1", "beta_2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")

    def update(self, parameter, value, gradient, slots, *, updates, learning_rate):
        """Computes one update of one parameter.

        Args:
            parameter: its `Parameter`, for the role.
            value: float32 tensor of any shape.
            gradient: float32 tensor of the same shape.
            slots: dict of float32 tensors of that shape, as named in `slots`.
            updates: scalar float32 tensor, the number of this update, from 1.
            learning_rate: scalar float32 tensor.

        Returns:
            the new value and the dict of new slots.
        """
        momentum = self.beta_1 * slots["momentum"] + (1 - self.beta_1) * gradient
        velocity = self.beta_2 * slots["velocity"] + (1 - self.beta_2) * gradient * gradient
        first = 1 / (1 - ops.power(self.beta_1, updates))
        second = ops.rsqrt(1 - ops.power(self.beta_2, updates))
        change = first * momentum / (second * ops.sqrt(velocity) + self.epsilon)
        if parameter.role not in self.no_decay:
            change = change + self.weight_decay * value
        return value - learning_rate * change, {"momentum": momentum, "velocity": velocity}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD:
    """Plain gradient descent: the optimizer for tests of equality, since nothing in it hides a factor.

    Args:
        learning_rate: a schedule.
        clip_norm: as in `AdamW`.
    """

    learning_rate: object
    clip_norm: float | None = None

    slots = ()

    def update(self, parameter, value, gradient, slots, *, updates, learning_rate):
        """Computes one update of one parameter; arguments as in `AdamW.update`."""
        del parameter, updates
        return value - learning_rate * gradient, slots
