"""Gradient accumulation around any Keras optimizer, the same under every distribution strategy.

Gradients of microbatches are summed where they are made, on each replica. When a window is complete they are reduced over
the replicas once, divided, and given to the inner optimizer, which clips, decays and updates as if it had seen one large
batch. Nothing else of it moves in between.

Whether a window is complete is asked where all replicas meet (`merge_call`): a condition inside a replica may not hold
anything that synchronises replicas, which is why Keras's own `gradient_accumulation_steps` raises under MirroredStrategy.
"""

import operator

import keras
import tensorflow as tf

from trainer.distribution import replica_local

REDUCTIONS = ("mean", "weighted")


@keras.saving.register_keras_serializable(package="bert_trainer")
class GradientAccumulation(keras.optimizers.Optimizer):
    """Applies an optimizer once for the gradients of several microbatches.

    Works in `compile` and `fit`, in loops of one's own, eagerly and in `tf.function` (with XLA too), without a strategy
    and under OneDevice-, Mirrored-, MultiWorkerMirrored- and TPUStrategy. `iterations`, learning-rate schedules, weight
    decay, averages and clipping of the inner optimizer count updates, not microbatches.

    Args:
        optimizer: any Keras optimizer. For float16, `LossScaleOptimizer` goes inside: `GradientAccumulation(
            keras.optimizers.LossScaleOptimizer(optimizer))` with `compile(auto_scale_loss=False)`; outside it would judge
            each microbatch on each replica alone, and is refused.
        steps: microbatches in a window: a number, or a function of the updates done (a scalar integer tensor) that
            returns one, for batches that grow.
        reduction: `mean`: the gradients of the replicas for one microbatch add up to the gradient of that microbatch, as
            in `fit` and wherever the loss is scaled by the number of replicas; the update sees their mean over the window.
            `weighted`: gradients are of sums, of which `count` is told the weights (examples, predicted tokens); the
            update sees the sum of gradients divided by the sum of weights, over the whole window and all replicas. It is
            exact for microbatches of different size.
        name: of the optimizer.

    Memory: one float32 copy of the gradients on each replica.
    """

    def __init__(self, optimizer, steps=2, reduction="mean", name="gradient_accumulation"):
        inner = keras.optimizers.get(optimizer)
        _check_inner(inner)
        if not callable(steps):
            steps = _whole_number(steps)
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer, self.steps, self.reduction = inner, steps, reduction
        self._ready = True
        self._was_counted = False
        self._have_gradients = set()  # indices of the variables of which some microbatch had a gradient, as traced
        for each in _nested(inner):
            # The gradients it gets are reduced already. Reducing again would multiply them by the number of replicas.
            each._all_reduce_sum_gradients = list

    _ready = False  # set at the end of __init__

    @property
    def loss_scale_factor(self):
        """1: losses are scaled by a `LossScaleOptimizer` inside."""
        return 1.0  # not None, which setting None would take for no change

    @loss_scale_factor.setter
    def loss_scale_factor(self, value):
        # Keras's LossScaleOptimizer sets this on the optimizer it is put around.
        if self._ready:
            raise ValueError(
                "LossScaleOptimizer must be inside: GradientAccumulation(LossScaleOptimizer(optimizer)), and "
                "compile(auto_scale_loss=False). Outside it would judge microbatches, each replica its own."
            )

    @property
    def iterations(self):
        """Updates done."""
        return self.inner_optimizer.iterations

    @property
    def microbatches(self):
        """Microbatches seen, of complete windows and of this one; a Keras variable."""
        return self._iterations

    @property
    def learning_rate(self):
        """That of the inner optimizer."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self.inner_optimizer.learning_rate = value

    @property
    def variables(self):
        """Own variables (counters, sums of this window), then those of the inner optimizer."""
        return [*self._variables, *self.inner_optimizer.variables]

    def scale_loss(self, loss):
        """Scales a loss as the inner optimizer wants it."""
        return self.inner_optimizer.scale_loss(loss)

    def build(self, variables):
        """Makes the accumulators for a list of variables."""
        if self.built:
            return
        for each in _nested(self.inner_optimizer):
            if getattr(each, "use_ema", False) and each.ema_overwrite_frequency and _replicas() > 1:
                raise ValueError(
                    "Keras's ema_overwrite_frequency cannot work on several replicas, with or without accumulation: set it "
                    "to None (the averages are taken over at the end of fit)"
                )
        super().build(variables)
        self.inner_optimizer.build(variables)

        def accumulator(shape, name):
            with keras.name_scope(self.name, caller=self):
                # Every replica has its own; read from outside, and in checkpoints, they are their sum.
                variable = keras.Variable(
                    initializer="zeros",
                    shape=shape,
                    dtype="float32",
                    trainable=False,
                    aggregation="sum",
                    synchronization="on_read",
                    name=name,
                )
            self._track_variable(variable)
            return variable

        def counter(name):
            return self.add_variable((), dtype="int32", aggregation="only_first_replica", name=name)

        self._sums = [accumulator(variable.shape, f"sum_{i}") for i, variable in enumerate(variables)]
        self._weight = accumulator((), "weight")
        self._in_window, self._skipped = counter("in_window"), counter("skipped")

    @property
    def skipped(self):
        """Windows that were left out because a gradient was not finite, or all weights were 0; a Keras variable."""
        return self._skipped

    def count(self, weight):
        """Says how much the microbatch that is being worked on weighs on this replica; for `reduction="weighted"`.

        To be called for each microbatch; that it never was is an error, that it was left out once is not noticed.

        Args:
            weight: scalar, such as its number of examples or of predicted tokens.
        """
        if self.reduction != "weighted":
            raise ValueError('count() is for reduction="weighted"')
        self._require_built()
        self._was_counted = True
        replica_local(self._weight).assign_add(tf.cast(weight, tf.float32))

    def _require_built(self):
        if not self.built:
            raise ValueError("call optimizer.build(model.trainable_variables) before the first microbatch is counted")

    def apply(self, grads, trainable_variables=None):
        """Adds the gradients of a microbatch; with the last of a window, updates the variables.

        Args:
            grads: list of tensors, `IndexedSlices` or None, one a variable. A variable of which no microbatch ever had a
                gradient is left alone, decay included, as Keras does (but not by a `flush` that directly follows the
                restoring of a checkpoint, which does not know yet).
            trainable_variables: list of variables; may be left out after `build`.
        """
        if tf.distribute.in_cross_replica_context():
            raise ValueError("gradients must be applied inside of strategy.run, on each replica")
        if trainable_variables is not None and not self.built:
            self.build(list(trainable_variables))
        self._require_built()
        variables = self._trainable_variables if trainable_variables is None else list(trainable_variables)
        self._check_variables_are_known(variables)
        grads = list(grads)
        if len(grads) != len(variables):
            raise ValueError(f"{len(grads)} gradients for {len(variables)} variables: give one for each, or None")
        if self.reduction == "weighted" and not self._was_counted:
            raise ValueError('with reduction="weighted", call optimizer.count(weight) for each microbatch before apply')
        if all(gradient is None for gradient in grads):
            raise ValueError("there is a gradient of no variable: does the loss depend on them?")
        for gradient, variable in zip(grads, variables, strict=True):
            if gradient is not None:
                index = self._get_variable_index(variable)
                self._have_gradients.add(index)
                self._add(replica_local(self._sums[index]), gradient)
        self._iterations.assign_add(1)
        self._in_window.assign_add(1)
        complete = replica_local(self._in_window).read_value() >= tf.cast(self._window_steps(), tf.int32)
        self._meet(complete)

    def _add(self, accumulator, gradient):
        """Adds a gradient to a float32 accumulator; of `IndexedSlices` only their rows."""
        if not isinstance(gradient, tf.IndexedSlices):
            accumulator.assign_add(tf.cast(gradient, tf.float32))
        elif _is_one_program(tf.distribute.get_strategy()):
            # A TPU's variable that each replica has its own of cannot add rows; XLA makes a scatter of this.
            accumulator.assign_add(tf.cast(tf.convert_to_tensor(gradient), tf.float32))
        else:
            values = tf.cast(gradient.values, tf.float32)
            accumulator.scatter_add(tf.IndexedSlices(values, gradient.indices, gradient.dense_shape))

    def _window_steps(self):
        return self.steps(replica_local(self.iterations).read_value()) if callable(self.steps) else self.steps

    def flush(self):
        """Applies an incomplete window with what it holds; `fit` does so at its end. Does nothing after a complete one.

        To be called outside of replicas.
        """
        if not tf.distribute.in_cross_replica_context() and _replicas() > 1:
            raise ValueError("flush() must be called outside of strategy.run")
        if self.built and tf.convert_to_tensor(self._in_window.value) > 0:
            strategy = self._distribution_strategy
            tf.function(lambda: strategy.run(lambda: self._meet(tf.constant(True))), autograph=False)()

    def finalize_variable_values(self, var_list):
        """Called by `fit` at its end: applies an incomplete window."""
        self.flush()
        self.inner_optimizer.finalize_variable_values(var_list)

    def _meet(self, complete):
        """Ends the window on all replicas if it is complete, which is the same on all of them."""
        context = tf.distribute.get_replica_context()
        if _is_one_program(context.strategy):
            tf.cond(complete, self._end_window_in_program, lambda: _nothing(None))
            return

        def met(strategy, complete):
            def end():
                each = strategy.extended.call_for_each_replica
                gradients, applied = each(self._reduced)
                applied = strategy.experimental_local_results(applied)[0]
                tf.cond(applied, lambda: _nothing(each(self._update, args=(gradients,))), lambda: _nothing(None))
                return _nothing(each(self._clear))

            tf.cond(strategy.experimental_local_results(complete)[0], end, lambda: _nothing(None))

        context.merge_call(met, args=(complete,))

    def _end_window_in_program(self):
        gradients, applied = self._reduced()
        tf.cond(applied, lambda: self._update(gradients), lambda: _nothing(None))
        return self._clear()

    def _updated_indices(self):
        """Returns the indices of the variables that are updated; all of a window that was restored and goes no further."""
        return sorted(self._have_gradients) or list(range(len(self._sums)))

    def _reduced(self):
        """Returns the gradients of the window, the same on all replicas, and whether to apply them; counts if not."""
        context = tf.distribute.get_replica_context()
        updated = self._updated_indices()
        for index in set(range(len(self._sums))).difference(updated):
            # Another function, traced later than this one, may have had gradients of more variables.
            tf.debugging.assert_equal(
                tf.reduce_any(replica_local(self._sums[index]) != 0.0),
                False,
                message="a window that ends in one tf.function holds gradients of a variable that it does not know: give "
                f"zeros instead of None for {self._trainable_variables[index].path}",
            )
        *sums, weight = context.all_reduce(
            tf.distribute.ReduceOp.SUM,
            [replica_local(variable).read_value() for variable in (*(self._sums[i] for i in updated), self._weight)],
        )
        if self.reduction == "mean":
            weight = tf.cast(replica_local(self._in_window).read_value(), tf.float32)
        gradients = [
            tf.cast(tf.math.divide_no_nan(tensor, weight), self._trainable_variables[index].dtype)
            for index, tensor in zip(updated, sums, strict=True)
        ]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in (*gradients, weight)])
        applied = finite & (weight > 0)
        self._skipped.assign_add(1 - tf.cast(applied, tf.int32))
        if isinstance(self.inner_optimizer, keras.optimizers.LossScaleOptimizer):
            applied = weight > 0  # it must see what is not finite to lower its scale, and applies nothing then
        return gradients, applied

    def _update(self, gradients):
        variables = [self._trainable_variables[index] for index in self._updated_indices()]
        self.inner_optimizer.apply(list(gradients), variables)
        return tf.constant(0)

    def _clear(self):
        for variable in (*self._sums, self._weight):
            own = replica_local(variable)
            own.assign(tf.zeros_like(own))
        self._in_window.assign(0)
        return tf.constant(0)

    def get_config(self):
        """Returns what the optimizer can be made again from."""
        if callable(self.steps):
            steps = keras.saving.serialize_keras_object(self.steps)
        else:
            steps = self.steps
        return {
            "optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "steps": steps,
            "reduction": self.reduction,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Makes an optimizer from what `get_config` returned."""
        config = dict(config)
        config["optimizer"] = keras.saving.deserialize_keras_object(config["optimizer"], custom_objects=custom_objects)
        if isinstance(config["steps"], dict):
            config["steps"] = keras.saving.deserialize_keras_object(config["steps"], custom_objects=custom_objects)
        return cls(**config)


def _nested(optimizer):
    """Returns an optimizer and those inside of it, such as `LossScaleOptimizer` has one."""
    inner = getattr(optimizer, "inner_optimizer", None)
    return [optimizer, *([] if inner is None else _nested(inner))]


def _check_inner(inner):
    if isinstance(inner, GradientAccumulation):
        raise ValueError("GradientAccumulation around GradientAccumulation: multiply their steps instead")
    if getattr(inner, "gradient_accumulation_steps", None):
        raise ValueError("the inner optimizer accumulates, too: remove its gradient_accumulation_steps")
    if any("_all_reduce_sum_gradients" in vars(each) for each in _nested(inner)):
        raise ValueError("the inner optimizer is in another GradientAccumulation already: give a new one")
    if inner.built:
        raise ValueError("the inner optimizer has been built already: give a new one")
    if not hasattr(inner, "_all_reduce_sum_gradients"):
        raise ValueError(f"{type(inner).__name__} is no Keras 3 optimizer on the TensorFlow backend")


def _whole_number(steps):
    try:
        number = operator.index(steps)
    except TypeError:
        number = 0
    if number < 1 or isinstance(steps, bool):
        raise ValueError(f"steps must be a whole number of at least 1, or a function of the updates, got {steps!r}")
    return number


def _replicas():
    return tf.distribute.get_strategy().num_replicas_in_sync


def _is_one_program(strategy):
    """Whether replicas are one program, in which a condition may hold what synchronises them.

    So it is on TPUs, and on GPUs where XLA compiles what `strategy.run` is given.
    """
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return True
    return isinstance(strategy, tf.distribute.MirroredStrategy) and not strategy.extended._use_merge_call()


def _nothing(_):
    """A condition's branches must return the same."""
    return tf.constant(0)
