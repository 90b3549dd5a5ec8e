"""The encoder: BERT's formulas, documents that do not see each other, dropout that is a function of keys."""

import math

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from trainer import randomness
from trainer.models.architecture import EncoderConfig
from trainer.models.attention import document_positions
from trainer.models.encoder import Encoder, padded_vocabulary_size
from trainer.models.heads import MaskedLanguageModelHead
from trainer.models.layers import gather_positions
from trainer.optimizers.parameters import parameters_of
from trainer.tasks.pretraining import PretrainingModel

CONFIG = EncoderConfig(hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20, max_length=16)
VOCABULARY = 50


def _encoder(**changes):
    encoder = Encoder(EncoderConfig(**(vars(CONFIG) | changes)), VOCABULARY, seed=1)
    encoder.build()
    rng = np.random.default_rng(0)
    for variable in encoder.trainable_variables:  # zero biases would hide mistakes
        variable.assign(variable + 0.1 * rng.normal(size=variable.shape))
    return encoder


def _rows():
    rng = np.random.default_rng(1)
    ids = rng.integers(1, VOCABULARY, (3, 10)).astype(np.int32)
    documents = np.array([[1] * 10, [1] * 4 + [2] * 6, [1] * 3 + [2] * 3 + [0] * 4], np.int32)
    return ids * (documents > 0), (documents == 2).astype(np.int32), documents


def _reference(encoder, ids, segments, documents):
    """BERT's forward pass in float64 NumPy, one token at a time where that is clearer."""
    weights = {p.name.split("encoder/", 1)[1]: np.array(p.variable, np.float64) for p in parameters_of(encoder)}

    def norm(x, name):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-12) * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    def dense(x, name):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    result = []
    for row_ids, row_segments, row_documents in zip(ids, segments, documents, strict=True):
        positions = [int(np.sum(row_documents[:i] == row_documents[i])) for i in range(len(row_ids))]
        x = (
            weights["embeddings/word_embeddings/embeddings"][row_ids]
            + weights["embeddings/position_embeddings/embeddings"][positions]
        )
        x = norm(x + weights["embeddings/type_embeddings/embeddings"][row_segments], "embeddings/norm")
        visible = (row_documents[:, None] == row_documents[None]) & (row_documents > 0)[None]
        for layer in range(2):
            name = f"layer_{layer}"
            query, key, value = np.split(dense(x, f"{name}/attention/query_key_value"), 3, axis=-1)
            heads = []
            for head in range(3):
                part = slice(4 * head, 4 * head + 4)
                logits = np.where(visible, query[:, part] @ key[:, part].T / 2.0, -1e9)
                probabilities = np.exp(logits - logits.max(-1, keepdims=True))
                heads.append(probabilities / probabilities.sum(-1, keepdims=True) @ value[:, part])
            x = norm(x + dense(np.concatenate(heads, -1), f"{name}/attention/output"), f"{name}/attention_norm")
            inner = dense(x, f"{name}/intermediate")
            inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
            x = norm(x + dense(inner, f"{name}/output"), f"{name}/output_norm")
        result.append(x)
    return np.array(result)


def test_the_encoder_computes_berts_formulas():
    encoder = _encoder()
    ids, segments, documents = _rows()
    hidden = ops.convert_to_numpy(encoder(ids, segments, documents))
    expected = _reference(encoder, ids, segments, documents)
    real = documents > 0
    np.testing.assert_allclose(hidden[real], expected[real], atol=2e-5)


def test_documents_of_a_packed_row_do_not_see_each_other():
    encoder = _encoder()
    ids, segments, documents = _rows()
    changed = ids.copy()
    changed[1, :4] = (changed[1, :4] + 7) % VOCABULARY
    before = ops.convert_to_numpy(encoder(ids, segments, documents))
    after = ops.convert_to_numpy(encoder(changed, segments, documents))
    np.testing.assert_array_equal(before[1, 4:], after[1, 4:])
    assert np.abs(before[1, :4] - after[1, :4]).max() > 1e-3


def test_a_packed_document_is_encoded_as_if_it_stood_alone():
    encoder = _encoder()
    ids, segments, documents = _rows()
    packed = ops.convert_to_numpy(encoder(ids, segments, documents))[1, 4:]
    alone_ids, alone_documents = np.zeros((1, 10), np.int32), np.zeros((1, 10), np.int32)
    alone_ids[0, :6], alone_documents[0, :6] = ids[1, 4:], 1
    alone_segments = alone_documents * 1
    alone = ops.convert_to_numpy(encoder(alone_ids, alone_segments, alone_documents))[0, :6]
    np.testing.assert_allclose(packed, alone, atol=1e-5)


def test_without_confinement_the_whole_row_is_seen():
    encoder = _encoder(confine_attention=False)
    ids, segments, documents = _rows()
    changed = ids.copy()
    changed[1, 0] = (changed[1, 0] + 7) % VOCABULARY
    before = ops.convert_to_numpy(encoder(ids, segments, documents))
    after = ops.convert_to_numpy(encoder(changed, segments, documents))
    assert np.abs(before[1, 9] - after[1, 9]).max() > 1e-6


def test_positions_restart_with_each_document():
    positions = ops.convert_to_numpy(document_positions(np.array([[1, 1, 1, 2, 2, 3, 0, 0]])))
    np.testing.assert_array_equal(positions, [[0, 1, 2, 0, 1, 0, 0, 1]])


def test_dropout_depends_on_each_examples_key_alone():
    encoder = _encoder()
    ids, segments, documents = _rows()
    keys = randomness.example_keys(0, 5, np.arange(3))
    whole = ops.convert_to_numpy(encoder(ids, segments, documents, keys=keys))
    again = ops.convert_to_numpy(encoder(ids, segments, documents, keys=keys))
    np.testing.assert_array_equal(whole, again)
    last = randomness.example_keys(0, 5, np.array([2]))
    alone = ops.convert_to_numpy(encoder(ids[2:], segments[2:], documents[2:], keys=last))
    np.testing.assert_allclose(whole[2:], alone, atol=1e-5)
    other = ops.convert_to_numpy(encoder(ids, segments, documents, keys=randomness.example_keys(0, 6, np.arange(3))))
    assert np.abs(whole - other).max() > 0.1


def test_initial_weights_are_a_function_of_the_seed_alone():
    first, second, other = (Encoder(CONFIG, VOCABULARY, seed=seed) for seed in (1, 1, 2))
    for encoder in (first, second, other):
        encoder.build()
    kernels = []
    for a, b, c in zip(first.trainable_variables, second.trainable_variables, other.trainable_variables, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))
        if len(a.shape) == 2:
            assert np.abs(np.array(a) - np.array(c)).max() > 1e-3
            kernels.append(np.array(a).ravel()[:10].tolist())
    assert len({tuple(kernel) for kernel in kernels}) == len(kernels)  # no two kernels start equal


def test_the_padding_of_the_vocabulary_is_never_predicted():
    encoder = _encoder()
    head = MaskedLanguageModelHead(encoder.embeddings, encoder.config.hidden_size)
    head.build()
    ids, segments, documents = _rows()
    positions = np.array([[1, 2], [3, 4], [1, 1]])
    logits = ops.convert_to_numpy(head(encoder(ids, segments, documents, positions=positions)))
    assert logits.shape == (3, 2, padded_vocabulary_size(VOCABULARY)) == (3, 2, 128)
    assert logits[:, :, VOCABULARY:].max() < -1e8
    assert np.abs(logits[:, :, :VOCABULARY]).max() < 100


def test_roles_are_those_of_the_layers():
    encoder = _encoder()
    roles = {p.name.split("encoder/", 1)[1]: p.role for p in parameters_of(encoder)}
    assert roles["embeddings/word_embeddings/embeddings"] == "embedding"
    assert roles["layer_0/attention/query_key_value/kernel"] == "kernel"
    assert roles["layer_0/attention/query_key_value/bias"] == "bias"
    assert roles["layer_1/output_norm/gamma"] == roles["layer_1/output_norm/beta"] == "normalization"
    head = MaskedLanguageModelHead(encoder.embeddings, encoder.config.hidden_size)
    head.build()
    assert {p.name.rsplit("/", 1)[-1]: p.role for p in parameters_of(head)}["output_bias"] == "bias"


def test_the_model_asks_the_encoder_for_what_its_heads_read():
    model = PretrainingModel(CONFIG, VOCABULARY, pairs=True, seed=1)
    model.build()
    ids, segments, documents = _rows()
    positions = np.array([[1, 2], [3, 4], [1, 1]])
    tokens, pairs = (ops.convert_to_numpy(logits) for logits in model(ids, segments, documents, positions))
    hidden = model.encoder(ids, segments, documents)
    np.testing.assert_allclose(pairs, ops.convert_to_numpy(model.pair_head(model.pooler(hidden))), rtol=1e-5, atol=1e-6)
    wanted = np.take_along_axis(ops.convert_to_numpy(hidden), positions[:, :, None], axis=1)
    np.testing.assert_allclose(tokens, ops.convert_to_numpy(model.token_head(wanted)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("confine", [True, False])
@pytest.mark.parametrize("rematerialize", [True, False])
def test_hidden_states_at_positions_are_those_of_whole_rows(confine, rematerialize):
    encoder = _encoder(confine_attention=confine, rematerialize=rematerialize)
    rows = [ops.convert_to_tensor(part) for part in _rows()]
    positions = np.array([[0, 3, 9], [5, 4, 4], [0, 1, 5]])
    seen = np.random.default_rng(2).normal(size=(3, 3, 12)).astype(np.float32)
    with tf.GradientTape(persistent=True) as tape:
        some = encoder(*rows, positions=ops.convert_to_tensor(positions))
        those = gather_positions(encoder(*rows), positions)
        loss, other_loss = tf.reduce_sum(some * seen), tf.reduce_sum(those * seen)
    np.testing.assert_allclose(some.numpy(), those.numpy(), rtol=1e-5, atol=1e-6)
    variables = [variable.value for variable in encoder.trainable_variables]
    for name, one, other in zip(
        (variable.path for variable in encoder.trainable_variables),
        tape.gradient(loss, variables),
        tape.gradient(other_loss, variables),
        strict=True,
    ):
        np.testing.assert_allclose(tf.convert_to_tensor(one), tf.convert_to_tensor(other), atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "wrong", [{"hidden_size": 10, "num_heads": 3}, {"dropout": 1.0}, {"num_layers": 0}, {"attention_dropout": -0.1}]
)
def test_impossible_architectures_are_refused(wrong):
    with pytest.raises(ValueError, match="encoder"):
        EncoderConfig(**wrong)
