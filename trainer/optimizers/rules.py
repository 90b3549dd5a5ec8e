"""Rules: how gradients become directions. The mathematics is that of the papers named, in `keras.ops`."""

import dataclasses

from keras import ops

from trainer.optimizers.optimizer import Rule, Selection, norm, root_mean_square


def _check_share(rule, *names):
    for name in names:
        if not 0 <= getattr(rule, name) < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {getattr(rule, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientDescent(Rule):
    """Gradient descent, with momentum (Polyak 1964) or Nesterov's (Sutskever et al. 2013).

    Args:
        momentum: share of the last direction that stays; 0 remembers nothing.
        nesterov: whether to look ahead.
    """

    momentum: float = 0.0
    nesterov: bool = False

    elementwise = True

    def __post_init__(self):
        _check_share(self, "momentum")

    def slots(self, parameter):
        return {"momentum": parameter.shape} if self.momentum else {}

    def direction(self, slots, context):
        if not self.momentum:
            return context.gradient, {}, None
        momentum = self.momentum * slots["momentum"] + context.gradient
        direction = context.gradient + self.momentum * momentum if self.nesterov else momentum
        return direction, {"momentum": momentum}, None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam(Rule):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1); as `StableAdamW` with `clip_update`.

    Args:
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        epsilon: added to the root of the second moment.
        bias_correction: whether moments are divided by what they lack after few updates; Google's BERT does not.
        clip_update: scales the learning rate, weight decay included, by 1 / max(1, RMS) with the root mean square RMS of
            g / sqrt(second moment) (Wortsman et al. 2023, arXiv 2304.13013, algorithm 2): no need to clip gradients.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6
    bias_correction: bool = True
    clip_update: bool = False

    def __post_init__(self):
        _check_share(self, "beta_1", "beta_2")

    @property
    def elementwise(self):
        """See `Rule`."""
        return not self.clip_update

    def slots(self, parameter):
        return {"momentum": parameter.shape, "velocity": parameter.shape}

    def direction(self, slots, context):
        gradient = context.gradient
        momentum = self.beta_1 * slots["momentum"] + (1 - self.beta_1) * gradient
        velocity = self.beta_2 * slots["velocity"] + (1 - self.beta_2) * gradient * gradient
        first, second = 1.0, 1.0
        if self.bias_correction:
            first = 1 / (1 - ops.power(self.beta_1, context.updates))
            second = ops.rsqrt(1 - ops.power(self.beta_2, context.updates))
        direction = first * momentum / (second * ops.sqrt(velocity) + self.epsilon)
        scale = None
        if self.clip_update:
            least = self.epsilon * self.epsilon
            surprise = gradient * ops.rsqrt(ops.maximum(ops.square(second) * velocity, least))
            scale = 1 / ops.maximum(1.0, root_mean_square(surprise, on_cpu=context.on_cpu))
        return direction, {"momentum": momentum, "velocity": velocity}, scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(Rule):
    """Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2): the sign of a momentum.

    Directions are as large as it gets: a learning rate three to ten times smaller than Adam's, and a weight decay as much
    larger, is what the paper advises.

    Args:
        beta_1: share of the momentum in the direction.
        beta_2: decay of the momentum.
    """

    beta_1: float = 0.9
    beta_2: float = 0.99

    elementwise = True

    def __post_init__(self):
        _check_share(self, "beta_1", "beta_2")

    def slots(self, parameter):
        return {"momentum": parameter.shape}

    def direction(self, slots, context):
        momentum, gradient = slots["momentum"], context.gradient
        direction = ops.sign(self.beta_1 * momentum + (1 - self.beta_1) * gradient)
        return direction, {"momentum": self.beta_2 * momentum + (1 - self.beta_2) * gradient}, None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaFactor(Rule):
    """AdaFactor (Shazeer and Stern 2018, arXiv 1804.04235, algorithms 4 and 5).

    Of a matrix it remembers the sums of rows and columns of the second moment instead of all of it. The paper's relative
    step size is `relative_step_schedule` as learning rate.

    Args:
        decay_exponent: the decay at update t is 1 - t^-decay_exponent.
        epsilon: added to squared gradients (the paper's epsilon 1).
        clip_threshold: greatest root mean square of a direction (the paper's d); None for no clipping.
        scale_by_parameter: whether the learning rate is times the root mean square of the parameter.
        least_parameter_scale: least that this root mean square counts as (the paper's epsilon 2).
        least_factored_size: a tensor whose last two dimensions are not both at least this is not factored.
    """

    decay_exponent: float = 0.8
    epsilon: float = 1e-30
    clip_threshold: float | None = 1.0
    scale_by_parameter: bool = True
    least_parameter_scale: float = 1e-3
    least_factored_size: int = 2

    def _factored(self, parameter):
        return len(parameter.shape) >= 2 and min(parameter.shape[-2:]) >= self.least_factored_size

    def slots(self, parameter):
        shape = parameter.shape
        if not self._factored(parameter):
            return {"velocity": shape}
        return {"row_velocity": shape[:-1], "column_velocity": (*shape[:-2], shape[-1])}

    def direction(self, slots, context):
        gradient = context.gradient
        squares = ops.square(gradient) + self.epsilon
        decay = 1 - ops.power(context.updates, -self.decay_exponent)
        if self._factored(context.parameter):
            rows = decay * slots["row_velocity"] + (1 - decay) * ops.mean(squares, axis=-1)
            columns = decay * slots["column_velocity"] + (1 - decay) * ops.mean(squares, axis=-2)
            # Mean instead of sum of each row and column: what is left out cancels.
            row_factor = ops.rsqrt(rows / ops.mean(rows, axis=-1, keepdims=True))
            direction = gradient * row_factor[..., None] * ops.rsqrt(columns)[..., None, :]
            new_slots = {"row_velocity": rows, "column_velocity": columns}
        else:
            velocity = decay * slots["velocity"] + (1 - decay) * squares
            direction, new_slots = gradient * ops.rsqrt(velocity), {"velocity": velocity}
        if self.clip_threshold is not None:
            size = root_mean_square(direction, on_cpu=context.on_cpu)
            direction = direction / ops.maximum(1.0, size / self.clip_threshold)
        if self.scale_by_parameter:
            size = root_mean_square(context.value, on_cpu=context.on_cpu)
            direction = direction * ops.maximum(self.least_parameter_scale, size)
        return direction, new_slots, None


# Coefficients of Muon's quintic iteration (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrix, iterations=5):
    """Returns about the nearest matrix whose singular values are equal, by Newton-Schulz iterations.

    They end between 0.7 and 1.2 rather than at 1, which is as good for training and much cheaper.

    Args:
        matrix: float32 `[rows, columns]`.
        iterations: of the quintic polynomial.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = ops.transpose(matrix) if tall else matrix
    x = x / (norm([x]) + 1e-7)
    for _ in range(iterations):
        gram = ops.matmul(x, ops.transpose(x))
        x = a * x + ops.matmul(b * gram + c * ops.matmul(gram, gram), x)
    return ops.transpose(x) if tall else x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(Rule):
    """Muon for the matrices of hidden layers (Jordan et al. 2024), another rule for the rest.

    Directions are scaled so that their root mean square is about that of Adam's (Liu et al. 2025, arXiv 2502.16982),
    whose learning rate and weight decay therefore serve both.

    Args:
        momentum: decay of the momentum.
        nesterov: whether to look ahead.
        iterations: Newton-Schulz iterations.
        matched_rms: root mean square that directions are scaled to.
        rest: `Rule` for parameters that are no matrices, and for `rest_parameters`.
        rest_parameters: `Selection` of matrices that `rest` is for.
    """

    momentum: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    matched_rms: float = 0.2
    rest: Rule = dataclasses.field(default_factory=Adam)
    rest_parameters: Selection = dataclasses.field(default_factory=lambda: Selection(roles=("embedding",)))

    def __post_init__(self):
        _check_share(self, "momentum")

    def _is_for(self, parameter):
        return len(parameter.shape) == 2 and parameter not in self.rest_parameters

    def slots(self, parameter):
        return {"momentum": parameter.shape} if self._is_for(parameter) else self.rest.slots(parameter)

    def direction(self, slots, context):
        if not self._is_for(context.parameter):
            return self.rest.direction(slots, context)
        momentum = self.momentum * slots["momentum"] + (1 - self.momentum) * context.gradient
        ahead = self.momentum * momentum + (1 - self.momentum) * context.gradient if self.nesterov else momentum
        scale = self.matched_rms * max(context.parameter.shape) ** 0.5
        return scale * orthogonalized(ahead, self.iterations), {"momentum": momentum}, None
