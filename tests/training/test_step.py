"""The step: the same numbers on every topology, one all-reduce, guarded updates."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from small_runs import SMALL_ENCODER, random_examples, small_run, small_task

from trainer.optimizers.recipes import adamw, sgd
from trainer.optimizers.schedules import ConstantSchedule

TOPOLOGIES = {"4 microbatches": (1, 4), "2 replicas, 2 microbatches": (2, 2), "4 replicas": (4, 1)}


@pytest.fixture(scope="module")
def reference():
    """Twenty steps on one device with the whole batch at once, dropout on."""
    run = small_run(compile_step=True)
    return run.train(20), run.weights()


@pytest.mark.parametrize(
    "topology",
    # Everything is compiled once per replica.
    [pytest.param(name, marks=pytest.mark.slow if shape[0] > 2 else ()) for name, shape in TOPOLOGIES.items()],
)
def test_losses_do_not_depend_on_topology(reference, topology):
    replicas, accumulation = TOPOLOGIES[topology]
    records = small_run(replicas=replicas, accumulation=accumulation, compile_step=True).train(20)
    for ours, expected in zip(records, reference[0], strict=True):
        assert ours == pytest.approx(expected, rel=1e-5)


def test_rematerialization_changes_no_loss(reference):
    task = small_task(encoder=dataclasses.replace(SMALL_ENCODER, rematerialize=True))
    records = small_run(task=task, accumulation=2, compile_step=True).train(20)
    for ours, expected in zip(records, reference[0], strict=True):
        assert ours == pytest.approx(expected, rel=1e-5)


def test_without_xla_the_losses_are_the_same(reference):
    records = small_run().train(5)
    for ours, expected in zip(records, reference[0], strict=False):
        assert ours == pytest.approx(expected, rel=1e-5)


def test_with_sgd_any_factorisation_gives_the_weights_of_one_large_batch():
    optimizer = sgd(learning_rate=ConstantSchedule(peak=0.5))
    task = small_task(pairs=True)

    def pairs(step, global_batch):
        return random_examples(step, global_batch, pairs=True)

    expected = None
    for replicas, accumulation in ((1, 1), (1, 8), (2, 4)):
        run = small_run(replicas=replicas, accumulation=accumulation, task=task, optimizer=optimizer, examples=pairs)
        run.train(5)
        weights = run.weights()
        expected = expected or weights
        for name, value in weights.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_microbatches_of_uneven_mask_counts_are_weighted_by_tokens():
    # All masked tokens but a few lie in the first half of the batch: a mean of microbatch means would differ.
    def uneven(step, global_batch):
        examples = random_examples(step, global_batch)
        examples["token_ids"][global_batch // 2 :, 4:] = 0
        examples["document_ids"][global_batch // 2 :, 4:] = 0
        return examples

    whole = small_run(examples=uneven).train(3)
    split = small_run(examples=uneven, accumulation=8).train(3)
    for ours, expected in zip(split, whole, strict=True):
        assert ours == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 8])
def test_gradients_are_reduced_once_a_step(accumulation):
    # This strategy sums with collective operations, which can be counted in the traced graph and all that it calls.
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    run = small_run(replicas=2, accumulation=accumulation, strategy=strategy)
    graph = run.step.loop.get_concrete_function(run.iterator, tf.TensorSpec([], tf.int32)).graph.as_graph_def()
    nodes = [node for function in graph.library.function for node in function.node_def] + list(graph.node)
    reduced = [node.name for node in nodes if node.op.startswith("CollectiveReduce")]
    # Two a replica: the weights of the loss, one number; and all gradients in one tensor, with loss and metrics.
    assert len(run.state.parameters) > 20
    assert len(reduced) == 2 * 2


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    run = small_run(replicas=2)
    run.train(2)
    good = run.weights()
    name = run.state.parameters[5].name
    variable = run.state.parameters[5].variable
    broken = np.array(variable)
    broken.flat[0] = np.nan
    variable.assign(broken)
    before = run.weights()
    records = run.train(2)
    assert [record["skipped"] for record in records] == [1.0, 1.0]
    for key, value in run.weights().items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)
    variable.assign(good[name])
    after = run.train(1)[0]
    assert after["skipped"] == 0
    assert int(run.state.step) == 5
    assert float(run.state.updates.values[0]) == 3


def test_float16_scales_the_loss_down_until_gradients_are_finite():
    run = small_run(dtype="mixed_float16", replicas=2)
    run.state.loss_scale.assign(2.0**24)
    for _ in range(3):
        # A gradient of this size overflows float16 under such a scale.
        records = run.train(4)
    assert records[-1]["skipped"] == 0
    assert records[-1]["loss_scale"] < 2.0**24
    reference = small_run(replicas=2).train(1)[0]
    assert records[0]["loss"] == pytest.approx(reference["loss"], rel=0.05)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_stays_near_float32(reference, dtype):
    records = small_run(dtype=dtype, accumulation=2).train(5)
    for ours, expected in zip(records, reference[0], strict=False):
        assert ours["loss"] == pytest.approx(expected["loss"], rel=0.02)


def test_gradients_are_clipped_by_the_norm_over_everything(reference):
    optimizer = sgd(learning_rate=ConstantSchedule(peak=1.0), clip_norm=0.1)
    run = small_run(replicas=2, accumulation=2, optimizer=optimizer)
    record = run.train(1)[0]
    assert record["gradient_norm"] == pytest.approx(reference[0][0]["gradient_norm"], rel=1e-5)
    assert record["gradient_norm"] > 0.1
    assert record["update_norm"] == pytest.approx(0.1, rel=1e-4)


def test_adamw_equals_the_formula_in_float64():
    optimizer = adamw(learning_rate=ConstantSchedule(peak=1e-2), weight_decay=0.1, clip_norm=None)
    run = small_run(optimizer=optimizer)
    first = run.weights()
    examples = next(run.iterator)
    gradients = {}
    expected = {name: value.astype(np.float64) for name, value in first.items()}
    moments = {name: (np.zeros(value.shape), np.zeros(value.shape)) for name, value in first.items()}
    for number in range(1, 4):
        found, _ = run.step.inspect(examples)
        for parameter, gradient in zip(run.state.parameters, found, strict=True):
            gradients[parameter.name] = gradient.numpy().astype(np.float64)
        run.step.one(examples)
        for parameter in run.state.parameters:
            name, gradient = parameter.name, gradients[parameter.name]
            m = 0.9 * moments[name][0] + 0.1 * gradient
            v = 0.999 * moments[name][1] + 0.001 * gradient**2
            moments[name] = (m, v)
            change = (m / (1 - 0.9**number)) / (np.sqrt(v / (1 - 0.999**number)) + 1e-6)
            if parameter.role in ("kernel", "embedding"):
                change += 0.1 * expected[name]
            expected[name] = expected[name] - 1e-2 * change
        for name, value in run.weights().items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=2e-5, err_msg=name)


def test_inspection_gives_the_gradient_norm_and_loss_of_the_step_that_follows():
    run = small_run(replicas=2, accumulation=2)
    examples = next(run.iterator)
    gradients, losses = run.step.inspect(examples)
    metrics = dict(zip(run.step.metric_names, run.step.one(examples).numpy().tolist(), strict=True))
    norm = np.sqrt(sum(np.sum(np.square(gradient.numpy())) for gradient in gradients))
    assert norm == pytest.approx(metrics["gradient_norm"], rel=1e-5)
    total = sum(part.numpy().sum() for part in losses.values)
    assert total == pytest.approx(metrics["loss"], rel=1e-5)
