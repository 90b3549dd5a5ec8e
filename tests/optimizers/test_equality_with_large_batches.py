"""Any number of microbatches and replicas gives the weights of one large batch: in a loop, in fit, in the trainer."""

import functools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from large_batches import (
    OPTIMIZERS,
    RECIPES,
    ROWS,
    SIZES,
    THE_SEVEN,
    UPDATES,
    Loop,
    assert_same,
    data,
    example_weights,
    large_batches,
    make_model,
    scope_of,
    split,
    strategy_of,
    weights_of,
)

from trainer.distribution import divide_batch
from trainer.optimizers.accumulation import GradientAccumulation
from trainer.optimizers.fitting import CountsExamples
from trainer.optimizers.keras_optimizer import KerasOptimizer
from trainer.tasks.task import Sums
from trainer.training.state import create_state
from trainer.training.step import TrainStep

steps = pytest.mark.parametrize("steps", [1, 2, 4])
replicas = pytest.mark.parametrize("replicas", [1, 2, 4])
few_replicas = pytest.mark.parametrize("replicas", [1, 2, pytest.param(4, marks=pytest.mark.slow)])


@functools.cache
def expected(name, weighted=False):
    """Returns the weights after one large batch an update."""
    return large_batches(OPTIMIZERS[name], weights=example_weights() if weighted else None)


@replicas
@steps
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_in_a_loop_of_ones_own(name, steps, replicas):
    make = OPTIMIZERS[name]
    sizes = SIZES[steps * replicas]
    loop = Loop(replicas, lambda: GradientAccumulation(make(), steps=steps, reduction="weighted"))
    loop.run(split(*data(), sizes, replicas))
    assert_same(loop.weights(), expected(name))
    assert int(keras.ops.convert_to_numpy(loop.optimizer.iterations)) == UPDATES
    assert int(keras.ops.convert_to_numpy(loop.optimizer.microbatches)) == UPDATES * steps


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_a_strategy(name):
    loop = Loop(0, lambda: GradientAccumulation(OPTIMIZERS[name](), steps=4, reduction="weighted"))
    loop.run(split(*data(), SIZES[4], 1))
    assert_same(loop.weights(), expected(name))


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("name", ["adamw", "lamb with lookahead"])
def test_with_compiled_updates(name, replicas):
    make = lambda: KerasOptimizer(RECIPES[name])
    loop = Loop(replicas, lambda: GradientAccumulation(make(), steps=2, reduction="weighted"))
    loop.run(split(*data(), SIZES[2 * replicas], replicas))
    assert_same(loop.weights(), expected(name))


class CountingModel(CountsExamples, keras.Model):
    """What people use in `fit` where microbatches weigh differently."""


@few_replicas
@steps
@pytest.mark.parametrize("name", THE_SEVEN)
def test_in_fit_with_uneven_weights(name, steps, replicas):
    with scope_of(strategy_of(replicas)):
        model = make_model(CountingModel)
        optimizer = GradientAccumulation(OPTIMIZERS[name](), steps=steps, reduction="weighted")
        model.compile(optimizer, keras.losses.MeanSquaredError(reduction="sum"))
    model.fit(*data(), sample_weight=example_weights(), batch_size=ROWS // steps, shuffle=False, verbose=0)
    assert_same(weights_of(model), expected(name, weighted=True))


class Regression:
    """A task of the trainer that learns the same as the loops: mean squared error, weighted by example."""

    loss_coefficients = types.MappingProxyType({"squared_error": 1.0})
    metric_names = types.MappingProxyType({"squared_error": "squared_error"})

    def build_model(self, *, seed, dtype):
        return make_model()

    def prepare(self, examples, keys):
        return {name: examples[name] for name in ("x", "y", "weight")}

    def weights(self, features):
        return {"squared_error": tf.reduce_sum(features["weight"])}

    def sums(self, model, features, keys):
        losses = tf.square(model(features["x"]) - features["y"])[:, 0]
        loss = tf.reduce_sum(features["weight"] * losses)
        return Sums({"squared_error": loss}, {"squared_error": loss})


@few_replicas
@steps
@pytest.mark.parametrize("name", RECIPES)
def test_in_the_trainer_with_uneven_weights(name, steps, replicas):
    x, y = data()
    strategy, task = strategy_of(replicas), Regression()
    batch = divide_batch(ROWS, replicas, ROWS // replicas // steps, 1)
    state = create_state(strategy, task, RECIPES[name], seed=0, dtype="float32")
    step = TrainStep(strategy, task, RECIPES[name], state, batch, seed=0, compile_step=False)
    examples = {"x": x, "y": y, "weight": example_weights(), "example_index": np.arange(len(x), dtype=np.int32) % ROWS}
    dataset = tf.data.Dataset.from_tensor_slices(examples).batch(batch.rows_per_replica, drop_remainder=True)
    iterator = iter(strategy.distribute_datasets_from_function(lambda _: dataset))
    step.loop(iterator, tf.constant(UPDATES))
    assert_same(weights_of(state.model), expected(name, weighted=True))
