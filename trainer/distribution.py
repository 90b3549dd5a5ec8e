"""Strategies by name, and the arithmetic of the global batch."""

import dataclasses

import keras
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class BatchArithmetic:
    """How a global batch is made up: `global_batch == replicas * accumulation * microbatch`.

    Attributes:
        global_batch: examples in an optimizer step.
        replicas: number of replicas in all processes.
        accumulation: microbatches of a replica in a step.
        microbatch: examples that go through the model at once.
    """

    global_batch: int
    replicas: int
    accumulation: int
    microbatch: int

    @property
    def rows_per_replica(self):
        """Examples of one replica in a step."""
        return self.accumulation * self.microbatch

    def __str__(self):
        return (
            f"global {self.global_batch} = {self.replicas} replica{'s' * (self.replicas != 1)} x "
            f"{self.accumulation} accumulation x {self.microbatch} microbatch"
        )


def replica_local(variable):
    """Returns this replica's own copy of a variable, to read and assign inside a compiled program.

    All replicas compute the same update from the same reduced gradients, so each assigns its own copy and nothing
    travels. On TPU the strategy's variables do this by themselves.

    Args:
        variable: Keras variable or `tf.Variable`, mirrored or not.
    """
    if isinstance(variable, keras.Variable):
        variable = variable.value
    strategy = tf.distribute.get_strategy()
    context = tf.distribute.get_replica_context()
    if context is None or isinstance(strategy, tf.distribute.TPUStrategy):
        return variable
    copies = strategy.experimental_local_results(variable)
    if len(copies) == 1:
        return copies[0]
    # Processes number their replicas one after another, each having the same number of them.
    return copies[context.replica_id_in_sync_group % len(copies)]
