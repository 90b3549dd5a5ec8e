"""What can be done to the direction, change or new value of an optimizer; `trainer.optimizers.optimizer` has the order."""

import dataclasses

from keras import ops

from trainer.optimizers.optimizer import Selection, Transformation, check_patterns, matching, norm

BIASES_AND_NORMALIZATIONS = Selection(roles=("bias", "normalization"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightDecay(Transformation):
    """Decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101): adds `rate * value` to the direction.

    Args:
        rate: the decay of an update is this times the learning rate.
        exclude: `Selection` of the parameters that do not decay.
    """

    rate: float = 0.01
    exclude: Selection = BIASES_AND_NORMALIZATIONS

    elementwise = True
    prefix = "weight_decay"

    def transform(self, tensor, slots, context):
        if context.parameter in self.exclude or not self.rate:
            return tensor, slots
        return tensor + self.rate * context.value, slots

    def check(self, parameters):
        self.exclude.check(parameters)


def _ratio(numerator, denominator):
    """Returns numerator / denominator of scalar norms, and 1 where either is 0."""
    usable = ops.logical_and(numerator > 0, denominator > 0)
    return ops.where(usable, numerator / ops.where(usable, denominator, 1.0), 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerAdaptation(Transformation):
    """Gives each parameter a direction of its own norm (You et al. 2020, arXiv 1904.00962): LAMB after Adam and decay.

    Args:
        least_ratio: least that the trust ratio (norm of the parameter / norm of the direction) may be.
        greatest_ratio: most that it may be; the paper's experiments leave both open.
        exclude: `Selection` of the parameters that keep their direction.
    """

    least_ratio: float | None = None
    greatest_ratio: float | None = None
    exclude: Selection = BIASES_AND_NORMALIZATIONS

    prefix = "layer_adaptation"

    def transform(self, tensor, slots, context):
        if context.parameter in self.exclude:
            return tensor, slots
        ratio = _ratio(norm([context.value], on_cpu=context.on_cpu), norm([tensor], on_cpu=context.on_cpu))
        if self.least_ratio is not None:
            ratio = ops.maximum(ratio, self.least_ratio)
        if self.greatest_ratio is not None:
            ratio = ops.minimum(ratio, self.greatest_ratio)
        context.report("trust_ratio", ratio)
        return ratio * tensor, slots

    def measurements(self, parameter):
        return () if parameter in self.exclude else ("trust_ratio",)

    def check(self, parameters):
        self.exclude.check(parameters)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LarsScaling(Transformation):
    """Weight decay and local learning rate of LARS (You et al. 2017, arXiv 1708.03888, algorithm 1).

    The local rate is `coefficient * norm of the parameter / (norm of the gradient + decay * norm of the parameter)`.

    Args:
        coefficient: the paper's trust coefficient eta.
        weight_decay: the paper's beta.
        exclude: `Selection` of the parameters that do not decay and have a local rate of 1.
    """

    coefficient: float = 0.001
    weight_decay: float = 0.0005
    exclude: Selection = BIASES_AND_NORMALIZATIONS

    prefix = "lars"

    def transform(self, tensor, slots, context):
        if context.parameter in self.exclude:
            return tensor, slots
        own, other = (norm([each], on_cpu=context.on_cpu) for each in (context.value, tensor))
        ratio = _ratio(self.coefficient * own, other + self.weight_decay * own)
        context.report("trust_ratio", ratio)
        return ratio * (tensor + self.weight_decay * context.value), slots

    def measurements(self, parameter):
        return () if parameter in self.exclude else ("trust_ratio",)

    def check(self, parameters):
        self.exclude.check(parameters)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningRateMultipliers(Transformation):
    """Multiplies the change of parameters: by name, and by their depth in the model.

    Args:
        factors: `{regular expression: factor}`; a parameter's factor is the product of all that occur in its name.
        depth_decay: factor for each layer between a parameter and the top of the model, as in ULMFiT (Howard and Ruder
            2018, arXiv 1801.06146); parameters with no depth of their own count as at the top.
    """

    factors: dict = dataclasses.field(default_factory=dict)
    depth_decay: float = 1.0

    elementwise = True
    stage = "change"
    prefix = "multipliers"

    def __post_init__(self):
        Selection(patterns=tuple(self.factors))  # validates
        if not 0 < self.depth_decay <= 1:
            raise ValueError(f"depth_decay must lie in (0, 1], got {self.depth_decay}")

    def factor(self, parameter):
        """Returns what a parameter's change is multiplied by."""
        result = 1.0
        for pattern in matching(self.factors, parameter):
            result *= self.factors[pattern]
        return result * self.depth_decay**parameter.layers_above

    def transform(self, tensor, slots, context):
        factor = self.factor(context.parameter)
        return (tensor if factor == 1 else factor * tensor), slots

    def check(self, parameters):
        check_patterns(tuple(self.factors), parameters)
        if self.depth_decay < 1 and not any(parameter.layers_above for parameter in parameters):
            raise ValueError("depth_decay needs a model whose layers have a depth; this one's have none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChangeMomentum(Transformation):
    """Momentum of the changes, learning rate included, as LARS has it.

    Args:
        momentum: share of the last change that stays.
    """

    momentum: float = 0.9

    elementwise = True
    stage = "change"
    prefix = "change_momentum"

    def slots(self, parameter):
        return {"change": parameter.shape}

    def transform(self, tensor, slots, context):
        change = self.momentum * slots["change"] + tensor
        return change, {"change": change}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LazyRows(Transformation):
    """Keeps the rows of embeddings whose gradient is zero: tokens that did not occur.

    An embedding that is also the output layer has a gradient in every row, so that nothing is kept there.

    Args:
        include: `Selection` of the parameters; those without rows and columns are left alone.
        moments: `move`: what the rule remembers of such rows goes on (bojone's keras_lazyoptimizer); `freeze`: it stays,
            too (LazyAdam).
    """

    include: Selection = dataclasses.field(default_factory=lambda: Selection(roles=("embedding",)))
    moments: str = "move"

    stage = "rows"
    prefix = "lazy"

    def __post_init__(self):
        if self.moments not in ("move", "freeze"):
            raise ValueError(f"moments must be 'move' or 'freeze', got {self.moments!r}")

    def check(self, parameters):
        self.include.check(parameters)

    def keep_rows(self, new_value, new_slots, slots, context):
        """Returns the new value and the new slots, with what is to be kept put back.

        Args:
            new_value: float32 tensor of the parameter's shape.
            new_slots: dict of float32 tensors: what is remembered after this update.
            slots: the same before it.
            context: `Context`.
        """
        shape = context.parameter.shape
        if len(shape) < 2 or context.parameter not in self.include:
            return new_value, new_slots
        moved = ops.any(ops.reshape(context.gradient, (shape[0], -1)) != 0, axis=1)

        def put_back(new, old):
            return ops.where(ops.reshape(moved, (-1,) + (1,) * (len(old.shape) - 1)), new, old)

        if self.moments == "freeze":
            new_slots = {
                name: put_back(new, slots[name]) if len(new.shape) and new.shape[0] == shape[0] else new
                for name, new in new_slots.items()
            }
        return put_back(new_value, context.value), new_slots


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lookahead(Transformation):
    """Lookahead (Zhang et al. 2019, arXiv 1907.08610): slow weights that go a part of the way after some updates.

    Args:
        every: updates between two synchronisations.
        step_size: part of the way from the slow to the fast weights.
        evaluate_slow: whether evaluation and export use the slow weights.
    """

    every: int = 5
    step_size: float = 0.5
    evaluate_slow: bool = True

    elementwise = True
    stage = "value"
    prefix = "lookahead"

    def __post_init__(self):
        if self.every < 1 or not 0 < self.step_size <= 1:
            raise ValueError(
                f"Lookahead needs every >= 1 and step_size in (0, 1], got {self.every} and {self.step_size}"
            )

    @property
    def for_evaluation(self):
        """Whether evaluation uses other values."""
        return self.evaluate_slow

    def slots(self, parameter):
        return {"slow": parameter.shape}

    def transform(self, tensor, slots, context):
        # They start as a copy of what the weights are then, also of weights that were loaded at last.
        slow = ops.where(ops.equal(context.updates, 1.0), context.value, slots["slow"])
        synchronises = ops.equal(ops.mod(context.updates, float(self.every)), 0.0)
        new_slow = ops.where(synchronises, slow + self.step_size * (tensor - slow), slow)
        return ops.where(synchronises, new_slow, tensor), {"slow": new_slow}

    def evaluation_value(self, value, slots, *, updates):
        return ops.where(updates > 0, slots["slow"], value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightAverage(Transformation):
    """Exponential moving average of the weights, corrected for starting at zero, for evaluation and export.

    Args:
        momentum: share of the average that stays in an update.
        evaluate_average: whether evaluation and export use it.
    """

    momentum: float = 0.999
    evaluate_average: bool = True

    elementwise = True
    stage = "value"
    prefix = "weight_average"

    def __post_init__(self):
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")

    @property
    def for_evaluation(self):
        """Whether evaluation uses other values."""
        return self.evaluate_average

    def slots(self, parameter):
        return {"average": parameter.shape}

    def transform(self, tensor, slots, context):
        del context
        return tensor, {"average": self.momentum * slots["average"] + (1 - self.momentum) * tensor}

    def evaluation_value(self, value, slots, *, updates):
        share = 1 - ops.power(self.momentum, updates)
        return ops.where(updates > 0, slots["average"] / ops.maximum(share, 1e-30), value)
