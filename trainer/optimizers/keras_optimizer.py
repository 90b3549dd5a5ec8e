"""The trainer's optimizers in other people's Keras programs."""

import dataclasses
import functools
import os

import keras
import tensorflow as tf
from keras import ops

from trainer.distribution import replica_local
from trainer.environment import joins_loops
from trainer.optimizers import optimizer as optimizer_module
from trainer.optimizers import rules, schedules, transformations
from trainer.optimizers.optimizer import norm
from trainer.optimizers.parameters import Parameter, is_bias, parameters_of

_CLASSES = {
    name: value
    for module in (optimizer_module, rules, schedules, transformations)
    for name, value in vars(module).items()
    if dataclasses.is_dataclass(value)
}
_NORMALIZATION_NAMES = ("gamma", "beta", "scale")


@keras.saving.register_keras_serializable(package="bert_trainer")
class KerasOptimizer(keras.optimizers.Optimizer):
    """An `Optimizer` of this trainer as a Keras optimizer, for `compile`, loops of one's own and `GradientAccumulation`.

    Args:
        optimizer: `trainer.optimizers.optimizer.Optimizer`, such as `recipes.lamb(...)` makes. Gradients are reduced
            over the replicas first and clipped after.
        model: built Keras layer or model whose layers tell the roles of its variables; without it roles go by the names
            that Keras gives: `embeddings`, `gamma`, `beta`, `scale`, and everything of fewer than two dimensions is a bias.
        jit_compile: whether XLA compiles the update, all variables in one program.
        name: of the optimizer.
    """

    def __init__(self, optimizer, model=None, jit_compile=True, name="keras_optimizer"):
        if not isinstance(optimizer, optimizer_module.Optimizer):
            raise ValueError(
                f"an optimizer of trainer.optimizers.recipes, such as adamw(...), is needed, got {optimizer!r}"
            )
        super().__init__(learning_rate=_Schedule(optimizer.learning_rate), name=name)
        self.optimizer = optimizer
        self._jit_compile = jit_compile
        # {path: (role, layers above)} of the model's variables; None to go by names.
        self._places = None
        if model is not None:
            self._places = {each.name: (each.role, each.layers_above) for each in parameters_of(model)}

    def build(self, variables):
        """Makes the slots for a list of variables."""
        if self.built:
            return
        super().build(variables)
        self._parameters = [self._parameter(variable) for variable in variables]
        self.optimizer.check(self._parameters)
        self._slots = []
        for parameter, variable in zip(self._parameters, variables, strict=True):
            self._slots.append(
                {
                    name: self._slot_variable(variable, name, shape)
                    for name, shape in self.optimizer.slots(parameter).items()
                }
            )

    def _parameter(self, variable):
        if self._places is not None:
            if variable.path not in self._places:
                raise ValueError(f"the model that KerasOptimizer was given has no variable {variable.path}")
            role, layers_above = self._places[variable.path]
            return Parameter(variable.path, role, None, layers_above, tuple(variable.shape))
        name = variable.path.rpartition("/")[2]
        if name == "embeddings":
            role = "embedding"
        elif name in _NORMALIZATION_NAMES:
            role = "normalization"
        else:
            role = "bias" if is_bias(name, variable.shape) else "kernel"
        return Parameter(variable.path, role, None, 0, tuple(variable.shape))

    def _slot_variable(self, variable, name, shape):
        with self._distribution_strategy.extended.colocate_vars_with(variable.value):
            return self.add_variable(shape, dtype="float32", name=f"{variable.path}_{name}".replace("/", "_"))

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # What Keras calls with the gradients of this replica. Its own would clip before it reduces.
        pairs = self._all_reduce_sum_gradients(list(zip(grads, trainable_variables, strict=True)))
        updates = tf.cast(replica_local(self.iterations).read_value() + 1, tf.float32)
        indices = tuple(self._get_variable_index(variable) for _, variable in pairs)
        # Collectives leave the shape of a reduced `IndexedSlices` open.
        gradients = [
            tf.reshape(tf.cast(tf.convert_to_tensor(gradient), tf.float32), variable.shape)
            for gradient, variable in pairs
        ]
        strategy, context = tf.distribute.get_strategy(), tf.distribute.get_replica_context()
        # A TPU's whole step is one program already; outside of replicas a variable stands for all of its copies.
        compiled = self._jit_compile and context is not None and not isinstance(strategy, tf.distribute.TPUStrategy)
        update = self._compiled_update if compiled else self._update
        update(indices, gradients, updates, tf.cast(learning_rate, tf.float32), compiled=compiled)

    @functools.cached_property
    def _compiled_update(self):
        return tf.function(self._update, jit_compile=True, autograph=False)

    def _update(self, indices, gradients, updates, learning_rate, *, compiled):
        """Updates variables by their indices; on each replica the same, from gradients that are reduced."""
        optimizer = self.optimizer
        on_cpu = "CPU" in replica_local(self._trainable_variables[indices[0]]).device
        # Eagerly a norm that nobody wants would be computed all the same.
        scale = 1.0 if optimizer.clip_norm is None else optimizer.clip_factor(norm(gradients, on_cpu=on_cpu))
        for index, gradient in zip(indices, gradients, strict=True):
            variable = replica_local(self._trainable_variables[index])
            slots = {name: replica_local(slot) for name, slot in self._slots[index].items()}
            value, new_slots = optimizer.update(
                self._parameters[index],
                tf.cast(variable.read_value(), tf.float32),
                gradient,
                {name: slot.read_value() for name, slot in slots.items()},
                updates=updates,
                learning_rate=learning_rate,
                scale=scale,
                on_cpu=on_cpu,
                in_one_pass=compiled and on_cpu and joins_loops(os.environ),
            )
            variable.assign(tf.cast(value, variable.dtype))
            for name, slot in slots.items():
                slot.assign(new_slots[name])

    def get_config(self):
        """Returns what the optimizer can be made again from; the roles of a model's variables are part of it."""
        return {
            "optimizer": _to_config(self.optimizer),
            "places": None if self._places is None else [[path, *place] for path, place in self._places.items()],
            "jit_compile": self._jit_compile,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Makes an optimizer from what `get_config` returned."""
        made = cls(_from_config(config["optimizer"]), jit_compile=config["jit_compile"], name=config["name"])
        if config["places"] is not None:
            made._places = {path: (role, layers_above) for path, role, layers_above in config["places"]}
        return made


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of this trainer as one of Keras."""

    def __init__(self, schedule):
        super().__init__()
        self._schedule = schedule

    def __call__(self, step):
        return self._schedule(ops.cast(step, "float32"))

    def get_config(self):
        return {"schedule": _to_config(self._schedule)}


def _to_config(value):
    """Returns an object of frozen dataclasses as JSON has it."""
    if dataclasses.is_dataclass(value):
        if _CLASSES.get(type(value).__name__) is not type(value):
            raise ValueError(f"{type(value).__name__} cannot be written to a configuration")
        fields = {field.name: _to_config(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, "fields": fields}
    if isinstance(value, dict):
        return {"items": [[key, _to_config(each)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [_to_config(each) for each in value]
    if value is not None and not isinstance(value, str | int | float | bool):
        raise ValueError(f"{value!r} cannot be written to a configuration")
    return value


def _from_config(config):
    if isinstance(config, list):
        return tuple(_from_config(each) for each in config)
    if isinstance(config, dict) and "items" in config:
        return {key: _from_config(each) for key, each in config["items"]}
    if isinstance(config, dict):
        return _CLASSES[config["class"]](**{name: _from_config(each) for name, each in config["fields"].items()})
    return config
