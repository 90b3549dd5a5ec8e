"""Weights that go out and come in again, whatever the format and the model, are the same bits and the same model."""

import collections
import dataclasses
import io
import os
import pickle
import re
import shlex
import subprocess
import sys
import uuid

import keras
import numpy as np
import pytest

pytest.importorskip("torch", reason="the models to compare with are PyTorch's")
transformers = pytest.importorskip("transformers", reason="the models to compare with are Hugging Face's")

import hugging_face_models as models  # noqa: E402
import torch  # noqa: E402
from small_weights import CONFIG, small_source  # noqa: E402

from trainer import storage  # noqa: E402
from trainer.data.tokenization import Tokenizer  # noqa: E402
from trainer.data.vocabulary import SPECIAL_TOKENS, make_vocabulary  # noqa: E402
from trainer.errors import InputError  # noqa: E402
from trainer.weights import surgery  # noqa: E402
from trainer.weights.opening import open_weights  # noqa: E402
from trainer.weights.writing import write_weights  # noqa: E402

PIECES = (
    *(*SPECIAL_TOKENS, "the", "cat", "sat", "on", "mat", "un", "##able", "##s", "Cat", ".", ",", "猫", "é", "e"),
    *(f"word{number}" for number in range(models.VOCABULARY_SIZE - 19)),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function that saves a model once and returns its folder and the model."""
    made = {}

    def save(family, purpose):
        if (family, purpose) not in made:
            folder = tmp_path_factory.mktemp(f"{family}{purpose}")
            made[family, purpose] = models.saved_model(folder, family, purpose)
        return made[family, purpose]

    return save


def contents(source):
    """Returns `{our name: float32 array}` of all that weights hold."""
    return {name: np.asarray(source.read(name), np.float32) for name in source.names}


def assert_same(source, expected):
    """Asserts that two sources hold the same bits, and are of models that compute the same."""
    assert set(source.names) == set(expected.names)
    for name, array in contents(source).items():
        np.testing.assert_array_equal(array, np.asarray(expected.read(name), np.float32), err_msg=name)
        assert source.shape(name) == array.shape
    ours, theirs = (vars(each.description) | {"encoder": None, "tokenizer_files": ()} for each in (source, expected))
    assert ours == theirs
    ours, theirs = (vars(each.description.encoder) for each in (source, expected))
    different = {name for name in ours if ours[name] != theirs[name]}
    # RoFormer in TensorFlow 1 and NEZHA have no use for it; without a pooler it says nothing.
    assert different <= (set() if "pooler/pooler/kernel" in source.names else {"pooler_activation"})


FORMATS = ("checkpoint", "hugging_face", "keras", "tensorflow1")
# What TensorFlow 1's names have no place for, with the reason that is given.
REFUSED = {
    ("modernbert", "Model"): "normalisations before",
    ("modernbert", "ForMaskedLM"): "normalisations before",
    ("roformer", "ForSequenceClassification"): "pooler_activation = 'gelu'",
    ("electra", "ForSequenceClassification"): "pooler_activation = 'gelu'",
    ("electra_unprojected", "ForSequenceClassification"): "pooler_activation = 'gelu'",
    ("distilbert", "ForSequenceClassification"): "pooler_activation = 'relu'",
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("family", "purpose"), models.MODELS)
def test_out_and_in_again_loses_no_bit(saved, tmp_path, family, purpose, kind):
    source = open_weights(saved(family, purpose)[0])
    assert not source.unknown
    if kind == "tensorflow1" and (family, purpose) in REFUSED:
        with pytest.raises(InputError, match=REFUSED[family, purpose]):
            write_weights(source, str(tmp_path / "out"), kind)
        assert not (tmp_path / "out").exists()
        return
    assert write_weights(source, str(tmp_path / "out"), kind) == ()
    assert_same(open_weights(str(tmp_path / "out")), source)


@pytest.mark.parametrize(("family", "purpose"), models.MODELS)
def test_hugging_face_gets_back_its_own_tensors(saved, tmp_path, family, purpose):
    path, model = saved(family, purpose)
    write_weights(open_weights(path), str(tmp_path / "out"), "hugging_face", None if family != "electra" else "electra")
    theirs, back = models.tensors_of(path), models.tensors_of(tmp_path / "out")
    prefix = f"{model.base_model_prefix}."
    names = {name.removeprefix(prefix): name for name in back}
    assert set(names) == {name.removeprefix(prefix) for name in theirs}
    for name, array in theirs.items():
        written = back[names[name.removeprefix(prefix)]]
        unread = 2 if "position_embeddings" in name and "oberta" in family else 0  # RoBERTa's positions begin there
        np.testing.assert_array_equal(written[unread:], array[unread:], err_msg=name)


@pytest.mark.parametrize(("family", "purpose"), models.MODELS)
def test_transformers_computes_the_same_with_what_we_write(saved, tmp_path, family, purpose):
    path, model = saved(family, purpose)
    source = open_weights(path)
    write_weights(source, str(tmp_path / "out"), "hugging_face")
    auto = getattr(transformers, f"AutoModel{AUTO[purpose]}")
    loaded, information = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(information.values()), information
    ids, mask = models.rows(source.description.encoder.padding_id)
    expected, answers = (models.their_answers(each.eval(), ids, mask) for each in (model, loaded))
    assert set(answers) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(answers[name], array, atol=1e-6, err_msg=name)


# Purpose of a model -> the automatic class that finds it.
AUTO = {
    "Model": "",
    "ForMaskedLM": "ForMaskedLM",
    "ForPreTraining": "ForPreTraining",
    "ForNextSentencePrediction": "ForNextSentencePrediction",
    "ForSequenceClassification": "ForSequenceClassification",
}
# Their names of answers -> ours, by the purpose of the model.
ANSWERS = {
    "Model": {"last_hidden_state": "hidden", "pooler_output": "pooled"},
    "ForMaskedLM": {"logits": "token_logits"},
    "ForPreTraining": {
        "prediction_logits": "token_logits",
        "seq_relationship_logits": "pair_logits",
        "sop_logits": "pair_logits",
        "logits": "replaced_logits",
    },
    "ForNextSentencePrediction": {"logits": "pair_logits"},
    "ForSequenceClassification": {"logits": "logits"},
}


@pytest.mark.parametrize(("family", "purpose"), models.MODELS)
def test_the_keras_file_answers_as_transformers_does(saved, tmp_path, family, purpose):
    path, model = saved(family, purpose)
    source = open_weights(path)
    ids, mask = models.rows(source.description.encoder.padding_id)
    ours = models.our_answers(source, ids, mask, tmp_path / "out")
    for name, expected in models.their_answers(model, ids, mask).items():
        np.testing.assert_allclose(ours[ANSWERS[purpose][name]], expected, atol=5e-6, err_msg=name)


@pytest.mark.parametrize("kind", FORMATS)
def test_nezha_goes_out_and_in_again(tmp_path, kind):
    source = open_weights(models.saved_nezha(tmp_path / "in"))
    encoder = source.description.encoder
    assert (encoder.positions, encoder.max_relative_distance) == ("relative", 7)
    assert not source.unknown and "sentence_pair/classifier/kernel" in source.names
    write_weights(source, str(tmp_path / "out"), kind)
    assert_same(open_weights(str(tmp_path / "out")), source)
    if kind == "hugging_face":
        theirs, back = models.tensors_of(tmp_path / "in"), models.tensors_of(tmp_path / "out")
        assert set(theirs) == set(back)
        assert all((theirs[name] == back[name]).all() for name in theirs)


@pytest.mark.parametrize(
    ("family", "purpose"),
    [
        ("bert", "Model"),
        ("bert", "ForPreTraining"),
        ("bert", "ForSequenceClassification"),
        ("electra", "ForPreTraining"),
    ],
)
def test_weights_h5_beside_model_json_are_read(saved, tmp_path, family, purpose):
    source = open_weights(saved(family, purpose)[0])
    write_weights(source, str(tmp_path / "out"), "keras")
    keras.saving.load_model(tmp_path / "out" / "model.keras").save_weights(tmp_path / "out" / "own.weights.h5")
    assert_same(open_weights(str(tmp_path / "out" / "own.weights.h5")), source)
    os.remove(tmp_path / "out" / "model.json")
    with pytest.raises(InputError, match=r"model\.json, which says what model they are of, must lie beside it"):
        open_weights(str(tmp_path / "out" / "own.weights.h5"))


@pytest.mark.parametrize("kind", FORMATS)
def test_object_stores_hold_the_same(saved, kind):
    source = open_weights(saved("bert", "ForPreTraining")[0])
    remote = f"ram://{uuid.uuid4().hex}/weights"  # TensorFlow's file system in memory stands for gs://
    write_weights(source, remote, kind)
    assert_same(open_weights(remote), source)


def test_object_stores_hold_files_of_pytorch(saved):
    path, model = saved("bert", "ForPreTraining")
    remote = f"ram://{uuid.uuid4().hex}/weights"
    content = io.BytesIO()
    torch.save(model.state_dict(), content)
    storage.make_folder(remote)
    storage.write_bytes(f"{remote}/pytorch_model.bin", content.getvalue())
    storage.copy_file(f"{path}/config.json", f"{remote}/config.json")
    assert_same(open_weights(remote), open_weights(path))


def test_a_folder_that_holds_something_is_not_written_to(saved, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        write_weights(open_weights(saved("bert", "Model")[0]), str(tmp_path / "out"), "keras")


def test_a_pooler_beside_a_masked_language_model_is_kept_for_those_who_want_it(saved, tmp_path):
    """Ours pretrains with a pooler that no class with that one head has; `BertModel` finds it."""
    source = open_weights(saved("bert", "ForPreTraining")[0])
    source.entries.update({name: source.entries.pop(name) for name in list(source.entries)})
    for name in [name for name in source.names if name.startswith("sentence_pair/")]:
        del source.entries[name]
    write_weights(source, str(tmp_path / "out"), "hugging_face")
    _, information = transformers.BertForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert information["unexpected_keys"] == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert not information["missing_keys"]
    _, information = transformers.BertModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not information["missing_keys"]


# Hugging Face's files as one meets them.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_it_is(tmp_path, dtype):
    path, model = models.saved_model(tmp_path / "in", "bert", "ForPreTraining")
    expected = {name: value.to(dtype).float().numpy() for name, value in model.state_dict().items()}
    model.to(dtype).save_pretrained(path)
    write_weights(open_weights(path), str(tmp_path / "out"), "hugging_face")
    for name, array in models.tensors_of(tmp_path / "out").items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_sharded_safetensors_are_read_as_one(saved, tmp_path):
    path, model = saved("bert", "ForPreTraining")
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same(open_weights(str(tmp_path)), open_weights(path))


def torch_folder(folder, model, content=None, **options):
    """Saves a model as old versions did, by `torch.save`; returns the folder's path."""
    model.config.save_pretrained(folder)
    torch.save(content or model.state_dict(), folder / "pytorch_model.bin", **options)
    return str(folder)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_of_pytorch_are_read_in_both_formats(saved, tmp_path, zipped, dtype):
    path, model = saved("bert", "ForPreTraining")
    content = {name: value.to(dtype) for name, value in model.state_dict().items()}
    folder = torch_folder(tmp_path, model, content, _use_new_zipfile_serialization=zipped)
    source, expected = open_weights(folder), open_weights(path)
    assert set(source.names) == set(expected.names) and not source.unknown
    for name, array in contents(expected).items():
        halved = torch.tensor(array).to(dtype).float().numpy()
        np.testing.assert_array_equal(np.asarray(source.read(name), np.float32), halved, err_msg=name)


def test_files_of_pytorch_in_several_parts_are_read_as_one(saved, tmp_path):
    path, model = saved("bert", "ForPreTraining")
    model.config.save_pretrained(tmp_path)
    places = {}
    for number, (name, value) in enumerate(model.state_dict().items()):
        places.setdefault(f"pytorch_model-{number % 3}.bin", {})[name] = value
    for file, part in places.items():
        torch.save(part, tmp_path / file)
    index = {"weight_map": {name: file for file, part in places.items() for name in part}}
    storage.write_json(str(tmp_path / "pytorch_model.bin.index.json"), index)
    assert_same(open_weights(str(tmp_path)), open_weights(path))


class Evil:
    """What runs a program when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {shlex.quote(str(self.path))}",)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
def test_a_pickle_with_a_program_in_it_is_refused_and_the_program_does_not_run(saved, tmp_path, save):
    folder = torch_folder(tmp_path, saved("bert", "Model")[1])
    save({"embeddings": Evil(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be read as tensors alone"):
        open_weights(folder)
    assert not (tmp_path / "ran").exists()
    os.system(f"touch {tmp_path / 'other'}")  # it would have been there to see
    assert (tmp_path / "other").exists()


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"epoch": 3}])
def test_a_file_of_pytorch_without_named_tensors_is_refused(saved, tmp_path, content):
    folder = torch_folder(tmp_path, saved("bert", "Model")[1], content)
    with pytest.raises(InputError, match="holds no named tensors"):
        open_weights(folder)


def test_without_pytorch_the_message_has_a_command_that_works(saved, tmp_path):
    folder = tmp_path / "a folder's name"
    folder.mkdir()
    path, model = saved("bert", "ForPreTraining")
    torch_folder(folder, model)
    program = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'torch': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocked)\n"
        "from trainer.errors import InputError\n"
        "from trainer.weights.opening import open_weights\n"
        "try:\n    open_weights(sys.argv[1])\nexcept InputError as error:\n    print(error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
    ).stdout
    assert "takes PyTorch, which is not installed" in told
    command = re.search(r"^  python (-c .*)$", told, re.MULTILINE)[1]
    subprocess.run(["bash", "-c", f"{shlex.quote(sys.executable)} {command}"], check=True)
    assert_same(open_weights(str(folder)), open_weights(path))  # safetensors come before pickles


def _old_names(tensors):
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {re.sub(r"LayerNorm\.(weight|bias)$", lambda m: names[m[0]], name): a for name, a in tensors.items()}


def _without_prefix(tensors):
    return {name.removeprefix("bert."): array for name, array in tensors.items()}


def _bias_with_the_projection(tensors):
    word = tensors["bert.embeddings.word_embeddings.weight"]
    rest = {name: array for name, array in tensors.items() if name != "cls.predictions.bias"}
    return rest | {
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
        "cls.predictions.decoder.weight": word,
    }


def _with_buffers(tensors):
    return tensors | {"bert.embeddings.position_ids": np.arange(20)[None], "cls.predictions.decoder.bias": np.zeros(60)}


@pytest.mark.parametrize("rename", [_old_names, _without_prefix, _bias_with_the_projection, _with_buffers])
def test_old_names_are_known(saved, tmp_path, rename):
    path, model = saved("bert", "ForPreTraining")
    model.save_pretrained(tmp_path)
    models.write_tensors(tmp_path, rename(models.tensors_of(path)))
    source = open_weights(str(tmp_path))
    assert not source.unknown
    assert_same(source, open_weights(path))


def test_an_output_matrix_that_is_not_the_word_embeddings_is_unknown_here(tmp_path):
    path, _ = models.saved_model(tmp_path, "bert", "ForMaskedLM", tie_word_embeddings=False)
    assert open_weights(path).unknown == ("cls.predictions.decoder.weight",)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_scores_of_every_token_are_not_taken_for_a_classifier(tmp_path, family):
    stem = models.FAMILIES[family][0]
    assert hasattr(transformers, f"{stem}ForTokenClassification")
    path, _ = models.saved_model(tmp_path, family, "ForTokenClassification")
    source = open_weights(path)
    assert source.unknown == ("classifier.bias", "classifier.weight")
    assert source.description.labels == ()


def test_the_layers_of_modernberts_classifier_are_not_taken_for_a_masked_language_model(tmp_path):
    path, _ = models.saved_model(tmp_path, "modernbert", "ForSequenceClassification")
    source = open_weights(path)
    assert {name.partition("/")[0] for name in source.names} == {"encoder"}
    assert set(source.unknown) == {"classifier.bias", "classifier.weight", "head.dense.weight", "head.norm.weight"}


# Classifiers.


@pytest.mark.parametrize(
    ("options", "labels", "objective"),
    [
        ({}, ("LABEL_0", "LABEL_1"), "single_label"),
        ({"id2label": {0: "no", 1: "yes", 2: "who knows"}}, ("no", "yes", "who knows"), "single_label"),
        ({"num_labels": 1}, ("LABEL_0",), "regression"),
        ({"num_labels": 2, "problem_type": "regression"}, ("LABEL_0", "LABEL_1"), "regression"),
        ({"num_labels": 4, "problem_type": "multi_label_classification"}, None, "multi_label"),
    ],
)
def test_classes_and_what_they_were_trained_for_travel_along(tmp_path, options, labels, objective):
    path, model = models.saved_model(tmp_path / "in", "bert", "ForSequenceClassification", **options)
    source = open_weights(path)
    assert source.description.labels == labels or labels is None
    assert source.description.objective == objective
    for kind in ("checkpoint", "keras", "hugging_face"):
        write_weights(source, str(tmp_path / kind), kind)
        assert_same(open_weights(str(tmp_path / kind)), source)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hugging_face")
    assert (config.id2label, config.num_labels) == (model.config.id2label, model.config.num_labels)
    assert config.problem_type == model.config.problem_type or model.config.problem_type is None


def test_classes_that_are_not_as_many_as_outputs_are_refused(tmp_path):
    path, _ = models.saved_model(tmp_path, "bert", "ForSequenceClassification")
    config = storage.read_json(f"{path}/config.json") | {"id2label": {"0": "a", "1": "b", "2": "c"}}
    storage.write_json(f"{path}/config.json", config)
    with pytest.raises(InputError, match="names 0, 1, 2 for a classifier with 2 outputs"):
        open_weights(path)


def test_a_fine_tuned_electra_goes_out_as_electra_because_of_its_pooler(saved, tmp_path):
    write_weights(open_weights(saved("electra", "ForSequenceClassification")[0]), str(tmp_path / "out"), "hugging_face")
    assert storage.read_json(str(tmp_path / "out" / "config.json"))["model_type"] == "electra"


def test_a_classifier_that_no_class_computes_is_refused(saved, tmp_path):
    source = open_weights(saved("bert", "ForSequenceClassification")[0])
    object.__setattr__(source.description, "pooling", "mean")
    with pytest.raises(InputError, match="first token and a dense layer; this model has pooling 'mean'"):
        write_weights(source, str(tmp_path / "out"), "hugging_face")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "causal"}, "encoder.attention = 'causal' has no counterpart"),
        ({"condition_size": 4}, "encoder.condition_size = 4 has no counterpart"),
        ({"hierarchical_alpha": 0.4}, "--max_length"),
        ({"normalization": "rms"}, "bert has no encoder.normalization = 'rms'"),
        ({"padding_id": 3, "type_vocabulary_size": 1}, None),
        ({"prediction_transform": False}, None),  # without that head it says nothing
    ],
)
def test_only_architectures_that_hugging_face_computes_are_written(tmp_path, changes, message):
    source = small_source(dataclasses.replace(CONFIG, **changes), heads=())
    if message is None:  # not RoBERTa, although there is one type of segments: its positions depend on the padding's id
        write_weights(source, str(tmp_path / "out"), "hugging_face")
        assert storage.read_json(str(tmp_path / "out" / "config.json"))["model_type"] == "bert"
        return
    with pytest.raises(InputError, match=re.escape(message)):
        write_weights(source, str(tmp_path / "out"), "hugging_face")


# Tokenizers.

TEXTS = ["The cat sat on the mat.", "Unable cats, unable mats", "É é e 猫猫 Cat cat", "word3 word9 word41word7", ""]


@pytest.mark.parametrize("lower_case", [True, False])
@pytest.mark.parametrize("kind", ["hugging_face", "tensorflow1"])
def test_their_tokenizer_gives_the_ids_of_ours(saved, tmp_path, lower_case, kind):
    _, model = saved("bert", "ForMaskedLM")
    model.save_pretrained(tmp_path / "in")
    (tmp_path / "pieces.txt").write_text("".join(f"{piece}\n" for piece in PIECES))
    theirs = transformers.BertTokenizer(vocab=str(tmp_path / "pieces.txt"), do_lower_case=lower_case)
    theirs.save_pretrained(tmp_path / "in")  # writes tokenizer.json and no vocab.txt
    source = open_weights(str(tmp_path / "in"))
    assert source.description.pieces == PIECES
    assert source.description.lower_case is lower_case
    write_weights(source, str(tmp_path / "out"), kind)
    ours = Tokenizer(make_vocabulary(source.description.pieces), lower_case=lower_case)
    ids, lengths = ours.tokenize(TEXTS)
    expected = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", model_type="bert")
    assert loaded(TEXTS, add_special_tokens=False)["input_ids"] == expected
    assert loaded("cat", "mat")["input_ids"] == theirs("cat", "mat")["input_ids"]
    assert collections.Counter(map(tuple, expected))  # not all empty
    back = open_weights(str(tmp_path / "out"))
    assert (back.description.pieces, back.description.lower_case) == (PIECES, lower_case)


def test_tokens_that_were_added_are_in_the_vocabulary(saved, tmp_path):
    _, model = saved("bert", "ForMaskedLM")
    model.save_pretrained(tmp_path)
    (tmp_path / "pieces.txt").write_text("".join(f"{piece}\n" for piece in PIECES[:-2]))
    theirs = transformers.BertTokenizer(vocab=str(tmp_path / "pieces.txt"))
    theirs.add_tokens(["extra", "more"])
    theirs.save_pretrained(tmp_path)
    assert open_weights(str(tmp_path)).description.pieces == (*PIECES[:-2], "extra", "more")


def test_a_tokenizer_of_another_kind_travels_along(saved, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    _, model = saved("roberta", "ForMaskedLM")
    model.save_pretrained(tmp_path / "in")
    bytes_and_pairs = tokenizers.ByteLevelBPETokenizer()
    bytes_and_pairs.train_from_iterator(TEXTS, vocab_size=300)
    transformers.PreTrainedTokenizerFast(tokenizer_object=bytes_and_pairs).save_pretrained(tmp_path / "in")
    source = open_weights(str(tmp_path / "in"))
    assert source.description.pieces is None
    expected = (tmp_path / "in" / "tokenizer.json").read_bytes()
    for kind in FORMATS:
        write_weights(source, str(tmp_path / kind), kind)
        assert (tmp_path / kind / "tokenizer.json").read_bytes() == expected
        write_weights(open_weights(str(tmp_path / kind)), str(tmp_path / f"{kind}_again"), "hugging_face")
        assert (tmp_path / f"{kind}_again" / "tokenizer.json").read_bytes() == expected


def test_word_pieces_with_accents_kept_go_out_with_the_tokenizer_they_came_with(saved, tmp_path):
    _, model = saved("bert", "ForMaskedLM")
    model.save_pretrained(tmp_path / "in")
    (tmp_path / "pieces.txt").write_text("".join(f"{piece}\n" for piece in PIECES))
    theirs = transformers.BertTokenizer(vocab=str(tmp_path / "pieces.txt"), do_lower_case=True, strip_accents=False)
    theirs.save_pretrained(tmp_path / "in")
    write_weights(open_weights(str(tmp_path / "in")), str(tmp_path / "out"), "hugging_face")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]
    assert PIECES.index("é") in loaded(TEXTS)["input_ids"][2]


def test_a_changed_vocabulary_goes_out_with_its_tokenizer(saved, tmp_path):
    _, model = saved("bert", "ForMaskedLM")
    model.save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES))
    source = surgery.keep_tokens(open_weights(str(tmp_path / "in")), range(30), [[5, 6]])
    write_weights(source, str(tmp_path / "out"), "hugging_face")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(loaded) == 31
    assert loaded("thecat", add_special_tokens=False)["input_ids"] == [30]
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().weight.shape == (31, 16)
