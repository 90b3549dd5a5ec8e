"""Our layers in other people's Keras models: masks that are carried, layers in layers, saving, `fit`, mixed precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from float64_reference import add_noise
from float64_reference import softmax as softmax_of_row
from keras import ops

from trainer.models.architecture import EncoderConfig
from trainer.models.attention import SelfAttention
from trainer.models.encoder import Embeddings, Encoder
from trainer.models.encoder_with_heads import EncoderWithHeads
from trainer.models.heads import ClassifierHead, MaskedLanguageModelHead, Pooler, ReplacedTokenHead
from trainer.models.layers import Dropout, Normalization, TokenEmbedding
from trainer.models.pooling import (
    AttentionPooling,
    MaskedMaxPooling,
    MaskedMeanPooling,
    masked_max,
    masked_mean,
    masked_softmax,
)
from trainer.models.transformer import TransformerLayer

CONFIG = EncoderConfig(hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20, max_length=16)
VOCABULARY = 50
SIZE = CONFIG.hidden_size
LENGTHS = (9, 6, 3)
IDS = np.random.default_rng(1).integers(1, VOCABULARY, (3, 9)).astype(np.int32)
REAL = np.arange(9) < np.array(LENGTHS)[:, None]
IDS *= REAL
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}


def changed(**changes):
    return EncoderConfig(**(vars(CONFIG) | changes))


def model_on(tail, config=CONFIG, dtype="float32"):
    """A functional model of an encoder and what `tail` puts on it, for rows of any length."""
    ids = keras.Input((None,), dtype="int32")
    return keras.Model(ids, tail(Encoder(config, VOCABULARY, seed=1, dtype=dtype)(ids)))


def numbers(tensor):
    return ops.convert_to_numpy(tensor)


# What a row's hidden states and their length make of each layer that a mask must reach.
MASKED = {
    "mean": (lambda: MaskedMeanPooling(), lambda states: states.mean(0)),
    "max": (lambda: MaskedMaxPooling(), lambda states: states.max(0)),
    "attention": (lambda: AttentionPooling(5), None),
    "mean of Keras": (lambda: keras.layers.GlobalAveragePooling1D(), lambda states: states.mean(0)),
    "LSTM": (lambda: keras.layers.LSTM(4), None),
    "LSTM in both directions": (lambda: keras.layers.Bidirectional(keras.layers.LSTM(4)), None),
    "our pooler": (lambda: Pooler(CONFIG, "mean", transform=False), lambda states: states.mean(0)),
    "a mean after other layers": (
        lambda: lambda hidden: MaskedMeanPooling()(keras.layers.Dropout(0.1)(keras.layers.Dense(4, "tanh")(hidden))),
        None,
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_the_mask_reaches_what_stands_on_an_encoder(name):
    make, reference = MASKED[name]
    model = model_on(make())
    padded = model.predict(IDS, verbose=0)
    for row, length in enumerate(LENGTHS):
        alone = IDS[row : row + 1, :length]
        np.testing.assert_allclose(padded[row], model.predict(alone, verbose=0)[0], atol=1e-5)
        if reference is not None:
            hidden = model.layers[1](alone)[0]
            np.testing.assert_allclose(padded[row], reference(numbers(hidden)), atol=1e-5)


def test_padding_has_no_influence_however_much_there_is():
    model = model_on(MaskedMeanPooling())
    more = np.concatenate([IDS, np.zeros((3, 5), np.int32)], axis=1)
    np.testing.assert_allclose(model.predict(IDS, verbose=0), model.predict(more, verbose=0), atol=1e-5)


def test_the_mask_is_what_is_not_padding_and_never_the_first_token():
    ids = IDS.copy()
    ids[2] = 0
    expected = ids != 0
    expected[:, 0] = True
    hidden = Encoder(CONFIG, VOCABULARY)(ids)
    np.testing.assert_array_equal(numbers(hidden._keras_mask), expected)
    other = Encoder(changed(padding_id=7), VOCABULARY)(np.array([[7, 0, 3, 7, 7]]))
    np.testing.assert_array_equal(numbers(other._keras_mask), [[True, True, True, False, False]])


def test_hidden_states_of_some_tokens_have_a_mask_of_their_own():
    encoder = Encoder(CONFIG, VOCABULARY)
    positions = np.array([[0, 2], [8, 1], [5, 5]], np.int32)
    mean = MaskedMeanPooling()(encoder(IDS, positions=positions))
    assert mean.shape == (3, SIZE)  # the mask of the row would not fit
    ids, at = keras.Input((None,), dtype="int32"), keras.Input((2,), dtype="int32")
    model = keras.Model([ids, at], MaskedMeanPooling()(encoder(ids, positions=at)))
    np.testing.assert_allclose(model.predict([IDS, positions], verbose=0), numbers(mean), atol=1e-5)


X = np.random.default_rng(3).normal(size=(4, 9, 5)).astype(np.float32)
MASK = np.concatenate([REAL, np.zeros((1, 9), bool)])  # the last row has no token at all


def test_masked_pooling_leaves_padding_out_and_gives_zeros_for_nothing():
    for function, reference in ((masked_mean, np.mean), (masked_max, np.max)):
        found = numbers(function(X, MASK))
        for row, length in enumerate(LENGTHS):
            np.testing.assert_allclose(found[row], reference(X[row, :length], axis=0), atol=1e-6)
        np.testing.assert_array_equal(found[3], 0)
        np.testing.assert_allclose(numbers(function(X)), reference(X, axis=1), atol=1e-6)


def test_masked_softmax_leaves_padding_out_and_gives_zeros_for_nothing():
    found = numbers(masked_softmax(X, MASK))
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row, :length], softmax_of_row(X[row, :length].T).T, atol=1e-6)
        np.testing.assert_array_equal(found[row, length:], 0)
    np.testing.assert_array_equal(found[3], 0)
    np.testing.assert_allclose(numbers(masked_softmax(X)).sum(1), 1, atol=1e-6)


def test_attention_pooling_is_the_mean_by_the_softmax_of_its_scores():
    layer = AttentionPooling(7)
    found = numbers(layer(X, mask=MASK))
    hidden, score = (np.array(v, np.float64) for v in layer.trainable_variables)
    for row, length in enumerate(LENGTHS):
        x = X[row, :length].astype(np.float64)
        weights = softmax_of_row((np.tanh(x @ hidden) @ score)[:, 0])
        np.testing.assert_allclose(found[row], weights @ x, atol=1e-6)
    np.testing.assert_array_equal(found[3], 0)


@pytest.mark.parametrize("value", [1e30, np.nan, np.inf])
def test_not_even_what_is_no_number_comes_through_a_mask(value):
    x = np.where(MASK[:, :, None], X, np.float32(value))
    for function in (masked_mean, masked_max, masked_softmax):
        np.testing.assert_array_equal(numbers(function(x, MASK)), numbers(function(X, MASK)))


@keras.saving.register_keras_serializable("tests")
class Reader(keras.layers.Layer):
    """A user's layer that holds an encoder and a layer on it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.encoder = Encoder(changed(**NO_DROPOUT), VOCABULARY, seed=1)
        self.pooling = MaskedMeanPooling()
        self.dense = keras.layers.Dense(4)

    def call(self, ids):
        return self.dense(self.pooling(self.encoder(ids)))


@keras.saving.register_keras_serializable("tests")
class Twice(keras.layers.Layer):
    """A layer that holds that layer, and uses its encoder again by itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.reader = Reader()
        self.again = self.reader.encoder

    def call(self, ids):
        return ops.concatenate([self.reader(ids), self.again(ids)[:, 0]], axis=-1)


def nested_model():
    ids = keras.Input((None,), dtype="int32")
    return keras.Model(ids, keras.layers.Dense(1)(Twice(name="twice")(ids)))


def test_weights_of_an_encoder_in_layers_in_a_model_are_tracked_once():
    model = nested_model()
    encoder = Encoder(CONFIG, VOCABULARY)
    encoder.build()
    paths = [variable.path for variable in model.trainable_variables]
    assert len(set(paths)) == len(paths) == len(encoder.trainable_variables) + 2 + 2


def test_an_encoder_in_layers_in_a_model_can_be_frozen_from_outside():
    model = nested_model()
    twice = model.get_layer("twice")
    everything = len(model.trainable_variables)
    in_encoder = len(twice.reader.encoder.trainable_variables)
    twice.reader.encoder.trainable = False
    assert len(model.trainable_variables) == everything - in_encoder
    frozen = twice.reader.encoder.get_weights()
    kernel = np.array(model.layers[-1].kernel)
    model.compile("sgd", "mse")
    model.fit(IDS, np.ones((3, 1)), epochs=1, verbose=0)
    for now, before in zip(twice.reader.encoder.get_weights(), frozen, strict=True):
        np.testing.assert_array_equal(now, before)
    assert np.abs(np.array(model.layers[-1].kernel) - kernel).max() > 0
    twice.trainable = False
    assert len(model.trainable_variables) == 2
    twice.trainable = True
    twice.reader.encoder.transformer_layers[0].trainable = False
    assert 0 < everything - len(model.trainable_variables) < in_encoder


def test_an_encoder_in_layers_in_a_model_is_saved_and_loaded(tmp_path):
    model = add_noise(nested_model())
    expected = model.predict(IDS, verbose=0)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras").predict(IDS, verbose=0), expected)
    model.save_weights(tmp_path / "model.weights.h5")
    other = nested_model()
    assert np.abs(other.predict(IDS, verbose=0) - expected).max() > 1e-3
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.predict(IDS, verbose=0), expected)


def with_all_heads(ids):
    """All our heads on one encoder, and another encoder with the embeddings of the first."""
    encoder = Encoder(changed(embedding_size=8, **NO_DROPOUT), VOCABULARY, seed=1)
    hidden = encoder(ids)
    pooled = Pooler(encoder.config, seed=1)(hidden)
    small = changed(hidden_size=6, intermediate_size=8, embedding_size=8, **NO_DROPOUT)
    generator = Encoder(small, VOCABULARY, seed=2, embeddings=encoder.embeddings, name="generator")
    return {
        "tokens": MaskedLanguageModelHead(encoder.embeddings, SIZE)(hidden),
        "generated": MaskedLanguageModelHead(encoder.embeddings, 6, name="generator_head")(generator(ids)),
        "replaced": ReplacedTokenHead(encoder.config)(hidden),
        "classes": ClassifierHead(encoder.config, 3, dropout=0.1)(pooled),
        "attended": AttentionPooling(5)(hidden),
        "greatest": MaskedMaxPooling()(hidden),
    }


def expect_equal_outputs(one, other):
    for name, expected in other.items():
        np.testing.assert_array_equal(one[name], expected, err_msg=name)


def test_a_functional_model_with_heads_that_share_embeddings_is_saved_and_loaded(tmp_path):
    ids = keras.Input((None,), dtype="int32")
    model = add_noise(keras.Model(ids, with_all_heads(ids)))
    expected = model.predict(IDS, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expect_equal_outputs(loaded.predict(IDS, verbose=0), expected)
    tables = [v.path for v in loaded.trainable_variables if "word_embeddings" in v.path]
    assert len(tables) == 1  # still shared
    assert len(loaded.trainable_variables) == len(model.trainable_variables)
    model.save_weights(tmp_path / "model.weights.h5")
    loaded.load_weights(tmp_path / "model.weights.h5")
    expect_equal_outputs(loaded.predict(IDS, verbose=0), expected)


def test_a_head_copied_without_its_encoder_is_refused():
    head = MaskedLanguageModelHead(Encoder(CONFIG, VOCABULARY).embeddings, SIZE)
    copy = MaskedLanguageModelHead.from_config(head.get_config())
    with pytest.raises(ValueError, match="encoder"):
        copy(np.zeros((1, 2, SIZE), np.float32))


CONDITIONAL = changed(condition_size=5, condition_hidden_size=4)
VISIBLE = np.broadcast_to(REAL[:, None, None], (3, 1, 9, 9))
HIDDEN = np.random.default_rng(4).normal(size=(3, 9, SIZE)).astype(np.float32)
LAYERS = {
    "Encoder": (lambda: Encoder(changed(positions="rotary", embedding_size=8), VOCABULARY, seed=3), (IDS,)),
    "Embeddings": (lambda: Embeddings(CONFIG, VOCABULARY, seed=3), (IDS, REAL.astype(np.int32), REAL.astype(np.int32))),
    "TransformerLayer": (lambda: TransformerLayer(changed(gated=True), 1, seed=3), (HIDDEN, VISIBLE)),
    "SelfAttention": (lambda: SelfAttention(CONFIG, 1, seed=3), (HIDDEN, VISIBLE)),
    "Normalization": (lambda: Normalization("rms", 1e-6), (HIDDEN,)),
    "conditional Normalization": (
        lambda: Normalization("layer", 1e-6, True, True, 5, 4, keras.initializers.GlorotUniform(3)),
        (HIDDEN, np.ones((3, 1, 5), np.float32)),
    ),
    "TokenEmbedding": (lambda: TokenEmbedding(VOCABULARY, 4, keras.initializers.RandomNormal(seed=3)), (IDS,)),
    "Dropout": (lambda: Dropout(0.1, "somewhere"), (HIDDEN,)),
    "Pooler": (lambda: Pooler(CONFIG, "max", seed=3), (HIDDEN,)),
    "ClassifierHead": (lambda: ClassifierHead(CONFIG, 3, 0.1, seed=3), (HIDDEN[:, 0],)),
    "ReplacedTokenHead": (lambda: ReplacedTokenHead(CONFIG, seed=3), (HIDDEN,)),
    "MaskedMeanPooling": (lambda: MaskedMeanPooling(), (HIDDEN,)),
    "MaskedMaxPooling": (lambda: MaskedMaxPooling(), (HIDDEN,)),
    "AttentionPooling": (lambda: AttentionPooling(4, keras.initializers.RandomNormal(seed=3)), (HIDDEN,)),
    "EncoderWithHeads": (lambda: EncoderWithHeads(CONFIG, VOCABULARY, ("pooler", "classifier"), ("a", "b")), (IDS,)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_layer_comes_back_from_its_configuration(name, dtype):
    make, inputs = LAYERS[name]
    keras.config.set_dtype_policy(dtype)
    try:
        layer = make()
        first = layer(*inputs)
    finally:
        keras.config.set_dtype_policy("float32")
    content = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(content)
    assert type(again) is type(layer) and again.dtype_policy.name == layer.dtype_policy.name
    assert keras.saving.serialize_keras_object(again)["config"] == content["config"]
    assert again.get_config() == layer.get_config()
    second = again(*inputs)  # initial weights are functions of seeds
    keras.tree.map_structure(lambda a, b: np.testing.assert_array_equal(numbers(a), numbers(b)), first, second)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_model_works_in_mixed_bfloat16(pooling):
    float32, mixed = (
        model_on(lambda hidden, dtype=dtype: Pooler(CONFIG, pooling, dtype=dtype)(hidden), dtype=dtype)
        for dtype in ("float32", "mixed_bfloat16")
    )
    mixed.set_weights(float32.get_weights())
    assert {variable.dtype for variable in mixed.trainable_variables} == {"float32"}
    found = mixed(IDS)
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    # bfloat16 has 8 bits: a relative error of 1/256 in each of a few dozen operations.
    np.testing.assert_allclose(numbers(ops.cast(found, "float32")), float32.predict(IDS, verbose=0), atol=0.1)


def test_fit_drops_out_and_predict_does_not():
    model = model_on(MaskedMeanPooling(), changed(dropout=0.5))
    first, second = (model.predict(IDS, verbose=0) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    dry = model_on(MaskedMeanPooling(), changed(**NO_DROPOUT))
    dry.set_weights(model.get_weights()[: len(dry.get_weights())])
    np.testing.assert_array_equal(dry.predict(IDS, verbose=0), first)

    model.compile(keras.optimizers.SGD(0.0), "mse")
    history = model.fit(IDS, np.zeros((3, SIZE)), epochs=3, batch_size=3, verbose=0).history["loss"]
    assert len(set(history)) == 3  # with other masks in every step, and weights that do not move
    assert abs(history[0] - model.evaluate(IDS, np.zeros((3, SIZE)), verbose=0)) > 1e-3


@pytest.mark.parametrize("jit_compile", [True, False])
def test_fit_learns_from_rows_of_any_length(jit_compile):
    keras.utils.set_random_seed(0)
    ids = keras.Input((None,), dtype="int32")
    hidden = MaskedMeanPooling()(Encoder(CONFIG, VOCABULARY, seed=1)(ids))
    model = keras.Model(ids, keras.layers.Dense(2)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, jit_compile=jit_compile)
    rng = np.random.default_rng(5)

    def batches():
        for length in [4, 7, 5] * 20:
            rows = rng.integers(2, VOCABULARY, (16, length)).astype(np.int32)
            labels = rng.integers(0, 2, 16)
            rows[:, 1] = np.where(labels, 1, 2)
            yield rows, labels

    specifications = tf.TensorSpec([None, None], "int32"), tf.TensorSpec([None], "int64")
    dataset = tf.data.Dataset.from_generator(batches, output_signature=specifications)
    history = model.fit(dataset, epochs=2, verbose=0).history["loss"]
    assert history[-1] < 0.3  # a guess has 0.69


def test_segments_documents_and_conditions_are_inputs_of_a_functional_model():
    ids, segments, documents = (keras.Input((None,), dtype="int32") for _ in range(3))
    condition = keras.Input((5,))
    encoder = Encoder(CONDITIONAL, VOCABULARY, seed=1)
    encoder.build()
    add_noise(encoder)
    model = keras.Model(
        [ids, segments, documents, condition],
        encoder(ids, segments, documents, condition=keras.layers.Dense(5, use_bias=False)(condition)),
    )
    given = np.random.default_rng(6).normal(size=(3, 5)).astype(np.float32)
    kernel = np.array(model.trainable_variables[0])
    assert kernel.shape == (5, 5)
    rows = (IDS, REAL.astype(np.int32), REAL.astype(np.int32))
    expected = numbers(encoder(*rows, condition=given @ kernel))
    np.testing.assert_allclose(model.predict([*rows, given], verbose=0), expected, atol=1e-5)


def dynamic_model(positions, jit_compile):
    """A model over rows of a length that is not known before, with 16 learned positions."""
    model = model_on(lambda hidden: hidden, changed(positions=positions, hidden_size=12, num_heads=3))
    model.compile(jit_compile=jit_compile)
    return model


@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_positions_that_are_computed_reach_as_far_as_rows_do(positions, jit_compile):
    model = dynamic_model(positions, jit_compile)
    for length in (8, 12, 24, 300):
        ids = np.random.default_rng(length).integers(1, VOCABULARY, (2, length)).astype(np.int32)
        np.testing.assert_allclose(model.predict(ids, verbose=0), np.asarray(model(ids)), atol=2e-5)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_beyond_the_learned_positions_there_is_an_error_or_no_number(jit_compile):
    model = dynamic_model("learned", jit_compile)
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (2, 24)).astype(np.int32)
    for length in (8, 16):
        np.testing.assert_allclose(
            model.predict(ids[:, :length], verbose=0), np.asarray(model(ids[:, :length])), atol=2e-5
        )
    if jit_compile:  # in which nothing can be raised
        assert np.isnan(model.predict(ids, verbose=0)).all()
    else:
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"indices\[0,16\] = 16 is not in \[0, 16\)"):
            model.predict(ids, verbose=0)
