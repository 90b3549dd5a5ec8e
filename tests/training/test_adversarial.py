"""Adversarial training: the gradients of the formulas, the same on every topology, and nothing left in the weights."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from small_runs import SMALL_ENCODER, small_run, small_task

from trainer import randomness
from trainer.errors import InputError
from trainer.models.layers import TokenEmbedding
from trainer.optimizers.recipes import sgd
from trainer.optimizers.schedules import ConstantSchedule
from trainer.training.adversarial import FastGradient, GradientPenalty

# Strong enough to change the first loss in its first digits.
OPTIONS = {"fast gradient": FastGradient(epsilon=0.5), "gradient penalty": GradientPenalty(coefficient=10.0)}
TOPOLOGIES = {"4 microbatches": (1, 4), "2 replicas, 2 microbatches": (2, 2)}
WORDS = "pretraining/encoder/embeddings/word_embeddings/embeddings"

each_option = pytest.mark.parametrize("option", OPTIONS)


def plain_descent():
    """An optimizer under which the weights lose just the gradient."""
    return sgd(learning_rate=ConstantSchedule(peak=1.0), clip_norm=None)


class Reference:
    """The loss of a run's next step, on one device in one piece, in plain TensorFlow."""

    def __init__(self, run):
        self.model, self.task = run.state.model, run.step.task
        self.variables = {parameter.name: parameter.variable.value for parameter in run.state.parameters}
        self.examples = next(run.iterator)
        keys = randomness.example_keys(run.step.seed, 0, self.examples["example_index"])
        self.features = self.task.prepare(self.examples, randomness.fold_in(keys, "prepare"))
        self.keys = randomness.fold_in(keys, "dropout")

    def loss(self):
        sums = self.task.sums(self.model, self.features, self.keys)
        weights = self.task.weights(self.features)
        return tf.add_n([sums.losses[name] / weights[name] for name in weights])

    def gradients(self, loss_of):
        """Returns a loss and its gradients by name."""
        with tf.GradientTape() as tape:
            loss = loss_of()
        gradients = tape.gradient(loss, self.variables)
        return loss.numpy(), {name: tf.convert_to_tensor(gradient).numpy() for name, gradient in gradients.items()}


def step_of(run, examples):
    """Does a step; returns its metrics, and by how much each weight fell."""
    before = run.weights()
    metrics = dict(zip(run.step.metric_names, run.step.one(examples).numpy().tolist(), strict=True))
    return metrics, {name: before[name] - value for name, value in run.weights().items()}


def assert_same_gradients(ours, expected):
    for name, gradient in expected.items():
        np.testing.assert_allclose(ours[name], gradient, rtol=2e-4, atol=2e-6, err_msg=name)


def test_the_fast_gradient_is_that_of_the_formula_and_the_same_masks_are_dropped_twice():
    run = small_run(adversarial=FastGradient(epsilon=0.7), optimizer=plain_descent(), compile_step=True)
    reference = Reference(run)
    clean_loss, gradients = reference.gradients(reference.loss)
    norm = np.linalg.norm(gradients[WORDS])
    table = reference.variables[WORDS]
    before = table.numpy()
    table.assign_add(0.7 * gradients[WORDS] / (norm + 1e-8))
    loss, expected = reference.gradients(reference.loss)
    table.assign(before)

    metrics, ours = step_of(run, reference.examples)
    assert metrics["clean_loss"] == pytest.approx(clean_loss, rel=1e-5)
    assert metrics["embedding_gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["loss"] > metrics["clean_loss"] + 0.1
    assert_same_gradients(ours, expected)


def test_the_gradient_penalty_is_that_of_the_formula(monkeypatch):
    run = small_run(adversarial=GradientPenalty(coefficient=3.0), optimizer=plain_descent(), compile_step=True)
    reference = Reference(run)
    words = reference.task.word_embeddings(reference.model)
    looked_up, look_up = [], TokenEmbedding.call

    def watched(layer, ids):
        vectors = look_up(layer, ids)
        if layer is words:
            looked_up.append(vectors)
        return vectors

    def penalized():
        with tf.GradientTape() as tape:
            loss = reference.loss()
        (vectors,) = looked_up
        assert vectors.shape == (16, 16, 16)
        # Of each token, not of each row of the table, in which tokens of several examples meet.
        return loss + 1.5 * tf.reduce_sum(tape.gradient(loss, vectors) ** 2)

    monkeypatch.setattr(TokenEmbedding, "call", watched)
    loss, expected = reference.gradients(penalized)
    monkeypatch.undo()
    plain = reference.loss().numpy()

    metrics, ours = step_of(run, reference.examples)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["gradient_penalty"] == pytest.approx(loss - plain, rel=1e-3)
    assert metrics["masked_language_model_loss"] == pytest.approx(plain, rel=1e-5)
    assert metrics["gradient_penalty"] > 0.05
    assert_same_gradients(ours, expected)


@pytest.fixture(scope="module")
def whole_batches():
    """Ten steps with each option on one device with the whole batch at once, dropout on."""
    return {name: small_run(adversarial=option, compile_step=True).train(10) for name, option in OPTIONS.items()}


@pytest.mark.parametrize(
    "compile_step",
    # Everything is compiled once per replica.
    [pytest.param(True, id="xla", marks=pytest.mark.slow), pytest.param(False, id="no xla")],
)
@pytest.mark.parametrize("topology", TOPOLOGIES)
@each_option
def test_losses_do_not_depend_on_topology(whole_batches, option, topology, compile_step):
    replicas, accumulation = TOPOLOGIES[topology]
    run = small_run(
        replicas=replicas, accumulation=accumulation, adversarial=OPTIONS[option], compile_step=compile_step
    )
    for ours, expected in zip(run.train(10), whole_batches[option], strict=True):
        assert ours == pytest.approx(expected, rel=2e-5)


def test_the_embedding_gradient_is_reduced_once_more():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    run = small_run(replicas=2, accumulation=2, strategy=strategy, adversarial=FastGradient())
    graph = run.step.loop.get_concrete_function(run.iterator, tf.TensorSpec([], tf.int32)).graph.as_graph_def()
    nodes = [node for function in graph.library.function for node in function.node_def] + list(graph.node)
    assert len([node.name for node in nodes if node.op.startswith("CollectiveReduce")]) == 3 * 2


@pytest.mark.parametrize("replicas", [1, 2])
def test_frozen_word_embeddings_are_moved_and_keep_their_bits(replicas):
    run = small_run(replicas=replicas, adversarial=OPTIONS["fast gradient"], frozen=("word_embeddings",))
    before = run.weights()
    record = run.train(2)[0]
    assert record["loss"] > record["clean_loss"] + 0.1
    after = run.weights()
    assert after[WORDS].tobytes() == before[WORDS].tobytes()
    changed = [name for name, value in after.items() if not np.array_equal(value, before[name])]
    assert len(changed) == len(after) - 1


@pytest.mark.parametrize("gradient", [0.0, np.nan, np.inf])
def test_a_gradient_that_is_zero_or_not_finite_moves_nothing(gradient):
    table = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    gradients = np.full_like(table, gradient)
    moved = FastGradient().perturbed(tf.constant(table), tf.constant(gradients), tf.norm(gradients))
    assert moved.numpy().tobytes() == table.tobytes()


@each_option
def test_a_step_that_is_not_finite_changes_nothing(option):
    run = small_run(replicas=2, adversarial=OPTIONS[option], frozen=("word_embeddings",))
    variable = run.state.parameters[5].variable
    broken = np.array(variable)
    broken.flat[0] = np.nan
    variable.assign(broken)
    before = run.weights()
    assert [record["skipped"] for record in run.train(2)] == [1.0, 1.0]
    for name, value in run.weights().items():
        assert value.tobytes() == before[name].tobytes()


@each_option
def test_inspection_gives_the_gradient_norm_and_loss_of_the_step_that_follows(option):
    run = small_run(replicas=2, accumulation=2, adversarial=OPTIONS[option])
    examples, before = next(run.iterator), run.weights()
    gradients, losses = run.step.inspect(examples)
    assert all(np.array_equal(value, before[name]) for name, value in run.weights().items())
    metrics, _ = step_of(run, examples)
    norm = np.sqrt(sum(np.sum(np.square(gradient.numpy())) for gradient in gradients))
    assert norm == pytest.approx(metrics["gradient_norm"], rel=1e-5)
    assert sum(part.numpy().sum() for part in losses.values) == pytest.approx(metrics["loss"], rel=1e-5)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@each_option
def test_mixed_precision_stays_near_float32(whole_batches, option, dtype):
    records = small_run(dtype=dtype, accumulation=2, adversarial=OPTIONS[option]).train(4)
    # The penalty's gradients are large here: float16 skips steps until the loss scale suits them.
    assert records[-1]["skipped"] == 0
    for ours, expected in zip(records, whole_batches[option], strict=False):
        assert ours["loss"] == pytest.approx(expected["loss"], rel=0.02)
        if ours["skipped"]:
            break


def rematerialized():
    return small_task(encoder=dataclasses.replace(SMALL_ENCODER, rematerialize=True))


def test_the_fast_gradient_goes_with_rematerialization(whole_batches):
    run = small_run(task=rematerialized(), adversarial=OPTIONS["fast gradient"], compile_step=True)
    for ours, expected in zip(run.train(3), whole_batches["fast gradient"], strict=False):
        assert ours == pytest.approx(expected, rel=1e-5)


def test_a_gradient_penalty_with_rematerialization_is_refused():
    with pytest.raises(InputError, match=r"encoder\.rematerialize = False"):
        small_run(task=rematerialized(), adversarial=GradientPenalty()).train(1)


@pytest.mark.parametrize("make", [lambda: FastGradient(epsilon=0.0), lambda: GradientPenalty(coefficient=-1.0)])
def test_sizes_must_be_positive(make):
    with pytest.raises(ValueError, match="must be a positive number"):
        make()
