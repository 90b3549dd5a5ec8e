"""The train state: the only place where a run's mutable numbers live."""

import dataclasses

import tensorflow as tf

from trainer.errors import InputError
from trainer.optimizers.optimizer import check_patterns, matching
from trainer.optimizers.parameters import parameters_of

INITIAL_LOSS_SCALE = 2.0**15


@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a checkpoint holds.

    Attributes:
        model: the built Keras layer.
        parameters: list of `Parameter`: those that are trained.
        frozen: list of `Parameter`: those that stay as they are; without gradients, slots and updates.
        slots: for each parameter that is trained a dict of optimizer slot variables, float32.
        step: int64 scalar variable on the host: optimizer steps done.
        updates: float32 scalar variable: steps whose update was applied, which is what bias correction counts.
        loss_scale: float32 scalar variable; stays 1 unless the compute dtype is float16.
        good_steps: float32 scalar variable: steps since the loss scale last changed.
    """

    model: object
    parameters: list
    frozen: list
    slots: list
    step: tf.Variable
    updates: tf.Variable
    loss_scale: tf.Variable
    good_steps: tf.Variable

    @property
    def all_parameters(self):
        """The list of all `Parameter`s of the model, trained and frozen."""
        return [*self.parameters, *self.frozen]

    def checkpoint_variables(self):
        """Returns the nested dict of variables that a checkpoint stores, by name."""
        slots = {parameter.name: slots for parameter, slots in zip(self.parameters, self.slots, strict=True) if slots}
        return {
            "weights": {parameter.name: parameter.variable.value for parameter in self.all_parameters},
            "optimizer": slots,
            "step": self.step,
            "updates": self.updates,
            "loss_scale": self.loss_scale,
            "good_steps": self.good_steps,
        }


def divide_parameters(parameters, frozen):
    """Parts the parameters that are trained from those that are not.

    Args:
        parameters: list of `Parameter`, all of a model.
        frozen: regular expressions; a parameter in whose name one is found is not trained.

    Returns:
        list of those that are trained, and of those that are frozen, each in the order given.

    Raises:
        InputError: if an expression is found in no name, or nothing is left to train.
    """
    try:
        check_patterns(frozen, parameters)
    except ValueError as error:
        raise InputError(f"run.frozen: {error}") from None
    trained = [parameter for parameter in parameters if not matching(frozen, parameter)]
    if not trained:
        raise InputError(f"run.frozen {tuple(frozen)} leaves nothing to train")
    return trained, [parameter for parameter in parameters if matching(frozen, parameter)]


def create_state(strategy, task, optimizer, *, seed, dtype, frozen=()):
    """Builds the model and the optimizer's slots under a strategy.

    Args:
        strategy: `tf.distribute.Strategy`.
        task: the `Task`.
        optimizer: `trainer.optimizers.optimizer.Optimizer`.
        seed: integer for the initial weights.
        dtype: Keras dtype policy name.
        frozen: regular expressions that choose parameters which are not trained, see `divide_parameters`.

    Returns:
        a `TrainState` at step 0.

    Raises:
        InputError: if the optimizer or `frozen` does not fit the model.
    """
    step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
    with strategy.scope():
        model = task.build_model(seed=seed, dtype=dtype)
        everything = parameters_of(model)
        try:
            optimizer.check(everything)
        except ValueError as error:
            raise InputError(f"the optimizer does not fit the model: {error}") from None
        parameters, never_trained = divide_parameters(everything, frozen)

        def scalar(value, name):
            return tf.Variable(value, dtype=tf.float32, trainable=False, name=name)

        def slot_variable(parameter, name, shape):
            return tf.Variable(tf.zeros(shape), trainable=False, name=f"{parameter.name}/{name}")

        slots = [
            {name: slot_variable(parameter, name, shape) for name, shape in optimizer.slots(parameter).items()}
            for parameter in parameters
        ]
        return TrainState(
            model=model,
            parameters=parameters,
            frozen=never_trained,
            slots=slots,
            step=step,
            updates=scalar(0.0, "updates"),
            loss_scale=scalar(INITIAL_LOSS_SCALE if dtype == "mixed_float16" else 1.0, "loss_scale"),
            good_steps=scalar(0.0, "good_steps"),
        )
