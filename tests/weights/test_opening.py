"""What weights are: told from what lies there, or asked for; never guessed, and never with a stack trace."""

import dataclasses
import io
import json
import time
import uuid
from concurrent import futures

import numpy as np
import pytest
from small_weights import CONFIG, small_source

from trainer import storage
from trainer.errors import InputError
from trainer.weights.opening import open_weights, read_description
from trainer.weights.tensors import SafetensorsFiles, write_safetensors
from trainer.weights.writing import write_weights

CLASSIFIER = {"labels": ("no", "yes"), "objective": "single_label", "pooling": "cls"}
ROBERTA = dataclasses.replace(CONFIG, type_vocabulary_size=1, padding_id=1, epsilon=1e-5)


@pytest.fixture
def written(tmp_path):
    """A function that writes weights as Hugging Face's, with changes of `config.json`; None takes a field away."""

    def write(config=CONFIG, heads=("masked_language_model",), name="in", changes=None, **fields):
        folder = tmp_path / name
        write_weights(small_source(config, heads=heads, **fields), str(folder), "hugging_face")
        configure(folder, **(changes or {}))
        return folder

    return write


def configure(folder, **changes):
    path = str(folder / "config.json")
    content = storage.read_json(path) | changes
    storage.write_json(path, {name: value for name, value in content.items() if value is not None})


def rename(folder, change):
    """Renames tensors by a function; the weights of a bare encoder lack the model's name."""
    path = str(folder / "model.safetensors")
    tensors = SafetensorsFiles([path])
    arrays = {change(name): tensors.read(name) for name in tensors.shapes}
    write_safetensors(path, [(name, a.dtype, a.shape, lambda a=a: a) for name, a in arrays.items()])


# Heads.


@pytest.mark.parametrize("purpose", ["ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering"])
def test_only_a_classifier_of_texts_is_taken_for_one(written, purpose):
    folder = written(heads=("pooler", "classifier"), **CLASSIFIER)
    assert "classifier/classifier/kernel" in open_weights(str(folder)).names
    configure(folder, architectures=[f"Bert{purpose}"])
    source = open_weights(str(folder))
    assert source.unknown == ("classifier.weight", "classifier.bias")
    assert (source.description.labels, source.description.objective, source.description.pooling) == ((), None, None)
    assert "pooler/pooler/kernel" in source.names
    configure(folder, architectures=None)  # nobody says
    assert open_weights(str(folder)).description.labels == ("no", "yes")


def test_robertas_head_computes_by_gelu_alone(written, tmp_path):
    folder = written(ROBERTA, changes={"hidden_act": "relu"})
    with pytest.raises(InputError, match=r"head computes by gelu even if the encoder has relu"):
        open_weights(str(folder))
    encoder = written(ROBERTA, heads=(), name="bare", changes={"hidden_act": "relu"})
    assert open_weights(str(encoder)).description.encoder.activation == "relu"
    ours = small_source(dataclasses.replace(ROBERTA, activation="relu"), heads=("masked_language_model",))
    with pytest.raises(InputError, match="by gelu even if the encoder has relu"):
        write_weights(ours, str(tmp_path / "out"), "hugging_face")


@pytest.mark.parametrize(("count", "objective"), [(1, "regression"), (2, "single_label")])
def test_one_output_of_a_tensorflow_1_classifier_is_a_number(tmp_path, count, objective):
    fields = CLASSIFIER | {"labels": tuple(f"LABEL_{number}" for number in range(count)), "objective": objective}
    write_weights(small_source(heads=("pooler", "classifier"), **fields), str(tmp_path / "in"), "tensorflow1")
    assert open_weights(str(tmp_path / "in")).description.objective == objective


# Which model.


@pytest.mark.parametrize(
    ("config", "classes", "bare", "kind"),
    [
        (ROBERTA, ["RobertaModel"], True, "roberta"),
        (ROBERTA, ["XLMRobertaForMaskedLM"], True, "roberta"),
        (ROBERTA, None, False, "roberta"),
        (CONFIG, ["BertModel"], True, "bert"),
        (CONFIG, None, False, "bert"),
        (dataclasses.replace(CONFIG, type_vocabulary_size=0), ["DistilBertModel"], True, "distilbert"),
    ],
)
def test_without_a_type_classes_or_names_tell_which_model_it_is(written, config, classes, bare, kind):
    folder = written(config, heads=())
    expected = open_weights(str(folder))
    arrays = {name: expected.read(name) for name in expected.names}
    configure(folder, model_type=None, architectures=classes)
    if bare:
        rename(folder, lambda name: name.partition(".")[2])
    source = open_weights(str(folder))
    assert source.kind == f"Hugging Face, {kind}" and not source.unknown
    assert source.description == expected.description
    for name, array in arrays.items():
        np.testing.assert_array_equal(source.read(name), array, err_msg=name)


@pytest.mark.parametrize("classes", [None, ["GPT2Model"]])
def test_a_model_that_nothing_tells_is_asked_for(written, classes):
    folder = written(ROBERTA, heads=(), changes={"model_type": None, "architectures": classes})
    rename(folder, lambda name: name.removeprefix("roberta."))
    with pytest.raises(
        InputError, match=r"no model_type, and neither .* tell which model it is: add one of albert, bert"
    ):
        open_weights(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": ["bert"]}, r"models of the type \['bert'\] are not known"),
        ({"architectures": "BertModel"}, "must be a list of names, not 'BertModel'"),
        ({"architectures": [3]}, r"must be a list of names, not \[3\]"),
    ],
)
def test_configurations_of_other_kinds_than_they_should_be_are_refused(written, changes, message):
    with pytest.raises(InputError, match=message):
        open_weights(str(written(changes=changes)))


def test_electra_without_an_activation_has_the_usual_one(written):
    folder = written(heads=("replaced_token_detection",), changes={"hidden_act": None})
    assert open_weights(str(folder)).kind == "Hugging Face, electra"
    assert open_weights(str(folder)).description.encoder.activation == "gelu"


# Where.


@pytest.mark.parametrize("name", ["step_100", "step_00000100"])
def test_a_folder_that_is_called_as_a_checkpoint_of_ours_may_hold_something_else(written, name):
    assert open_weights(str(written(name=name))).kind == "Hugging Face, bert"
    assert read_description(str(written(name=f"{name}0"))).vocabulary_size == 14


def test_a_path_may_say_that_it_is_local(written):
    folder = written()
    source = open_weights(f"file://{folder}")
    assert source.read("encoder/embeddings/norm/gamma").shape == (16,)
    assert read_description(f"file://{folder}/") == source.description
    assert open_weights(folder, f"file://{folder}/config.json").names == source.names


def test_a_folder_is_no_configuration(written, tmp_path):
    with pytest.raises(InputError, match="there is no configuration"):
        open_weights(str(written()), str(tmp_path))


@pytest.mark.parametrize("name", ["best_model.weights", "best_model.h5"])
def test_hdf5_of_others_is_told_from_a_checkpoint(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(InputError, match=r"is HDF5, .*save_weights_as_checkpoint"):
        open_weights(str(tmp_path / name))


@pytest.mark.parametrize("places", [{"a": None}, {"a": ["model-1.safetensors"]}])
def test_a_damaged_index_of_parts_is_refused(tmp_path, places):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(InputError, match="has no weight_map of names of files"):
        open_weights(str(tmp_path))


def test_files_in_object_stores_are_copied_when_the_first_tensor_is_read_and_once(written, monkeypatch):
    folder, remote = written(), f"ram://{uuid.uuid4().hex}"  # TensorFlow's file system in memory stands for gs://
    storage.make_folder(remote)
    for name in storage.listing(str(folder)):
        storage.copy_file(str(folder / name), f"{remote}/{name}")
    copied, copies = [], storage.local_copies

    def slow_copies(paths):
        copied.append(list(paths))
        time.sleep(0.1)
        return copies(paths)

    monkeypatch.setattr(storage, "local_copies", slow_copies)
    assert read_description(remote).vocabulary_size == 14
    source, expected = open_weights(remote), open_weights(str(folder))
    assert copied == []
    with futures.ThreadPoolExecutor(4) as pool:
        arrays = dict(zip(source.names, pool.map(source.read, source.names), strict=True))
    assert copied == [[f"{remote}/model.safetensors"]]
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected.read(name), err_msg=name)


# Types of numbers.


def test_integers_are_not_taken_for_weights(written):
    folder = written()
    path = str(folder / "model.safetensors")
    tensors = SafetensorsFiles([path])
    arrays = {name: tensors.read(name) for name in tensors.shapes}
    arrays["bert.embeddings.word_embeddings.weight"] = np.ones((14, 16), np.int8)
    write_safetensors(path, [(name, a.dtype, a.shape, lambda a=a: a) for name, a in arrays.items()])
    with pytest.raises(InputError, match=r"word_embeddings\.weight is of the type int8; .* not quantized"):
        open_weights(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, w: {"bert.embeddings.word_embeddings.weight": w.to(t.float8_e4m3fn)}, "of the type float8_e4m3fn"),
        (lambda t, w: {3: w}, "a tensor whose name is 3, no text"),
    ],
)
def test_strange_files_of_pytorch_are_refused(written, change, message):
    torch = pytest.importorskip("torch")
    folder = written()
    tensors = SafetensorsFiles([str(folder / "model.safetensors")])
    content = {name: torch.tensor(tensors.read(name)) for name in tensors.shapes}
    content |= change(torch, content["bert.embeddings.word_embeddings.weight"])
    buffer = io.BytesIO()
    torch.save(content, buffer)
    (folder / "pytorch_model.bin").write_bytes(buffer.getvalue())
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=message):
        open_weights(str(folder))
