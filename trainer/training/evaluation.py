"""Evaluation: every held-out example exactly once, the same answer on every topology."""

import numpy as np
import tensorflow as tf

from trainer import randomness

# Evaluation masks tokens too: with a seed of its own, so that two evaluations and two runs ask the same questions.
EVALUATION_SEED = 0x5EED


class EvaluationStep:
    """Builds the compiled program that sums losses and metrics over held-out examples.

    For a task with `output_columns` it also collects what `Sums.outputs` are of every example; the model runs once.

    Args:
        strategy: `tf.distribute.Strategy`.
        task: the `Task`.
        model: its model.
        batch: the `BatchArithmetic`.
        compile_step: whether XLA compiles the program.
    """

    def __init__(self, strategy, task, model, batch, *, compile_step=True):
        self.strategy, self.task, self.model, self.batch = strategy, task, model, batch
        self._loss_names = tuple(task.loss_coefficients)
        self._sums = (
            tf.function(self._replica_sums, jit_compile=True, autograph=False)
            if compile_step
            else tf.autograph.experimental.do_not_convert(self._replica_sums)
        )
        # Given a `tf.function` itself, a strategy would make one program of all replicas, which XLA cannot compile.
        self._replica = tf.autograph.experimental.do_not_convert(lambda examples: self._sums(examples))
        self._num_sums = 2 * len(self._loss_names) + len(task.metric_names)
        self._columns = task.output_columns
        self.loop = tf.function(self._collecting_loop if self._columns else self._loop)

    def _replica_sums(self, examples):
        """Sums microbatch by microbatch.

        Returns:
            `[losses + weights + metrics]` float32 of this replica; with output columns also its outputs, `[rows,
            columns]` float32.
        """
        keys = randomness.fold_in(randomness.example_keys(EVALUATION_SEED, 0, examples["example_index"]), "evaluation")
        features = self.task.prepare(examples, keys)
        weights = self.task.weights(features)
        shape = [self.batch.accumulation, self.batch.microbatch]
        split = {name: tf.reshape(tensor, shape + tensor.shape[1:]) for name, tensor in features.items()}

        def body(index, total, *collected):
            sums = self.task.sums(self.model, {name: tensor[index] for name, tensor in split.items()}, None)
            losses = [sums.losses[name] for name in self._loss_names]
            collected = [outputs.write(index, sums.outputs) for outputs in collected]
            more = index + 1, total + tf.stack(losses + [sums.metrics[name] for name in self.task.metric_names])
            return *more, *collected

        zeros = tf.zeros([len(self._loss_names) + len(self.task.metric_names)])
        collected = []
        if self._columns:
            shape = [self.batch.microbatch, self._columns]
            collected = [tf.TensorArray(tf.float32, size=self.batch.accumulation, element_shape=shape)]
        _, total, *collected = tf.while_loop(
            lambda index, *_: index < self.batch.accumulation, body, (0, zeros, *collected), parallel_iterations=1
        )
        total = tf.concat([tf.stack([weights[name] for name in self._loss_names]), total], axis=0)
        if not self._columns:
            return total
        return total, tf.reshape(collected[0].stack(), [self.batch.rows_per_replica, self._columns])

    def _loop(self, iterator, num_steps):
        """Returns the sums over `num_steps` global batches, in float64 so that their order hardly matters."""
        total = tf.zeros([self._num_sums], tf.float64)
        for _ in tf.range(num_steps):
            sums = self.strategy.run(self._replica, args=(next(iterator),))
            total += tf.cast(self.strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None), tf.float64)
        return total

    def _collecting_loop(self, iterator, num_steps):
        """Returns as `_loop`, and of all examples in any order the number, `[examples]`, and `[examples, columns]`."""
        total = tf.zeros([self._num_sums], tf.float64)
        global_batch = self.batch.global_batch
        numbers = tf.TensorArray(tf.int32, size=num_steps, element_shape=[global_batch])
        rows = tf.TensorArray(tf.float32, size=num_steps, element_shape=[global_batch, self._columns])
        for i in tf.range(num_steps):
            examples = next(iterator)
            sums, outputs = self.strategy.run(self._replica, args=(examples,))
            total += tf.cast(self.strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None), tf.float64)
            numbers = numbers.write(i, self.strategy.gather(examples["example_index"], axis=0))
            rows = rows.write(i, self.strategy.gather(outputs, axis=0))
        return total, numbers.concat(), rows.concat()

    def metrics(self, iterator, num_steps):
        """Evaluates.

        Args:
            iterator: over the evaluation dataset, from its start.
            num_steps: number of global batches that hold all examples.

        Returns:
            dict of floats: `loss` and the task's metrics, averaged by weight, and those of its outputs.
        """
        result, of_outputs = self.loop(iterator, tf.constant(num_steps)), {}
        if self._columns:
            result, numbers, rows = result
            # Hosts, and in a step replicas, each have a part of the data; the number tells an example's place in it.
            of_outputs = self.task.output_metrics(rows.numpy()[np.argsort(numbers.numpy(), kind="stable")])
        total = result.numpy().tolist()
        count = len(self._loss_names)
        weights = dict(zip(self._loss_names, total[:count], strict=True))
        losses = dict(zip(self._loss_names, total[count : 2 * count], strict=True))

        def average(value, name):
            return value / weights[name] if weights[name] else float("nan")

        loss = sum(self.task.loss_coefficients[name] * average(losses[name], name) for name in self._loss_names)
        metrics = {
            name: average(value, loss_name)
            for (name, loss_name), value in zip(self.task.metric_names.items(), total[2 * count :], strict=True)
        }
        return self.task.report({"loss": loss} | metrics | of_outputs)
