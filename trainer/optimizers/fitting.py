"""What `keras.Model.fit` lacks for accumulated gradients: classes to be put before `keras.Model`.

class MyModel(CountsExamples, FitsInSeveralProcesses, keras.Model): ...
"""

import tensorflow as tf
from keras import ops

from trainer.optimizers.accumulation import GradientAccumulation


class CountsExamples:
    """Makes `fit` exact for `GradientAccumulation(reduction="weighted")`; to be put before `keras.Model`.

    Every microbatch weighs the sum of its sample weights, which are the same for all outputs, or its number of examples.
    The losses given to `compile` must have `reduction="sum"`. Regularizers and `add_loss` count once an update, as in a
    large batch. Outputs with a Keras mask are refused: their loss leaves out steps that the weight would count.
    """

    _microbatch_weight = None

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """See `keras.Model.compute_loss`.

        Raises:
            ValueError: if the model was not compiled as it must be, or has outputs with a mask.
        """
        if not training:
            return super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        self._check(y_pred, sample_weight)
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        some = tf.nest.flatten(y if x is None else x)[0]
        weight = ops.shape(some)[0] if sample_weight is None else ops.sum(sample_weight)
        self.optimizer.count(weight)
        self._microbatch_weight = ops.cast(weight, "float32")
        try:
            return super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        finally:
            self._microbatch_weight = None

    def _aggregate_additional_loss(self, loss):
        if self._microbatch_weight is None:
            return super()._aggregate_additional_loss(loss)
        # The update divides by the sum of the weights of all microbatches.
        total = ops.sum(loss)
        return total * ops.cast(self._microbatch_weight, total.dtype)

    def _check(self, y_pred, sample_weight):
        if not isinstance(self.optimizer, GradientAccumulation):
            raise ValueError(
                f"CountsExamples is for GradientAccumulation(optimizer, reduction='weighted'); the model was compiled with "
                f"{type(self.optimizer).__name__}"
            )
        for loss in tf.nest.flatten(self.loss):
            if loss is not None and getattr(loss, "reduction", None) != "sum":
                raise ValueError(
                    f"with CountsExamples losses must be sums, such as keras.losses.MeanSquaredError(reduction='sum'); got "
                    f"{loss if isinstance(loss, str) else type(loss).__name__}"
                )
        if isinstance(sample_weight, dict | list | tuple):
            raise ValueError(
                "with CountsExamples there is one sample weight for each example, the same for all outputs"
            )
        if any(getattr(output, "_keras_mask", None) is not None for output in tf.nest.flatten(y_pred)):
            raise ValueError(
                "CountsExamples cannot count outputs with a mask: count their weights in a train_step of your own"
            )


class FitsInSeveralProcesses:
    """Makes `fit` and `evaluate` work under MultiWorkerMirroredStrategy, where Keras 3 raises with any optimizer.

    Keras reduces the first batch and the metrics of a step over the processes in ways that fail. Here a model is built from
    this process's part of the first batch, and metrics, which are the same on all replicas, get an axis to be averaged.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None and self._is_in_several_processes():
            local = self.distribute_strategy.experimental_local_results
            for *_, batches in iterator:
                data_batch = tf.nest.map_structure(lambda values: local(values)[0], next(batches))
                break
            iterator = None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def train_step(self, data):
        """See `keras.Model.train_step`."""
        return self._with_axis(super().train_step(data))

    def test_step(self, data):
        """See `keras.Model.test_step`."""
        return self._with_axis(super().test_step(data))

    def _with_axis(self, metrics):
        if not self._is_in_several_processes():
            return metrics
        return tf.nest.map_structure(lambda metric: tf.convert_to_tensor(metric)[tf.newaxis], metrics)

    def _is_in_several_processes(self):
        strategy = self.distribute_strategy
        multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        return multi_worker and strategy.num_replicas_in_sync > len(strategy.extended.worker_devices)
