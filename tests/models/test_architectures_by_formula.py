"""Architectures that no current release of transformers has: NEZHA and RoFormerV2, by their formulas."""

import json
import pathlib

import keras
import numpy as np
import pytest
from agreement import expect_equal_gradients, model_with_weights, outputs_and_gradients
from float64_reference import (
    add_noise,
    dense,
    encode_row,
    gelu,
    layer_norm,
    nezha_distances,
    relu,
    rms_norm,
    turned_halves,
    turned_neighbours,
    weights_of,
)

from trainer.config import load_config
from trainer.configurables import CONFIGURABLES
from trainer.models.architecture import EncoderConfig
from trainer.models.encoder_with_heads import EncoderWithHeads
from trainer.weights.entries import Part

VOCABULARY = 40
LENGTHS = (14, 9, 5)
TINY = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24, "confine_attention": False}
HEADS = ("masked_language_model", "pooler", "sentence_pair")  # of golden/nezha.npz
NEZHA = EncoderConfig(**TINY, positions="relative", max_relative_distance=3)
# As gin/models/roformer_v2_base.gin has it; a test below holds them together.
ROFORMER_V2_OPTIONS = {
    "positions": "rotary",
    "activation": "relu",
    "normalization": "rms",
    "norm_scale": False,
    "use_bias": False,
    "prediction_transform": False,
    "prediction_bias": False,
    "epsilon": 1e-7,
}
ROFORMER_V2 = EncoderConfig(**TINY, **ROFORMER_V2_OPTIONS)


def model_of(config):
    """A model with noise on its weights, and rows of different length."""
    model = EncoderWithHeads(config, VOCABULARY, heads=("masked_language_model",))
    model.build()
    add_noise(model)
    rng = np.random.default_rng(1)
    real = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    ids = (rng.integers(1, VOCABULARY, real.shape) * real).astype(np.int32)
    segments = (rng.integers(0, 2, real.shape) * real).astype(np.int32)
    outputs = model({"token_ids": ids, "segment_ids": segments})
    return model, ids, segments, {name: keras.ops.convert_to_numpy(output) for name, output in outputs.items()}


def test_nezha_computes_its_formulas():
    model, ids, segments, outputs = model_of(NEZHA)
    weights, head = weights_of(model.encoder), weights_of(model.masked_language_model)
    table = weights["embeddings/word_embeddings/embeddings"][:VOCABULARY]
    for row, length in enumerate(LENGTHS):
        distances = nezha_distances(length, NEZHA.head_size, NEZHA.max_relative_distance)
        hidden = encode_row(NEZHA, weights, ids[row, :length], segments[row, :length], relative=distances)
        np.testing.assert_allclose(outputs["hidden"][row, :length], hidden, atol=2e-5)
        logits = layer_norm(head, "norm", gelu(dense(head, "transform", hidden)), NEZHA.epsilon)
        logits = logits @ table.T + head["output_bias"][:VOCABULARY]
        np.testing.assert_allclose(outputs["token_logits"][row, :length], logits, atol=2e-5)


def test_nezha_knows_where_tokens_stand_by_their_distance_alone():
    model, ids, _, _ = model_of(NEZHA)
    row, moved = np.zeros((1, 14), np.int32), np.zeros((1, 14), np.int32)
    row[0, :6] = moved[0, 4:10] = ids[0, :6]
    documents = [(ids != 0).astype(np.int32) for ids in (row, moved)]
    at_start, later = (model.encoder(ids, None, d) for ids, d in zip((row, moved), documents, strict=True))
    np.testing.assert_allclose(later[0, 4:10], at_start[0, :6], atol=1e-5)


@pytest.fixture(scope="module")
def golden():
    """What Hugging Face's class computed before it was removed; see golden/make_nezha.py."""
    arrays = dict(np.load(pathlib.Path(__file__).with_name("golden") / "nezha.npz"))

    def under(prefix):
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    config, seen = json.loads(str(arrays["config"])), under("seen/")
    model, taken = model_with_weights(config, under("tensor/"), HEADS)
    assert taken == under("tensor/").keys()
    inputs = {"token_ids": arrays["ids"], "segment_ids": arrays["segments"]}
    shown = {name: np.ones(weights.shape) for name, weights in seen.items()}
    for name in ("hidden", "token_logits"):
        shown[name] = (arrays["ids"] != 0)[..., None]
    seen = {name: weights * shown[name].astype(np.float32) for name, weights in seen.items()}
    outputs, gradients = outputs_and_gradients(model, inputs, seen)
    outputs = {name: outputs[name] * shown[name] for name in seen}
    return config, outputs, under("output/"), gradients, under("gradient/")


def test_nezhas_outputs_are_those_of_hugging_faces_last_release_that_had_it(golden):
    _, ours, theirs, _, _ = golden
    assert set(ours) == set(theirs) == {"hidden", "token_logits", "pair_logits"}
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, atol=1e-5, err_msg=name)


def test_nezhas_gradients_are_those_of_hugging_faces_last_release_that_had_it(golden):
    config, _, _, ours, theirs = golden
    expect_equal_gradients(config, HEADS, ours, theirs)


def test_roformer_v2_computes_its_formulas():
    model, ids, segments, outputs = model_of(ROFORMER_V2)
    weights = weights_of(model.encoder)
    assert not any(name.endswith(("bias", "gamma", "beta")) for name in weights_of(model))
    table = weights["embeddings/word_embeddings/embeddings"][:VOCABULARY]
    for row, length in enumerate(LENGTHS):
        turned = turned_halves(10000, np.arange(length))
        how = {"turned": turned, "norm": rms_norm, "activation": relu}
        hidden = encode_row(ROFORMER_V2, weights, ids[row, :length], segments[row, :length], **how)
        np.testing.assert_allclose(outputs["hidden"][row, :length], hidden, atol=2e-5)
        np.testing.assert_allclose(outputs["token_logits"][row, :length], hidden @ table.T, atol=2e-5)


def test_turning_neighbours_as_published_is_turning_halves_of_heads_in_another_order():
    model, ids, segments, outputs = model_of(ROFORMER_V2)
    weights = weights_of(model.encoder)
    theirs = Part("kernel", interleaved_heads=ROFORMER_V2.num_heads)
    for number in range(ROFORMER_V2.num_layers):
        name = f"layer_{number}/attention/query_key_value/kernel"
        query, key, value = np.split(weights[name], 3, axis=-1)
        weights[name] = np.concatenate([theirs.outward(query), theirs.outward(key), value], axis=-1)
    turned = turned_neighbours(10000, np.arange(14))
    hidden = encode_row(ROFORMER_V2, weights, ids[0], segments[0], turned=turned, norm=rms_norm, activation=relu)
    np.testing.assert_allclose(outputs["hidden"][0], hidden, atol=2e-5)


def test_the_formulas_of_roformer_v2_are_those_of_its_gin_file():
    files = ["pretrain.gin", "models/roformer_v2_base.gin"]
    encoder = load_config(files, ["data='anywhere'"], configurables=CONFIGURABLES).call("run").task.encoder
    assert {name: getattr(encoder, name) for name in ROFORMER_V2_OPTIONS} == ROFORMER_V2_OPTIONS
