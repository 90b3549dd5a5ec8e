"""Stored rows: the shards of one or more corpora, of which any run of rows is read at once, inside the tf.data graph.

Reading is written in TensorFlow operations alone, because a TPU slice runs the input pipeline on other hosts, where no
Python of ours lives. `StoredRows` is what lanes and evaluation know of rows: where they lie, how a run of them is read,
and how records become tensors. `FileRows` reads files; their formats are in `corpora` and `google_bert`. Rows that are
made when a run starts are kept in memory, see `memory_rows`.
"""

import abc
import functools
import re
import struct

import numpy as np
import tensorflow as tf

from trainer import storage
from trainer.data.records import masked_crc
from trainer.errors import InputError, StorageFailed

# Marks that keep a message for a person apart from what TensorFlow wraps around it.
_MESSAGE_START, _MESSAGE_END = "<data error> ", " </data error>"
_FRAME_HEADER_BYTES, _FRAME_FOOTER_BYTES = 12, 4
_REMOTE_ATTEMPTS = 3


class StoredRows(abc.ABC):
    """Shards of one or more corpora; a run of rows inside a shard is what is read.

    Args:
        labels: one name a corpus, for messages.
        paths: one path a shard; all shards of the first corpus, then all of the second, ...
        shard_corpus: `[shards]` index of the corpus that a shard belongs to.
        shard_rows: `[shards]` number of rows.
        row_bytes: bytes that a row takes, on average.
    """

    def __init__(self, labels, paths, shard_corpus, shard_rows, row_bytes):
        self.labels = tuple(labels)
        self.paths = tuple(paths)
        self.shard_corpus = np.asarray(shard_corpus, np.int64)
        self.shard_rows = np.asarray(shard_rows, np.int64)
        self.shard_compressed = np.zeros(len(self.paths), bool)  # true for those that can only be read whole
        self.row_bytes = row_bytes

    @property
    def num_corpora(self):
        """How many corpora these are."""
        return len(self.labels)

    @property
    def remote(self):
        """Whether shards lie in an object store."""
        return any(storage.is_remote(path) for path in self.paths)

    def corpus_rows(self, corpus):
        """Returns the number of rows of one corpus."""
        return int(self.shard_rows[self.shard_corpus == corpus].sum())

    def corpus_is_compressed(self, corpus):
        """Returns whether a corpus holds shards that can only be read whole."""
        return bool(self.shard_compressed[self.shard_corpus == corpus].any())

    def tensors(self):
        """Returns the tables that `read` needs: `{name: tensor}`, on the host that builds the pipeline."""
        return {"rows": tf.constant(self.shard_rows)}

    @abc.abstractmethod
    def read(self, tensors, shard, first_row, num_rows):
        """Reads a run of rows, in the graph.

        Args:
            tensors: what `tensors()` returned.
            shard, first_row, num_rows: scalar int64 tensors; for a compressed shard the run must be the whole shard.

        Returns:
            `[num_rows, ...]` tensor of records.
        """

    @abc.abstractmethod
    def decode(self, records):
        """Turns any number of records, `[rows, ...]`, into the columns of a batch: `{name: [rows, ...] tensor}`."""


class FileRows(StoredRows):
    """Shards that are TFRecord files of one format.

    Args:
        labels, paths, shard_corpus, shard_rows: as of `StoredRows`.
        shard_bytes: `[shards]` size of the file.
        shard_compressed: `[shards]` whether the file is gzipped: such a shard can only be read whole.
        row_bytes: bytes that a row takes in an uncompressed file, on average.
        local_paths: one path a shard, at which a copy of it may lie, or appear, on the host that reads: that is read then;
            None for shards without. None if no shard has one.
        shard_crc32c: `[shards]` CRC-32C of the file, eight hexadecimal digits.
    """

    def __init__(
        self,
        labels,
        paths,
        shard_corpus,
        shard_rows,
        shard_bytes,
        shard_compressed,
        row_bytes,
        shard_crc32c,
        local_paths=None,
    ):
        super().__init__(labels, paths, shard_corpus, shard_rows, row_bytes)
        self.shard_bytes = np.asarray(shard_bytes, np.int64)
        self.shard_compressed = np.asarray(shard_compressed, bool)
        self.shard_crc32c = tuple(shard_crc32c)
        self.local_paths = tuple(path or "" for path in local_paths or ())

    def tensors(self):
        """See `StoredRows.tensors`."""
        return super().tensors() | {
            "local_paths": tf.constant(self.local_paths, tf.string),
            "paths": tf.constant(self.paths, tf.string),
            "bytes": tf.constant(self.shard_bytes),
            "compression": tf.constant(["GZIP" if gzipped else "" for gzipped in self.shard_compressed], tf.string),
        }

    @abc.abstractmethod
    def byte_range(self, tensors, shard, first_row, num_rows):
        """Returns (offset, number of bytes) of a run of rows in the uncompressed content of a shard, as int64."""

    @abc.abstractmethod
    def verify(self, tensors, records, shard, first_row):
        """Verifies the records of a run of rows.

        Args:
            tensors: what `tensors()` returned.
            records: `[rows]` strings; an empty one stands for a row that the file does not hold.
            shard, first_row: scalar int64 tensors.

        Returns:
            (records, intact): the records as lanes carry them, a tensor with one entry a row, and `[rows]` booleans.
        """

    def read(self, tensors, shard, first_row, num_rows):
        """See `StoredRows.read`: verified records.

        Where they cannot be had, evaluation raises an error that `explain_read_error` turns into a message that names
        the shard.
        """
        path = self._place(tensors, shard)
        compression = tensors["compression"][shard]
        offset, num_bytes = self.byte_range(tensors, shard, first_row, num_rows)

        def attempt(last):
            begin = tf.where(compression == "", offset, 0)
            stored = _read_run(path, compression, begin, num_bytes, num_rows, ignore_errors=not last)
            return self.verify(tensors, stored, shard, first_row)

        # What was changed or cut off on the way comes without an error; the next answer may be the right one.
        attempts = _REMOTE_ATTEMPTS if self.remote else 1
        records, intact = attempt(last=attempts == 1)
        for number in range(2, attempts + 1):
            again = functools.partial(attempt, last=number == attempts)
            records, intact = tf.cond(tf.reduce_all(intact), lambda r=records, i=intact: (r, i), again)
        num_bad = num_rows - tf.reduce_sum(tf.cast(intact, tf.int64))
        first_bad = first_row + tf.argmin(tf.cast(intact, tf.int32), output_type=tf.int64)
        verified = check_in_graph(
            num_bad == 0,
            [
                "shard ",
                path,
                " is damaged, truncated, or not the file that was prepared: of its rows ",
                first_row,
                " to ",
            ]
            + [first_row + num_rows - 1, ", ", num_bad, " fail their check, the first is row ", first_bad]
            + [". Copy the shard again, or prepare the data again."],
        )
        with tf.control_dependencies([verified]):
            return tf.identity(records)

    def _place(self, tensors, shard):
        """Returns the path to read a shard from, on the host that reads it."""
        path = tensors["paths"][shard]
        if not any(self.local_paths):
            return path
        local = tensors["local_paths"][shard]
        is_there = (local != "") & (tf.size(tf.io.matching_files(local)) > 0)
        return tf.where(is_there, local, path)

    def record_boundary(self, shard, offset):
        """Returns whether a record of a shard begins at a byte, as far as the index or manifest says."""
        return True


def _read_run(path, compression, offset, num_bytes, num_rows, ignore_errors):
    """Returns `[num_rows]` strings: the records from a byte on, and empty ones for those that are not there.

    With `ignore_errors` none of them is there after an error, of whatever kind.

    The raw operation is used because it is the only one in TensorFlow that seeks: the header of a
    `FixedLengthRecordDataset` is read, not skipped, and so is what `skip` leaves out. `tf.data.TFRecordDataset` does
    not pass offsets on. As part of an outermost dataset the operation fails (it cannot be serialized for optimization),
    but not inside a function as here. The buffer has the size of the run, so not a byte more is read, and the file is
    closed on return (an open file on `gs://` holds a block of read cache).
    """
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=path[None], compression_type=compression, buffer_size=num_bytes, byte_offsets=offset[None]
    )
    batches = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string)).batch(num_rows)
    if ignore_errors:
        batches = batches.ignore_errors()
    # Nothing is done for each record: there are thousands of them in a run.
    nothing = tf.data.Dataset.from_tensors(tf.zeros([0], tf.string))
    stored = batches.concatenate(nothing).take(1).get_single_element()
    return tf.concat([stored, tf.fill([num_rows - tf.size(stored, tf.int64)], "")], axis=0)


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


def explain_read_error(error, rows):
    """Turns what reading raised into the error a person should see.

    Args:
        error: the exception that iterating a dataset, or a step that takes from it, raised.
        rows: the `FileRows` that were read (of a `LanePlan`, say), or several: to find the shard that an error of
            TensorFlow's own speaks of.

    Returns:
        An `InputError` or `StorageFailed` that names the shard, or None where the error is not about stored data.
    """
    if not isinstance(error, tf.errors.OpError):
        return None
    rows = (rows,) if isinstance(rows, FileRows) else tuple(rows)
    message = error.message or ""
    marked = re.search(f"{re.escape(_MESSAGE_START)}(.*?){re.escape(_MESSAGE_END)}", message, re.DOTALL)
    if marked:
        text = re.sub(r"\\(.)", r"\1", marked[1])  # TensorFlow puts a backslash before quotes
        return _damaged_on_the_way(rows, text) or InputError(text)
    damaged = re.search(r"(corrupted|truncated) record at (\d+)", message)
    if damaged:
        return _explain_damage(rows, damaged[1], int(damaged[2]))
    if "inflate() failed" in message:
        return _explain_damage(rows, "corrupted", 0)
    paths = [path for stored in rows for path in (*stored.paths, *stored.local_paths) if path and path in message]
    path = max(paths, key=len, default=None)
    if path is None:
        return None
    if isinstance(error, tf.errors.NotFoundError):
        return InputError(f"shard {path} is missing. Copy it again or prepare the data again.")
    reason = next(line.strip() for line in message.splitlines() if path in line)
    return StorageFailed(f"shard {path} cannot be read: {reason}")


def _damaged_on_the_way(rows, message):
    """Returns the error about a shard in a bucket that is whole there though what was read of it is not, or None."""
    for stored in rows:
        for path in stored.local_paths:
            if path and f"shard {path} " in message:
                storage.remove(path)
                return StorageFailed(
                    f"the cached copy {path} of a shard was damaged and is deleted: start the run again."
                )
        for path, expected in zip(stored.paths, stored.shard_crc32c, strict=True):
            if f"shard {path} " in message and storage.is_remote(path) and storage.file_checksum(path) == expected:
                return StorageFailed(
                    f"rows of shard {path} arrived damaged {_REMOTE_ATTEMPTS} times, but in the bucket it is whole: network "
                    "or a proxy gave other bytes than are stored. No such row was used; start the run again."
                )
    return None


def _explain_damage(rows, kind, offset):
    """Finds the shard with a damaged record at a byte of its uncompressed content, which TensorFlow does not name."""
    for stored, shard in ((each, shard) for each in rows for shard in range(len(each.paths))):
        path = stored.paths[shard]
        if stored.shard_compressed[shard]:
            intact, where = _gzip_is_intact(path), "its content cannot be decompressed"
        else:
            # TensorFlow names the byte where the record begins, or where its content does.
            begins = (begin for begin in (offset, offset - _FRAME_HEADER_BYTES) if begin >= 0)
            begin = next((begin for begin in begins if stored.record_boundary(shard, begin)), None)
            if begin is None or begin >= stored.shard_bytes[shard]:
                continue
            intact, where = _record_is_intact(path, begin), f"{kind} record at byte {begin:,}"
        if not intact:
            return InputError(f"shard {path} is damaged: {where}. Copy the shard again, or prepare the data again.")
    labels = ", ".join(label for each in rows for label in each.labels)
    return StorageFailed(
        f"a {kind} record was read at byte {offset:,} of a shard of {labels}, but every shard is whole there now: "
        "storage or network gave other bytes than are stored. Start the run again."
    )


def _record_is_intact(path, offset):
    """Returns whether a whole record with matching checksums begins at a byte of a file."""
    if not tf.io.gfile.exists(path):
        return False
    with tf.io.gfile.GFile(path, "rb") as file:
        file.seek(offset)
        header = file.read(_FRAME_HEADER_BYTES)
        if len(header) < _FRAME_HEADER_BYTES:
            return False
        length, length_crc = struct.unpack("<QI", header)
        if masked_crc(header[:8]) != length_crc:
            return False
        content = file.read(length + _FRAME_FOOTER_BYTES)
    if len(content) < length + _FRAME_FOOTER_BYTES:
        return False
    return masked_crc(content[:length]) == struct.unpack("<I", content[length:])[0]


def _gzip_is_intact(path):
    """Returns whether a gzipped TFRecord file reads to its end."""
    try:
        for _ in tf.data.TFRecordDataset(path, compression_type="GZIP").batch(1024):
            pass
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError, tf.errors.NotFoundError):
        return False
    return True
