"""The training step: one program for one device, several replicas, several processes and TPUs.

A step does, in this order and exactly once: make features of the replica's examples (mask tokens, say); sum the loss
weights over the global batch; scan the microbatches, accumulating gradients in float32; sum gradients and metrics over
the replicas in one all-reduce; look whether everything is finite, clip, update. The verdict and the clipping see the
reduced gradients, so they are the same on every replica.
"""

import contextlib
import functools
import os

import keras
import tensorflow as tf

from trainer import randomness
from trainer.distribution import device_kind, replica_local
from trainer.environment import joins_loops
from trainer.errors import InputError
from trainer.optimizers.optimizer import norm
from trainer.training.adversarial import FastGradient, GradientPenalty

# Dynamic loss scaling for float16, with the customary constants (Micikevicius et al. 2018, arXiv 1710.03740).
LOSS_SCALE_GROWTH_STEPS = 2000
LARGEST_LOSS_SCALE = 2.0**24

# What a step reports before the metrics of adversarial training and of the task, in this order.
STEP_METRICS = ("loss", "learning_rate", "gradient_norm", "weight_norm", "update_norm", "loss_scale", "skipped")
# What is told of a number that the optimizer has for many parameters, such as the trust ratio; besides each of them, under
# its name, a slash and the parameter's.
SUMMARIES = {"min": tf.reduce_min, "mean": tf.reduce_mean, "max": tf.reduce_max}


def of_the_whole(metrics):
    """Returns a dict of metrics without those of single parameters, which have a slash in their name."""
    return {name: value for name, value in metrics.items() if "/" not in name}


def _rematerializes(model):
    layers = model._flatten_layers(include_self=True, recursive=True)
    return any(getattr(getattr(layer, "config", None), "rematerialize", False) for layer in layers)


class TrainStep:
    """Builds the compiled programs of a step and the loop around them.

    Args:
        strategy: `tf.distribute.Strategy`.
        task: the `Task`.
        optimizer: `trainer.optimizers.optimizer.Optimizer`.
        state: the `TrainState`.
        batch: the `BatchArithmetic`.
        seed: integer, the run's seed.
        compile_step: whether XLA compiles the programs.
        adversarial: `FastGradient`, `GradientPenalty`, or None for neither.

    Raises:
        InputError: if the model cannot be trained with `adversarial`.
    """

    def __init__(self, strategy, task, optimizer, state, batch, *, seed, compile_step=True, adversarial=None):
        self.strategy, self.task, self.optimizer, self.state, self.batch = strategy, task, optimizer, state, batch
        self.seed = seed
        self._fast_gradient = adversarial if isinstance(adversarial, FastGradient) else None
        self._gradient_penalty = adversarial if isinstance(adversarial, GradientPenalty) else None
        adversarial_names = () if adversarial is None else adversarial.metric_names
        if self._gradient_penalty is not None and _rematerializes(state.model):
            raise InputError(
                "a gradient penalty takes second derivatives, which layers that are computed again in the backward pass "
                "do not have: set encoder.rematerialize = False, or take fast_gradient"
            )
        self._measured = [
            (parameter.name, name) for parameter in state.parameters for name in optimizer.measurements(parameter)
        ]
        self._measured_names = tuple(dict.fromkeys(name for _, name in self._measured))
        task_names = tuple(task.metric_names)
        self.metric_names = STEP_METRICS + adversarial_names + task_names + self._optimizer_metric_names()
        self._loss_names = tuple(task.loss_coefficients)
        self._alone = strategy.num_replicas_in_sync == 1
        self._on_cpu = device_kind(strategy) == "CPU"
        self._compile = compile_step
        self._in_one_pass = compile_step and self._on_cpu and joins_loops(os.environ)
        # Without other replicas there is nothing to wait for, and the whole step is one program.
        self._prepare = self._compiled(self._prepare_examples, part=True)
        self._accumulate = self._compiled(self._accumulate_gradients, part=True)
        self._accumulate_for_table = self._compiled(self._accumulate_table_gradient, part=True)
        self._perturb = self._compiled(self._perturb_table, part=True)
        self._update = self._compiled(self._update_parameters, part=True)
        self._whole = self._compiled(self._replica_step, part=False)
        self.loop = tf.function(self._loop)

    def _optimizer_metric_names(self):
        summaries = tuple(f"{name}_{summary}" for name in self._measured_names for summary in SUMMARIES)
        return summaries + tuple(f"{name}/{parameter}" for parameter, name in self._measured)

    def _optimizer_metrics(self, measured):
        """Returns what belongs to `_optimizer_metric_names`, of `{(parameter, name): scalar}`."""
        each = [measured[key] for key in self._measured]
        groups = [
            tf.stack([measured[key] for key in self._measured if key[1] == name]) for name in self._measured_names
        ]
        return [summarize(group) for group in groups for summarize in SUMMARIES.values()] + each

    def _compiled(self, function, *, part):
        if self._compile and part != self._alone:
            return tf.function(function, jit_compile=True, autograph=False)
        return tf.autograph.experimental.do_not_convert(function)

    def _keys(self, purpose, step, examples):
        keys = randomness.example_keys(self.seed, step, examples["example_index"])
        return randomness.fold_in(keys, purpose)

    def _prepare_examples(self, step, examples):
        features = self.task.prepare(examples, self._keys("prepare", step, examples))
        weights = self.task.weights(features)
        return features, tf.stack([weights[name] for name in self._loss_names])

    def _denominators(self, weights):
        """Returns the sum of each loss's weights over the global batch."""
        if not self._alone:
            weights = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, weights)
        return tf.maximum(weights, 1.0)  # no token to predict: a loss of 0, not 0/0

    def _microbatch_sums(self, features, keys, denominators, **options):
        """Returns the part that one microbatch has in the loss of the global batch, and its metric sums."""
        sums = self.task.sums(self.state.model, features, keys, **options)
        parts = [
            self.task.loss_coefficients[name] * sums.losses[name] / denominators[i]
            for i, name in enumerate(self._loss_names)
        ]
        return tf.add_n(parts), tf.stack([sums.metrics[name] for name in self.task.metric_names])

    def _penalized_sums(self, features, keys, denominators, loss_scale):
        """Returns as `_microbatch_sums`, with the gradient penalty, if there is one, in the loss and as last metric.

        Each token belongs to one microbatch and the denominators are those of the global batch, so the penalties of all
        microbatches add up to the penalty of the global batch.
        """
        if self._gradient_penalty is None:
            return self._microbatch_sums(features, keys, denominators)
        size = self.task.word_embeddings(self.state.model).output_dim
        offset = tf.zeros([*features["token_ids"].shape, size])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(offset)
            loss, metrics = self._microbatch_sums(features, keys, denominators, embedding_offset=offset)
            scaled = loss * loss_scale
        penalty = self._gradient_penalty.penalty(tape.gradient(scaled, offset) / loss_scale)
        return loss + penalty, tf.concat([metrics, [penalty]], axis=0)

    def _scan_microbatches(self, step, examples, features, denominators, loss_scale, sources, sums_of):
        """Sums gradients with respect to `sources`, loss and metrics over the replica's microbatches.

        Memory does not grow with their number: the scan carries one float32 copy of the gradients.
        """
        accumulation, microbatch = self.batch.accumulation, self.batch.microbatch
        keys = self._keys("dropout", step, examples)
        split = {
            name: tf.reshape(tensor, [accumulation, microbatch, *tensor.shape[1:]])
            for name, tensor in (features | {"key_start": keys.start, "key_increment": keys.increment}).items()
        }

        def gradients_of(index):
            part = {name: tensor[index] for name, tensor in split.items()}
            part_keys = randomness.Keys(part.pop("key_start"), part.pop("key_increment"))
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                loss, metrics = sums_of(part, part_keys, denominators)
                scaled = loss * loss_scale
            gradients = tape.gradient(scaled, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            gradients = [tf.cast(tf.convert_to_tensor(gradient), tf.float32) for gradient in gradients]
            return gradients, tf.concat([[loss], metrics], axis=0)

        if accumulation == 1:
            return gradients_of(0)

        def body(index, gradients, metrics):
            more_gradients, more_metrics = gradients_of(index)
            summed = [a + b for a, b in zip(gradients, more_gradients, strict=True)]
            return index + 1, summed, metrics + more_metrics

        zeros = [tf.zeros(source.shape) for source in sources]
        num_penalties = 0 if self._gradient_penalty is None else 1
        metrics = tf.zeros([1 + len(self.task.metric_names) + num_penalties])
        _, gradients, metrics = tf.while_loop(
            lambda index, *_: index < accumulation, body, (0, zeros, metrics), parallel_iterations=1
        )
        return gradients, metrics

    def _accumulate_gradients(self, step, examples, features, denominators, loss_scale, table=None):
        """Returns this replica's sums of gradients, and of loss and metrics, with `table` for the word embeddings."""
        sources = [replica_local(parameter.variable) for parameter in self.state.parameters]
        if table is not None:
            replaced = self._table_variable
            sources = [
                table if parameter.variable is replaced else source
                for parameter, source in zip(self.state.parameters, sources, strict=True)
            ]

        def sums_of(part, keys, denominators):
            return self._penalized_sums(part, keys, denominators, loss_scale)

        with self._with_table(table):
            return self._scan_microbatches(step, examples, features, denominators, loss_scale, sources, sums_of)

    # Adversarial training, see `trainer.training.adversarial`.

    @property
    def _table_variable(self):
        return self.task.word_embeddings(self.state.model).embeddings

    def _with_table(self, table):
        """Within it the model looks up `table` in place of its word embeddings, no variable being changed; None for not."""
        if table is None:
            return contextlib.nullcontext()
        return keras.StatelessScope([(self._table_variable, table)], initialize_variables=False)

    def _accumulate_table_gradient(self, step, examples, features, denominators, loss_scale):
        """Returns this replica's sums of the gradient with respect to the word embeddings, and of the loss."""
        sources = [replica_local(self._table_variable)]
        sums_of = self._microbatch_sums
        gradients, metrics = self._scan_microbatches(
            step, examples, features, denominators, loss_scale, sources, sums_of
        )
        return gradients, metrics[:1]

    def _perturb_table(self, gradient, loss, loss_scale):
        """Returns the moved word embeddings, and what is reported of it."""
        gradient = gradient / loss_scale
        gradient_norm = norm([gradient], on_cpu=self._on_cpu)
        table = replica_local(self._table_variable).read_value()
        moved = self._fast_gradient.perturbed(table, gradient, gradient_norm)
        return moved, tf.stack([loss, gradient_norm])

    def _global_gradients(self, step, examples, features, denominators, loss_scale):
        """Sums over the global batch.

        Returns:
            the gradients, times the loss scale; `[loss + task metrics]`; the metrics of adversarial training, None for
            none; and the word embeddings at which all this holds, None for those of the model.
        """
        arguments = (step, examples, features, denominators, loss_scale)
        if self._fast_gradient is None:
            gradients, metrics = self._reduce(*self._accumulate(*arguments))
            if self._gradient_penalty is None:
                return gradients, metrics, None, None
            return gradients, metrics[:-1], metrics[-1:], None
        (gradient,), loss = self._reduce(*self._accumulate_for_table(*arguments))
        table, adversarial_metrics = self._perturb(gradient, loss[0], loss_scale)
        gradients, metrics = self._reduce(*self._accumulate(*arguments, table))
        return gradients, metrics, adversarial_metrics, table

    def _reduce(self, gradients, metrics):
        """Sums over the replicas in one all-reduce of one flat tensor."""
        if self._alone:
            return gradients, metrics
        flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in (*gradients, metrics)], axis=0)
        flat = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, flat)
        shapes = [gradient.shape for gradient in gradients]
        sizes = [shape.num_elements() for shape in shapes] + [metrics.shape[0]]
        *parts, metrics = tf.split(flat, sizes)
        return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)], metrics

    def _update_parameters(self, step, gradients, metrics, denominators, adversarial_metrics=None):
        """Checks, clips and applies; a step that is not finite changes no weight and no slot."""
        state, optimizer = self.state, self.optimizer
        scale, updates, good_steps = (replica_local(v) for v in (state.loss_scale, state.updates, state.good_steps))
        loss, task_metrics = metrics[0], metrics[1:]
        old_scale = scale.read_value()
        gradient_norm = norm(gradients, on_cpu=self._on_cpu) / old_scale
        finite = tf.math.is_finite(gradient_norm) & tf.math.is_finite(loss)
        if adversarial_metrics is not None:
            finite &= tf.reduce_all(tf.math.is_finite(adversarial_metrics))
        factor = 1.0 / old_scale * optimizer.clip_factor(gradient_norm)
        learning_rate = optimizer.learning_rate(tf.cast(step, tf.float32))
        number = updates.read_value() + 1.0
        new_values, changes, measured = [], [], {}
        for parameter, slots, gradient in zip(state.parameters, state.slots, gradients, strict=True):
            variable = replica_local(parameter.variable)
            local_slots = {name: replica_local(slot) for name, slot in slots.items()}
            value = variable.read_value()
            old_slots = {name: slot.read_value() for name, slot in local_slots.items()}
            new_value, new_slots = optimizer.update(
                parameter,
                value,
                gradient,
                old_slots,
                updates=number,
                learning_rate=learning_rate,
                scale=factor,
                on_cpu=self._on_cpu,
                in_one_pass=self._in_one_pass,
                report=lambda name, number, of=parameter.name: measured.update({(of, name): number}),
            )
            new_value = tf.where(finite, new_value, value)
            new_values.append(new_value)
            changes.append(new_value - value)
            variable.assign(new_value)
            for name, slot in local_slots.items():
                slot.assign(tf.where(finite, new_slots[name], old_slots[name]))
        updates.assign(tf.where(finite, number, number - 1.0))
        if self.dynamic_loss_scale:
            good = tf.where(finite, good_steps.read_value() + 1.0, 0.0)
            grow = good >= LOSS_SCALE_GROWTH_STEPS
            grown = tf.minimum(old_scale * 2.0, LARGEST_LOSS_SCALE)
            scale.assign(tf.where(finite, tf.where(grow, grown, old_scale), tf.maximum(old_scale / 2.0, 1.0)))
            good_steps.assign(tf.where(grow, 0.0, good))
        which = [self._loss_names.index(loss_name) for loss_name in self.task.metric_names.values()]
        averages = task_metrics / tf.gather(denominators, which)
        own = [
            loss,
            learning_rate,
            gradient_norm,
            norm(new_values, on_cpu=self._on_cpu),
            norm(changes, on_cpu=self._on_cpu),
            old_scale,
            1.0 - tf.cast(finite, tf.float32),
        ]
        adversarial = [] if adversarial_metrics is None else [adversarial_metrics]
        return tf.concat([tf.stack(own), *adversarial, averages, self._optimizer_metrics(measured)], axis=0)

    @property
    def dynamic_loss_scale(self):
        """Whether the compute dtype needs a loss scale."""
        return self.state.model.dtype_policy.compute_dtype == "float16"

    def _replica_step(self, step, examples):
        """One step of one replica; returns `[metrics]` float32, the same on every replica."""
        features, weights = self._prepare(step, examples)
        denominators = self._denominators(weights)
        loss_scale = replica_local(self.state.loss_scale).read_value()
        gradients, metrics, adversarial_metrics, _ = self._global_gradients(
            step, examples, features, denominators, loss_scale
        )
        return self._update(step, gradients, metrics, denominators, adversarial_metrics)

    @functools.cached_property
    def one(self):
        """Runs one step on examples that were taken from an iterator; returns `[metrics]` float32."""

        def one(examples):
            metrics = self.strategy.run(self._whole, args=(self.state.step.read_value(), examples))
            self.state.step.assign_add(1)
            return self.strategy.experimental_local_results(metrics)[0]

        return tf.function(one, autograph=False)

    @functools.cached_property
    def inspect(self):
        """Looks into the next step without changing anything.

        Takes examples from an iterator. Returns the gradients of the loss, summed over the global batch and before
        clipping, and for each replica `[rows]` float32, the part of the loss that each of its examples has.
        """

        def replica(step, examples):
            features, weights = self._prepare_examples(step, examples)
            denominators = self._denominators(weights)
            no_scale = tf.constant(1.0)
            gradients, _, _, table = self._global_gradients(step, examples, features, denominators, no_scale)
            keys = self._keys("dropout", step, examples)

            def loss_of(index):
                part = {name: tensor[index, tf.newaxis] for name, tensor in features.items()}
                part_keys = randomness.Keys(keys.start[index, tf.newaxis], keys.increment[index, tf.newaxis])
                return self._penalized_sums(part, part_keys, denominators, no_scale)[0]

            rows = tf.range(self.batch.rows_per_replica)
            with self._with_table(table):
                losses = tf.map_fn(loss_of, rows, fn_output_signature=tf.float32, parallel_iterations=1)
            return gradients, losses

        def inspect(examples):
            gradients, losses = self.strategy.run(replica, args=(self.state.step.read_value(), examples))
            local = self.strategy.experimental_local_results
            return [local(gradient)[0] for gradient in gradients], losses

        return tf.function(inspect, autograph=False)

    def _loop(self, iterator, num_steps):
        """Runs `num_steps` steps; returns `[num_steps, metrics]` float32 and the seconds spent waiting for input."""
        rows = tf.TensorArray(tf.float32, size=num_steps, element_shape=[len(self.metric_names)])
        waited = tf.zeros([], tf.float64)
        for i in tf.range(num_steps):
            step = self.state.step.read_value()
            asked = tf.timestamp()
            with tf.control_dependencies([asked]):
                examples = next(iterator)
            with tf.control_dependencies(tf.nest.flatten(examples, expand_composites=True)):
                waited += tf.timestamp() - asked
            metrics = self.strategy.run(self._whole, args=(step, examples))
            rows = rows.write(i, self.strategy.experimental_local_results(metrics)[0])
            self.state.step.assign_add(1)
        return rows.stack(), waited
