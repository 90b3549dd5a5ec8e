"""What is written is a whole model: nothing is missing, of another shape or left behind without a word."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf
from small_weights import CONFIG, PIECES, small_source

from trainer import storage
from trainer.errors import InputError
from trainer.weights.loading import load_weights
from trainer.weights.opening import open_weights
from trainer.weights.tensors import CheckpointTensors, SafetensorsFiles, write_checkpoint, write_safetensors
from trainer.weights.writing import FORMATS, write_weights


def assert_not_written(source, folder, *messages, kind="hugging_face"):
    """Asserts that writing is refused with messages, and that nothing is there after it."""
    with pytest.raises(InputError) as refused:
        write_weights(source, str(folder), kind)
    for message in messages:
        assert message in str(refused.value)
    assert not folder.exists()


def rewrite(folder, change):
    """Changes `{name: array}` of a folder of Hugging Face's by a function."""
    path = str(folder / "model.safetensors")
    tensors = SafetensorsFiles([path])
    arrays = change({name: tensors.read(name) for name in tensors.shapes})
    write_safetensors(path, [(name, a.dtype, a.shape, lambda a=a: a) for name, a in arrays.items()])


def configure(path, **fields):
    storage.write_json(str(path), storage.read_json(str(path)) | fields)


@pytest.fixture
def folder(tmp_path):
    """A folder of Hugging Face's."""
    write_weights(small_source(), str(tmp_path / "in"), "hugging_face")
    return tmp_path / "in"


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_missing_too_much_or_unknown_is_told_at_once(folder, tmp_path, kind):
    def damage(arrays):
        kept = {name: array for name, array in arrays.items() if "layer.1.attention.output" not in name}
        return kept | {"bert.encoder.layer.7.strange": np.zeros(2, np.float32)}

    rewrite(folder, damage)
    messages = [f"encoder/layer_1/attention/output/{part} is missing" for part in ("kernel", "bias")]
    messages += ["encoder/layer_1/attention_norm/gamma is missing", "bert.encoder.layer.7.strange is unknown"]
    assert_not_written(open_weights(str(folder)), tmp_path / "out", *messages, kind=kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_half_a_head_and_layers_beyond_the_architecture_are_refused(tmp_path, kind):
    source = small_source()
    del source.entries["masked_language_model/transform/bias"]
    source.entries["encoder/layer_2/output/bias"] = dataclasses.replace(
        source.entries["encoder/layer_1/output/bias"], name="encoder/layer_2/output/bias"
    )
    messages = ("masked_language_model/transform/bias is missing", "belongs to nothing in the model")
    assert_not_written(source, tmp_path / "out", *messages, kind=kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_numbers_of_another_shape_than_the_configuration_says_are_refused(folder, tmp_path, kind):
    configure(folder / "config.json", max_position_embeddings=512, type_vocab_size=5)
    messages = (
        "position_embeddings/embeddings has shape (20, 16) where its model has (512, 16)",
        "type_embeddings/embeddings has shape (2, 16) where its model has (5, 16)",
    )
    assert_not_written(open_weights(str(folder)), tmp_path / "out", *messages, kind=kind)


def test_a_bias_for_more_tokens_than_there_are_is_refused_although_both_are_padded_alike(folder, tmp_path):
    rewrite(folder, lambda arrays: arrays | {"cls.predictions.bias": np.zeros(15, np.float32)})
    source = open_weights(str(folder))
    message = "masked_language_model/output_bias has shape (15,)"
    assert_not_written(source, tmp_path / "out", f"{message} where its model has (14,)")
    variables = {"masked_language_model/output_bias": tf.Variable(tf.zeros([128]))}
    with pytest.raises(InputError, match=re.escape(f"{message} for the 14 tokens of the weights")):
        load_weights(source, variables, kept=[name for name in source.names if name not in variables])


def test_one_part_of_several_is_not_taken_for_the_model(folder, tmp_path):
    rewrite(folder, lambda arrays: {name: array for name, array in arrays.items() if "embeddings" in name})
    assert_not_written(open_weights(str(folder)), tmp_path / "out", "encoder/layer_0/output/kernel is missing", "more")


def test_an_output_matrix_of_its_own_is_left_out_only_if_allowed_by_name(folder, tmp_path):
    matrix = {"cls.predictions.decoder.weight": np.zeros((14, 16), np.float32)}
    rewrite(folder, lambda arrays: arrays | matrix)
    configure(folder / "config.json", tie_word_embeddings=False)
    source = open_weights(str(folder))
    assert_not_written(source, tmp_path / "out", "cls.predictions.decoder.weight is unknown", "--allow_unused")
    with pytest.raises(InputError, match="allow_unused: 'encoder' matches nothing; there is cls"):
        write_weights(source, str(tmp_path / "out"), "hugging_face", allow_unused=["decoder", "encoder"])
    write_weights(source, str(tmp_path / "out"), "hugging_face", allow_unused=[r"decoder\.weight$"])
    assert not open_weights(str(tmp_path / "out")).unknown


def test_albert_under_other_names_is_not_a_bert_without_layers(tmp_path):
    """As brightmare's files: `layer_shared` where Google's have `transformer/group_0/inner_group_0`."""
    shared = small_source(dataclasses.replace(CONFIG, share_layers=True, activation="gelu_tanh"))
    write_weights(shared, str(tmp_path / "in"), "tensorflow1")
    prefix = str(tmp_path / "in" / "bert_model.ckpt")
    tensors = CheckpointTensors(prefix)
    renamed = {name.replace("transformer/group_0/inner_group_0", "layer_shared"): name for name in tensors.shapes}
    write_checkpoint(prefix, {new: tf.constant(tensors.read(old)) for new, old in renamed.items()})
    messages = ("encoder/layer_0/output/kernel is missing", "and 20 more")
    assert_not_written(open_weights(str(tmp_path / "in")), tmp_path / "out", *messages)


@pytest.mark.parametrize("size", [128, 130])
def test_sizes_at_the_border_of_padding_are_whole(tmp_path, size):
    source = small_source(pieces=(*PIECES, *(f"more{number}" for number in range(size - len(PIECES)))))
    for kind in FORMATS:
        write_weights(source, str(tmp_path / kind), kind)
        back = open_weights(str(tmp_path / kind))
        for name in source.names:
            np.testing.assert_array_equal(back.read(name), source.read(name), err_msg=name)
