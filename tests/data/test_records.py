"""Rows survive being stored, in NumPy and in the graph alike, and damage to them shows."""

import numpy as np
import pytest
import tensorflow as tf
from small_data_sets import random_rows

from trainer import storage
from trainer.data.records import (
    NO_LABEL,
    RowFormat,
    decode_rows,
    decode_rows_in_graph,
    encode_rows,
    frame_records,
    row_hashes,
    rows_are_intact,
)

FORMATS = [RowFormat(4), RowFormat(17), RowFormat(128), RowFormat(31, id_bytes=4), RowFormat(64, id_bytes=4)]


def records_of(row_format, num_rows=40, salt=7, first_row=3, seed=0):
    """Returns random rows and their records."""
    vocabulary_size = 65536 if row_format.id_bytes == 2 else 2**31 - 1
    rows = random_rows(np.random.default_rng(seed), num_rows, row_format.sequence_length, vocabulary_size)
    return rows, encode_rows(row_format, *rows, salt=salt, first_row=first_row)


@pytest.mark.parametrize("row_format", FORMATS, ids=str)
def test_decoding_gives_back_what_was_encoded(row_format):
    (token_ids, segment_ids, starts, labels, num_tokens), records = records_of(row_format)
    assert records.shape == (40, row_format.record_bytes)
    rows = decode_rows(row_format, records)
    np.testing.assert_array_equal(rows.token_ids, token_ids)
    np.testing.assert_array_equal(rows.segment_ids, segment_ids)
    np.testing.assert_array_equal(rows.pair_labels, np.where(labels == NO_LABEL, -1, labels))
    inside = np.arange(row_format.sequence_length) < num_tokens[:, None]
    np.testing.assert_array_equal(rows.document_ids, np.cumsum(starts, axis=1) * inside)


@pytest.mark.parametrize("row_format", FORMATS, ids=str)
def test_decoding_in_the_graph_equals_decoding_in_numpy(row_format):
    _, records = records_of(row_format, num_rows=200)
    in_graph = tf.function(lambda records: vars(decode_rows_in_graph(row_format, records)))(records)
    for name, expected in vars(decode_rows(row_format, records)).items():
        assert in_graph[name].dtype == tf.int32
        assert expected.dtype == np.int32
        np.testing.assert_array_equal(in_graph[name], expected, err_msg=name)


@pytest.mark.parametrize("row_format", FORMATS, ids=str)
def test_hashes_in_the_graph_equal_those_in_numpy_and_find_any_changed_bit(row_format):
    _, records = records_of(row_format, salt=2**32 - 1)
    rng = np.random.default_rng(1)
    changed = records.copy()
    rows = rng.choice(40, 20, replace=False)
    changed[rows, rng.integers(0, row_format.record_bytes, 20)] ^= (1 << rng.integers(0, 8, 20)).astype(np.uint8)
    intact = rows_are_intact(row_format, tf.constant(changed), 2**32 - 1, 3)
    np.testing.assert_array_equal(intact, ~np.isin(np.arange(40), rows))
    stored = np.ascontiguousarray(records[:, :4]).view("<u4")[:, 0]
    np.testing.assert_array_equal(row_hashes(records, 2**32 - 1, 3), stored)


def test_rows_of_another_shard_or_place_do_not_pass():
    row_format = RowFormat(16)
    _, records = records_of(row_format)
    assert tf.reduce_all(rows_are_intact(row_format, tf.constant(records), 7, 3))
    assert not tf.reduce_any(rows_are_intact(row_format, tf.constant(records), 8, 3))
    assert not tf.reduce_any(rows_are_intact(row_format, tf.constant(records), 7, 4))
    swapped = records[[1, 0, *range(2, 40)]]
    assert rows_are_intact(row_format, tf.constant(swapped), 7, 3).numpy().tolist() == [False] * 2 + [True] * 38


def test_framed_records_are_an_ordinary_tfrecord_file(tmp_path):
    row_format = RowFormat(21)
    _, records = records_of(row_format)
    content = frame_records(records)
    assert len(content) == 40 * row_format.stride
    path = str(tmp_path / "rows.tfrecord")
    with open(path, "wb") as file:
        file.write(content)
    assert [record.tobytes() for record in records] == list(tf.data.TFRecordDataset(path).as_numpy_iterator())
    other = str(tmp_path / "other.tfrecord")
    with tf.io.TFRecordWriter(other) as writer:
        for record in records:
            writer.write(record.tobytes())
    assert storage.read_bytes(other) == content


@pytest.mark.parametrize(("vocabulary_size", "id_bytes"), [(30522, 2), (65536, 2), (65537, 4)])
def test_ids_take_as_few_bytes_as_the_vocabulary_allows(vocabulary_size, id_bytes):
    assert RowFormat.for_vocabulary(128, vocabulary_size).id_bytes == id_bytes


def test_impossible_formats_are_refused():
    with pytest.raises(ValueError, match="sequence_length must be at least 4"):
        RowFormat(3)
    with pytest.raises(ValueError, match="id_bytes must be 2 or 4"):
        RowFormat(8, id_bytes=3)
    rows, _ = records_of(RowFormat(8))
    with pytest.raises(ValueError, match="rows have 8 tokens, the format has 9"):
        encode_rows(RowFormat(9), *rows, salt=0, first_row=0)
