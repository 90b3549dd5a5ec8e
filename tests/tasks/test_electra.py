"""ELECTRA: what is replaced, what the discriminator is asked, and which loss moves which weights."""

import dataclasses
import types

import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from small_runs import LENGTH, SMALL_ENCODER, VOCABULARY_SIZE, random_examples, small_run, small_task

from trainer import randomness
from trainer.models.architecture import EncoderConfig
from trainer.optimizers.parameters import parameters_of
from trainer.tasks.electra import Electra, ElectraConfig, replace_tokens, sampled

DISCRIMINATOR = dataclasses.replace(SMALL_ENCODER, embedding_size=6)
GENERATOR = EncoderConfig(
    hidden_size=4, num_layers=2, num_heads=1, intermediate_size=8, embedding_size=6, max_length=LENGTH
)


def electra_task():
    plain = small_task()
    return Electra(plain.data, DISCRIMINATOR, plain.masking, (), GENERATOR, 50.0)


def keys_of(batch, step=0):
    return randomness.example_keys(7, step, np.arange(batch))


def features_of(task, batch=8):
    examples = {name: tf.constant(value) for name, value in random_examples(0, batch).items()}
    return examples, task.prepare(examples, keys_of(batch))


def test_tokens_are_put_where_they_belong_and_unused_slots_put_none():
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 40, (6, 10)).astype(np.int32)
    positions = np.array([rng.permutation(10)[:4] for _ in range(6)], np.int32)
    put = rng.integers(50, 60, (6, 4)).astype(np.int32)
    used = rng.random((6, 4)) < 0.6
    positions[~used] = 0  # as masking fills what it does not need
    expected = ids.copy()
    for row in range(6):
        for slot in np.flatnonzero(used[row]):
            expected[row, positions[row, slot]] = put[row, slot]
    np.testing.assert_array_equal(replace_tokens(ids, positions, put, used), expected)


def test_replacements_are_drawn_from_the_softmax():
    logits = np.array([2.0, 0.0, -1.0, 1.0, -30.0], np.float32)
    batch, slots = 400, 50
    drawn = np.array(sampled(tf.constant(np.broadcast_to(logits, (batch, slots, 5)).copy()), keys_of(batch)))
    frequencies = np.bincount(drawn.reshape(-1), minlength=5) / drawn.size
    expected = np.exp(logits) / np.exp(logits).sum()
    # Four standard deviations of a share of 20,000 draws.
    np.testing.assert_allclose(frequencies, expected, atol=4 * 0.5 / np.sqrt(drawn.size))
    assert len({tuple(row) for row in drawn}) == batch  # each example draws for itself


def test_a_drawn_token_that_is_the_original_counts_as_original():
    task = electra_task()
    _, features = features_of(task)

    class Fixed:
        """A model whose generator always gives back the original, and whose discriminator says what it saw."""

        def generator(self, token_ids, segment_ids, document_ids, positions, **_):
            return 100.0 * ops.one_hot(features["labels"], VOCABULARY_SIZE)

        def __call__(self, token_ids, *_, **__):
            np.testing.assert_array_equal(token_ids, features["original_ids"])
            return tf.fill(tf.shape(token_ids), -20.0)  # "all are original"

    sums = task.sums(Fixed(), features, None)
    assert float(sums.metrics["replaced_share"]) == 0
    tokens = float(ops.sum(features["replaced_weights"]))
    assert float(sums.metrics["replaced_token_accuracy"]) == tokens
    assert float(sums.losses["replaced_token_detection"]) / tokens < 1e-6


def test_the_discriminator_is_asked_about_every_token_but_padding():
    task = electra_task()
    examples, features = features_of(task)
    inside = np.array(examples["document_ids"]) != 0
    np.testing.assert_array_equal(features["replaced_weights"], inside.astype(np.float32))
    np.testing.assert_array_equal(features["original_ids"], np.array(examples["token_ids"]))
    weights = task.weights(features)
    assert float(weights["replaced_token_detection"]) == inside.sum()
    assert float(weights["masked_language_model"]) == float(ops.sum(features["token_weights"]))


def test_each_loss_moves_its_own_part_and_both_move_the_embeddings():
    task = electra_task()
    _, features = features_of(task)
    model = task.build_model(seed=1, dtype="float32")
    parameters = parameters_of(model)
    variables = [parameter.variable.value for parameter in parameters]
    moved = {}
    for name in task.loss_coefficients:
        with tf.GradientTape() as tape:
            loss = task.sums(model, features, None).losses[name]
        gradients = tape.gradient(loss, variables)
        # Keys' biases change nothing but by rounding.
        moved[name] = {
            parameter.name.removeprefix("electra/")
            for parameter, gradient in zip(parameters, gradients, strict=True)
            if gradient is not None and float(tf.reduce_max(tf.abs(tf.convert_to_tensor(gradient)))) > 1e-7
        }
    generator, discriminator = moved["masked_language_model"], moved["replaced_token_detection"]
    shared = generator & discriminator
    assert shared and all(name.startswith("encoder/embeddings/") for name in shared)
    assert {name.split("/")[0] for name in generator - shared} == {"generator"}
    assert {name.split("/")[0] for name in discriminator - shared} == {"encoder", "replaced_token_detection"}
    assert "generator/masked_language_model/output_bias" in generator


def test_embeddings_are_one_set_of_parameters():
    model = electra_task().build_model(seed=1, dtype="float32")
    names = [parameter.name for parameter in parameters_of(model)]
    assert sum("word_embeddings" in name for name in names) == 1
    assert "electra/encoder/embeddings/word_embeddings/embeddings" in names
    assert "electra/generator/encoder/embedding_projection/kernel" in names


@pytest.mark.parametrize(("replicas", "accumulation"), [(1, 4), (2, 2)])
def test_losses_do_not_depend_on_the_topology(replicas, accumulation):
    whole = small_run(task=electra_task()).train(4)
    other = small_run(task=electra_task(), replicas=replicas, accumulation=accumulation).train(4)
    for a, b in zip(whole, other, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["replaced_share"] == b["replaced_share"]
    assert len({step["loss"] for step in whole}) == 4


def test_embeddings_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"share their embeddings.*32 and 6"):
        ElectraConfig(
            data=types.SimpleNamespace(),
            encoder=DISCRIMINATOR,
            generator=EncoderConfig(hidden_size=32, num_heads=2),
        )
