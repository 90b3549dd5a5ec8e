"""Keras files: of our whole model, and of other people's models with our encoder somewhere in them."""

import keras
import numpy as np
import pytest
from keras import ops
from small_weights import CONFIG, HEADS, PIECES, small_model, small_source, values_of, variables_of

from trainer.errors import InputError
from trainer.models.encoder import Encoder
from trainer.models.heads import ClassifierHead, MaskedLanguageModelHead
from trainer.models.pooling import MaskedMeanPooling
from trainer.weights.loading import load_weights
from trainer.weights.opening import open_weights
from trainer.weights.writing import write_weights

IDS = np.array([[2, 5, 6, 3, 0, 0], [2, 9, 10, 12, 13, 3]], np.int32)


def test_the_model_in_the_file_knows_its_vocabulary_and_classes(tmp_path):
    source = small_source(heads=("pooler", "classifier"), labels=("no", "yes"), objective="multi_label", pooling="cls")
    write_weights(source, str(tmp_path / "out"), "keras")
    model = keras.saving.load_model(tmp_path / "out" / "model.keras")
    assert (model.labels, model.objective, model.pieces, model.lower_case) == (
        ("no", "yes"),
        "multi_label",
        PIECES,
        True,
    )
    answers = model(IDS)
    assert answers["logits"].shape == (2, 2)
    pooled = np.tanh(
        np.asarray(answers["hidden"])[:, 0] @ source.read("pooler/pooler/kernel") + source.read("pooler/pooler/bias")
    )
    expected = pooled @ source.read("classifier/classifier/kernel") + source.read("classifier/classifier/bias")
    np.testing.assert_allclose(np.asarray(answers["logits"]), expected, atol=1e-5)


def test_padding_and_segments_mean_what_they_mean_elsewhere():
    model = small_model()
    load_weights(small_source(), variables_of(model))
    alone, padded = model(IDS[:1, :4]), model(IDS)
    np.testing.assert_allclose(
        np.asarray(alone["token_logits"])[0], np.asarray(padded["token_logits"])[0, :4], atol=1e-5
    )
    other = model({"token_ids": IDS, "segment_ids": np.ones_like(IDS)})
    assert np.abs(np.asarray(other["hidden"]) - np.asarray(padded["hidden"])).max() > 0.1
    assert padded["token_logits"].shape == (2, 6, len(PIECES))


def foreign_model(name="my_encoder", **options):
    """A classifier that somebody built of our encoder and layers of Keras, trained a little."""
    ids = keras.Input((None,), dtype="int32")
    hidden = Encoder(CONFIG, len(PIECES), seed=4, name=name, **options)(ids)
    scores = keras.layers.Dense(3, name="scores")(MaskedMeanPooling()(hidden))
    model = keras.Model(ids, scores)
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(IDS, np.array([0, 2]), epochs=2, verbose=0)
    return model


@pytest.mark.parametrize("options", [{}, {"dtype": "mixed_bfloat16"}])
def test_the_encoder_of_any_keras_model_is_found(tmp_path, options):
    theirs = foreign_model(**options)
    theirs.save(tmp_path / "classifier.keras")
    source = open_weights(str(tmp_path / "classifier.keras"))
    encoder = theirs.get_layer("my_encoder")
    expected = {f"encoder/{v.path.partition('my_encoder/')[2]}": np.array(v) for v in encoder.trainable_variables}
    assert set(source.names) == set(expected)
    for name, array in expected.items():
        read = source.read(name)
        np.testing.assert_array_equal(read, array[: len(read)], err_msg=name)
    assert source.description.encoder == CONFIG and source.description.vocabulary_size == len(PIECES)
    assert source.description.pieces is None
    model = small_model()
    report = load_weights(source, variables_of(model))
    assert {name.partition("/")[0] for name in report.missing} == set(HEADS)
    np.testing.assert_array_equal(
        values_of(model)["encoder/layer_0/output/kernel"], expected["encoder/layer_0/output/kernel"]
    )
    assert open_weights(str(tmp_path)).names == source.names  # the only such file in a folder


def test_heads_of_ours_in_a_foreign_model_are_found_by_name(tmp_path):
    ids = keras.Input((None,), dtype="int32")
    encoder = Encoder(CONFIG, len(PIECES), seed=4)
    hidden = encoder(ids)
    tokens = MaskedLanguageModelHead(encoder.embeddings, CONFIG.hidden_size)(hidden)
    pair = ClassifierHead(CONFIG, 2, name="sentence_pair")(hidden[:, 0])
    keras.Model(ids, [tokens, pair]).save(tmp_path / "model.keras")
    heads = {name.partition("/")[0] for name in open_weights(str(tmp_path / "model.keras")).names}
    assert heads == {"encoder", "masked_language_model", "sentence_pair"}


def test_exactly_one_encoder_is_wanted(tmp_path):
    ids = keras.Input((None,), dtype="int32")
    first, second = (Encoder(CONFIG, len(PIECES), seed=seed, name=f"encoder_{seed}")(ids) for seed in (1, 2))
    keras.Model(ids, first + second).save(tmp_path / "two.keras")
    with pytest.raises(InputError, match="has 2 encoders of this library in it"):
        open_weights(str(tmp_path / "two.keras"))
    keras.Model(ids, ops.cast(ids, "float32") * 2).save(tmp_path / "none.keras")
    with pytest.raises(InputError, match="has 0 encoders"):
        open_weights(str(tmp_path / "none.keras"))


def test_programs_inside_a_keras_file_do_not_run(tmp_path):
    ids = keras.Input((None,), dtype="int32")
    layer = keras.layers.Lambda(lambda x: x * 2)
    keras.Model(ids, layer(Encoder(CONFIG, len(PIECES))(ids))).save(tmp_path / "lambda.keras")
    with pytest.raises(InputError, match="cannot be loaded by Keras"):
        open_weights(str(tmp_path / "lambda.keras"))


def tower(name, seed, encoder="encoder"):
    """A model of its own with an encoder in it, as one of two towers."""
    ids = keras.Input((None,), dtype="int32")
    return keras.Model(ids, MaskedMeanPooling()(Encoder(CONFIG, len(PIECES), seed=seed, name=encoder)(ids)), name=name)


def test_two_encoders_of_one_name_in_nested_models_are_two(tmp_path):
    inputs = [keras.Input((None,), dtype="int32") for _ in range(2)]
    vectors = [tower(name, seed)(ids) for seed, (name, ids) in enumerate(zip(("query", "text"), inputs, strict=True))]
    keras.Model(inputs, keras.layers.Dot(1)(vectors)).save(tmp_path / "towers.keras")
    with pytest.raises(InputError, match="has 2 encoders of this library in it"):
        open_weights(str(tmp_path / "towers.keras"))


def test_two_heads_of_one_name_are_refused(tmp_path):
    ids, vector = keras.Input((None,), dtype="int32"), keras.Input((16,))
    heads = [keras.Model(vector, ClassifierHead(CONFIG, 2, seed=seed)(vector), name=f"of_{seed}") for seed in (1, 2)]
    pooled = MaskedMeanPooling()(Encoder(CONFIG, len(PIECES))(ids))
    keras.Model(ids, [head(pooled) for head in heads]).save(tmp_path / "heads.keras")
    with pytest.raises(InputError, match="several heads called classifier: give them different names"):
        open_weights(str(tmp_path / "heads.keras"))
