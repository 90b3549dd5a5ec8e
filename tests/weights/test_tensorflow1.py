"""Checkpoints of TensorFlow 1: written by its saver with Google's names, read here; and what we write, read by it."""

import re

import numpy as np
import pytest

pytest.importorskip("torch", reason="the models to compare with are PyTorch's")
pytest.importorskip("transformers", reason="the models to compare with are Hugging Face's")

import hugging_face_models as models
import tensorflow as tf

from trainer import storage
from trainer.errors import InputError
from trainer.models.encoder_with_heads import EncoderWithHeads
from trainer.weights.loading import check_architecture, load_weights
from trainer.weights.opening import open_weights
from trainer.weights.surgery import unshare_layers
from trainer.weights.writing import write_weights

# From Hugging Face's names to Google's, in this order; independent of the tables in `trainer.weights`.
_COMMON = [
    (r"^cls\.predictions\.bias$|^predictions\.bias$", "cls/predictions/output_bias"),
    (r"^(cls\.seq_relationship|sop_classifier\.classifier)\.weight$", "cls/seq_relationship/output_weights"),
    (r"^(cls\.seq_relationship|sop_classifier\.classifier)\.bias$", "cls/seq_relationship/output_bias"),
    (r"embeddings\.weight$", "embeddings"),
]
_ENDINGS = [
    (r"(LayerNorm(_1)?)\.weight$", r"\1/gamma"),
    (r"(LayerNorm(_1)?)\.bias$", r"\1/beta"),
    (r"\.weight$", "/kernel"),
]
_RENAMINGS = {
    "bert": [*_COMMON, (r"layer\.(\d+)", r"layer_\1"), *_ENDINGS, (r"\.", "/")],
    "albert": [
        *_COMMON,
        (r"^albert\.", "bert."),
        (r"^bert\.pooler\.", "bert.pooler.dense."),
        (r"^predictions\.", "cls.predictions.transform."),
        (r"albert_layer_groups\.0\.albert_layers\.0\.", "transformer.group_0.inner_group_0."),
        (r"full_layer_layer_norm", "LayerNorm_1"),
        (r"attention\.LayerNorm", "LayerNorm"),
        (r"attention\.(query|key|value)", r"attention_1.self.\1"),
        (r"attention\.dense", "attention_1.output.dense"),
        (r"ffn_output", "ffn_1.intermediate.output.dense"),
        (r"ffn\.", "ffn_1.intermediate.dense."),
        *_ENDINGS,
        (r"\.", "/"),
    ],
}
_RENAMINGS["electra"] = [(r"dense_prediction", "dense_1"), *_RENAMINGS["bert"]]


def google_tensors(family, model):
    """Returns `{Google's name: array}` of a model of Hugging Face's; `tf.layers.Dense` keeps kernels `[in, out]`."""
    tensors = {}
    for name, value in model.state_dict().items():
        if "decoder" in name or "position_ids" in name or "token_type_ids" in name:
            continue
        for pattern, replacement in _RENAMINGS[family]:
            name = re.sub(pattern, replacement, name)
        tensors[name] = value.numpy().T if name.endswith("/kernel") else value.numpy()
    return tensors


def save_checkpoint(prefix, tensors, version=tf.compat.v1.train.SaverDef.V2):
    """Saves arrays as TensorFlow 1 programs do after training with Google's optimizer: with its slots and a counter."""
    slots = {f"{name}/{slot}": np.zeros_like(array) for name, array in tensors.items() for slot in ("adam_m", "adam_v")}
    everything = tensors | slots | {"global_step": np.int64(1000), "beta1_power": np.float32(0.9)}
    with tf.compat.v1.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, array in everything.items():
            tf.compat.v1.get_variable(name, initializer=array, use_resource=False)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(write_version=version).save(session, str(prefix))


CONFIGURATION = {
    "vocab_size": models.VOCABULARY_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
}


def google_folder(folder, family, *, extra=None, version=tf.compat.v1.train.SaverDef.V2, **options):
    """Makes the folder of a checkpoint as Google publishes it; returns its path and the model with the same numbers."""
    model = models.make_model(family, "ForPreTraining", **options)
    save_checkpoint(folder / "bert_model.ckpt", google_tensors(family, model) | (extra or {}), version)
    storage.write_json(str(folder / "bert_config.json"), CONFIGURATION)
    return str(folder), model


@pytest.mark.parametrize("version", [tf.compat.v1.train.SaverDef.V1, tf.compat.v1.train.SaverDef.V2])
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_googles_checkpoint_gives_the_answers_of_the_same_numbers_elsewhere(tmp_path, family, version):
    path, model = google_folder(tmp_path, family, version=version)
    source = open_weights(path)
    assert source.kind == f"TensorFlow 1, {family}"
    assert not source.unknown
    assert {name.rpartition("/")[2] for name in source.ignored} == {"adam_m", "adam_v", "global_step", "beta1_power"}
    ids, mask = models.rows()
    expected = models.their_answers(model, ids, mask)
    ours = models.our_answers(source, ids, mask, tmp_path / "keras")
    pairs = "sop_logits" if family == "albert" else "seq_relationship_logits"
    np.testing.assert_allclose(ours["token_logits"], expected["prediction_logits"], atol=5e-6)
    np.testing.assert_allclose(ours["pair_logits"], expected[pairs], atol=5e-6)


def test_electras_discriminator_is_read_and_its_generator_is_not(tmp_path):
    generator = {
        "generator/encoder/layer_0/intermediate/dense/kernel": np.ones((4, 16), np.float32),
        "generator/embeddings_project/kernel": np.ones((8, 4), np.float32),
        # Of the size of the discriminator's own: it must not be taken for a head of that.
        "generator_predictions/dense/kernel": np.ones((16, 8), np.float32),
        "generator_predictions/dense/bias": np.ones(8, np.float32),
        "generator_predictions/LayerNorm/gamma": np.ones(8, np.float32),
        "generator_predictions/LayerNorm/beta": np.ones(8, np.float32),
        "generator_predictions/output_bias": np.ones(models.VOCABULARY_SIZE, np.float32),
    }
    path, model = google_folder(tmp_path, "electra", extra=generator)
    source = open_weights(path)
    assert source.kind == "TensorFlow 1, electra" and not source.unknown
    assert {name.partition("/")[0] for name in source.names} == {"encoder", "replaced_token_detection"}
    assert set(generator) <= set(source.ignored)
    ids, mask = models.rows()
    ours = models.our_answers(source, ids, mask, tmp_path / "keras")["replaced_logits"]
    np.testing.assert_allclose(ours, models.their_answers(model, ids, mask)["logits"], atol=5e-6)


@pytest.mark.parametrize("family", ["bert", "albert", "electra"])
def test_what_we_write_has_googles_names_and_layouts(tmp_path, family):
    path, model = google_folder(tmp_path, family)
    write_weights(open_weights(path), str(tmp_path / "out"), "tensorflow1")
    reader = tf.train.load_checkpoint(str(tmp_path / "out" / "bert_model.ckpt"))
    expected = google_tensors(family, model)
    assert set(reader.get_variable_to_shape_map()) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(reader.get_tensor(name), array, err_msg=name)
    if family != "electra":
        assert reader.get_tensor("cls/seq_relationship/output_weights").shape == (2, 16)
    configuration = storage.read_json(str(tmp_path / "out" / "bert_config.json"))
    assert CONFIGURATION.items() - {("hidden_dropout_prob", 0.1)} <= configuration.items()


# What `bert4keras.models.BERT.variable_mapping` looks for (0.11.5); betas come before gammas there, which is an order only.
_BERT4KERAS = [
    "bert/embeddings/{word,token_type,position}_embeddings",
    "bert/embeddings/LayerNorm/{beta,gamma}",
    "bert/pooler/dense/{kernel,bias}",
    "cls/seq_relationship/{output_weights,output_bias}",
    "cls/predictions/transform/dense/{kernel,bias}",
    "cls/predictions/transform/LayerNorm/{beta,gamma}",
    "cls/predictions/{output_bias}",
    "bert/encoder/layer_{0,1}/attention/self/{query,key,value}/{kernel,bias}",
    "bert/encoder/layer_{0,1}/attention/output/dense/{kernel,bias}",
    "bert/encoder/layer_{0,1}/attention/output/LayerNorm/{beta,gamma}",
    "bert/encoder/layer_{0,1}/intermediate/dense/{kernel,bias}",
    "bert/encoder/layer_{0,1}/output/dense/{kernel,bias}",
    "bert/encoder/layer_{0,1}/output/LayerNorm/{beta,gamma}",
]


def expanded(pattern):
    """Returns the names that a pattern with `{a,b}` in it stands for."""
    match = re.search(r"\{([^}]*)\}", pattern)
    if not match:
        return [pattern]
    return [name for part in match[1].split(",") for name in expanded(pattern.replace(match[0], part, 1))]


def test_bert4keras_finds_every_variable_it_looks_for(tmp_path):
    path, _ = google_folder(tmp_path, "bert")
    write_weights(open_weights(path), str(tmp_path / "out"), "tensorflow1")
    names = {name for name, _ in tf.train.list_variables(str(tmp_path / "out" / "bert_model.ckpt"))}
    assert names == {name for pattern in _BERT4KERAS for name in expanded(pattern)}


# ALBERT whose layers do not share.


def test_alberts_one_layer_becomes_each_layer_of_a_model_that_does_not_share(tmp_path):
    path, model = google_folder(tmp_path, "albert")
    source = open_weights(path)
    unshared = unshare_layers(source)
    ours = EncoderWithHeads(unshared.description.encoder, models.VOCABULARY_SIZE, ["pooler", "sentence_pair"])
    ours.build()
    variables = {variable.path.partition("/")[2]: variable for variable in ours.trainable_variables}
    check_architecture(source, ours.config)
    report = load_weights(source, variables)
    assert not report.missing
    assert "encoder/layer_1/intermediate/kernel" in report.loaded
    ids, mask = models.rows()
    answers, expected = ours(ids), models.their_answers(model, ids, mask)
    np.testing.assert_allclose(np.asarray(answers["pair_logits"]), expected["sop_logits"], atol=5e-6)
    with pytest.raises(InputError, match="no shared layers"):
        unshare_layers(unshared)


def test_unshared_layers_are_not_put_into_one_that_is_shared(tmp_path):
    path, _ = google_folder(tmp_path, "albert")
    source = open_weights(path)
    with pytest.raises(InputError, match=r"encoder\.share_layers is True, in the weights False"):
        check_architecture(unshare_layers(source), source.description.encoder)


# Models that share BERT's names are told by what they have and what their configuration says.


def bert_like(folder, changes, leave_out):
    """Saves BERT's tensors but for those whose names match; its configuration is changed."""
    tensors = google_tensors("bert", models.make_model("bert", "ForPreTraining"))
    save_checkpoint(folder / "model.ckpt", {n: a for n, a in tensors.items() if not re.search(leave_out, n)})
    storage.write_json(str(folder / "bert_config.json"), CONFIGURATION | changes)
    return open_weights(str(folder))


@pytest.mark.parametrize(
    ("kind", "changes", "leave_out", "fields"),
    [
        ("bert", {}, "^$", {"positions": "learned", "epsilon": 1e-12}),
        (
            "nezha",
            {"use_relative_position": True},
            "position_emb",
            {"positions": "relative", "max_relative_distance": 64},
        ),
        ("nezha", {"model_type": "nezha", "max_relative_position": 9}, "position_emb", {"max_relative_distance": 9}),
        ("roformer", {}, "position_emb", {"positions": "rotary", "normalization": "layer", "epsilon": 1e-7}),
        (
            "roformer_v2",
            {},
            "position_emb|beta|gamma|bias|transform|pooler|seq_relationship",
            {"positions": "rotary", "normalization": "rms", "norm_scale": False, "use_bias": False},
        ),
    ],
)
def test_models_with_berts_names_are_told_apart_and_come_back(tmp_path, kind, changes, leave_out, fields):
    source = bert_like(tmp_path, changes, leave_out)
    assert source.kind == f"TensorFlow 1, {kind}" and not source.unknown
    encoder = source.description.encoder
    assert {name: getattr(encoder, name) for name in fields} == fields
    write_weights(source, str(tmp_path / "out"), "tensorflow1")
    back = open_weights(str(tmp_path / "out"))
    assert back.kind == source.kind and back.description == source.description
    assert set(back.names) == set(source.names)
    for name in source.names:
        np.testing.assert_array_equal(back.read(name), source.read(name), err_msg=name)


def test_roformers_queries_turn_in_pairs_of_neighbours_there_and_of_halves_here(tmp_path):
    source = bert_like(tmp_path, {}, "position_emb")
    reader = tf.train.load_checkpoint(str(tmp_path / "model.ckpt"))
    theirs = reader.get_tensor("bert/encoder/layer_0/attention/self/query/kernel")
    ours = source.read("encoder/layer_0/attention/query_key_value/kernel")
    # Head 0 has numbers 0 to 7 there, of which 0 and 1, 2 and 3, ... are pairs; here 0 and 4, 1 and 5, ...
    np.testing.assert_array_equal(ours[:, :8], theirs[:, [0, 2, 4, 6, 1, 3, 5, 7]])
    np.testing.assert_array_equal(ours[:, 32:48], reader.get_tensor("bert/encoder/layer_0/attention/self/value/kernel"))


def test_a_classifier_of_run_classifier_is_read_with_its_classes(tmp_path):
    tensors = google_tensors("bert", models.make_model("bert", "ForPreTraining"))
    rng = np.random.default_rng(0)
    scores = {"output_weights": rng.normal(size=(3, 16)), "output_bias": rng.normal(size=3)}
    save_checkpoint(tmp_path / "model.ckpt-99", tensors | {n: a.astype(np.float32) for n, a in scores.items()})
    storage.write_json(str(tmp_path / "bert_config.json"), CONFIGURATION)
    source = open_weights(str(tmp_path / "model.ckpt-99"))
    assert source.description.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    ids, mask = models.rows()
    answers = models.our_answers(source, ids, mask, tmp_path / "keras")
    expected = answers["pooled"] @ scores["output_weights"].T + scores["output_bias"]
    np.testing.assert_allclose(answers["logits"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "softplus"}, "the activation 'softplus' is not known"),
        ({"num_attention_heads": 3}, "16 is not a multiple of encoder.num_heads 3"),
        ({"vocab_size": 61}, "word embeddings of 60 tokens, and its configuration says vocab_size 61"),
        ({"num_attention_heads": None}, "has no 'num_attention_heads', which its tensors do not tell"),
    ],
)
def test_configurations_that_cannot_be_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        bert_like(tmp_path, changes, "^$")


def test_other_checkpoints_of_tensorflow_are_refused_with_what_they_hold(tmp_path):
    save_checkpoint(tmp_path / "model.ckpt", {"gpt/embeddings/word_embeddings": np.zeros((4, 2), np.float32)})
    storage.write_json(str(tmp_path / "config.json"), CONFIGURATION)
    with pytest.raises(InputError, match=r"holds neither bert/embeddings/word_emb.*it has beta1_power, global_step"):
        open_weights(str(tmp_path))
