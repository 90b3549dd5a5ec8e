"""The weights that evaluation, prediction and export use, where the optimizer offers others than those that train."""

import contextlib

import tensorflow as tf


def use_evaluation_weights(optimizer, state):
    """Puts the optimizer's evaluation weights, such as an average, in place of those that train.

    Args:
        optimizer: `trainer.optimizers.optimizer.Optimizer`.
        state: the `TrainState`; to be called outside of replicas.

    Returns:
        list of float32 tensors, the weights that train, to put back; None if they are those of evaluation.
    """
    if not optimizer.evaluates_other_values:
        return None
    updates = tf.convert_to_tensor(state.updates)
    kept = []
    for parameter, slots in zip(state.parameters, state.slots, strict=True):
        value = tf.identity(tf.convert_to_tensor(parameter.variable.value))
        kept.append(value)
        read = {name: tf.convert_to_tensor(slot) for name, slot in slots.items()}
        parameter.variable.value.assign(optimizer.evaluation_value(parameter, value, read, updates=updates))
    return kept


@contextlib.contextmanager
def evaluation_weights(optimizer, state):
    """Within it the model has the weights for evaluation, afterwards bit for bit those that train again.

    Args:
        optimizer, state: as in `use_evaluation_weights`.
    """
    kept = use_evaluation_weights(optimizer, state)
    try:
        yield
    finally:
        for parameter, value in zip(state.parameters, kept or (), strict=False):
            parameter.variable.value.assign(value)
