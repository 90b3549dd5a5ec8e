"""Loading weights into a model: everything is told, nothing is changed unless everything fits, damage is named."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from small_weights import CONFIG, PIECES, small_model, small_source, values_of, variables_of

from trainer import storage
from trainer.errors import InputError
from trainer.models.encoder import padded_vocabulary_size
from trainer.weights.loading import check_architecture, check_vocabulary, load_weights
from trainer.weights.opening import open_weights, read_description
from trainer.weights.source import rows_of
from trainer.weights.tensors import SafetensorsFiles, write_safetensors
from trainer.weights.writing import write_weights


def assert_unchanged(model, before):
    for name, array in values_of(model).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def assert_refused(source, model, *messages, **options):
    """Asserts that loading fails with a message, and leaves every variable as it was."""
    before = values_of(model)
    with pytest.raises(InputError) as refused:
        load_weights(source, variables_of(model), **options)
    assert_unchanged(model, before)
    for message in messages:
        assert message in str(refused.value)


# What is told.


def test_every_variable_gets_its_tensor_and_padding_is_zero():
    source, model = small_source(), small_model()
    report = load_weights(source, variables_of(model))
    for name, array in values_of(model).items():
        expected = source.read(name)
        np.testing.assert_array_equal(array[: len(expected)], expected, err_msg=name)
        assert not array[len(expected) :].any()
    tokens = {name for name in source.names if rows_of(name) == "tokens"}
    assert set(report.padded) == tokens and len(tokens) == 2
    assert report.loaded == {name: name for name in source.names}
    assert (report.missing, report.unused, report.ignored) == ((), (), ())
    assert report.parameters == sum(source.read(name).size for name in source.names)
    assert all(count <= 3 for count in source.tensors.reads.values())


def test_the_report_has_a_line_for_every_tensor_on_either_side():
    source = small_source(heads=("masked_language_model",))
    source = dataclasses.replace(source, ignored=("global_step",))
    model = small_model(heads=("pooler", "sentence_pair"))
    report = load_weights(source, variables_of(model))
    lines = list(report.lines())
    expected = {f"loaded   {name} <- {name}" for name in source.names if name.startswith("encoder/")}
    words = "encoder/embeddings/word_embeddings/embeddings"
    expected = expected - {f"loaded   {words} <- {words}"} | {f"loaded   {words} <- {words} (padded)"}
    heads = [name for name in variables_of(model) if not name.startswith("encoder/")]
    expected |= {f"missing  {name} (initialized anew)" for name in heads}
    expected |= {f"unused   {name}" for name in source.names if name.startswith("masked_language_model/")}
    expected |= {"ignored  global_step"}
    assert len(lines) == len(set(lines)) and set(lines) == expected
    summary = report.summary()
    assert "initialized anew: pooler/pooler/kernel" in summary and "not used: masked_language_model/" in summary


def test_heads_that_are_not_there_keep_their_values():
    source, model = small_source(heads=()), small_model()
    before = values_of(model)
    report = load_weights(source, variables_of(model))
    for name, array in values_of(model).items():
        changed = not np.array_equal(array, before[name])
        assert changed == name.startswith("encoder/")
        assert (name in report.missing) != changed


def test_parameters_that_are_kept_are_neither_read_nor_told_of():
    source, model = small_source(), small_model()
    before, variables = values_of(model), variables_of(model)
    kept = {name for name in variables if "layer_1/" in name or name.startswith("pooler/")}
    wanted = {name: variable for name, variable in variables.items() if name not in kept}
    report = load_weights(source, wanted, kept=kept)
    assert set(report.loaded) == set(wanted) and not report.unused and not report.missing
    for name in kept:
        np.testing.assert_array_equal(values_of(model)[name], before[name], err_msg=name)


# What does not fit.


def without(source, *names):
    entries = {name: entry for name, entry in source.entries.items() if name not in names}
    return dataclasses.replace(source, entries=entries)


def test_a_missing_tensor_of_the_encoder_is_refused_unless_allowed():
    name = "encoder/layer_1/output/bias"
    source = without(small_source(), name)
    assert_refused(source, small_model(), f"{name} is missing")
    model = small_model()
    report = load_weights(source, variables_of(model), allow_missing=(r"layer_1/output/bias$",))
    assert report.missing == (name,)


def test_half_a_head_is_refused_unless_allowed():
    name = "masked_language_model/output_bias"
    source = without(small_source(), name)
    assert_refused(source, small_model(), f"{name} is missing")
    assert load_weights(source, variables_of(small_model()), allow_missing=("output_bias",)).missing == (name,)


def test_a_tensor_that_belongs_to_nothing_is_refused_unless_allowed():
    source = dataclasses.replace(small_source(), unknown=("bert.surprise.weight",))
    assert_refused(source, small_model(), "bert.surprise.weight belongs to nothing in this model")
    report = load_weights(source, variables_of(small_model()), allow_unused=(r"surprise\.",))
    assert report.unused == ("bert.surprise.weight",)


def test_a_layer_too_many_is_refused_unless_allowed():
    source = small_source(dataclasses.replace(CONFIG, num_layers=3))
    assert_refused(source, small_model(), "encoder/layer_2/intermediate/kernel belongs to nothing in this model")
    assert len(load_weights(source, variables_of(small_model()), allow_unused=("layer_2/",)).unused) == 12


@pytest.mark.parametrize("option", ["allow_missing", "allow_unused"])
def test_a_pattern_that_matches_nothing_is_refused(option):
    for pattern, message in (("layer_9", "'layer_9' matches nothing"), ("(", "'(' is not a regular expression")):
        source = dataclasses.replace(without(small_source(), "encoder/layer_1/output/bias"), unknown=("surprise",))
        allowed = {"allow_missing": ("output/bias",), "allow_unused": ("surprise",)}
        allowed[option] = (*allowed[option], pattern)
        assert_refused(source, small_model(), f"{option}_weights: {message}", **allowed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"intermediate_size": 32},
            "encoder/layer_0/intermediate/kernel has shape (16, 32) in the weights and (16, 24)",
        ),
        ({"type_vocabulary_size": 3}, "encoder/embeddings/type_embeddings/embeddings has shape (3, 16)"),
        ({"max_length": 30}, "has 30 positions in the weights and 20 in the model: set encoder.max_length to that"),
    ],
)
def test_other_shapes_are_refused_by_name(changes, message):
    assert_refused(small_source(dataclasses.replace(CONFIG, **changes)), small_model(), message)


def test_a_vocabulary_of_another_size_is_refused_by_shape():
    pieces = (*PIECES, *(f"more{number}" for number in range(200)))
    assert padded_vocabulary_size(len(pieces)) == 256
    assert_refused(small_source(pieces=pieces), small_model(), "word_embeddings/embeddings has shape (214, 16)")


def test_many_problems_are_told_at_once_and_not_all():
    source = small_source(dataclasses.replace(CONFIG, hidden_size=32, num_layers=4))
    assert_refused(source, small_model(), "belongs to nothing", "more")


# What would fit and mean something else.


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"num_heads": 4}, {}, "encoder.num_heads is 4, in the weights 2"),
        ({"activation": "gelu_tanh"}, {}, "encoder.activation is 'gelu_tanh', in the weights 'gelu'"),
        ({"epsilon": 1e-5}, {}, "encoder.epsilon is 1e-05"),
        ({"positions": "none"}, {"positions": "relative"}, "encoder.positions is 'none'"),
        (
            {"positions": "rotary", "rotary_base": 500.0},
            {"positions": "rotary"},
            "encoder.rotary_base is 500.0, in the weights 10000.0",
        ),
        (
            {"attention_window": 4},
            {"attention_window": 8},
            "encoder.attention_window is 4, in the weights 8",
        ),
        ({"num_layers": 3}, {}, "encoder.num_layers is 3"),
    ],
)
def test_the_same_shapes_of_another_architecture_are_refused(ours, theirs, message):
    source = dataclasses.replace(
        small_source(), description=dataclasses.replace(small_source().description, encoder=with_fields(theirs))
    )
    with pytest.raises(InputError) as refused:
        check_architecture(source, with_fields(ours))
    assert message in str(refused.value)
    assert str(refused.value).count("\n  encoder.") == 1
    assert "pretrained_encoder()" in str(refused.value)


def with_fields(fields):
    return dataclasses.replace(CONFIG, **fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.3, "rematerialize": True},
        {"confine_attention": False, "attention": "causal"},
        {"epsilon": 1e-7},
        {"rotary_base": 5.0, "global_every": 7, "max_relative_distance": 3},  # of no meaning with learned positions
    ],
)
def test_what_changes_no_tensors_meaning_may_differ(changes):
    check_architecture(small_source(), with_fields(changes))


def test_another_vocabulary_is_refused_by_its_first_difference():
    source = small_source()
    check_vocabulary(source, PIECES)
    with pytest.raises(InputError, match=r"id 6 is 'dog' in the data .* and 'cat' in the weights"):
        check_vocabulary(source, (*PIECES[:6], "dog", *PIECES[7:]))
    with pytest.raises(InputError, match=r"id 13 is nothing in the data \(13 pieces\) and '\.' in the weights \(14\)"):
        check_vocabulary(source, PIECES[:-1])
    nameless = small_source(pieces=PIECES)
    nameless = dataclasses.replace(nameless, description=dataclasses.replace(nameless.description, pieces=None))
    check_vocabulary(nameless, [f"other{number}" for number in range(14)])
    with pytest.raises(InputError, match="was trained with 14 tokens, the vocabulary of the data has 15"):
        check_vocabulary(nameless, [f"other{number}" for number in range(15)])


# Damage.


@pytest.fixture
def folders(tmp_path):
    """A function that writes weights in a format and returns the folder."""

    def write(kind, source=None):
        folder = tmp_path / kind
        write_weights(source or small_source(), str(folder), kind)
        return folder

    return write


def cut(path, by=100):
    os.truncate(path, os.path.getsize(path) - by)


def test_truncated_safetensors_are_refused(folders):
    folder = folders("hugging_face")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 100, 5, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"model\.safetensors is (truncated|not a safetensors file)"):
            open_weights(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "F8_E4M3"}, "damaged, or of an unknown kind"),
        ({"shape": [3, 3]}, "does not fit into"),
        ({"data_offsets": [0]}, "damaged, or of an unknown kind"),
        ({"data_offsets": [-4, 60]}, "does not fit into"),
        ({"data_offsets": [1 << 60, (1 << 60) + 64]}, "does not fit into"),
        ({"shape": "ab"}, "damaged, or of an unknown kind"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, change, message):
    entry = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | change
    header = json.dumps({"x": entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(InputError, match=message):
        SafetensorsFiles([str(tmp_path / "x.safetensors")])


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(folders):
    folder = folders("hugging_face")
    source = open_weights(str(folder))
    cut(folder / "model.safetensors", 20_000)
    with pytest.raises(InputError, match="is truncated: tensor"):
        for name in source.names:
            source.read(name)


def test_truncated_data_of_a_checkpoint_is_refused_before_anything_changes(folders):
    folder = folders("tensorflow1")
    cut(folder / "bert_model.ckpt.data-00000-of-00001")
    with pytest.raises(InputError, match="is truncated: its data files have"):
        open_weights(str(folder))
    os.remove(folder / "bert_model.ckpt.data-00000-of-00001")
    with pytest.raises(InputError, match="is truncated: its data files have 0 bytes"):
        open_weights(str(folder))


def test_damaged_bytes_of_a_checkpoint_are_found_when_they_are_read(folders):
    folder = folders("tensorflow1")
    path = folder / "bert_model.ckpt.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bert_model\.ckpt is damaged: tensor .* cannot be read"):
        load_weights(open_weights(str(folder)), variables_of(small_model()))


def test_a_damaged_index_is_refused(folders):
    folder = folders("tensorflow1")
    cut(folder / "bert_model.ckpt.index", 30)
    with pytest.raises(InputError, match="is not a TensorFlow checkpoint, or is damaged"):
        open_weights(str(folder))


def test_a_damaged_checkpoint_of_ours_is_refused(folders):
    folder = folders("checkpoint")
    path = folder / "checkpoints" / "step_00000000" / "weights.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="step_00000000 is damaged"):
        open_weights(str(folder))


@pytest.mark.parametrize("name", ["model.keras", "other.weights.h5"])
def test_damaged_keras_files_are_refused(folders, name):
    folder = folders("keras")
    content = (folder / "model.keras").read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot be loaded by Keras|is damaged"):
        open_weights(str(folder / name))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("hugging_face", "config.json"),
        ("hugging_face", "tokenizer_config.json"),
        ("tensorflow1", "bert_config.json"),
        ("checkpoint", "model.json"),
    ],
)
def test_damaged_json_is_refused_by_name(folders, kind, name):
    folder = folders(kind)
    content = (folder / name).read_text()
    for damaged in (content[: len(content) // 2], "[]", ""):
        (folder / name).write_text(damaged)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            open_weights(str(folder))


def test_json_of_others_beside_a_checkpoint_is_nobodys_business(folders):
    folder = folders("tensorflow1")
    (folder / "a_notes.json").write_text("{ damaged")
    assert open_weights(str(folder)).kind == "TensorFlow 1, bert"


@pytest.mark.parametrize(("kind", "name"), [("hugging_face", "config.json"), ("tensorflow1", "bert_config.json")])
def test_a_missing_configuration_is_asked_for(folders, tmp_path, kind, name):
    folder = folders(kind)
    elsewhere = shutil.move(folder / name, tmp_path / "my_config.json")
    if kind == "hugging_face":  # which has max_position_embeddings and the like of a model in no other file
        os.remove(folder / "tokenizer_config.json")
    with pytest.raises(InputError, match="has no configuration"):
        open_weights(str(folder))
    assert set(open_weights(str(folder), elsewhere).names) == set(small_source().names)
    with pytest.raises(InputError, match="there is no configuration"):
        open_weights(str(folder), str(tmp_path / "nowhere.json"))


def test_a_missing_description_of_our_checkpoints_is_asked_for(folders):
    folder = folders("checkpoint")
    os.remove(folder / "model.json")
    with pytest.raises(InputError, match=r"lacks model\.json, which says what model"):
        open_weights(str(folder))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "t5", "models of the type 't5' are not known here"),
        ("num_attention_heads", 3, "16 is not a multiple of encoder.num_heads 3"),
        ("num_attention_heads", None, "has no 'num_attention_heads'"),
        ("num_hidden_layers", "two", "describes no model"),
        ("hidden_act", "softplus", "the activation 'softplus' of config.json is not known"),
        ("is_decoder", True, "has a decoder, which is not supported"),
        ("position_embedding_type", "relative_key", "position_embedding_type 'relative_key'"),
        ("vocab_size", 99, "has word embeddings of 14 tokens, and its configuration says vocab_size 99"),
    ],
)
def test_configurations_that_cannot_be_are_refused(folders, field, value, message):
    folder = folders("hugging_face")
    storage.write_json(str(folder / "config.json"), storage.read_json(str(folder / "config.json")) | {field: value})
    with pytest.raises(InputError) as refused:
        open_weights(str(folder))
    assert message in str(refused.value)


def test_more_pieces_than_tokens_are_refused(folders):
    folder = folders("hugging_face")
    with open(folder / "vocab.txt", "a") as file:
        file.write("one\ntwo\n")
    with pytest.raises(InputError, match="has 16 pieces and the weights 14 tokens"):
        open_weights(str(folder))


def test_a_table_with_our_padding_is_read_without_it(folders, tmp_path):
    folder = folders("hugging_face")
    tensors = SafetensorsFiles([str(folder / "model.safetensors")])
    arrays = {name: tensors.read(name) for name in tensors.shapes}
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        arrays[name] = np.concatenate([arrays[name], np.ones((128 - 14, *arrays[name].shape[1:]), np.float32)])
    listed = [(name, np.float32, array.shape, lambda array=array: array) for name, array in arrays.items()]
    write_safetensors(str(folder / "model.safetensors"), listed)
    source = open_weights(str(folder))
    expected = small_source()
    for name in expected.names:
        np.testing.assert_array_equal(source.read(name), expected.read(name), err_msg=name)


# Where to look.


def test_several_checkpoints_in_a_folder_are_named(folders):
    folder = folders("tensorflow1")
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copy(folder / f"bert_model.ckpt{suffix}", folder / f"other.ckpt{suffix}")
    with pytest.raises(InputError, match=r"several TensorFlow checkpoints: name one of bert_model\.ckpt, other\.ckpt"):
        open_weights(str(folder))
    for name in ("other.ckpt", "other.ckpt.index", "other.ckpt.data-00000-of-00001"):
        assert open_weights(str(folder / name)).kind == "TensorFlow 1, bert"


def test_of_several_checkpoints_of_ours_the_newest_is_taken_unless_one_is_named(folders):
    folder = folders("checkpoint")
    from trainer.training.checkpoints import CheckpointManager

    variables = {f"m/{name}": tf.Variable(small_source(seed=1).read_padded(name)) for name in small_source().names}
    CheckpointManager(str(folder / "checkpoints"), {"weights": variables}).save(7, wait=True)
    name = "encoder/layer_0/intermediate/bias"
    for path, seed in ((folder, 1), (folder / "checkpoints", 1), (folder / "checkpoints" / "step_00000000", 0)):
        np.testing.assert_array_equal(open_weights(str(path)).read(name), small_source(seed=seed).read(name))
    with pytest.raises(InputError, match="holds no checkpoint of step 3"):
        open_weights(str(folder / "checkpoints" / "step_00000003"))


def test_nothing_is_told_from_nothing(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        open_weights(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="it holds nothing"):
        open_weights(str(tmp_path))
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "step_by_step").mkdir()
    with pytest.raises(InputError, match=r"it holds notes\.txt, step_by_step"):
        open_weights(str(tmp_path))
    with pytest.raises(InputError, match="it holds nothing"):
        open_weights(str(tmp_path / "step_by_step"))
    for name in ("gone.safetensors", "pytorch_model.bin", "gone.keras", "gone.weights.h5"):
        with pytest.raises(InputError, match="there is no file"):
            open_weights(str(tmp_path / name))


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": {"a": "model-1.safetensors"}}'])
def test_an_index_without_its_files_is_refused(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=r"not JSON|has no weight_map|there is no file .*model-1\.safetensors"):
        open_weights(str(tmp_path))


@pytest.mark.parametrize("kind", ["hugging_face", "tensorflow1", "checkpoint", "keras"])
def test_a_description_is_read_without_the_numbers(folders, kind):
    folder = folders(kind)
    description = read_description(str(folder))
    assert (description.encoder.num_layers, description.vocabulary_size, description.pieces) == (2, 14, PIECES)


# Memory.

PROGRAM = """
import os
import sys
from tools.benchmark.peers.protocol import peak_memory_bytes
from trainer.environment import import_tensorflow_quietly
import_tensorflow_quietly(os.environ)
import psutil
import tensorflow as tf
from trainer.weights.loading import load_weights
from trainer.weights.opening import open_weights
from trainer.weights.writing import write_weights
sys.path.insert(0, "tests")
from small_weights import small_model, variables_of

command, path, target = sys.argv[1:]
source = open_weights(path)
tf.Variable(tf.zeros([3])).assign(tf.ones([3]))
if command == "load":
    model = small_model(source.description.encoder, source.description.vocabulary_size, ("masked_language_model",))
before = psutil.Process().memory_info().rss
if command == "load":
    load_weights(source, variables_of(model))
else:
    write_weights(source, target, command)
print(peak_memory_bytes() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder with a hundred million random numbers, as Hugging Face's and as a TensorFlow 1 checkpoint; their bytes."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 768, "num_heads": 12, "num_layers": 11, "intermediate_size": 3072, "max_length": 512}
    config = dataclasses.replace(CONFIG, **sizes)
    pieces = (*PIECES, *(f"piece{number}" for number in range(30_000)))
    write_weights(
        small_source(config, pieces, ("masked_language_model",)), str(folder / "hugging_face"), "hugging_face"
    )
    write_weights(open_weights(str(folder / "hugging_face")), str(folder / "tensorflow1"), "tensorflow1")
    return folder, os.path.getsize(folder / "hugging_face" / "model.safetensors")


def additional_memory(*arguments):
    """Returns how many bytes a process took at most beyond what it had before a command."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.slow  # writes gigabytes
@pytest.mark.parametrize("kind", ["hugging_face", "tensorflow1"])
def test_loading_takes_less_than_another_copy_of_the_model(large, tmp_path, kind):
    folder, size = large
    assert size > 4 * 100e6
    assert additional_memory("load", str(folder / kind), "") < size


# TensorFlow writes all tensors at once, Keras a model and its file; TensorFlow itself keeps some blocks that it had once.
@pytest.mark.slow  # writes gigabytes
@pytest.mark.parametrize(
    ("kind", "copies"), [("hugging_face", 0.5), ("checkpoint", 1.7), ("tensorflow1", 2.4), ("keras", 3.0)]
)
def test_writing_takes_a_few_tensors_or_copies_of_the_model(large, tmp_path, kind, copies):
    folder, size = large
    assert additional_memory(kind, str(folder / "hugging_face"), str(tmp_path / "out")) < copies * size
