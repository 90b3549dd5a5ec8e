"""Composed optimizers give the weights of one large batch, whatever the split, and evaluation its own weights."""

import numpy as np
import pytest
import tensorflow as tf
from small_runs import small_run, small_task, strategy_of

from trainer.optimizers import recipes
from trainer.optimizers.optimizer import Optimizer
from trainer.optimizers.rules import GradientDescent
from trainer.optimizers.schedules import ConstantSchedule, LinearSchedule
from trainer.optimizers.transformations import LayerAdaptation, LazyRows, Lookahead, WeightAverage
from trainer.training.evaluation_weights import evaluation_weights
from trainer.training.state import create_state

SCHEDULE = LinearSchedule(peak=1e-2, total_steps=20, warmup_steps=2)
OPTIMIZERS = {
    "lamb with lookahead": recipes.lamb(learning_rate=SCHEDULE, transformations=(Lookahead(every=3),)),
    "adamw, lazy rows, average": recipes.adamw(learning_rate=SCHEDULE, transformations=(LazyRows(), WeightAverage())),
}


@pytest.mark.slow  # traces four steps of two replicas
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_split_gives_the_weights_of_one_large_batch(name):
    optimizer = OPTIMIZERS[name]
    whole = small_run(optimizer=optimizer)
    split = small_run(optimizer=optimizer, replicas=2, accumulation=2)
    expected, ours = whole.train(10), split.train(10)
    assert [record["loss"] for record in ours] == pytest.approx([record["loss"] for record in expected], rel=1e-5)
    weights = whole.weights()
    for key, value in split.weights().items():
        np.testing.assert_allclose(value, weights[key], rtol=1e-5, atol=2e-5, err_msg=key)
    assert all(record["skipped"] == 0 for record in ours)


def test_a_step_tells_the_trust_ratios():
    schedule, adaptation = ConstantSchedule(peak=0.1), LayerAdaptation(greatest_ratio=50.0)
    optimizer = Optimizer(rule=GradientDescent(), learning_rate=schedule, transformations=(adaptation,))
    run = small_run(replicas=2, optimizer=optimizer)
    examples, weights = next(run.iterator), run.weights()
    gradients, _ = run.step.inspect(examples)
    told = dict(zip(run.step.metric_names, run.step.one(examples).numpy().tolist(), strict=True))
    expected = {
        parameter.name: min(50.0, np.linalg.norm(weights[parameter.name]) / np.linalg.norm(gradient.numpy()))
        for parameter, gradient in zip(run.state.parameters, gradients, strict=True)
        if parameter.role in ("kernel", "embedding")
    }
    found = {name.partition("/")[2]: value for name, value in told.items() if name.startswith("trust_ratio/")}
    assert found == pytest.approx(expected, rel=1e-4)
    values = list(expected.values())
    summaries = {"min": min(values), "mean": np.mean(values), "max": max(values)}
    assert {name: told[f"trust_ratio_{name}"] for name in summaries} == pytest.approx(summaries, rel=1e-4)


def test_evaluation_uses_the_average_and_training_goes_on_with_the_same_bits():
    optimizer = recipes.sgd(learning_rate=ConstantSchedule(peak=0.5), transformations=(WeightAverage(momentum=0.5),))
    run, trail = small_run(optimizer=optimizer), []
    for _ in range(3):
        run.train(1)
        trail.append(run.weights())
    with evaluation_weights(optimizer, run.state):
        inside = run.weights()
    for name, value in inside.items():
        expected = (0.25 * trail[0][name] + 0.5 * trail[1][name] + trail[2][name]) / 1.75
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=name)
        assert run.weights()[name].tobytes() == trail[2][name].tobytes()


def test_every_replica_has_the_evaluation_weights():
    optimizer = recipes.sgd(learning_rate=ConstantSchedule(peak=0.5), transformations=(WeightAverage(momentum=0.5),))
    strategy = strategy_of(2)
    state = create_state(strategy, small_task(), optimizer, seed=0, dtype="float32")
    first, slots = state.parameters[0], state.slots[0]
    slots["weight_average/average"].assign(tf.ones(first.shape))
    state.updates.assign(1.0)
    with evaluation_weights(optimizer, state):
        for copy in strategy.experimental_local_results(first.variable.value):
            np.testing.assert_array_equal(copy, np.full(first.shape, 2.0))


def test_slow_weights_are_evaluated_unless_fast_ones_are_asked_for():
    for slow in (True, False):
        ahead = Lookahead(every=5, evaluate_slow=slow)
        optimizer = recipes.sgd(learning_rate=ConstantSchedule(peak=0.5), transformations=(ahead,))
        run = small_run(optimizer=optimizer)
        start = run.weights()
        run.train(2)
        with evaluation_weights(optimizer, run.state):
            inside = run.weights()
        expected = start if slow else run.weights()
        assert all(np.array_equal(value, expected[name]) for name, value in inside.items())
