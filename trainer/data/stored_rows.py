"""Stored rows: the shards of one or more corpora, of which any run of rows is read at once, inside the tf.data graph.

Reading is written in TensorFlow operations alone, because a TPU slice runs the input pipeline on other hosts, where no
Python of ours lives. `StoredRows` is what lanes and evaluation know of a format: where rows lie, how the bytes of a run
are split and verified, and how records become tensors. The formats are in `corpora` and `google_bert`.
"""

import abc
import re

import numpy as np
import tensorflow as tf

from trainer.errors import InputError, StorageFailed

# Marks that keep a message for a person apart from what TensorFlow wraps around it.
_MESSAGE_START, _MESSAGE_END = "<data error> ", " </data error>"
_DECOMPRESSION_BUFFER_BYTES = 1 << 20


class StoredRows(abc.ABC):
    """Shards of one or more corpora in one format; a run of rows inside a shard is what is read.

    Args:
        labels: one name a corpus, for messages.
        paths: one path a shard; all shards of the first corpus, then all of the second, ...
        shard_corpus: `[shards]` index of the corpus that a shard belongs to.
        shard_rows: `[shards]` number of rows.
        shard_bytes: `[shards]` size of the file.
        shard_compressed: `[shards]` whether the file is gzipped: such a shard can only be read whole.
        row_bytes: bytes that a row takes in an uncompressed file, on average.
    """

    def __init__(self, labels, paths, shard_corpus, shard_rows, shard_bytes, shard_compressed, row_bytes):
        self.labels = tuple(labels)
        self.paths = tuple(paths)
        self.shard_corpus = np.asarray(shard_corpus, np.int64)
        self.shard_rows = np.asarray(shard_rows, np.int64)
        self.shard_bytes = np.asarray(shard_bytes, np.int64)
        self.shard_compressed = np.asarray(shard_compressed, bool)
        self.row_bytes = row_bytes

    @property
    def num_corpora(self):
        """How many corpora these are."""
        return len(self.labels)

    def corpus_rows(self, corpus):
        """Returns the number of rows of one corpus."""
        return int(self.shard_rows[self.shard_corpus == corpus].sum())

    def corpus_is_compressed(self, corpus):
        """Returns whether a corpus holds gzipped shards."""
        return bool(self.shard_compressed[self.shard_corpus == corpus].any())

    def tensors(self):
        """Returns the tables that `read` needs: `{name: tensor}`, on the host that builds the pipeline."""
        return {
            "paths": tf.constant(self.paths, tf.string),
            "rows": tf.constant(self.shard_rows),
            "bytes": tf.constant(self.shard_bytes),
            "compression": tf.constant(["GZIP" if gzipped else "" for gzipped in self.shard_compressed], tf.string),
        }

    @abc.abstractmethod
    def byte_range(self, tensors, shard, first_row, num_rows):
        """Returns (offset, number of bytes) of rows in the uncompressed content of a shard, as int64 tensors."""

    @abc.abstractmethod
    def split(self, tensors, content, shard, first_row, num_rows):
        """Splits the bytes of a run of rows and verifies each.

        Returns:
            (records, intact): a tensor with one entry a row, and `[rows]` booleans.
        """

    @abc.abstractmethod
    def decode(self, records):
        """Turns any number of records, `[rows, ...]`, into the columns of a batch: `{name: [rows, ...] tensor}`."""

    def read(self, tensors, shard, first_row, num_rows):
        """Reads and verifies a run of rows, in the graph.

        Args:
            tensors: what `tensors()` returned.
            shard, first_row, num_rows: scalar int64 tensors; for a gzipped shard the run must be the whole shard.

        Returns:
            `[num_rows, ...]` tensor of records. Where they cannot be had, evaluation raises an error that
            `explain_read_error` turns into a message that names the shard.
        """
        path = tensors["paths"][shard]
        offset, num_bytes = self.byte_range(tensors, shard, first_row, num_rows)
        content = _read_range(path, offset, num_bytes, tensors["bytes"][shard], tensors["compression"][shard])
        found_bytes = tf.cast(tf.strings.length(content), tf.int64)
        last_row = first_row + num_rows - 1
        complete = check_in_graph(
            found_bytes == num_bytes,
            ["shard ", path, " ends early: of rows ", first_row, " to ", last_row, " only ", found_bytes, " of "]
            + [num_bytes, " bytes are there. Copy the shard again."],
        )
        with tf.control_dependencies([complete]):
            records, intact = self.split(tensors, tf.identity(content), shard, first_row, num_rows)
        bad_rows = num_rows - tf.reduce_sum(tf.cast(intact, tf.int64))
        first_bad = first_row + tf.argmin(tf.cast(intact, tf.int32), output_type=tf.int64)
        verified = check_in_graph(
            bad_rows == 0,
            ["shard ", path, " is damaged, or not the file that was prepared: ", bad_rows, " of the ", num_rows]
            + [" rows from ", first_row, " to ", last_row, " fail their check, the first is row ", first_bad]
            + [". Copy the shard again, or prepare the data again."],
        )
        with tf.control_dependencies([verified]):
            return tf.identity(records)


def _read_range(path, offset, num_bytes, file_bytes, compression):
    """Returns bytes `offset` to `offset + num_bytes` of a file as a scalar string tensor, empty where it ends before.

    A run of rows is one record of a `FixedLengthRecordDataset` whose header and footer are what lies around it. The
    buffer has the size of the run, so not a byte more is read; taking two elements runs the reader to its end, which
    closes the file (an open file on `gs://` holds a block of read cache).
    """
    compressed = compression != ""
    zero = tf.constant(0, tf.int64)
    reader = tf.data.FixedLengthRecordDataset(
        path,
        num_bytes,
        header_bytes=tf.where(compressed, zero, offset),
        footer_bytes=tf.where(compressed, zero, file_bytes - offset - num_bytes),
        buffer_size=tf.where(compressed, tf.constant(_DECOMPRESSION_BUFFER_BYTES, tf.int64), num_bytes),
        compression_type=compression,
    )
    return reader.concatenate(tf.data.Dataset.from_tensors("")).batch(2).get_single_element()[0]


def check_in_graph(condition, message_parts):
    """Returns an operation that fails with a message that `explain_read_error` finds unless the condition holds.

    Args:
        condition: scalar boolean tensor.
        message_parts: strings, string tensors and integer tensors, joined to the message.
    """
    parts = [_MESSAGE_START]
    for part in message_parts:
        is_text = isinstance(part, str) or part.dtype == tf.string
        parts.append(part if is_text else tf.strings.as_string(part))
    return tf.debugging.Assert(condition, [tf.strings.join([*parts, _MESSAGE_END])])


def explain_read_error(error, paths=()):
    """Turns what reading raised into the error a person should see.

    Args:
        error: the exception that iterating a dataset, or a step that takes from it, raised.
        paths: paths of the shards that were read (`StoredRows.paths`), to find the one a TensorFlow error speaks of.

    Returns:
        An `InputError` or `StorageFailed` that names the shard, or None where the error is not about stored data.
    """
    if not isinstance(error, tf.errors.OpError):
        return None
    message = error.message or ""
    marked = re.search(f"{re.escape(_MESSAGE_START)}(.*?){re.escape(_MESSAGE_END)}", message, re.DOTALL)
    if marked:
        return InputError(re.sub(r"\\(.)", r"\1", marked[1]))  # TensorFlow puts a backslash before quotes
    path = max((path for path in paths if path in message), key=len, default=None)
    if path is None:
        return None
    if isinstance(error, tf.errors.NotFoundError):
        return InputError(f"shard {path} is missing. Copy it again or prepare the data again.")
    if "is not an exact multiple of the record length" in message:
        return InputError(
            f"shard {path} has another size than its manifest says: it is truncated or not the file that was prepared. "
            "Copy it again."
        )
    reason = next((line.strip() for line in message.splitlines() if path in line), message.strip())
    if isinstance(error, tf.errors.DataLossError | tf.errors.InvalidArgumentError | tf.errors.OutOfRangeError):
        return InputError(f"shard {path} is damaged: {reason}. Copy it again.")
    return StorageFailed(f"shard {path} cannot be read: {reason}")
