"""Rows of labelled texts: token for token those of Hugging Face `tokenizers`, in the order of lanes."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tokenizers

from trainer.data.classification_data import ClassificationData
from trainer.data.evaluation_rows import evaluation_dataset
from trainer.data.labelled_rows import encode_texts, expand_columns, longest_first
from trainer.data.lane_order import example_locations, fixed_permutation, plan_lanes
from trainer.data.lanes import training_dataset
from trainer.data.memory_rows import MemoryCorpus
from trainer.data.tokenization import Tokenizer
from trainer.data.vocabulary import SPECIAL_TOKENS, load_vocabulary, make_vocabulary
from trainer.errors import InputError

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = make_vocabulary([*SPECIAL_TOKENS, *LETTERS, *("##" + letter for letter in LETTERS), "我", "好"])


def reference(vocabulary, max_length):
    """Hugging Face's tokenizer as `BertTokenizerFast` sets it up, cutting pairs longest first."""
    made = tokenizers.BertWordPieceTokenizer(vocabulary.ids, lowercase=True)
    made.enable_truncation(max_length, strategy="longest_first")
    return made


def random_texts(rng, count, most=14):
    """Texts of different length, some without a token, some with Chinese characters."""
    words = ["ab", "c", "Ab", "xyz", "我好", "?"]
    return [" ".join(rng.choice(words, rng.integers(0, most))) for _ in range(count)]


def assert_rows_equal(encoded, encodings):
    """Checks rows against those of the reference."""
    columns = {name: value.numpy() for name, value in expand_columns(encoded.columns()).items()}
    for row, expected in enumerate(encodings):
        length = len(expected.ids)
        assert columns["token_ids"][row, :length].tolist() == expected.ids
        assert columns["segment_ids"][row, :length].tolist() == expected.type_ids
        assert columns["document_ids"][row].tolist() == [1] * length + [0] * (encoded.length - length)
        assert not columns["token_ids"][row, length:].any() and not columns["segment_ids"][row, length:].any()


@pytest.mark.parametrize("max_length", [3, 4, 9, 16, 40])
def test_single_texts_are_the_reference_s(max_length):
    texts = random_texts(np.random.default_rng(1), 200)
    encoded = encode_texts(Tokenizer(VOCABULARY, lower_case=True), texts, max_length=max_length)
    whole = reference(VOCABULARY, 1000).encode_batch(texts)
    assert_rows_equal(encoded, reference(VOCABULARY, max_length).encode_batch(texts))
    assert encoded.num_truncated == sum(len(each.ids) > max_length for each in whole)


@pytest.mark.parametrize("max_length", [5, 6, 9, 10, 16, 40])
def test_pairs_are_cut_as_the_reference_cuts_them(max_length):
    rng = np.random.default_rng(2)
    first, second = random_texts(rng, 300), random_texts(rng, 300)
    pairs = list(zip(first, second, strict=True))
    encoded = encode_texts(Tokenizer(VOCABULARY, lower_case=True), first, second, max_length=max_length)
    whole = reference(VOCABULARY, 1000).encode_batch(pairs)
    assert_rows_equal(encoded, reference(VOCABULARY, max_length).encode_batch(pairs))
    assert encoded.num_truncated == sum(len(each.ids) > max_length for each in whole)


def test_the_longer_text_is_cut_first():
    first, second = longest_first(np.array([10, 3, 9, 5, 4]), np.array([2, 10, 8, 5, 4]), 9)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(7, 2), (3, 6), (5, 4), (4, 5), (4, 4)]


def test_rows_are_as_long_as_the_longest_text_asks_for():
    tokenizer = Tokenizer(VOCABULARY, lower_case=True)
    for tokens, length in ((1, 16), (14, 16), (15, 32), (31, 40), (90, 40)):
        assert encode_texts(tokenizer, ["a " * tokens, "b"], max_length=40).length == length


@pytest.mark.parametrize(("second", "least"), [(None, 3), (["b"], 5)])
def test_a_length_without_room_for_text_is_refused(second, least):
    with pytest.raises(InputError, match=f"max_length {least - 1} leaves no room .* at least {least}"):
        encode_texts(Tokenizer(VOCABULARY, lower_case=True), ["a"], second, max_length=least - 1)


def test_pairs_of_real_sentences_are_the_reference_s():
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is absent: it is real data that is not part of the project")
    vocabulary = load_vocabulary(SHARED / "en" / "vocab.txt")
    lines = (SHARED / "en" / "sst2" / "dev.txt").read_text(encoding="utf-8").splitlines()
    first, second = lines, lines[::-1]
    encoded = encode_texts(Tokenizer(vocabulary, lower_case=True), first, second, max_length=48)
    assert 100 < encoded.num_truncated < len(lines)
    assert_rows_equal(encoded, reference(vocabulary, 48).encode_batch(list(zip(first, second, strict=True))))


def numbered_corpus(num_rows, expand=None):
    """Rows that carry their number, in columns of several types and shapes."""
    numbers = np.arange(num_rows)
    columns = {
        "token_ids": np.stack([numbers, numbers + 1, numbers * 0], axis=1).astype(np.uint16),
        "document_ids": np.ones((num_rows, 3), np.int32),
        "half": (numbers / 2).astype(np.float32),
        "bits": np.stack([numbers % 2, numbers % 3], axis=1).astype(np.uint8),
    }
    return MemoryCorpus("numbers", {"train": columns, "held_out": columns}, expand)


def read(dataset, num_elements):
    """Returns the columns of some elements, joined."""
    taken = list(dataset.take(num_elements).as_numpy_iterator())
    return {name: np.concatenate([element[name] for element in taken]) for name in taken[0]}


OPTIONS = {"seed": 4, "lanes": 8, "start_step": 0, "global_batch": 8, "rows_per_element": 8, "block_rows": 4}


def test_rows_in_memory_come_in_the_order_of_lanes_and_as_they_were():
    dataset = training_dataset([numbered_corpus(100)], **OPTIONS)
    assert dataset.element_spec["bits"] == tf.TensorSpec((8, 2), tf.uint8)
    rows = read(dataset, 40)
    plan = plan_lanes([numbered_corpus(100)], lanes=8, block_rows=4)
    numbers = example_locations(plan, seed=4, first_example=0, num_examples=320).row
    np.testing.assert_array_equal(rows["token_ids"], np.stack([numbers, numbers + 1, numbers * 0], axis=1))
    np.testing.assert_array_equal(rows["half"], numbers / 2)
    np.testing.assert_array_equal(rows["bits"], np.stack([numbers % 2, numbers % 3], axis=1))
    assert len(set(numbers[:96].tolist())) == 96  # an epoch of 8 lanes of 12 rows


def test_hosts_and_late_starts_give_the_rows_of_one_host_from_the_start():
    whole = read(training_dataset([numbered_corpus(100)], **OPTIONS), 30)
    late = OPTIONS | {"start_step": 20, "rows_per_element": 4, "num_hosts": 2}
    parts = [read(training_dataset([numbered_corpus(100)], **late, host=host), 10) for host in range(2)]
    together = np.stack([part["half"] for part in parts], axis=1).reshape(-1)
    np.testing.assert_array_equal(together, whole["half"][160:240])


def test_two_corpora_in_memory_share_the_lanes():
    other = numbered_corpus(40)
    other.splits["train"]["half"] += 1000
    rows = read(training_dataset([numbered_corpus(100), other], **OPTIONS), 20)
    assert np.mean(rows["half"] >= 1000) == 0.5


def test_evaluation_reads_rows_in_memory_once_in_order_and_pads():
    def expand(columns):
        return columns | {"token_ids": tf.cast(columns["token_ids"], tf.int32)}

    dataset, num_steps = evaluation_dataset([numbered_corpus(21, expand)], global_batch=8, rows_per_element=4)
    rows = read(dataset, 2 * num_steps)
    np.testing.assert_array_equal(rows["half"], [*np.arange(21) / 2, 0, 0, 0])
    np.testing.assert_array_equal(rows["example_weight"], [1] * 21 + [0] * 3)
    assert rows["token_ids"].dtype == np.int32
    np.testing.assert_array_equal(rows["document_ids"][21:], [[1, 0, 0]] * 3)


def test_a_split_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="numbers holds no rows of the split 'test'; it has train, held_out"):
        plan_lanes([numbered_corpus(20)], lanes=4, split="test")


def test_the_fixed_permutation_is_one():
    assert sorted(fixed_permutation(1000).tolist()) == list(range(1000))
    assert np.abs(np.diff(fixed_permutation(1000))).mean() > 200


@pytest.fixture
def files(tmp_path):
    """A vocabulary and a sorted file of 40 labelled texts, each another one."""
    (tmp_path / "vocab.txt").write_text("".join(piece + "\n" for piece in VOCABULARY.pieces))
    rows = [f"{LETTERS[number // 26]} {LETTERS[number % 26]}\t{number // 20}\n" for number in range(40)]
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "".join(rows))
    (tmp_path / "dev.tsv").write_text("text\tlabel\n" + "".join(rows[5:30]))
    return tmp_path


def opened(files, objective="single_label", report=lambda line: None, trained=None, **options):
    """Opens the files; `trained` are arguments of `ClassificationData.open`."""
    settings = {"train": f"{files}/train.tsv", "held_out": f"{files}/dev.tsv"}
    data = ClassificationData(**settings | options)
    return data.open(objective, load_vocabulary(f"{files}/vocab.txt"), report=report, **trained or {})


def test_an_epoch_holds_every_example_once_wherever_it_stands_in_the_file(files):
    data = opened(files)
    assert data.lanes == 2  # at least 16 rows in each
    options = {"seed": 1, "start_step": 0, "global_batch": 4, "rows_per_element": 4}
    rows = read(data.training_dataset(**options), 10)
    places = data.example_places(seed=1, first_example=0, num_examples=40)
    lines = [int(place.rpartition(" ")[2]) for place in places]
    assert sorted(lines) == list(range(2, 42))
    for line, ids, label in zip(lines, rows["token_ids"], rows["labels"], strict=True):
        first, second = divmod(line - 2, 26)
        assert data.pieces.text(ids[1:3]) == f"{LETTERS[first]} {LETTERS[second]}"
        assert label == (line - 2) // 20
    assert set(rows["labels"][:8].tolist()) == {0, 1}  # although the file is sorted


def test_more_lanes_than_examples_repeat_them(files):
    data = opened(files, lanes=64)
    places = data.example_places(seed=1, first_example=0, num_examples=64)
    lines = [int(place.rpartition(" ")[2]) for place in places]
    assert max(lines.count(line) for line in lines) == 2 and len(set(lines)) > 30
    described = dict(data.describe(80))
    assert "40 examples" in described["train"] and "2.00 epochs in all" in described["train"]
    assert "fewer than the 64 lanes, so each is there 2 times" in described["train"]
    assert described["held_out labels"] == "0: 15, 1: 10"


def test_too_few_lanes_for_the_hosts_are_refused_with_the_number_that_does(files):
    with pytest.raises(InputError, match=r"4 hosts do not divide lanes = 2: .* is 4"):
        opened(files).training_dataset(seed=1, start_step=0, global_batch=8, rows_per_element=1, host=0, num_hosts=4)


def test_a_fingerprint_tells_content_labels_and_encoding_apart_but_not_places(files):
    prints = {"as it is": opened(files).fingerprints}
    assert len(prints["as it is"]) == 2
    prints["max_length"] = opened(files, max_length=3).fingerprints
    prints["class_names"] = opened(files, class_names=["1", "0"]).fingerprints
    prints["objective"] = opened(files, "multi_label").fingerprints
    content = (files / "train.tsv").read_text()
    (files / "moved.tsv").write_text(content)
    assert opened(files, train=f"{files}/moved.tsv").fingerprints == prints["as it is"]
    (files / "train.tsv").write_text(content.replace("a b\t0", "a b\t1"))
    prints["a label"] = opened(files).fingerprints
    (files / "train.tsv").write_text(content.replace("a b\t0", "a a\t0"))
    prints["a text"] = opened(files).fingerprints
    assert len({each[0] for each in prints.values()}) == len(prints)
    assert prints["a text"][1] == prints["as it is"][1]


def test_a_held_out_label_that_training_lacks_is_refused_by_name(files):
    with open(files / "dev.tsv", "a") as file:
        file.write("c\t7\n")
    with pytest.raises(
        InputError, match=r"dev.tsv line 27: the label '7' is none of the classes, which training data has"
    ):
        opened(files)


def test_a_trained_model_is_evaluated_with_its_own_classes_and_no_training_file(files):
    (files / "train.tsv").unlink()
    notes, trained = [], {"splits": ("held_out",), "trained_classes": ("1", "x", "0")}
    data = opened(files, report=notes.append, trained=trained)
    assert data.labels["held_out"].tolist() == [2] * 15 + [0] * 10 and notes == ["read 25 examples to evaluate on"]
    dataset, num_steps = data.evaluation_dataset(global_batch=5, rows_per_element=5)
    assert read(dataset, num_steps)["labels"].tolist() == data.labels["held_out"].tolist()
    assert data.sequence_length == 16
    trained["trained_classes"] = ("0", "x")
    with pytest.raises(InputError, match="line 17: the label '1' is none of the classes, which the model has as 0, x"):
        opened(files, trained=trained)


def test_labels_that_may_be_something_else_are_told(files):
    notes = []
    opened(files, report=notes.append)
    assert len(notes) == 1
    opened(files, report=notes.append, label_column="text", text_column="label", held_out=None)
    assert "warning: 40 classes for 40 examples: is 'text' the label" in notes[1]
    columns = {"column_names": ["text", "label"], "held_out": None}
    (files / "train.tsv").write_text((files / "train.tsv").read_text().replace("text\tlabel", "Review\tClass"))
    opened(files, report=notes.append, **columns)
    assert "train.tsv line 1: no other line has its label, 'Class': is it a header?" in notes[3]


@pytest.mark.parametrize("given", [5, ["a.tsv", 5], [], "", None, {"a": 1}])
def test_files_are_named_by_paths_alone(given):
    with pytest.raises(ValueError, match=r"train must be a path, a pattern with .*, or a list of them, got "):
        ClassificationData(train=given)
    if given is not None:
        with pytest.raises(ValueError, match="held_out must be a path"):
            ClassificationData(train="a.tsv", held_out=given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["0"]}, "class_names names one class alone, '0'"),
        ({"class_names": ["0", "1", "0"]}, "class_names has a name twice"),
        ({"class_names": ["0", "2"]}, "train.tsv line 22: the label '1' is none of the classes, which class_names has"),
        ({"lanes": 0}, "lanes is 0"),
    ],
)
def test_what_does_not_fit_is_refused(files, options, message):
    with pytest.raises(InputError, match=message):
        opened(files, **options)
