"""An optimizer: a rule that turns gradients into directions, and transformations of what comes of them, in a stated order.

One update of one parameter goes through these stages (`value` is what the parameter is before):

    direction = rule(gradient)                              e.g. Adam
    direction = transformation(direction)   for each of stage `direction`: weight decay, layer adaptation
    change    = learning_rate * direction
    change    = transformation(change)      for each of stage `change`: multipliers of the rate, momentum of LARS
    new       = value - change
    new       = value where a row is to be kept, for those of stage `rows`: lazy updates
    new       = transformation(new)         for each of stage `value`: Lookahead, average of weights

Everything is a pure function of tensors in `keras.ops`; who holds the variables, and on which device, is the training
step's business, as are reducing gradients over replicas, clipping, and leaving out updates that are not finite.
"""

import abc
import dataclasses
import math
import re

from keras import ops

from trainer.optimizers.parameters import ROLES

# Smaller parameters stay in the processor's caches, so that passing over them again costs nothing, but compiling does.
_LEAST_SIZE_FOR_ONE_PASS = 2**16

STAGES = ("direction", "change", "rows", "value")


@dataclasses.dataclass(frozen=True)
class Context:
    """What rules and transformations may look at in one update of one parameter.

    Attributes:
        parameter: the `Parameter`.
        value: float32 tensor, the parameter before the update.
        gradient: float32 tensor of its shape, reduced and clipped.
        updates: scalar float32 tensor, the number of this update, from 1.
        report: callable `(name, scalar float32 tensor)` that takes what is worth looking at, such as trust ratios.
        on_cpu: whether it is computed on the CPU, where norms are written differently.
    """

    parameter: object
    value: object
    gradient: object
    updates: object
    report: object
    on_cpu: bool = False


class Rule(abc.ABC):
    """Turns gradients into directions; a frozen dataclass of its settings."""

    # Whether each number of the direction and of the slots depends on the numbers at its own place alone.
    elementwise = False

    def slots(self, parameter):
        """Returns `{name: shape}` of what is remembered of a parameter; it starts as zeros."""
        del parameter
        return {}

    @abc.abstractmethod
    def direction(self, slots, context):
        """Returns the direction, the dict of new slots, and a scalar that scales the learning rate (or None).

        Args:
            slots: dict of float32 tensors, as named by `slots`.
            context: `Context`.
        """


class Transformation:
    """Changes what a rule makes of a gradient; a frozen dataclass of its settings.

    One of the stage `rows` has a `keep_rows` instead of a `transform`, see `LazyRows`.
    """

    stage = "direction"
    elementwise = False  # as in `Rule`
    for_evaluation = False  # of the stage `value`: whether it has an `evaluation_value` of its own
    # What its slots are called, before a slash; the names of all slots of a parameter must differ.
    prefix = ""

    def slots(self, parameter):
        """Returns `{name: shape}` of what is remembered of a parameter; it starts as zeros."""
        del parameter
        return {}

    def measurements(self, parameter):
        """Returns the names of what it reports of a parameter in every update, a tuple."""
        del parameter
        return ()

    def transform(self, tensor, slots, context):
        """Returns the new direction, change or value, and the new slots.

        Args:
            tensor: float32 tensor of the parameter's shape: what the stages before made.
            slots: dict of float32 tensors, as named by `slots`.
            context: `Context`.
        """
        raise NotImplementedError

    def evaluation_value(self, value, slots, *, updates):
        """Returns what a parameter is in evaluation, if `for_evaluation`; arguments as in `Optimizer.evaluation_value`."""
        raise NotImplementedError

    def check(self, parameters):
        """Looks whether the settings fit a model's parameters.

        Raises:
            ValueError: if a pattern matches none of them, say.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Chooses parameters by their role and, where that is not enough, by their name.

    Args:
        roles: roles that are chosen, of `trainer.optimizers.parameters.ROLES`.
        patterns: regular expressions, looked for anywhere in the name, upper and lower case being the same. One that
            matches no parameter is an error: a pattern that silently matches nothing is how exclusions go wrong.
    """

    roles: tuple = ()
    patterns: tuple = ()

    def __post_init__(self):
        for name in ("roles", "patterns"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if unknown := sorted(set(self.roles) - set(ROLES)):
            raise ValueError(f"roles are {', '.join(ROLES)}; got {', '.join(unknown)}")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None

    def __contains__(self, parameter):
        return parameter.role in self.roles or any(_matches(pattern, parameter) for pattern in self.patterns)

    def check(self, parameters):
        """Raises `ValueError` if a pattern matches none of the parameters."""
        check_patterns(self.patterns, parameters)


def _matches(pattern, parameter):
    return re.search(pattern, parameter.name, re.IGNORECASE) is not None


def matching(patterns, parameter):
    """Returns those of `patterns` that occur in the name of a parameter."""
    return [pattern for pattern in patterns if _matches(pattern, parameter)]


def check_patterns(patterns, parameters):
    """Raises `ValueError` if a pattern matches no name of a parameter."""
    for pattern in patterns:
        if not any(_matches(pattern, parameter) for parameter in parameters):
            some = ", ".join(parameter.name for parameter in parameters[:4])
            raise ValueError(f"no parameter has {pattern!r} in its name; names are like {some}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """A rule and its transformations; see the head of this file for their order.

    Args:
        rule: `Rule`, such as `Adam`.
        learning_rate: a schedule, see `trainer.optimizers.schedules`.
        transformations: `Transformation`s; of one stage, those named first act first. Stages must come in their order.
        clip_norm: greatest global norm of the gradients; None for no clipping. The training step applies it after the
            gradients of all replicas and microbatches are summed.
    """

    rule: Rule
    learning_rate: object
    transformations: tuple = ()
    clip_norm: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "transformations", tuple(self.transformations))
        stages = [STAGES.index(each.stage) for each in self.transformations]
        if stages != sorted(stages):
            order = ", ".join(f"{type(each).__name__} ({each.stage})" for each in self.transformations)
            raise ValueError(
                f"transformations must come in the order of their stages, {', '.join(STAGES)}; got {order}"
            )
        names = [type(each).__name__ for each in self.transformations]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{twice[0]} stands twice in the transformations")
        if not callable(self.learning_rate):
            raise ValueError(
                f"learning_rate must be a schedule, such as ConstantSchedule(peak={self.learning_rate!r}) or in Gin "
                f"@constant_schedule(), got {self.learning_rate!r}"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be positive or None, got {self.clip_norm}")

    def slots(self, parameter):
        """Returns `{name: shape}` of everything that is remembered of a parameter; it starts as zeros."""
        slots = dict(self.rule.slots(parameter))
        for each in self.transformations:
            for name, shape in each.slots(parameter).items():
                slots[f"{each.prefix}/{name}"] = shape
        return slots

    def check(self, parameters):
        """Looks whether the settings fit a model's parameters.

        Raises:
            ValueError: if something in the settings stands for none of them.
        """
        for each in self.transformations:
            each.check(parameters)
        for parameter in parameters:
            names = self.measurements(parameter)
            if len(set(names)) < len(names):
                raise ValueError("two transformations scale by trust ratios: leave one out")

    def clip_factor(self, gradient_norm):
        """Returns what gradients of a global norm, a scalar float32 tensor, are multiplied by; 1 without `clip_norm`."""
        if self.clip_norm is None:
            return 1.0
        return self.clip_norm / ops.maximum(gradient_norm, self.clip_norm)

    def measurements(self, parameter):
        """Returns the names of what is reported of a parameter in every update, a tuple."""
        return tuple(name for each in self.transformations for name in each.measurements(parameter))

    @property
    def elementwise(self):
        """Whether each number of a parameter is updated for itself."""
        return all(each.elementwise for each in (self.rule, *self.transformations))

    def update(
        self,
        parameter,
        value,
        gradient,
        slots,
        *,
        updates,
        learning_rate,
        scale=1.0,
        on_cpu=False,
        in_one_pass=False,
        report=lambda name, number: None,
    ):
        """Computes one update of one parameter.

        Args:
            parameter: its `Parameter`.
            value: float32 tensor of any shape.
            gradient: float32 tensor of the same shape.
            slots: dict of float32 tensors, as named by `slots`.
            updates: scalar float32 tensor, the number of this update, from 1.
            learning_rate: scalar float32 tensor.
            scale: scalar float32 tensor or number that the gradient is multiplied by.
            on_cpu: whether it is computed on the CPU, where norms are written differently.
            in_one_pass: whether to write the update so that XLA on the CPU, where `joins_loops`, passes over memory once.
                Numbers may then differ in their last bit, as after any other compilation.
                Without effect on small parameters, and where the update is not elementwise.
            report: callable `(name, scalar float32 tensor)`, called once for each of `measurements`.

        Returns:
            the new value and the dict of new slots.
        """
        common = {"updates": updates, "learning_rate": learning_rate, "report": report, "on_cpu": on_cpu}
        if not (in_one_pass and self.elementwise and math.prod(parameter.shape) >= _LEAST_SIZE_FOR_ONE_PASS):
            return self._update(parameter, value, scale * gradient, slots, **common)

        # XLA on the CPU makes one loop of loops over the same inputs, but not where they share what was computed on the
        # way: that goes through memory. So each result is computed for itself, and so that XLA does not see that they
        # are the same computations: arithmetic that is done again costs much less than passing over memory again.
        def apart(number):
            one = 1.0 + 0.0 * (updates + number)
            own_slots = {name: one * slot for name, slot in slots.items()}
            return self._update(parameter, one * value, one * scale * gradient, own_slots, **common)

        new_slots = {name: apart(number)[1][name] for number, name in enumerate(slots, 1)}
        return apart(0)[0], new_slots

    def _update(self, parameter, value, gradient, slots, *, updates, learning_rate, report, on_cpu):
        context = Context(parameter, value, gradient, updates, report, on_cpu)
        own = {name: slots[name] for name in self.rule.slots(parameter)}
        direction, new_slots, scale = self.rule.direction(own, context)
        new_slots = dict(new_slots)

        def through(stage, tensor):
            for each in self._of_stage(stage):
                names = each.slots(parameter)
                own = {name: slots[f"{each.prefix}/{name}"] for name in names}
                tensor, changed = each.transform(tensor, own, context)
                new_slots.update({f"{each.prefix}/{name}": changed[name] for name in names})
            return tensor

        rate = learning_rate if scale is None else learning_rate * scale
        change = through("change", rate * through("direction", direction))
        new_value = value - change
        for each in self._of_stage("rows"):
            new_value, new_slots = each.keep_rows(new_value, new_slots, slots, context)
        return through("value", new_value), new_slots

    def _of_stage(self, stage):
        return [each for each in self.transformations if each.stage == stage]

    def evaluation_value(self, parameter, value, slots, *, updates):
        """Returns what a parameter is in evaluation and export: its value, or what a transformation offers instead.

        Args:
            parameter: its `Parameter`.
            value: float32 tensor, the parameter.
            slots: dict of float32 tensors, as named by `slots`.
            updates: scalar float32 tensor, updates done.
        """
        for each in self._for_evaluation():
            own = {name: slots[f"{each.prefix}/{name}"] for name in each.slots(parameter)}
            value = each.evaluation_value(value, own, updates=updates)
        return value

    @property
    def evaluates_other_values(self):
        """Whether `evaluation_value` can differ from the value."""
        return bool(self._for_evaluation())

    def _for_evaluation(self):
        return [each for each in self._of_stage("value") if each.for_evaluation]


def _sum_of_squares(tensor, on_cpu):
    if not on_cpu or len(tensor.shape) < 2:
        return ops.sum(ops.square(tensor))
    rows = ops.reshape(tensor, (-1, tensor.shape[-1]))
    return ops.sum(ops.matmul(ops.square(rows), ops.ones(tensor.shape[-1])))


def norm(tensors, *, on_cpu=False):
    """Returns the Euclidean norm of everything in a list of float32 tensors of any shapes, a scalar.

    For the CPU XLA fuses squares into a product of matrix and vector, but writes them to memory before a plain sum, four
    times slower. Elsewhere matrix units may round products to fewer bits.
    """
    return ops.sqrt(sum(_sum_of_squares(tensor, on_cpu) for tensor in tensors))


def root_mean_square(tensor, *, on_cpu=False):
    """Returns the root of the mean of squares of a float32 tensor of any shape, a scalar."""
    return norm([tensor], on_cpu=on_cpu) / math.prod(tensor.shape) ** 0.5
