"""One large batch an update by a bare optimizer, and loops that split it: what accumulation is compared with."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from trainer.distribution import mirrored_on_cpu
from trainer.optimizers import recipes
from trainer.optimizers.keras_optimizer import KerasOptimizer
from trainer.optimizers.schedules import LinearSchedule
from trainer.optimizers.transformations import Lookahead

FEATURES, ROWS, UPDATES = 5, 16, 10
CLIP_NORM = 0.3  # gradients of the data below are larger
SCHEDULE = LinearSchedule(peak=0.02, total_steps=20)

# The trainer's optimizers.
RECIPES = {
    "sgd": recipes.sgd(learning_rate=SCHEDULE, clip_norm=CLIP_NORM),
    "momentum": recipes.sgd(learning_rate=SCHEDULE, momentum=0.9, clip_norm=CLIP_NORM),
    "adamw": recipes.adamw(learning_rate=SCHEDULE, clip_norm=CLIP_NORM),
    "lamb": recipes.lamb(learning_rate=SCHEDULE, clip_norm=CLIP_NORM),
    "lamb with lookahead": recipes.lamb(
        learning_rate=SCHEDULE, clip_norm=CLIP_NORM, transformations=(Lookahead(every=3),)
    ),
    "adafactor": recipes.adafactor(learning_rate=SCHEDULE, clip_norm=CLIP_NORM),
    "lion": recipes.lion(learning_rate=SCHEDULE, clip_norm=CLIP_NORM),
}
# The same, and those that Keras has, as Keras optimizers. Compiling for each replica takes most of a test's time.
OPTIMIZERS = {
    name: lambda recipe=recipe: KerasOptimizer(recipe, jit_compile=False) for name, recipe in RECIPES.items()
} | {
    "keras sgd": lambda: keras.optimizers.SGD(0.1, global_clipnorm=CLIP_NORM),
    "keras momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, global_clipnorm=CLIP_NORM),
    "keras adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=CLIP_NORM),
    "keras lamb": lambda: keras.optimizers.Lamb(0.01, global_clipnorm=CLIP_NORM),
    "keras adafactor": lambda: keras.optimizers.Adafactor(0.01, global_clipnorm=CLIP_NORM),
    "keras lion": lambda: keras.optimizers.Lion(0.001, global_clipnorm=CLIP_NORM),
    "keras schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.2, 1, 0.9)),
}

# One of each kind.
THE_SEVEN = ("keras sgd", "keras momentum", "keras adamw", "lamb", "lamb with lookahead", "adafactor", "lion")

# Rows of each microbatch of a window, by their number: uneven, and one row at last.
SIZES = {1: (16,), 2: (11, 5), 4: (5, 1, 7, 3), 8: (1, 3, 2, 1, 4, 2, 1, 2), 16: (1,) * 16}


def data(batches=UPDATES):
    """Returns inputs `[rows, FEATURES]` and targets `[rows, 1]`, float32."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(batches * ROWS, FEATURES)).astype(np.float32)
    y = np.sin(x.sum(1, keepdims=True)) + x[:, :1] ** 2
    return x, y.astype(np.float32)


def example_weights(batches=UPDATES):
    """Returns a weight of each example, `[rows]` float32: very different ones, some of them 0."""
    rng = np.random.default_rng(3)
    return (rng.random(batches * ROWS) * rng.integers(0, 5, batches * ROWS)).astype(np.float32)


def make_model(base=keras.Model):
    """Returns a small model, always with the same weights."""
    keras.utils.set_random_seed(7)
    inputs = keras.Input((FEATURES,))
    outputs = keras.layers.Dense(1)(keras.layers.Dense(8, activation="tanh")(inputs))
    return base(inputs, outputs)


def strategy_of(replicas):
    """Returns a strategy over logical CPU devices; none at all for 0."""
    if replicas == 0:
        return None
    if replicas == 1:
        return tf.distribute.OneDeviceStrategy("CPU:0")
    return mirrored_on_cpu([f"CPU:{i}" for i in range(replicas)])


def scope_of(strategy):
    """Returns a strategy's scope, or one that does nothing for None."""
    return contextlib.nullcontext() if strategy is None else strategy.scope()


class Loop:
    """A training loop of one's own: each replica computes sums of losses of its microbatches.

    Args:
        strategy: `tf.distribute.Strategy`, None, or a number of replicas.
        optimizer: makes a `GradientAccumulation`.
    """

    def __init__(self, strategy, optimizer):
        self.strategy = strategy_of(strategy) if isinstance(strategy, int) else strategy
        self.replicas = 1 if self.strategy is None else self.strategy.num_replicas_in_sync
        with scope_of(self.strategy):
            self.model = make_model()
            self.optimizer = optimizer()
            self.optimizer.build(self.model.trainable_variables)
        self.graph_step = tf.function(self.microbatch)

    def microbatch(self, x, y):
        """Does one microbatch of one replica."""
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(self.model(x) - y))
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.optimizer.count(tf.shape(x)[0])
        self.optimizer.apply(gradients, self.model.trainable_variables)

    def run(self, parts, eagerly=False):
        """Runs microbatches, each a list of (x, y), one a replica."""
        step = self.microbatch if eagerly else self.graph_step
        for part in parts:
            if self.strategy is None:
                step(*map(tf.constant, part[0]))
                continue
            self.strategy.run(step, args=tuple(self.distributed(part, column) for column in (0, 1)))

    def distributed(self, part, column):
        """Returns each replica's array of a microbatch."""
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(part[context.replica_id_in_sync_group][column])
        )

    def weights(self):
        """Returns a list of arrays."""
        return weights_of(self.model)


def weights_of(model):
    """Returns the trainable weights of a model, a list of arrays."""
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.trainable_variables]


def split(x, y, sizes, replicas):
    """Cuts rows into microbatches of the given sizes, in turn for each replica."""
    parts, begin = [], 0
    for _ in range(len(x) // sum(sizes)):
        pieces = []
        for size in sizes:
            pieces.append((x[begin : begin + size], y[begin : begin + size]))
            begin += size
        parts += [pieces[i : i + replicas] for i in range(0, len(pieces), replicas)]
    return parts


def large_batches(optimizer, updates=UPDATES, weights=None):
    """Returns the weights after updates with one large batch each, by the bare optimizer.

    Args:
        optimizer: makes a Keras optimizer.
        updates: number of updates.
        weights: weight of each example in the mean, `[rows]`; None for equal ones.
    """
    model, (x, y) = make_model(), data(updates)
    weights = np.ones(len(x), np.float32) if weights is None else weights
    bare = optimizer()
    for i in range(updates):
        batch = slice(i * ROWS, (i + 1) * ROWS)
        with tf.GradientTape() as tape:
            losses = tf.square(model(x[batch]) - y[batch])[:, 0]
            loss = tf.reduce_sum(weights[batch] * losses) / np.sum(weights[batch])
        bare.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    return weights_of(model)


def assert_same(ours, expected, tolerance=1e-6):
    """Checks that no number differs by more than `tolerance` of the largest one of its tensor."""
    assert len(ours) == len(expected)
    for own, other in zip(ours, expected, strict=True):
        assert own.shape == other.shape
        difference = np.max(np.abs(own - other)) / np.max(np.abs(other))
        assert difference <= tolerance, f"differs by {difference:.2g} of the largest number"
