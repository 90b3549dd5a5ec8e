"""What a task is: the contract between what is learnt and how the step learns it.

A task knows its data, its model and its losses; it knows nothing of strategies, replicas or accumulation. Every loss is
given as a *sum* over examples together with the *weight* it will be divided by, summed over the whole global batch by
the step. That is why a loss does not depend on how a batch was split.
"""

import abc
import dataclasses


@dataclasses.dataclass(frozen=True)
class Sums:
    """What one microbatch contributes.

    Attributes:
        losses: `{loss name: scalar float32}`, sums over the examples, not yet divided by anything.
        metrics: `{metric name: scalar float32}`, sums too; reported over the weight of the loss it belongs to.
    """

    losses: dict
    metrics: dict


class Task(abc.ABC):
    """One thing to learn.

    Attributes:
        loss_coefficients: `{loss name: float}`: the total loss is their weighted sum.
        metric_names: `{metric name: loss name}`: each metric and the loss whose weight divides it.
    """

    loss_coefficients: dict
    metric_names: dict

    @abc.abstractmethod
    def build_model(self, *, seed, dtype):
        """Makes the model, a built Keras layer; called inside the strategy's scope.

        Args:
            seed: integer for the initial weights.
            dtype: Keras dtype policy name.
        """

    @abc.abstractmethod
    def training_dataset(self, *, seed, start_step, global_batch, rows_per_element, host, num_hosts):
        """Returns an endless `tf.data.Dataset` of this host's examples in order, see `trainer.data.lanes`."""

    @abc.abstractmethod
    def evaluation_dataset(self, *, global_batch, rows_per_element, host, num_hosts):
        """Returns `(dataset, number of steps)` that holds every held-out example exactly once."""

    @abc.abstractmethod
    def prepare(self, examples, keys):
        """Turns examples into features: masks tokens, say. `keras.ops` only; compiled.

        Args:
            examples: dict of tensors `[batch, ...]` of the data set.
            keys: `Keys` of the examples.

        Returns:
            dict of tensors `[batch, ...]`.
        """

    @abc.abstractmethod
    def weights(self, features):
        """Returns `{loss name: scalar float32}`, known from the features alone: masked tokens, examples, ..."""

    @abc.abstractmethod
    def sums(self, model, features, keys):
        """Runs the model on one microbatch.

        Args:
            model: what `build_model` returned.
            features: dict of tensors `[microbatch, ...]`.
            keys: `Keys` of the examples for dropout, or None to drop nothing.

        Returns:
            `Sums`.
        """
