"""Reading what Google BERT's create_pretraining_data.py writes."""

import os

import numpy as np
import pytest
import tensorflow as tf

from trainer import storage
from trainer.data import google_bert
from trainer.data.corpora import check_corpora
from trainer.data.evaluation_rows import evaluation_dataset
from trainer.data.google_bert import GoogleBertCorpus, original_token_ids, scan_records
from trainer.data.lane_order import example_locations, plan_lanes
from trainer.data.lanes import training_dataset
from trainer.data.stored_rows import explain_read_error
from trainer.errors import InputError

LENGTH, PREDICTIONS, MASK = 12, 3, 103


def example(rng, number, vocabulary_size=30000):
    """Returns (columns, serialized example) of a row, written the way create_pretraining_data.py does.

    Ids vary in size, so records vary in length.
    """
    num_tokens, num_masked = int(rng.integers(6, LENGTH + 1)), int(rng.integers(0, PREDICTIONS + 1))
    original = np.zeros(LENGTH, np.int64)
    original[:num_tokens] = rng.integers(1, vocabulary_size, num_tokens)
    original[0] = number
    positions = np.zeros(PREDICTIONS, np.int64)
    positions[:num_masked] = np.sort(rng.choice(np.arange(1, num_tokens), num_masked, replace=False))
    weights = (np.arange(PREDICTIONS) < num_masked).astype(np.float32)
    token_ids = original.copy()
    token_ids[positions[:num_masked]] = MASK
    columns = {
        "input_ids": token_ids,
        "input_mask": (np.arange(LENGTH) < num_tokens).astype(np.int64),
        "segment_ids": ((np.arange(LENGTH) > 4) & (np.arange(LENGTH) < num_tokens)).astype(np.int64),
        "masked_lm_positions": positions,
        "masked_lm_ids": np.where(weights > 0, original[positions], 0),
        "masked_lm_weights": weights,
        "next_sentence_labels": np.array([number % 2]),
    }
    return columns | {"original": original}, serialized(columns)


def serialized(columns):
    """Returns columns as a serialized tf.train.Example."""

    def feature(values):
        if values.dtype == np.float32:
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    features = {name: feature(values) for name, values in columns.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_file(path, first, count):
    """Writes a file of rows numbered from `first`, and returns their columns stacked."""
    rng = np.random.default_rng(first)
    rows = [example(rng, number) for number in range(first, first + count)]
    with tf.io.TFRecordWriter(path) as writer:
        for _, record in rows:
            writer.write(record)
    return {name: np.stack([columns[name] for columns, _ in rows]) for name in rows[0][0]}


@pytest.fixture
def files(tmp_path):
    """Two training files and a held-out one; returns (corpus, columns of the training rows)."""
    parts = [
        write_file(str(tmp_path / f"train-{part}.tfrecord"), 1000 * part, rows) for part, rows in ((1, 40), (2, 25))
    ]
    write_file(str(tmp_path / "test.tfrecord"), 5000, 7)
    corpus = GoogleBertCorpus(str(tmp_path / "train-*.tfrecord"), held_out=str(tmp_path / "test.tfrecord"))
    return corpus, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def with_options(corpus, **options):
    return type(corpus)(corpus.train, held_out=corpus.held_out, **options)


def read(corpus, num_elements, **changes):
    settings = {"seed": 1, "lanes": 4, "start_step": 0, "global_batch": 8, "rows_per_element": 8, "block_rows": 8}
    elements = list(training_dataset([corpus], **(settings | changes)).take(num_elements).as_numpy_iterator())
    return {name: np.concatenate([element[name] for element in elements]) for name in elements[0]}


def test_every_column_arrives_in_the_order_of_the_lanes(files):
    corpus, stored = files
    rows = read(corpus, 20)
    plan = plan_lanes([corpus], lanes=4, block_rows=8)
    locations = example_locations(plan, seed=1, first_example=0, num_examples=160)
    row = locations.row + np.array([0, 40])[locations.shard]
    names = {
        "token_ids": "input_ids",
        "segment_ids": "segment_ids",
        "document_ids": "input_mask",
        "masked_positions": "masked_lm_positions",
        "masked_ids": "masked_lm_ids",
        "masked_weights": "masked_lm_weights",
    }
    for name, feature in names.items():
        assert rows[name].dtype == (np.float32 if name == "masked_weights" else np.int32)
        np.testing.assert_array_equal(rows[name], stored[feature][row], err_msg=name)
    np.testing.assert_array_equal(rows["pair_labels"], stored["next_sentence_labels"][row, 0])
    np.testing.assert_array_equal(rows["example_index"], np.tile(np.arange(8), 20))
    assert len(set(row[:64])) == 64


def test_seeking_and_hosts_agree_with_reading_through(files):
    whole = read(files[0], 20)["token_ids"]
    np.testing.assert_array_equal(read(files[0], 6, start_step=9)["token_ids"], whole[72:120])
    parts = [read(files[0], 20, host=host, num_hosts=2, rows_per_element=4)["token_ids"] for host in (0, 1)]
    np.testing.assert_array_equal(np.stack(parts, axis=1).reshape(whole.shape), whole)


def test_remask_puts_the_original_tokens_back(files):
    corpus, stored = files
    rows = read(with_options(corpus, remask=True), 8)
    assert not any(name.startswith("masked") for name in rows)
    originals = {row[0]: row for row in stored["original"]}
    np.testing.assert_array_equal(rows["token_ids"], [originals[row[0]] for row in rows["token_ids"]])
    assert not (rows["token_ids"] == MASK).any()


def test_unused_slots_do_not_overwrite_the_first_token():
    restored = original_token_ids(
        tf.constant([[7, MASK, 9, 0]]),
        masked_positions=tf.constant([[1, 0, 0]]),
        masked_ids=tf.constant([[8, 0, 0]]),
        masked_weights=tf.constant([[1.0, 0.0, 0.0]]),
    )
    assert restored.numpy().tolist() == [[7, 8, 9, 0]]


def test_evaluation_reads_every_held_out_row_once(files):
    dataset, num_steps = evaluation_dataset([files[0]], global_batch=4, rows_per_element=4)
    elements = list(dataset.take(num_steps).as_numpy_iterator())
    assert num_steps == 2
    assert np.concatenate([element["token_ids"][:, 0] for element in elements]).tolist() == [*range(5000, 5007), 0]
    assert np.concatenate([element["example_weight"] for element in elements]).tolist() == [1] * 7 + [0]
    with pytest.raises(InputError, match="no files for the split 'held_out'"):
        evaluation_dataset([GoogleBertCorpus(files[0].train)], global_batch=4, rows_per_element=4)


def test_the_index_is_kept_until_the_file_changes(files, tmp_path, monkeypatch):
    scanned = []
    monkeypatch.setattr(google_bert, "scan_records", lambda path: scanned.append(path) or scan_records(path))
    path, folder = str(tmp_path / "train-1.tfrecord"), str(tmp_path / "indexes")
    first, second = (google_bert.file_index(path, folder) for _ in range(2))
    assert scanned == [path]
    np.testing.assert_array_equal(first.offsets, second.offsets)
    write_file(path, 300, 11)
    assert len(google_bert.file_index(path, folder).offsets) == 12
    (index,) = storage.listing(folder)
    storage.write_bytes(storage.join(folder, index), b"damaged")
    assert len(google_bert.file_index(path, folder).offsets) == 12
    assert scanned == [path] * 3


def test_records_are_found_whatever_the_chunks_they_are_read_in(tmp_path, monkeypatch):
    path = str(tmp_path / "file")
    write_file(path, 0, 20)
    whole, checksum = scan_records(path)
    assert checksum == storage.file_checksum(path)
    assert len(whole) == 21
    assert whole[-1] == os.path.getsize(path)
    for chunk_bytes in (1, 13, 200):
        monkeypatch.setattr(google_bert, "_CHUNK_BYTES", chunk_bytes)
        np.testing.assert_array_equal(scan_records(path)[0], whole)


def without(columns, name):
    return {key: value for key, value in columns.items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text", "is not a TFRecord file"),
        ("empty", "is empty"),
        ("gzip", "is gzipped"),
        ("flipped", r"is damaged: record \d+ at byte [\d,]+ fails its checksum"),
        ("framing", r"is damaged: no record begins at byte [\d,]+"),
        ("truncated", "is truncated: it ends in the middle of record 19"),
        ("not examples", "records that are not tf.train.Example"),
        ("no labels", "examples without next_sentence_labels .*; they have input_ids"),
        ("weights of integers", "examples without masked_lm_weights"),
        ("sizes", "features differ in size: input_ids 12, input_mask 12, segment_ids 5"),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path, content, message):
    path = str(tmp_path / "file")
    write_file(path, 0, 20)
    data = bytearray(storage.read_bytes(path))
    columns, _ = example(np.random.default_rng(0), 1)
    columns = without(columns, "original")
    if content == "text":
        data = b"This is text and not a file of records."
    elif content == "empty":
        data = b""
    elif content == "gzip":
        data = b"\x1f\x8b" + bytes(100)
    elif content == "flipped":
        data[scan_records(path)[0][3] + 20] ^= 1
    elif content == "framing":
        data[scan_records(path)[0][3]] ^= 1
    elif content == "truncated":
        del data[-3:]
    else:
        record = {
            "not examples": b"\xff\xff\xff",
            "no labels": serialized(without(columns, "next_sentence_labels")),
            "weights of integers": serialized(columns | {"masked_lm_weights": np.array([1, 0, 0])}),
            "sizes": serialized(columns | {"segment_ids": np.arange(5)}),
        }[content]
        with tf.io.TFRecordWriter(path) as writer:
            writer.write(record)
        data = storage.read_bytes(path)
    storage.write_bytes(path, bytes(data))
    with pytest.raises(InputError, match=message) as error:
        check_corpora([GoogleBertCorpus(path)])
    assert path in str(error.value)


def test_files_of_other_sizes_are_refused(files, tmp_path):
    columns, _ = example(np.random.default_rng(0), 1)
    columns = without(columns, "original") | {
        name: np.zeros(5, np.float32 if name.endswith("weights") else np.int64)
        for name in ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")
    }
    path = str(tmp_path / "train-3.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(serialized(columns))
    with pytest.raises(InputError, match=f"{path} has rows of 12 tokens and 5 predictions, .* of 12 and 3"):
        check_corpora([files[0]])


def test_a_run_of_another_length_or_pattern_is_refused(files, tmp_path):
    check_corpora([files[0]], sequence_length=LENGTH)
    with pytest.raises(InputError, match="rows of 12 tokens, the run expects 128"):
        check_corpora([files[0]], sequence_length=128)
    with pytest.raises(InputError, match="no file matches"):
        check_corpora([GoogleBertCorpus(str(tmp_path / "nothing*"))])
    with pytest.raises(InputError, match=r"remask True, .* False"):
        check_corpora([files[0], with_options(files[0], remask=True)])


def error_of_reading(corpus):
    plan = plan_lanes([corpus], lanes=4, block_rows=8)
    path = plan.rows.paths[1]
    yield path
    with pytest.raises(tf.errors.OpError) as caught:
        for _ in training_dataset(plan, seed=1, lanes=4, start_step=0, global_batch=8, rows_per_element=8).take(20):
            pass
    yield explain_read_error(caught.value, plan.rows)


@pytest.mark.parametrize("kind", ["flipped", "truncated", "replaced", "missing"])
def test_a_file_that_changes_during_training_is_named(files, kind):
    reading = error_of_reading(files[0])
    path = next(reading)
    data = bytearray(storage.read_bytes(path))
    if kind == "flipped":
        data[len(data) // 2] ^= 1
    elif kind == "truncated":
        del data[-100:]
    elif kind == "replaced":
        write_file(path, 7000, 25)
        data = storage.read_bytes(path)
    storage.remove(path)
    if kind != "missing":
        storage.write_bytes(path, bytes(data))
    error = next(reading)
    assert isinstance(error, InputError)
    assert path in str(error)


def test_ids_outside_the_vocabulary_are_refused(files):
    read(with_options(files[0], vocabulary_size=30000), 2)
    corpus = with_options(files[0], vocabulary_size=20000)
    plan = plan_lanes([corpus], lanes=4, block_rows=8)
    with pytest.raises(tf.errors.OpError) as caught:
        read(corpus, 2)
    message = str(explain_read_error(caught.value, plan.rows))
    assert "but the vocabulary has 20000 pieces" in message
    assert files[0].train in message
