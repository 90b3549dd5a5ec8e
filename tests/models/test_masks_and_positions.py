"""Who sees whom and how places enter, against plain NumPy; and that it is the same at some positions and recomputed."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from float64_reference import (
    add_noise,
    encode_row,
    layer_norm,
    nezha_distances,
    turned_halves,
    weights_of,
)
from keras import ops

from trainer import randomness
from trainer.models.architecture import EncoderConfig
from trainer.models.encoder import Encoder
from trainer.models.layers import Normalization, gather_positions

CONFIG = EncoderConfig(
    hidden_size=12, num_layers=3, num_heads=3, intermediate_size=20, max_length=16, max_relative_distance=3
)
VOCABULARY = 50
POSITIONS = ("learned", "rotary", "relative", "none")
# Rows of documents, each of a source of segment 0 and a target of segment 1; zeros are padding.
DOCUMENTS = np.array([[1] * 10, [1] * 4 + [2] * 6, [1] * 3 + [2] * 3 + [0] * 4], np.int32)
SEGMENTS = np.array([[0] * 6 + [1] * 4, [0] * 2 + [1] * 2 + [0] * 3 + [1] * 3, [0, 0, 1, 0, 1, 1] + [0] * 4], np.int32)
IDS = np.random.default_rng(1).integers(1, VOCABULARY, (3, 10)).astype(np.int32) * (DOCUMENTS > 0)


def changed(**changes):
    # Heads of even size turn.
    sizes = {"hidden_size": 12, "num_heads": 3}
    return dataclasses.replace(CONFIG, **sizes | changes)


def built(config, noise=True):
    encoder = Encoder(config, VOCABULARY, seed=1)
    encoder.build()
    return add_noise(encoder) if noise else encoder


def expected_rows(encoder, ids, segments, documents, visible=None, bias=0.0, weights=None, **how):
    """The float64 hidden states of rows; `visible` and `bias` are functions of a row's number or None."""
    config, weights = encoder.config, weights_of(encoder) if weights is None else weights
    rows = []
    for number, row in enumerate(zip(ids, segments, documents, strict=True)):
        places = np.arange(len(row[0]))
        if config.positions == "rotary":
            how["turned"] = turned_halves(config.rotary_base, places)
        if config.positions == "relative":
            how["relative"] = nezha_distances(len(places), config.head_size, config.max_relative_distance)
        seen = None if visible is None else visible(number)
        rows.append(encode_row(config, weights, *row, seen, bias(number) if callable(bias) else bias, **how))
    return np.array(rows)


def expect_equal_where_real(found, expected, documents=DOCUMENTS, atol=3e-5):
    np.testing.assert_allclose(ops.convert_to_numpy(found)[documents > 0], expected[documents > 0], atol=atol)


def sees(attention, documents, segments, confine=True):
    """`[length, length]`: whether token i sees token j, said for each pair alone."""
    length = len(documents)
    visible = np.zeros((length, length), bool)
    for i in range(length):
        for j in range(length):
            allowed = {
                "bidirectional": True,
                "causal": j <= i,
                "unilm": segments[j] == 0 or (segments[i] == 1 and j <= i),
            }[attention]
            visible[i, j] = documents[j] != 0 and allowed and (not confine or documents[i] == documents[j])
    return visible


@pytest.mark.parametrize("attention", ["bidirectional", "causal", "unilm"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_documents_of_packed_rows_are_confined_with_every_kind_of_positions(positions, attention):
    encoder = built(changed(positions=positions, attention=attention))
    expected = expected_rows(
        encoder, IDS, SEGMENTS, DOCUMENTS, lambda row: sees(attention, DOCUMENTS[row], SEGMENTS[row])
    )
    expect_equal_where_real(encoder(IDS, SEGMENTS, DOCUMENTS), expected)


@pytest.mark.parametrize("attention", ["causal", "unilm"])
def test_a_row_of_one_document_need_not_be_confined(attention):
    encoder = built(changed(attention=attention, confine_attention=False))
    one = np.ones((1, 10), np.int32)
    visible = sees(attention, one[0], SEGMENTS[0], confine=False)
    expected = expected_rows(encoder, IDS[:1], SEGMENTS[:1], one, lambda row: visible)
    expect_equal_where_real(encoder(IDS[:1], SEGMENTS[:1]), expected, one)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("attention", ["causal", "unilm"])
def test_a_packed_document_is_encoded_as_if_it_stood_alone(attention, positions):
    encoder = built(changed(positions=positions, attention=attention))
    packed = ops.convert_to_numpy(encoder(IDS, SEGMENTS, DOCUMENTS))[1, 4:]
    alone = ops.convert_to_numpy(encoder(IDS[1:2, 4:], SEGMENTS[1:2, 4:]))[0]
    np.testing.assert_allclose(packed, alone, atol=1e-5)


def test_a_causal_token_is_not_moved_by_later_ones():
    encoder = built(changed(attention="causal"))
    later = IDS.copy()
    later[:, 6:] = later[:, 6:] % (VOCABULARY - 1) + 1
    before, after = (ops.convert_to_numpy(encoder(ids, None, np.ones_like(DOCUMENTS))) for ids in (IDS, later))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert np.abs(before[:2, 6:] - after[:2, 6:]).min(axis=-1).max() > 0


def test_local_layers_see_a_window_and_global_ones_everything():
    config = changed(num_layers=5, attention_window=2, global_every=3)
    encoder = built(config)
    distances = np.abs(np.arange(10)[:, None] - np.arange(10)[None])

    def visible(row):
        everything = sees("bidirectional", DOCUMENTS[row], SEGMENTS[row])
        return lambda layer: everything if layer in (0, 3) else everything & (distances <= 2)

    expected = expected_rows(encoder, IDS, SEGMENTS, DOCUMENTS, visible)
    expect_equal_where_real(encoder(IDS, SEGMENTS, DOCUMENTS), expected)


HEADS = CONFIG.num_heads
SHAPES = {"three axes": (3, 10, 10), "one for all heads": (3, 1, 10, 10), "one for each head": (3, HEADS, 10, 10)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("positions", ["learned", "relative"])
def test_numbers_given_as_bias_are_added_to_the_logits(positions, shape):
    encoder = built(changed(positions=positions))
    bias = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    expected = expected_rows(encoder, IDS, SEGMENTS, DOCUMENTS, bias=lambda row: bias[row])
    expect_equal_where_real(encoder(IDS, SEGMENTS, DOCUMENTS, attention_bias=bias), expected)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("form", ["booleans", "minus infinity", "a large negative number"])
def test_what_a_bias_forbids_is_not_seen_nor_what_was_invisible_before(form, shape):
    encoder = built(changed())
    allowed = np.random.default_rng(4).random(shape) < 0.6
    allowed |= np.eye(10, dtype=bool)
    lowest = {"minus infinity": -np.inf, "a large negative number": -1e12}
    bias = allowed if form == "booleans" else np.where(allowed, 0.0, lowest[form]).astype(np.float32)
    expected = expected_rows(
        encoder,
        IDS,
        SEGMENTS,
        DOCUMENTS,
        lambda row: allowed[row] & sees("bidirectional", DOCUMENTS[row], SEGMENTS[row]),
    )
    found = ops.convert_to_numpy(encoder(IDS, SEGMENTS, DOCUMENTS, attention_bias=bias))
    expect_equal_where_real(found, expected)
    assert np.isfinite(found).all()


def combined_positions(table, alpha):
    """All n * n places that n position vectors give, place by place (kexue.fm/archives/7947)."""
    n = len(table)
    u = [(table[i] - alpha * table[0]) / (1 - alpha) for i in range(n)]
    return np.array([alpha * u[i] + (1 - alpha) * u[j] for i in range(n) for j in range(n)])


POSITION_TABLE = "embeddings/position_embeddings/embeddings"


@pytest.mark.parametrize("confine", [True, False])
def test_hierarchical_positions_follow_their_formula(confine):
    encoder = built(changed(max_length=4, hierarchical_alpha=0.4, confine_attention=confine))
    ids = np.random.default_rng(5).integers(1, VOCABULARY, (2, 15)).astype(np.int32)
    documents = np.array([[1] * 15, [1] * 6 + [2] * 9], np.int32)
    weights = weights_of(encoder)
    weights[POSITION_TABLE] = combined_positions(weights[POSITION_TABLE], 0.4)
    expected = expected_rows(encoder, ids, np.zeros_like(ids), documents, weights=weights)
    expect_equal_where_real(encoder(ids, None, documents), expected, documents)


def test_the_first_places_of_hierarchical_positions_are_the_learned_ones():
    plain, hierarchical = built(changed(max_length=10)), built(changed(max_length=10, hierarchical_alpha=0.4))
    rows = (IDS, SEGMENTS, DOCUMENTS)
    np.testing.assert_array_equal(*(ops.convert_to_numpy(encoder(*rows)) for encoder in (plain, hierarchical)))


def test_512_hierarchical_positions_read_a_row_of_1024_tokens():
    config = EncoderConfig(hidden_size=4, num_layers=1, num_heads=1, intermediate_size=4, hierarchical_alpha=0.4)
    encoder = built(config)
    ids = np.random.default_rng(6).integers(1, VOCABULARY, (1, 1024)).astype(np.int32)
    weights = weights_of(encoder)
    combined = combined_positions(weights[POSITION_TABLE], 0.4)
    np.testing.assert_allclose(combined[:512], weights[POSITION_TABLE], atol=1e-12)
    weights[POSITION_TABLE] = combined
    documents = np.ones_like(ids)
    expected = expected_rows(encoder, ids, documents * 0, documents, weights=weights)
    expect_equal_where_real(encoder(ids), expected, documents)


@pytest.mark.parametrize(("alpha", "longest"), [(None, 4), (0.4, 16)])
def test_longer_rows_than_there_are_positions_are_refused(alpha, longest):
    encoder = built(changed(max_length=4, hierarchical_alpha=alpha))
    ids = np.ones((1, longest + 1), np.int32)
    encoder(ids[:, :longest])
    with pytest.raises(ValueError, match="max_length"):
        encoder(ids)


CONDITION = np.random.default_rng(7).normal(size=(3, 5)).astype(np.float32)
TOKEN_CONDITION = np.random.default_rng(8).normal(size=(3, 10, 5)).astype(np.float32)
CONDITIONED = {"without a hidden layer": None, "with a hidden layer": 4}


@pytest.mark.parametrize("hidden", CONDITIONED.values(), ids=CONDITIONED.keys())
@pytest.mark.parametrize("normalization", ["layer", "rms"])
@pytest.mark.parametrize("placement", ["after", "before"])
def test_conditional_normalisation_starts_as_that_without_a_condition(placement, normalization, hidden):
    plain = changed(normalization=normalization, norm_placement=placement)
    conditional = dataclasses.replace(plain, condition_size=5, condition_hidden_size=hidden)
    rows, encoder = (IDS, SEGMENTS, DOCUMENTS), built(conditional, noise=False)
    expected = ops.convert_to_numpy(built(plain, noise=False)(*rows))
    one, other = (ops.convert_to_numpy(encoder(*rows, condition=c)) for c in (CONDITION, 100 * TOKEN_CONDITION))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, expected, atol=1e-5)


@pytest.mark.parametrize("hidden", CONDITIONED.values(), ids=CONDITIONED.keys())
@pytest.mark.parametrize("condition", [CONDITION, TOKEN_CONDITION], ids=["of rows", "of tokens"])
def test_scales_and_biases_depend_linearly_on_the_condition(condition, hidden):
    encoder = built(changed(condition_size=5, condition_hidden_size=hidden))
    found = encoder(IDS, SEGMENTS, DOCUMENTS, condition=condition)

    def norm_given(given):
        def norm(weights, name, x, epsilon):
            inner = given if hidden is None else given @ weights[f"{name}/condition/kernel"]
            gamma = weights[f"{name}/gamma"] + inner @ weights[f"{name}/gamma_projection/kernel"]
            beta = weights[f"{name}/beta"] + inner @ weights[f"{name}/beta_projection/kernel"]
            return layer_norm({f"{name}/gamma": gamma, f"{name}/beta": beta}, name, x, epsilon)

        return norm

    expected = []
    for row, given in enumerate(condition.astype(np.float64)):
        rows = (array[row : row + 1] for array in (IDS, SEGMENTS, DOCUMENTS))
        expected += [*expected_rows(encoder, *rows, norm=norm_given(given))]
    expect_equal_where_real(found, np.array(expected))


def test_the_layer_between_condition_and_scales_starts_from_the_seed_alone():
    config = changed(condition_size=5, condition_hidden_size=4)
    kernels = []
    for seed in (1, 1, 2):
        encoder = Encoder(config, VOCABULARY, seed=seed)
        encoder.build()
        kernels.append([np.array(v) for v in encoder.variables if v.path.endswith("norm/condition/kernel")])
    for one, again, another in zip(*kernels, strict=True):
        np.testing.assert_array_equal(one, again)
        assert np.abs(one - another).max() > 1e-3
    assert len({kernel.tobytes() for kernel in kernels[0]}) == len(kernels[0]) == 1 + 2 * CONFIG.num_layers


def test_rms_normalisation_depends_on_the_condition_by_its_scale():
    layer = Normalization("rms", 1e-6, condition_size=5)
    layer.build((None, None, 12))
    add_noise(layer)
    weights = weights_of(layer)
    x = np.random.default_rng(9).normal(size=(3, 10, 12)).astype(np.float32)
    gamma = weights["gamma"] + CONDITION[:, None] @ weights["gamma_projection/kernel"]
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * gamma
    np.testing.assert_allclose(layer(x, CONDITION[:, None]), expected, atol=1e-5)
    with pytest.raises(ValueError, match="condition"):
        layer(x)


@pytest.mark.parametrize("hidden", CONDITIONED.values(), ids=CONDITIONED.keys())
def test_gradients_reach_the_projections_of_the_condition_from_the_start(hidden):
    encoder = built(changed(condition_size=5, condition_hidden_size=hidden), noise=False)
    values = {v.path: v for v in encoder.trainable_variables}
    projections = [path for path in values if "_projection/" in path and "norm" in path]
    assert len(projections) == 2 * (1 + 2 * CONFIG.num_layers)
    seen = np.random.default_rng(2).normal(size=(3, 10, 12)).astype(np.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(encoder(IDS, SEGMENTS, DOCUMENTS, condition=CONDITION) * seen)
    gradients = tape.gradient(loss, [values[path].value for path in projections])
    assert all(np.abs(gradient).max() > 1e-3 for gradient in gradients)


@dataclasses.dataclass(frozen=True)
class Option:
    """Changes of the architecture, and what the encoder is given besides rows."""

    changes: dict
    given: dict = dataclasses.field(default_factory=dict)


RANDOM = np.random.default_rng(10)
ADDED = RANDOM.normal(size=(3, 10, 10)).astype(np.float32)
BEFORE = {"norm_placement": "before", "norm_bias": False, "use_bias": False, "gated": True}
OPTIONS = {
    "bert": Option({}),
    "rotary": Option({"positions": "rotary"}),
    "relative": Option({"positions": "relative"}),
    "no positions": Option({"positions": "none"}),
    "hierarchical": Option({"max_length": 4, "hierarchical_alpha": 0.4}),
    "pre-norm with a last one": Option(BEFORE),
    "local": Option({"attention_window": 2}),
    "local in the last layer alone": Option({"attention_window": 2, "num_layers": 2}),
    "modernbert": Option(BEFORE | {"attention_window": 2, "positions": "rotary", "local_rotary_base": 100.0}),
    "rms without anything": Option({"normalization": "rms", "norm_scale": False, "use_bias": False}),
    "shared and factorised": Option({"share_layers": True, "embedding_size": 8}),
    "gated": Option({"gated": True}),
    "not confined": Option({"confine_attention": False}),
    "causal": Option({"attention": "causal"}),
    "unilm": Option({"attention": "unilm"}),
    "unilm, rotary": Option({"attention": "unilm", "positions": "rotary"}),
    "a condition of rows": Option({"condition_size": 5}, {"condition": CONDITION}),
    "a condition of tokens": Option({"condition_size": 5}, {"condition": TOKEN_CONDITION}),
    "a condition of tokens before": Option(
        BEFORE | {"condition_size": 5, "condition_hidden_size": 4}, {"condition": TOKEN_CONDITION}
    ),
    "a bias": Option({}, {"attention_bias": ADDED}),
    "a bias of each head": Option({}, {"attention_bias": RANDOM.normal(size=(3, HEADS, 10, 10)).astype(np.float32)}),
    "a mask": Option({}, {"attention_bias": (ADDED > -1) | np.eye(10, dtype=bool)}),
    "a mask of each head": Option(
        {"positions": "relative"}, {"attention_bias": RANDOM.random((3, HEADS, 10, 10)) < 0.8}
    ),
}
AT = np.array([[0, 3, 9], [5, 4, 4], [0, 1, 5]])


def values_and_gradients(option, positions=None, gathered=None, keys=None, **changes):
    """Hidden states, and the gradients of a loss with respect to all weights and what else was given as floats."""
    encoder = built(changed(**option.changes | changes))
    given = {name: tf.constant(value) for name, value in option.given.items()}
    watched = {name: value for name, value in given.items() if value.dtype == tf.float32}
    seen = np.random.default_rng(2).normal(size=(3, 10 if positions is gathered is None else 3, 12))
    with tf.GradientTape() as tape:
        tape.watch(list(watched.values()))
        hidden = encoder(*map(tf.constant, (IDS, SEGMENTS, DOCUMENTS)), positions=positions, keys=keys, **given)
        if gathered is not None:
            hidden = gather_positions(hidden, gathered)
        loss = tf.reduce_sum(hidden * seen.astype(np.float32))
    names = [*(variable.path for variable in encoder.trainable_variables), *watched]
    variables = [*(variable.value for variable in encoder.trainable_variables), *watched.values()]
    gradients = dict(zip(names, tape.gradient(loss, variables), strict=True))
    return hidden.numpy(), {name: tf.convert_to_tensor(gradient).numpy() for name, gradient in gradients.items()}


def expect_equal(one, other):
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5, atol=1e-5)
    for name, gradient in one[1].items():
        scale = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(gradient / scale, other[1][name] / scale, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", OPTIONS)
def test_hidden_states_at_positions_are_those_of_whole_rows(name):
    at = tf.constant(AT)
    expect_equal(values_and_gradients(OPTIONS[name], positions=at), values_and_gradients(OPTIONS[name], gathered=at))


@pytest.mark.parametrize("name", OPTIONS)
def test_recomputed_layers_give_the_same_values_and_gradients_with_dropout(name):
    keys = randomness.example_keys(0, 5, np.arange(3))
    kept = values_and_gradients(OPTIONS[name], keys=keys, rematerialize=False)
    expect_equal(values_and_gradients(OPTIONS[name], keys=keys, rematerialize=True), kept)
    dry = values_and_gradients(OPTIONS[name], rematerialize=False)
    assert np.abs(kept[0] - dry[0]).max() > 0.1


def masks_drawn(config, monkeypatch):
    """The masks of dropout in a forward pass, in order, with their shapes."""
    masks, draw = [], randomness.keep_mask

    def recorded(*arguments):
        masks.append(ops.convert_to_numpy(draw(*arguments)))
        return masks[-1]

    encoder = built(config)
    monkeypatch.setattr(randomness, "keep_mask", recorded)
    encoder(IDS, SEGMENTS, DOCUMENTS, keys=randomness.example_keys(0, 5, np.arange(3)))
    return masks


@pytest.mark.parametrize("shared", [True, False])
def test_layers_drop_differently_at_every_depth(shared, monkeypatch):
    masks = masks_drawn(changed(share_layers=shared), monkeypatch)
    assert len(masks) == 1 + 3 * CONFIG.num_layers  # embeddings; probabilities, attention and output of every layer
    states = [mask for mask in masks if mask.shape == (3, 10, 12)]
    probabilities = [mask for mask in masks if mask.shape == (3, HEADS, 10, 10)]
    assert (len(states), len(probabilities)) == (1 + 2 * CONFIG.num_layers, CONFIG.num_layers)
    for same_shape in (states, probabilities):
        assert len({mask.tobytes() for mask in same_shape}) == len(same_shape)
